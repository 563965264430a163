"""Where every tensor of a module lies in flat memory, one block for each group of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

# Of every storage's start; a power of two that suits any dtype and the copy engines
ALIGNMENT = 256


@dataclass(frozen=True)
class Slot:
    """One tensor: bytes from the start of its group's memory, and how they are read."""

    name: str
    group: int
    offset: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """All parameters and buffers of a module, each storage once.

    Tensors that share a storage (tied weights, views) keep sharing it. Group 0 holds what is outside the layers, group
    i + 1 layer i.

    Attributes:
        slots: one for each tensor object, in the order of :func:`unique_tensors`.
        group_bytes: size of every group's memory.
    """

    slots: tuple[Slot, ...]
    group_bytes: tuple[int, ...]

    @classmethod
    def of(cls, module: nn.Module, layers: str | None = None, without: AbstractSet[int] = frozenset()) -> Layout:
        """The layout of a module on any device, the meta device included.

        Args:
            layers: path of the module list whose members are groups of their own; None makes one group of all.
            without: ids of tensors to leave out.
        """
        tensors = [(name, tensor) for name, tensor in unique_tensors(module) if id(tensor) not in without]
        spans = _spans(tensors)
        users: dict[int, set[int]] = {}
        for name, tensor in _named(module):
            users.setdefault(_storage_key(tensor), set()).add(_group(name, layers))
        ends = [0] * (1 + (len(members(module, layers)) if layers else 0))
        starts: dict[int, tuple[int, int]] = {}
        slots = []
        for name, tensor in tensors:
            key = _storage_key(tensor)
            first, last = spans[key]
            if key not in starts:
                group = min(users[key]) if len(users[key]) == 1 else 0
                starts[key] = (group, ends[group])
                ends[group] += -(-(last - first) // ALIGNMENT) * ALIGNMENT
            group, start = starts[key]
            offset = start + int(tensor.storage_offset()) * tensor.element_size() - first
            slots.append(Slot(name, group, offset, tensor.dtype, tuple(tensor.shape), tuple(map(int, tensor.stride()))))
        return cls(tuple(slots), tuple(ends))

    @property
    def nbytes(self) -> int:
        return sum(self.group_bytes)

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Of each group: the indices of its slots."""
        found: list[list[int]] = [[] for _ in self.group_bytes]
        for index, slot in enumerate(self.slots):
            found[slot.group].append(index)
        return tuple(map(tuple, found))

    def views(self, memory: Sequence[Tensor]) -> list[Tensor]:
        """All tensors inside their groups' flat uint8 memory, in the order of the slots."""
        views: dict[int, Tensor] = {}
        for group, members in enumerate(self.members):
            views.update(zip(members, self.group_views(group, memory[group]), strict=True))
        return [views[index] for index in range(len(self.slots))]

    def group_views(self, group: int, memory: Tensor) -> list[Tensor]:
        """The tensors of one group inside flat uint8 memory of at least its size, in the order of ``members``."""
        typed: dict[torch.dtype, Tensor] = {}
        views = []
        for index in self.members[group]:
            slot = self.slots[index]
            if slot.dtype not in typed:
                typed[slot.dtype] = memory.view(slot.dtype)
            views.append(typed[slot.dtype].as_strided(slot.size, slot.stride, slot.offset // slot.dtype.itemsize))
        return views


def members(module: nn.Module, layers: str) -> list[nn.Module]:
    """The modules of the module list at path ``layers``."""
    return list(module.get_submodule(layers).children())


def unique_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer object of a module with its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _named(module):
        found.setdefault(id(tensor), (name, tensor))
    return list(found.values())


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _spans(tensors: Sequence[tuple[str, Tensor]]) -> dict[int, tuple[int, int]]:
    """First and last byte of each storage that the tensors use."""
    spans: dict[int, tuple[int, int]] = {}
    for _, tensor in tensors:
        reach = sum((size - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        first = int(tensor.storage_offset()) * tensor.element_size()
        last = first + (reach + 1) * tensor.element_size() if tensor.numel() else first
        low, high = spans.get(_storage_key(tensor), (first, last))
        spans[_storage_key(tensor)] = (min(low, first) // ALIGNMENT * ALIGNMENT, max(high, last))
    return spans


def _group(name: str, layers: str | None) -> int:
    if layers is None or not name.startswith(f"{layers}."):
        return 0
    return 1 + int(name[len(layers) + 1 :].split(".", 1)[0])
