"""A few buffers on the device through which the groups of a host copy pass, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .streams import Event, Streams
from .weights import WeightSet, plain_tensors

# Groups that are on the device at once: one is read, the others arrive
RING_DEPTH = 3


class GroupRing:
    """Closed until :meth:`open`; a group is brought, taken, and left, and its buffer then serves the next.

    Args:
        moved: hears of every copy, ``moved(h2d, d2h)`` in bytes.
    """

    def __init__(self, host: WeightSet, streams: Streams, moved: Callable[[int, int], None]) -> None:
        self._host, self._streams, self._moved = host, streams, moved
        self._buffers: list[Tensor] = []
        self._free: list[Event] = []
        self._arrived: dict[int, Event] = {}

    def open(self, first: int = 0) -> None:
        """Makes the buffers, for groups from ``first`` on, and brings as many as there are buffers but one."""
        sizes = self._host.layout.group_bytes
        with plain_tensors():
            largest = max(sizes[first:], default=0)
            device = self._streams.device
            self._buffers = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(RING_DEPTH)]
        self._free = [self._streams.mark()] * RING_DEPTH
        for group in range(first, min(first + RING_DEPTH - 1, len(sizes))):
            self._bring(group)

    def take(self, group: int) -> Tensor:
        """The group's flat memory, for the current stream; begins to bring a later one."""
        if group not in self._arrived:
            self._bring(group)
        self._streams.wait(self._arrived.pop(group))
        later = group + RING_DEPTH - 1
        if later < len(self._host.memory) and later not in self._arrived:
            self._bring(later)
        return self._buffers[group % RING_DEPTH]

    def leave(self, group: int) -> None:
        """The current stream has read the group."""
        self._free[group % RING_DEPTH] = self._streams.mark()

    def close(self) -> None:
        """Gives the buffers back."""
        for stream in (self._streams.visiting, self._streams.working):
            with stream(after=self._streams.mark()):
                for buffer in self._buffers:
                    self._streams.keep_until_now(buffer)
        self._buffers, self._free = [], []
        self._arrived.clear()

    def _bring(self, group: int) -> None:
        index = group % RING_DEPTH
        self._arrived = {other: event for other, event in self._arrived.items() if other % RING_DEPTH != index}
        source = self._host.memory[group]
        with self._streams.visiting(after=self._free[index]):
            self._buffers[index][: source.numel()].copy_(source, non_blocking=True)
            self._moved(source.nbytes, 0)
            self._arrived[group] = self._streams.mark()
