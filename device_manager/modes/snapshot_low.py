"""One set of weights: adapters are merged into the base for its next use alone, and the host copy restores it.

The merge takes 44 ms per run, against 59 ms per call of a dynamic LoRA (98 with peft's arithmetic; three calls in
stage 2), and gives the same bits as two sets. The restore, 0.69 s, hides behind decoding. From a pageable host copy it
takes 4.3 s at 8.8 GB/s, more than a dynamic LoRA costs.
"""

from __future__ import annotations

from torch import nn

from ..adapters import LayerwiseMerge, Strengths, key
from ..base_weights import BaseWeights
from ..facts import Facts, Plan, TextPlacement
from ..weights import plain_tensors
from .mode import Acts, Mode


class InPlace(Acts):
    """Each layer's adapters are merged into it right before it computes for the first time."""

    def __init__(self, base: BaseWeights) -> None:
        super().__init__(base)
        self._merge: LayerwiseMerge | None = None  # of the use under way
        self._prepared: LayerwiseMerge | None = None  # of the next one

    def ready(self, strengths: Strengths) -> nn.Module:
        if not strengths:
            return self.base.ready()
        self.base.ensure()
        self._merge = self._take_prepared(strengths) or self.base.begin_merge(strengths)
        self.base.dirty = True
        self._run_to(self._merge, 0)
        return self.base.load()

    def prefetch(self, strengths: Strengths) -> None:
        if self._prepared is None and self._merge is None:
            self._prepared = self.base.begin_merge(strengths)

    def before_layer(self, group: int) -> None:
        if self._merge is not None:
            with plain_tensors():
                self._run_to(self._merge, group)

    def finish(self) -> None:
        if self._merge is not None:
            self._merge.end()
            self._merge = None

    def abandon(self) -> None:
        if self._prepared is not None:
            self._prepared.end()
            self._prepared = None

    def _take_prepared(self, strengths: Strengths) -> LayerwiseMerge | None:
        """The prepared merge where it has these strengths; another one ends."""
        merge, self._prepared = self._prepared, None
        if merge is not None and key(merge.strengths) != key(strengths):
            merge.end()
            return None
        return merge

    def _run_to(self, merge: LayerwiseMerge, group: int) -> None:
        assert self.base.device is not None
        merge.run_to(group, self.base.device, before=self.base.wait_group, after=lambda _: None)


def _device_bytes(facts: Facts, text_encoder: TextPlacement) -> int:
    # The LoRA's bytes are needed by stages, the other components before or after them
    stage = facts.activation_bytes + max(facts.lora_window, facts.other_bytes)
    return facts.text_stays(text_encoder) + facts.dit_bytes + max(facts.encoding(text_encoder), stage)


def _can_be_pinned(plan: Plan, facts: Facts) -> bool:
    return plan.host_bytes <= facts.pinned_budget


SNAPSHOT_LOW = Mode(
    name="snapshot-low",
    words="one transformer on the GPU, a clean copy in host memory",
    tooltip="one on the GPU and a copy in host memory (45 GB)",
    merged="merged into the base for stage 2",
    device_bytes=_device_bytes,
    acts=InPlace,
    keeps_host_copy=True,
    others="visit",
    preferred=_can_be_pinned,
    pageable="going back to stage 1 takes seconds",
)
