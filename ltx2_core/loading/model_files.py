"""Which model files a run takes, by the settings that name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Stage = Literal["1", "2", "both"]


@dataclass(frozen=True)
class LoRASource:
    """A user's LoRA: its file, its strength, and the stages in which it is active."""

    path: Path
    strength: float = 1.0
    stage: Stage = "both"


@dataclass(frozen=True)
class ModelFiles:
    """Which files to load.

    Attributes:
        checkpoint: the official single file, or one with the transformer alone; then the next ones bring the rest.
        gemma: folder or single file of the text encoder.
        upsampler, distilled_lora: what the second stage needs.
        video_vae, audio_vae, text_projection: parts that come from files of their own; ``audio_vae`` holds the vocoder.
    """

    checkpoint: Path
    gemma: Path
    upsampler: Path | None = None
    distilled_lora: Path | None = None
    loras: tuple[LoRASource, ...] = ()
    video_vae: Path | None = None
    audio_vae: Path | None = None
    text_projection: Path | None = None

    def by_role(self) -> dict[str, str]:
        """Role to path of every file that is given."""
        paths = {name: value for name, value in vars(self).items() if isinstance(value, Path)}
        paths |= {f"lora_{number}": lora.path for number, lora in enumerate(self.loras, 1)}
        return {role: str(path) for role, path in paths.items()}
