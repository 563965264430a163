"""One component's tensors: in which files they are, whether they are what its module needs, and the loaded module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError
from ..kernels.quantise import FP8, quantise_into
from ..models.counts import Count
from ..models.meta_device import OnMeta
from ..models.scaled_linear import scale_layers
from ..models.scaled_weights import FP8_NAME, dequantised
from ..models.weights_file import WeightsFile
from ..types import Component
from .keymaps import stored_name
from .listing import some
from .lora import linear_layers

_FIX = "Use files of one LTX-2 release, with their metadata unchanged."
_WEIGHT, _SCALE = ".weight", ".weight_scale"
_SCALE_BYTES = torch.float32.itemsize
_ALLOCATIONS = frozenset({torch.empty, torch.zeros, torch.ones})
_SPARE = 64  # tensors that modules make besides those that they keep

Layers = Mapping[str, tuple[int, int]]
ChooseScaled = Callable[[Layers, Collection[str]], Collection[str]]
"""Of the linear layers (out, in) by path, and those whose weights are stored in fp8: the ones that shall be in fp8."""


@dataclass(frozen=True)
class Piece:
    """What one file contributes: name in the module -> name in the file."""

    file: WeightsFile
    names: Mapping[str, str]

    def without_scales(self) -> Piece:
        """Only what is a tensor of a module."""
        beside = self.file.scaled.beside
        return Piece(self.file, {name: key for name, key in self.names.items() if key not in beside})

    def is_fp8(self, name: str) -> bool:
        return name in self.names and self.file.tensors[self.names[name]].dtype == FP8_NAME


@dataclass(frozen=True)
class ComponentSource:
    """Where a component comes from.

    Attributes:
        pieces: files in which it lies, at least one.
        create: makes the module; called on the meta device.
        shapes: of every tensor that the module needs; the scales of :attr:`scaled` layers are not among them.
        scaled: linear layers that have fp8 weights once loaded, by path. Other weights that are stored in fp8 are
            dequantised while they are read.
        full_precision: those that are never to be multiplied in fp8.
    """

    component: Component
    pieces: tuple[Piece, ...]
    create: Callable[[], nn.Module]
    shapes: Mapping[str, tuple[int, ...]]
    scaled: frozenset[str] = frozenset()
    full_precision: frozenset[str] = frozenset()

    @classmethod
    def checked(
        cls,
        component: Component,
        pieces: Sequence[Piece],
        create: Callable[[], nn.Module],
        choose_scaled: ChooseScaled | None = None,
    ) -> tuple[ComponentSource, Layers]:
        """Compares names and shapes in the files with the module's, and returns its linear layers too.

        What the files hold bounds the work: a module that is described larger than that is not made to the end.

        Args:
            choose_scaled: None keeps no weight in fp8.

        Raises:
            CheckpointError: names are missing or unknown, shapes differ, or weights are quantised in a way that cannot
                be read.
        """
        pieces = tuple(piece.without_scales() for piece in pieces)
        for piece in pieces:
            piece.file.require_plain(key for name, key in piece.names.items() if not piece.is_fp8(name))
        found = {name: piece.file.tensors[key].shape for piece in pieces for name, key in piece.names.items()}
        module = _described(component, pieces, create, most=len(found) + len(found) // 2 + _SPARE)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        if found != shapes:
            keys = [key for piece in pieces for key in piece.file.tensors]
            problems = _differences(shapes, found, lambda name: stored_name(component, name, keys))
            raise _not_as_described(component, pieces, problems)
        layers = linear_layers(module)
        stored = [path for path in layers if any(piece.is_fp8(path + _WEIGHT) for piece in pieces)]
        scaled = frozenset(choose_scaled(layers, stored) if choose_scaled else ())
        exact = {
            path
            for piece in pieces
            for path in scaled
            if piece.names.get(path + _WEIGHT) in piece.file.scaled.full_precision
        }
        return cls(component, pieces, create, shapes, scaled, frozenset(exact)), layers

    def nbytes(self, dtype: torch.dtype) -> int:
        """Size of the loaded module."""
        total = sum(torch.Size(shape).numel() for shape in self.shapes.values()) * dtype.itemsize
        for path in self.scaled:
            rows, columns = self.shapes[path + _WEIGHT]
            total += rows * (columns * (FP8.itemsize - dtype.itemsize) + _SCALE_BYTES)
        return total

    def skeleton(self, dtype: torch.dtype) -> nn.Module:
        """The module on the meta device, for inference: floating-point tensors in ``dtype``, but for the weights of
        scaled layers and their scales."""
        with OnMeta():
            module = self.create().to(dtype)
        scale_layers(module, sorted(self.scaled), self.full_precision)
        return module.eval().requires_grad_(False)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Reads each tensor into the one of that name; the names are those of the module's tensors, all or some.

        What has to be quantised or dequantised is so on the device of the tensor that it is for, one tensor at a time.
        """
        for piece in self.pieces:
            names = {n: key for n, key in piece.names.items() if n in tensors or self._scale_name(n) in tensors}
            self._fill_from(piece, names, tensors)

    def _fill_from(self, piece: Piece, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
        scales = _scales(piece.file, [key for name, key in names.items() if piece.is_fp8(name)])
        as_stored: dict[str, Tensor] = {}
        converted: dict[torch.device, dict[str, str]] = {}
        for name, key in names.items():
            scale = tensors.get(self._scale_name(name))
            if piece.is_fp8(name) != self._is_scaled(name):
                device = tensors[name].device if scale is None else scale.device
                converted.setdefault(device, {})[key] = name
                continue
            if name in tensors:
                as_stored[key] = tensors[name]
            if scale is not None:  # one number serves all rows
                scale.copy_(scales[key].flatten().expand(len(scale)))
        piece.file.read_into(as_stored)
        for device, keys in converted.items():
            for key, stored in piece.file.each(keys, device):
                name = keys[key]
                if self._is_scaled(name):
                    quantise_into(tensors.get(name), tensors.get(self._scale_name(name)), stored)
                else:
                    tensors[name].copy_(dequantised(stored, scales[key], tensors[name].dtype))

    def _is_scaled(self, name: str) -> bool:
        return name.endswith(_WEIGHT) and name.removesuffix(_WEIGHT) in self.scaled

    def _scale_name(self, name: str) -> str:
        """Of a scaled layer's weight; no name for any other tensor."""
        return name.removesuffix(_WEIGHT) + _SCALE if self._is_scaled(name) else ""

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Reads every tensor once, straight into the module."""
        module = self.skeleton(dtype)
        module.load_state_dict(dict(self._state(module, device, dtype)), strict=True, assign=True)
        return module.requires_grad_(False)

    def _state(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        as_stored: set[str] = set()
        for piece in self.pieces:
            own = {n: key for n, key in piece.names.items() if not piece.is_fp8(n) and not self._is_scaled(n)}
            read = piece.file.read(own.values(), device, dtype)
            yield from ((name, read[key]) for name, key in own.items())
            as_stored.update(own)
        others = {n: t for n, t in module.state_dict().items() if n not in as_stored}
        filled = {name: torch.empty_like(tensor, device=device) for name, tensor in others.items()}
        self.fill(filled)
        yield from filled.items()


class _TooLarge(Exception):
    """A module has more tensors than the files."""


class _Limit(TorchFunctionMode):
    """Ends the making of a module that allocates more tensors than this; of the thread that it is made in."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _ALLOCATIONS:
            self._left -= 1
            if self._left < 0:
                raise _TooLarge
        return func(*args, **(kwargs or {}))


def _described(component: Component, pieces: Sequence[Piece], create: Callable[[], nn.Module], most: int) -> nn.Module:
    """The module on the meta device.

    Raises:
        CheckpointError: it would have more than ``most`` tensors, or sizes that no tensor can have.
    """
    try:
        with OnMeta(), _Limit(most):
            return create()
    except _TooLarge:
        held = sum(len(piece.names) for piece in pieces)
        problem = f"the description asks for more than {most} tensors, it holds {held}"
        raise _not_as_described(component, pieces, problem) from None
    except (RuntimeError, OverflowError) as error:  # how torch refuses sizes whose product it cannot count
        raise _not_as_described(component, pieces, "the description asks for tensors of impossible sizes") from error


def check_counts(component: Component, pieces: Sequence[Piece], counts: Sequence[Count]) -> None:
    """Compares how often parts of a module are described with how often they are in the files; makes no module.

    Raises:
        CheckpointError: a part is there more often, or less.
    """
    found = [name for piece in pieces for name in piece.names]
    for count in counts:
        there = count.found_in(found)
        if there != count.value + count.more:
            where = stored_name(component, count.parent, [key for piece in pieces for key in piece.file.tensors])
            besides = f" and {count.more} more" if count.more else ""
            problem = f"config key {count.key} = {count.value}{besides}, it holds {there} under {where}"
            raise _not_as_described(component, pieces, problem)


def _not_as_described(component: Component, pieces: Sequence[Piece], problems: str) -> CheckpointError:
    what, first = component.value.replace("_", " "), pieces[0].file
    return first.error(f"does not hold the {what} it describes: {problems}", _FIX)


def _scales(file: WeightsFile, keys: Sequence[str]) -> dict[str, Tensor]:
    """Of fp8 tensors by name in the file, float32 on the host; of those without any it is 1."""
    names = {key: file.scaled.scales[key] for key in keys if key in file.scaled.scales}
    read = file.read(names.values(), dtype=torch.float32)
    return {key: read[names[key]] if key in names else torch.ones(()) for key in keys}


def _differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], shown: Callable[[str], str]
) -> str:
    """What distinguishes the two, in words; ``shown`` turns a name in the module into the file's."""
    missing = [shown(name) for name in expected if name not in found]
    unknown = [shown(name) for name in found if name not in expected]
    wrong = [
        f"{shown(name)} is {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = (("missing", missing), ("unexpected", unknown), ("of another shape", wrong))
    return "; ".join(f"{len(names)} keys {kind}: {some(names)}" for kind, names in kinds if names)
