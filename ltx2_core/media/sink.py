"""Where decoded pictures and sound go, as the pipeline sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..types import AudioClip


class FrameSink(Protocol):
    """Takes a clip while it is being decoded, so that no more than a few frames need to be held.

    Call ``open`` once, then ``frames`` any number of times in order of time and ``audio`` at most once, in any order,
    then ``close`` or ``abort``. ``abort`` may follow any of them, also a call that raised, and may be repeated.
    """

    def open(self, width: int, height: int, fps: float, audio_rate: int | None) -> None:
        """A clip of this size in pixels and rate begins; ``audio_rate`` in Hz, None when there will be no sound.

        Raises:
            SettingError: the sink cannot represent this size or rate.
            OutputError: the target cannot be written.
        """
        ...

    def frames(self, frames: Tensor) -> None:
        """The next frames, uint8 (f, H, W, 3) RGB on the CPU. The sink may keep the tensor: leave it unchanged."""
        ...

    def audio(self, clip: AudioClip) -> None:
        """The sound of the whole clip."""
        ...

    def close(self) -> Path | None:
        """Finishes the clip; returns the file that now holds it, or None when the sink writes none."""
        ...

    def abort(self) -> None:
        """Drops everything; nothing of the clip is left behind."""
        ...


class NullSink:
    """Drops everything: for runs whose latents or timings are all that matters."""

    def open(self, width: int, height: int, fps: float, audio_rate: int | None) -> None: ...

    def frames(self, frames: Tensor) -> None: ...

    def audio(self, clip: AudioClip) -> None: ...

    def close(self) -> Path | None:
        return None

    def abort(self) -> None: ...
