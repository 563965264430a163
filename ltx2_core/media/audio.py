"""Sound from files and for files: read, brought to another rate, cut to a clip's length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from ..types import AudioClip

# What an MP4's AAC stream can have (ISO/IEC 14496-3, table 1.18)
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_FALLBACK_RATE = 48000
_SLICE = 1 << 16  # samples handed to the resampler at a time
_FIX = "Give a file that plays in a media player, such as a WAV, FLAC, MP3 or MP4 file."


def read_audio(path: Path, longest: float, setting: str = "audio") -> AudioClip:
    """The first audio stream of a file, from its start; more than two channels are mixed down to stereo.

    Args:
        longest: seconds after which reading stops.
        setting: name of the setting that errors show.

    Returns:
        One or two channels at the stream's own rate.

    Raises:
        SettingError: there is no such file, it has no audio stream, or it cannot be decoded.
    """
    path = Path(path)
    if path.is_dir():
        raise SettingError(setting, path, "is a folder", "Give the sound file itself.")
    if not path.is_file():
        raise SettingError(setting, path, "there is no such file", "Check the path and its spelling.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise SettingError(setting, path, "has no audio stream", _FIX)
            rate = container.streams.audio[0].rate
            waveform = _decoded(container, int(longest * rate))
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(setting, path, f"is no sound that can be read ({error})", _FIX) from error
    if not waveform.shape[-1]:
        raise SettingError(setting, path, "has an audio stream without any sound in it", _FIX)
    return AudioClip(waveform[None], rate)


def _decoded(container: av.container.InputContainer, samples: int) -> Tensor:
    """At most so many samples of the first audio stream, float32 (channels, N)."""
    layout = "mono" if container.streams.audio[0].channels == 1 else "stereo"
    resampler, parts, count = av.AudioResampler(format="fltp", layout=layout), list[np.ndarray](), 0
    for frame in container.decode(audio=0):
        for plain in resampler.resample(frame):
            parts.append(plain.to_ndarray())
            count += plain.samples
        if count >= samples:
            break
    else:
        parts += [plain.to_ndarray() for plain in resampler.resample(None)]
    joined = np.concatenate(parts, axis=-1) if parts else np.zeros((1, 0), np.float32)
    return torch.from_numpy(joined[:, :samples].copy())


def resampled(clip: AudioClip, rate: int) -> AudioClip:
    """The same sound at another rate, by FFmpeg's windowed-sinc resampler; round(N * rate / old rate) samples."""
    if clip.sampling_rate == rate:
        return clip
    (waveform,) = clip.waveform
    resampler = av.AudioResampler(format="fltp", layout=_LAYOUTS[waveform.shape[0]], rate=rate)
    parts = [out.to_ndarray() for frame in _frames(waveform, clip.sampling_rate) for out in resampler.resample(frame)]
    parts += [out.to_ndarray() for out in resampler.resample(None)]
    joined = torch.from_numpy(np.concatenate(parts, axis=-1))
    return AudioClip(fitted(joined[None], round(waveform.shape[-1] * rate / clip.sampling_rate)), rate)


_LAYOUTS = {1: "mono", 2: "stereo"}


def _frames(waveform: Tensor, rate: int) -> Iterator[av.AudioFrame]:
    samples = waveform.detach().to(device="cpu", dtype=torch.float32).numpy()
    for start in range(0, samples.shape[-1], _SLICE):
        piece = np.ascontiguousarray(samples[:, start : start + _SLICE])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=_LAYOUTS[len(piece)])
        frame.sample_rate, frame.pts = rate, start
        yield frame


def fitted(waveform: Tensor, samples: int) -> Tensor:
    """(..., N) as (..., samples): cut at the end, or followed by silence."""
    kept = waveform[..., :samples]
    return torch.nn.functional.pad(kept, (0, samples - kept.shape[-1]))


def stereo(clip: AudioClip) -> AudioClip:
    """The clip with two channels; a single one is heard on both sides."""
    return AudioClip(clip.waveform.expand(-1, 2, -1), clip.sampling_rate)


def for_clip(clip: AudioClip, seconds: float) -> AudioClip:
    """The sound of a clip of this length as a file takes it: stereo, as long as the clip, at a rate that MP4 has.

    The samples are the given ones, but where the rate has to be another.
    """
    known = clip if clip.sampling_rate in AAC_RATES else resampled(clip, _FALLBACK_RATE)
    samples = fitted(stereo(known).waveform, round(seconds * known.sampling_rate))
    return AudioClip(samples.detach().to(device="cpu", dtype=torch.float32).contiguous(), known.sampling_rate)
