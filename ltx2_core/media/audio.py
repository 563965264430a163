"""Sound as the engine takes and gives it: mono or stereo, brought to another rate, cut to a clip's length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..types import AudioClip
from .audio_file import HIGHEST_RATE, read_audio
from .channels import MOST_CHANNELS, mixed_down
from .resample import resample

__all__ = [
    "AAC_RATES",
    "check_rate",
    "check_samples",
    "fitted",
    "for_clip",
    "given_sound",
    "lasting",
    "read_audio",
    "resampled",
    "stereo",
    "with_clipping_said",
]

# What an MP4's AAC stream can have (ISO/IEC 14496-3, table 1.18)
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_FALLBACK_RATE = 48000


def given_sound(waveform: Any, rate: Any, longest: float, setting: str = "audio") -> AudioClip:
    """Sound that a program hands over, as :func:`read_audio` returns that of a file.

    Args:
        waveform: (1, channels, N) floating point in [-1, 1]; more than two channels are mixed down to stereo.
        rate: whole number, Hz.
        longest: seconds that are kept; the rest is not looked at.
        setting: name of the setting that errors show.

    Raises:
        SettingError: it is no sound, a batch, empty, or holds what is no finite number.
    """
    hertz = check_rate(rate, f"{setting} rate")
    if not isinstance(waveform, Tensor) or not waveform.is_floating_point():
        kind = str(waveform.dtype) if isinstance(waveform, Tensor) else type(waveform).__name__
        raise SettingError(setting, kind, "must be a tensor of floating point numbers", "Load the sound anew.")
    shape = tuple(waveform.shape)
    if len(shape) != 3 or shape[0] != 1 or not 1 <= shape[1] <= MOST_CHANNELS or not shape[2]:
        problem = f"must be one clip of 1 to {MOST_CHANNELS} channels, (1, channels, samples)"
        raise SettingError(setting, shape, problem, "Choose one of a batch, and give a sound that is not empty.")
    kept = waveform[:, :, : max(int(longest * hertz), 1)].detach().float()
    check_samples(kept, setting)
    if shape[1] <= 2:
        return AudioClip(kept, hertz)
    notice = f"The sound has more than two channels ({shape[1]}): they are mixed down to stereo."
    return AudioClip(mixed_down(kept[0])[None], hertz, (notice,))


def check_rate(rate: Any, setting: str) -> int:
    """The rate in Hz as a whole number.

    Raises:
        SettingError: it is none, or none that sound has.
    """
    whole = not isinstance(rate, bool) and isinstance(rate, (int, float)) and rate == rate // 1
    if not whole or not 1 <= rate <= HIGHEST_RATE:
        problem = f"must be a whole number from 1 to {HIGHEST_RATE} Hz, of samples per second"
        raise SettingError(setting, rate, problem, "44100 and 48000 are usual.")
    return int(rate)


def check_samples(waveform: Tensor, setting: str) -> None:
    """Raises :class:`SettingError` where a sample is not a finite number."""
    if not bool(waveform.isfinite().all()):
        problem = "holds samples that are not finite numbers"
        raise SettingError(setting, tuple(waveform.shape), problem, "Make the sound anew.")


def resampled(clip: AudioClip, rate: int) -> AudioClip:
    """The same sound at another rate (:func:`.resample.resample`); ceil(N * rate / old rate) samples."""
    if clip.sampling_rate == rate:
        return clip
    return AudioClip(resample(clip.waveform[0], clip.sampling_rate, rate)[None], rate, clip.notices)


def fitted(waveform: Tensor, samples: int) -> Tensor:
    """(..., N) as (..., samples): cut at the end, or followed by silence."""
    kept = waveform[..., :samples]
    return torch.nn.functional.pad(kept, (0, samples - kept.shape[-1]))


def lasting(clip: AudioClip, seconds: float) -> AudioClip:
    """The clip, cut at its end or followed by silence until it lasts so long."""
    return AudioClip(fitted(clip.waveform, round(seconds * clip.sampling_rate)), clip.sampling_rate, clip.notices)


def stereo(clip: AudioClip) -> AudioClip:
    """The clip with two channels; a single one is heard on both sides."""
    return AudioClip(clip.waveform.expand(-1, 2, -1), clip.sampling_rate, clip.notices)


def for_clip(clip: AudioClip, seconds: float) -> AudioClip:
    """The sound of a clip of this length as a file takes it: stereo, as long as the clip, at a rate that MP4 has.

    The samples are the given ones, but where the rate has to be another. A notice says when they leave full scale.
    """
    heard = lasting(clip, seconds)
    known = heard if heard.sampling_rate in AAC_RATES else lasting(resampled(heard, _FALLBACK_RATE), seconds)
    samples = stereo(known).waveform.detach().to(device="cpu", dtype=torch.float32).contiguous()
    return with_clipping_said(AudioClip(samples, known.sampling_rate))


def with_clipping_said(clip: AudioClip) -> AudioClip:
    """The clip with a notice where samples lie above full scale: a player and a file of whole numbers cut them."""
    levels = clip.waveform.abs()
    above = int((levels > 1.0).sum())
    if not above:
        return clip
    peak = 20 * math.log10(float(levels.max()))
    samples = "1 sample" if above == 1 else f"{above} samples"
    notice = (
        f"The sound is above full scale in {samples} (peak {peak:+.1f} dBFS): the MP4 file cuts them at full scale."
    )
    return AudioClip(clip.waveform, clip.sampling_rate, (*clip.notices, notice))
