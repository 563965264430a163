"""The memory of a module's tensors: made, filled, copied and bound as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .host_memory import PinnedBudget
from .layout import Layout, unique_tensors


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Tensors made inside are ordinary ones, also when a caller is in inference mode: those could never be rebound."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class WeightSet:
    """One copy of a module's tensors.

    Its memory can be given up and claimed again, group by group; the tensors stay the same objects, and must not be
    touched in between.

    Args:
        claimed: False makes a set that has no memory yet.

    Attributes:
        memory: flat uint8 memory of every group.
        views: the tensors, in the order of the layout's slots.
    """

    def __init__(self, layout: Layout, device: torch.device, claimed: bool = True) -> None:
        self.layout = layout
        self.memory: list[Tensor] = []
        views: dict[int, Tensor] = {}
        with plain_tensors():
            for group, nbytes in enumerate(layout.group_bytes):
                self.memory.append(torch.empty(nbytes, dtype=torch.uint8, device=device))
                views.update(zip(layout.members[group], layout.group_views(group, self.memory[group]), strict=True))
                if not claimed:
                    self.memory[group].untyped_storage().resize_(0)
        self.views = [views[index] for index in range(len(layout.slots))]

    @property
    def nbytes(self) -> int:
        """What it takes now."""
        return sum(memory.untyped_storage().nbytes() for memory in self.memory)

    def claim(self, group: int) -> None:
        """Takes memory for a group that has none, from the current stream's pool; its content is undefined."""
        storage, nbytes = self.memory[group].untyped_storage(), self.layout.group_bytes[group]
        if storage.nbytes() < nbytes:
            storage.resize_(nbytes)

    def give_up(self) -> None:
        """Gives all memory back; on streams of the device, after ``record_stream`` of every one that uses it."""
        for memory in self.memory:
            memory.untyped_storage().resize_(0)

    def named(self, group: int | None = None) -> Mapping[str, Tensor]:
        """The tensors by name, of one group or all."""
        slots, members = self.layout.slots, self.layout.members
        indices = range(len(slots)) if group is None else members[group]
        return {slots[index].name: self.views[index] for index in indices}

    def copy_group(self, source: WeightSet, group: int) -> int:
        """Copies one group; returns its bytes. On the current stream, without waiting."""
        self.memory[group].copy_(source.memory[group], non_blocking=True)
        return self.memory[group].nbytes

    def copy_from(self, source: WeightSet) -> int:
        return sum(self.copy_group(source, group) for group in range(len(self.memory)))


def moved_together(tensors: Sequence[Tensor], layout: Layout, device: torch.device, budget: PinnedBudget) -> WeightSet:
    """One copy of a module's tensors, which show it from now on; in host memory it is page-locked within the budget.

    They are moved one by one, so that what they showed before is freed on the way.
    """
    weights = WeightSet(layout, device)
    for view, tensor in zip(weights.views, tensors, strict=True):
        view.copy_(tensor)
        tensor.data = view
    for memory in weights.memory:
        budget.pin(memory, weights)
    return weights


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
        # Buffers too are objects of their own: binding one must not change the view
        id(tensor): nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view.detach()
        for tensor, view in zip(old, views, strict=True)
    }
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = new[id(tensor)]  # type: ignore[assignment]
