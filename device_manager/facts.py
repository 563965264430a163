"""What a plan is made from, and what it takes; every number is bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TextPlacement = Literal["stay", "stream"]

# A streamed text encoder holds its embeddings (2.0 GB) and a window of 3 of its 48 layers (1.35 GB): 1/7 of 23.5 GB.
TEXT_WINDOW = 7

# Merging brings the LoRA's matrices over through a ring of 3 of 48 layers.
LORA_WINDOW = 16


@dataclass(frozen=True)
class Facts:
    """What a decision is made from.

    Attributes:
        total_vram: what the device has, or what this process may take of it.
        free_vram: what we may use, including what we already hold.
        host_available: host memory that can be taken, the cgroup's limit included.
        pinned_budget: how much of it may be page-locked.
        dit_bytes: one set of DiT weights.
        lora_bytes: the matrices of the distilled LoRA and the user's.
        activation_bytes: the most that denoising or decoding needs beside weights, at the requested size.
        text_encoder_bytes: the text encoder's weights.
        text_work_bytes: what encoding needs beside them: connectors and all its states.
        other_bytes: VAEs, vocoder and upsampler.
    """

    total_vram: int
    free_vram: int
    host_available: int
    pinned_budget: int
    dit_bytes: int
    lora_bytes: int
    activation_bytes: int
    text_encoder_bytes: int
    text_work_bytes: int
    other_bytes: int

    @property
    def lora_window(self) -> int:
        """What of the LoRA's matrices is on the device at once while they are merged."""
        return -(-self.lora_bytes // LORA_WINDOW)

    def text_stays(self, placement: TextPlacement) -> int:
        """What the text encoder and its connectors take for the whole run."""
        return self.text_encoder_bytes + self.text_work_bytes if placement == "stay" else 0

    def encoding(self, placement: TextPlacement) -> int:
        """What encoding takes beside what stays."""
        if placement == "stay":
            return 0
        # The connectors run after the encoder, so a streamed encoder's window is gone by then
        return max(self.text_work_bytes, -(-self.text_encoder_bytes // TEXT_WINDOW))


@dataclass(frozen=True)
class Plan:
    """What a mode takes with the text encoder in one place: of the device at the worst moment, and of the host."""

    text_encoder: TextPlacement
    device_bytes: int
    host_bytes: int
