"""The matrices of a wrapped module's adapters: kept on the host, on the device only while they are needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor, nn

from .host_memory import PinnedBudget
from .layout import Layout, unique_tensors
from .ring import GroupRing
from .streams import Event, Streams
from .weights import WeightSet, bind, moved_together, plain_tensors

Strengths = Mapping[str, float]
Merge = Callable[[nn.Module, Mapping[str, Tensor], Strengths], None]


def key(strengths: Strengths) -> Hashable:
    """Equal for equal strengths, in whatever order they are given."""
    return tuple(sorted(strengths.items()))


class Adapters:
    """All tensors of ``module`` that are not among ``base``, moved into one host copy.

    Args:
        module: the wrapped module; its tensors are rebound, never replaced.
        base: ids of the tensors that are not the adapters'.
        layers: path of the module list whose members are brought one by one.

    Attributes:
        host: the copy. Without a device it is the only one.
        device: the whole copy on the device, while it is there.
    """

    def __init__(
        self,
        module: nn.Module,
        base: set[int],
        layers: str,
        streams: Streams,
        budget: PinnedBudget,
        moved: Callable[[int, int], None],
    ) -> None:
        self.module, self._streams, self._moved = module, streams, moved
        self._tensors = [tensor for _, tensor in unique_tensors(module) if id(tensor) not in base]
        self.layout = Layout.of(module, layers, without=base)
        home = torch.device("cpu") if streams.cuda else streams.device
        self.host = moved_together(self._tensors, self.layout, home, budget)
        self.device: WeightSet | None = None
        self._ready: Event = None

    def fetch(self) -> None:
        """Brings all of them over, beside the current stream; returns at once."""
        if self.device is not None or not self._streams.cuda:
            return
        device = WeightSet(self.layout, self._streams.device)
        with self._streams.copying(after=self._streams.mark()):
            self._moved(device.copy_from(self.host), 0)
            self._ready = self._streams.mark()
        bind(self._tensors, device.views)
        self.device = device

    def wait(self) -> None:
        """The current stream goes on when all of them are there."""
        self._streams.wait(self._ready)

    def drop(self) -> None:
        """Gives the device's copy back."""
        if self.device is None:
            return
        bind(self._tensors, self.host.views)
        with self._streams.copying(after=self._streams.mark()):
            for memory in self.device.memory:
                self._streams.keep_until_now(memory)
        self.device, self._ready = None, None

    def show(self, group: int, memory: Tensor | None) -> None:
        """Lets one group's tensors show flat memory on the device, or the host copy again."""
        members = self.layout.members[group]
        with plain_tensors():
            views = (
                [self.host.views[index] for index in members]
                if memory is None
                else self.layout.group_views(group, memory)
            )
        bind([self._tensors[index] for index in members], views)


class LayerwiseMerge:
    """Merges adapters into weights group by group, so that work on the first groups begins while later ones wait.

    The matrices come over through a ring of a few groups, and never are on the device as a whole.

    Args:
        merge: adds adapters into weights by name; hears of one group's weights at a time.

    Attributes:
        strengths: of every adapter.
    """

    def __init__(
        self,
        adapters: Adapters,
        merge: Merge,
        strengths: Strengths,
        streams: Streams,
        moved: Callable[[int, int], None],
    ) -> None:
        self.strengths = strengths
        self._adapters, self._merge, self._streams = adapters, merge, streams
        self._ring = GroupRing(adapters.host, streams, moved) if streams.cuda and adapters.device is None else None
        self._next, self._count = 0, len(adapters.layout.group_bytes)
        if self._ring is not None:
            self._ring.open()

    @property
    def finished(self) -> bool:
        return self._next == self._count

    def run_to(
        self, group: int, target: WeightSet, before: Callable[[int], None], after: Callable[[int], None]
    ) -> None:
        """Merges every group up to this one that is not merged yet, on the current stream.

        Args:
            target: the weights that change.
            before, after: called with each group's number around its merge.
        """
        while self._next <= group:
            now, self._next = self._next, self._next + 1
            before(now)
            if self._ring is None:
                self._merge(self._adapters.module, target.named(now), self.strengths)
            else:
                self._through_ring(self._ring, now, target)
            after(now)
        if self.finished:
            self.end()

    def _through_ring(self, ring: GroupRing, group: int, target: WeightSet) -> None:
        self._adapters.show(group, ring.take(group))
        try:
            self._merge(self._adapters.module, target.named(group), self.strengths)
        finally:
            self._adapters.show(group, None)
            ring.leave(group)

    def end(self) -> None:
        """Gives the ring back; the merge goes no further."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self._next = self._count
