"""Both sets of weights stay on the device: switching between stages is a rebind.

The text encoder stays too from ``EVERYTHING_STAYS_TOTAL_BYTES`` on, otherwise it streams.
"""

from __future__ import annotations

from functools import partial

from ..facts import Facts, TextPlacement
from .mode import Mode
from .second_set import SecondSet
from .snapshot import SNAPSHOT

# From here on both DiTs and the text encoder stay (112 GB planned) and other workflows keep 28 GB of the device.
EVERYTHING_STAYS_TOTAL_BYTES = 130 * 1024**3


def _device_bytes(facts: Facts, text_encoder: TextPlacement) -> int:
    stage = facts.lora_window + facts.activation_bytes
    weights = facts.text_stays(text_encoder) + facts.other_bytes + 2 * facts.dit_bytes
    return weights + max(stage, facts.encoding(text_encoder))


def _text_placements(facts: Facts) -> tuple[TextPlacement, ...]:
    if facts.total_vram < EVERYTHING_STAYS_TOTAL_BYTES:
        return ("stream", "stay")  # it stays only where the host has no room to stream it from
    return ("stay", "stream")


RESIDENT = Mode(
    name="resident",
    words="both transformers stay on the GPU",
    tooltip="both on the GPU (86 to 111 GB)",
    merged="made when stage 2 first runs",
    device_bytes=_device_bytes,
    acts=partial(SecondSet, keep=True),
    falls_back_to=SNAPSHOT,
    text_placements=_text_placements,
)
