"""One component's tensors: in which files they are, whether they are what its module needs, and the loaded module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..types import Component
from .checkpoint import SafetensorsFile
from .keymaps import stored_name
from .listing import some
from .reading import read_into

_FIX = "Use files of one LTX-2 release, with their metadata unchanged."


@dataclass(frozen=True)
class Piece:
    """What one file contributes: name in the module -> name in the file."""

    file: SafetensorsFile
    names: Mapping[str, str]


@dataclass(frozen=True)
class ComponentSource:
    """Where a component comes from.

    Attributes:
        pieces: files in which it lies, at least one.
        create: makes the module; called on the meta device.
        shapes: of every tensor that the module needs.
    """

    component: Component
    pieces: tuple[Piece, ...]
    create: Callable[[], nn.Module]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def checked(
        cls, component: Component, pieces: Sequence[Piece], create: Callable[[], nn.Module]
    ) -> tuple[ComponentSource, nn.Module]:
        """Compares names and shapes in the files with the module's, and returns that module, on the meta device.

        Raises:
            CheckpointError: names are missing or unknown, shapes differ, or weights are quantised.
        """
        for piece in pieces:
            piece.file.require_plain(piece.names.values())
        with torch.device("meta"):
            module = create()
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found = {name: piece.file.tensors[key].shape for piece in pieces for name, key in piece.names.items()}
        if found != shapes:
            what, first = component.value.replace("_", " "), pieces[0].file
            keys = [key for piece in pieces for key in piece.file.tensors]
            problems = _differences(shapes, found, lambda name: stored_name(component, name, keys))
            raise CheckpointError(first.setting, first.path, f"does not hold the {what} it describes: {problems}", _FIX)
        return cls(component, tuple(pieces), create, shapes), module

    def nbytes(self, dtype: torch.dtype) -> int:
        """Size of the loaded module."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values()) * dtype.itemsize

    def skeleton(self, dtype: torch.dtype) -> nn.Module:
        """The module on the meta device, for inference, all floating-point tensors in ``dtype``."""
        with torch.device("meta"):
            return self.create().to(dtype).eval().requires_grad_(False)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Reads each tensor into the one of that name; the names are those of :attr:`shapes`, all or some."""
        for piece in self.pieces:
            read_into(piece.file, {key: tensors[name] for name, key in piece.names.items() if name in tensors})

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Reads every tensor once, straight into the module."""
        with torch.device("meta"):
            module = self.create()
        state = {}
        for piece in self.pieces:
            tensors = piece.file.read(piece.names.values(), device, dtype)
            state.update({name: tensors[key] for name, key in piece.names.items()})
        module.load_state_dict(state, strict=True, assign=True)
        return module.eval().requires_grad_(False)


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
