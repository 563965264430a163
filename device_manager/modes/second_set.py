"""Merged weights beside the base: made layer by layer while the base computes, kept or given up after use."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping

from torch import nn

from ..adapters import LayerwiseMerge, Strengths, key
from ..base_weights import BaseWeights
from ..streams import Event
from ..weights import WeightSet, assign, plain_tensors
from .mode import Acts

logger = logging.getLogger("ltx2.device")


class SecondSet(Acts):
    """The second set of weights.

    Args:
        keep: whether it stays on the device after its use.
    """

    def __init__(self, base: BaseWeights, keep: bool) -> None:
        super().__init__(base)
        self._keep = keep
        self._weights: WeightSet | None = None
        self._module: nn.Module | None = None
        self._key: Hashable = None  # strengths that the weights hold, or are being made to hold
        self._made: list[Event] = []  # of every group
        self._merge: LayerwiseMerge | None = None  # under way
        self._in_use = False

    @property
    def device_bytes(self) -> Mapping[str, int]:
        return {"merged": self._weights.nbytes} if self._weights is not None else {}

    def ready(self, strengths: Strengths) -> nn.Module:
        if not strengths:
            return self.base.ready()
        if self._key != key(strengths):
            self._begin(strengths)
        if self._merge is not None:
            self._make(self._merge, len(self._made) - 1)
        self._in_use = True
        self._wait(0)
        assert self._module is not None
        return self._module

    def prefetch(self, strengths: Strengths) -> None:
        """What is not made yet when the module computes no more, :meth:`ready` makes."""
        if not self._in_use and self._key != key(strengths):
            self._begin(strengths)

    def before_layer(self, group: int) -> None:
        """While a layer is computed on the base, its part of the second set is made: the host's work is spread."""
        if self._merge is None:
            return
        with plain_tensors():
            try:
                self._make(self._merge, group)
            except Exception as error:
                if not self.base.spec.ran_out(error):
                    raise
                logger.debug("no room yet to prepare the merged weights, at group %d", group)
                self.give_back()

    def finish(self) -> None:
        if self._in_use:
            self._in_use = False
            self._drop_unless_kept()

    def abandon(self) -> None:
        self._end_merge()
        self._drop_unless_kept()

    def give_back(self) -> None:
        self._end_merge()
        self._drop()

    def _begin(self, strengths: Strengths) -> None:
        """Starts to make the weights; what they held is lost."""
        self._end_merge()
        base = self.base.ensure()
        self._merge = self.base.begin_merge(strengths)
        if self._weights is None:
            with self.base.streams.working():
                self._weights = WeightSet(base.layout, self.base.streams.device, claimed=False)
            module = self.base.spec.skeleton()
            assign(module, self._weights.views)
            self.base.hook(module.eval(), self._wait)
            self._module = module
        self._made = [None] * len(base.memory)
        self._key = key(strengths)

    def _make(self, merge: LayerwiseMerge, group: int) -> None:
        """Copies and merges every group up to this one, beside the current stream."""
        streams, base, weights = self.base.streams, self.base.device, self._weights
        assert base is not None and weights is not None

        def copy(group: int) -> None:
            weights.claim(group)
            weights.copy_group(base, group)

        def mark(group: int) -> None:
            self._made[group] = streams.mark()

        with streams.working(after=streams.mark()):
            self.base.wait_all()
            merge.run_to(group, weights, before=copy, after=mark)
        if merge.finished:
            self._merge = None

    def _wait(self, group: int) -> None:
        if self._made and self._made[group] is not None:
            self.base.streams.wait(self._made[group])
            self._made[group] = None

    def _end_merge(self) -> None:
        """Ends a merge that is under way; what the weights hold is of no use then."""
        if self._merge is not None:
            self._merge.end()
            self._merge, self._key = None, None

    def _drop_unless_kept(self) -> None:
        if not self._keep:
            self._drop()

    def _drop(self) -> None:
        """Gives the weights' memory back; their module and its tensors stay, since making them takes long."""
        if self._weights is not None and self._weights.nbytes:
            for memory in self._weights.memory:
                self.base.streams.keep_until_now(memory)
            self._weights.give_up()
        self._key = None
