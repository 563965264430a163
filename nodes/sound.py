"""Between ComfyUI's AUDIO and the engine's sound. Nothing here asks the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..ltx2_core.errors import SettingError
from ..ltx2_core.limits import LONGEST_SECONDS
from ..ltx2_core.media.audio import check_samples, given_sound
from ..ltx2_core.types import AudioClip


def to_clip(audio: Any) -> AudioClip:
    """The sound of an AUDIO, as long as the longest clip; more than two channels are mixed down.

    Raises:
        SettingError: it holds none, several, or what is no finite number.
    """
    fix = "Connect Load Audio, or leave audio unconnected."
    if not isinstance(audio, Mapping) or not {"waveform", "sample_rate"} <= set(audio):
        raise SettingError("audio", type(audio).__name__, "is no sound with a waveform and a sample_rate", fix)
    waveform = audio["waveform"]
    if torch.is_tensor(waveform) and waveform.numel() == 0:
        raise SettingError("audio", tuple(waveform.shape), "is connected, but holds no samples", fix)
    if torch.is_tensor(waveform) and waveform.ndim == 3 and waveform.shape[0] > 1:
        raise SettingError("audio", f"batch of {waveform.shape[0]}", "must be one clip", "Choose one of the batch.")
    return given_sound(waveform, audio["sample_rate"], LONGEST_SECONDS)


def to_audio(clip: AudioClip) -> dict[str, Any]:
    """AUDIO: waveform (1, channels, N).

    Raises:
        SettingError: it holds what is no finite number: the host's nodes would fail later, and not say why.
    """
    check_samples(clip.waveform, "audio")
    return {"waveform": clip.waveform, "sample_rate": clip.sampling_rate}
