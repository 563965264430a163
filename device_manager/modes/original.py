"""One set of weights, with the adapters computed beside it; their matrices are on the device while they act.

There is no host copy of the base.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

from ..adapters import Strengths, key
from ..base_weights import BaseWeights
from ..facts import Facts, TextPlacement
from .mode import Acts, Mode
from .snapshot_low import SNAPSHOT_LOW


class OnTheFly(Acts):
    """The wrapped module, which shares the base's weights."""

    def __init__(self, base: BaseWeights) -> None:
        super().__init__(base)
        self._applied: Hashable = None  # strengths that the wrapped module's adapters have
        self._acting = False  # in the use under way
        self._keep = False  # the next use wants the matrices where they are

    def ready(self, strengths: Strengths) -> nn.Module:
        self._acting, self._keep = bool(strengths), False
        return self._with_adapters(strengths) if strengths else self.base.ready()

    def prefetch(self, strengths: Strengths) -> None:  # noqa: ARG002 - of the protocol
        self.base.adapters().fetch()
        self._keep = True

    def finish(self) -> None:
        if self._acting and not self._keep:
            self.base.drop_adapters()

    def abandon(self) -> None:
        self._applied, self._keep = None, False
        self.base.drop_adapters()

    def _with_adapters(self, strengths: Strengths) -> nn.Module:
        self.base.ready()
        adapters = self.base.adapters()
        adapters.fetch()
        adapters.wait()
        if self._applied != key(strengths):
            self.base.set_strengths(strengths)
            self._applied = key(strengths)
        return adapters.module


def _device_bytes(facts: Facts, text_encoder: TextPlacement) -> int:
    # The LoRA's bytes are needed by stages, the other components before or after them
    stage = facts.activation_bytes + max(facts.lora_bytes, facts.other_bytes)
    return facts.text_stays(text_encoder) + facts.dit_bytes + max(facts.encoding(text_encoder), stage)


def _text_placements(_facts: Facts) -> tuple[TextPlacement, ...]:
    return ("stream", "stay")


ORIGINAL = Mode(
    name="original",
    words="one transformer, its LoRA applied while it runs",
    tooltip="one, with the LoRA applied on the fly (48 GB)",
    merged="the base with its LoRA",
    device_bytes=_device_bytes,
    acts=OnTheFly,
    falls_back_to=SNAPSHOT_LOW,
    others="visit",
    text_placements=_text_placements,
)
