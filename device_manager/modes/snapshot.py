"""The second set of weights is copied and merged on the device for its use, and given up after it.

That takes 67 ms, mostly hidden. A pageable host copy is as good as a page-locked one: no run reads it.
"""

from __future__ import annotations

from functools import partial

from ..facts import Facts, TextPlacement
from .mode import Mode
from .second_set import SecondSet
from .snapshot_low import SNAPSHOT_LOW


def _device_bytes(facts: Facts, text_encoder: TextPlacement) -> int:
    stage = facts.dit_bytes + facts.lora_window + facts.activation_bytes
    weights = facts.text_stays(text_encoder) + facts.other_bytes + facts.dit_bytes
    return weights + max(stage, facts.encoding(text_encoder))


SNAPSHOT = Mode(
    name="snapshot",
    words="the second transformer is made on the GPU for stage 2",
    tooltip="the second one only while it is used",
    merged="made for each stage 2",
    device_bytes=_device_bytes,
    acts=partial(SecondSet, keep=False),
    falls_back_to=SNAPSHOT_LOW,
    keeps_host_copy=True,
)
