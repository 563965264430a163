"""The memory of a module's tensors: made, filled, copied and bound as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .layout import Layout, unique_tensors


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Tensors made inside are ordinary ones, also when a caller is in inference mode: those could never be rebound."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class WeightSet:
    """One copy of a module's tensors.

    Attributes:
        memory: flat uint8 memory of every group.
        views: the tensors, in the order of the layout's slots.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        with plain_tensors():
            self.memory = [torch.empty(nbytes, dtype=torch.uint8, device=device) for nbytes in layout.group_bytes]
            self.views = layout.views(self.memory)

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes

    def named(self) -> Mapping[str, Tensor]:
        """The tensors by name."""
        return {slot.name: view for slot, view in zip(self.layout.slots, self.views, strict=True)}

    def copy_group(self, source: WeightSet, group: int) -> int:
        """Copies one group; returns its bytes. On the current stream, without waiting."""
        self.memory[group].copy_(source.memory[group], non_blocking=True)
        return self.memory[group].nbytes

    def copy_from(self, source: WeightSet) -> int:
        return sum(self.copy_group(source, group) for group in range(len(self.memory)))


def bind(tensors: Sequence[Tensor], views: Sequence[Tensor]) -> None:
    """Lets a module's tensor objects show other memory. Nothing is copied."""
    for tensor, view in zip(tensors, views, strict=True):
        tensor.data = view


def share(source: nn.Module, target: nn.Module) -> None:
    """Gives ``target`` the very tensor objects of ``source``, so that binding one binds both.

    Raises:
        KeyError: ``source`` lacks a module or tensor that ``target`` has.
    """
    modules = dict(source.named_modules())
    for path, module in target.named_modules():
        for name in module._parameters:
            module._parameters[name] = modules[path]._parameters[name]
        for name in module._buffers:
            module._buffers[name] = modules[path]._buffers[name]


def assign(module: nn.Module, views: Sequence[Tensor]) -> None:
    """Replaces a module's (meta) tensors by ``views``, in the order of :func:`unique_tensors`; tied ones stay tied."""
    old = [tensor for _, tensor in unique_tensors(module)]
    new = {
        id(tensor): nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
        for tensor, view in zip(old, views, strict=True)
    }
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = new[id(tensor)]  # type: ignore[assignment]
