"""Band-limited resampling with a Hann-windowed sinc, for sound of any length and every pair of whole rates.

The formula is that of torchaudio's ``functional.resample`` with its defaults, which official code uses. An output
sample is the sum of the input samples x[i] within six zero crossings of its place t = n * old / new:

    y[n] = g * sum_i x[i] * sinc(u) * cos(pi * u / 12)^2,   u = (i - t) * g,   |u| < 6
    g = 0.99 * min(1, new / old)

g is the cut-off frequency as a share of the old rate's half; 0.99 leaves room for the filter's slope.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["resample"]

_CROSSINGS = 6
_ROLLOFF = 0.99
# Weights of a filter for all phases at once, 16 MB; a pair such as 44101 to 16000 Hz would have 700 million of them
_LARGEST_FILTER = 1 << 22
_SAMPLES = 1 << 21  # input samples looked at at a time and channel: 8 MB


def resample(waveform: Tensor, old: int, new: int) -> Tensor:
    """The sound at another rate; what lies before and behind it counts as silence.

    Args:
        waveform: (channels, N), any floating dtype.
        old: its rate, Hz.
        new: the wanted rate, Hz.

    Returns:
        (channels, ceil(N * new / old)) float32.
    """
    divisor = math.gcd(old, new)
    old, new = old // divisor, new // divisor
    sound = waveform.detach().float()
    if old == new:
        return sound
    reach = _reach(old, new)
    result = sound.new_empty(sound.shape[0], -(-sound.shape[-1] * new // old))
    padded = torch.nn.functional.pad(sound, (reach, reach + old))
    if new * (2 * reach + old) <= _LARGEST_FILTER:
        _by_blocks(padded, result, old, new)
    else:
        _by_places(padded, result, old, new)
    return result


def _by_blocks(padded: Tensor, result: Tensor, old: int, new: int) -> None:
    """``new`` samples of each ``old`` by a strided convolution, for rates with a large common divisor.

    Times are float32 as in official code; exact ones give samples that differ by 1e-5 of the amplitude at 44,100 Hz.
    """
    taps = torch.arange(2 * _reach(old, new) + old)
    filters = _weights(taps[None], torch.arange(new)[:, None], old, new, torch.float32).to(padded.device)
    step = max(_SAMPLES // old, 1)
    blocks = -(-result.shape[-1] // new)
    for start in range(0, blocks, step):
        count = min(step, blocks - start)
        heard = padded[:, None, start * old : (start + count - 1) * old + len(taps)]
        made = torch.nn.functional.conv1d(heard, filters[:, None], stride=old)  # (channels, new, count)
        part = result[:, start * new : (start + count) * new]
        part.copy_(made.transpose(1, 2).flatten(1)[:, : part.shape[-1]])


def _by_places(padded: Tensor, result: Tensor, old: int, new: int) -> None:
    """One sample after the other, each with weights of its own, for rates with a small common divisor.

    Official code needs gigabytes here; rounding times to float32 would cost 60 dB.
    """
    taps = torch.arange(2 * _reach(old, new) + 2, device=padded.device)
    step = max(_SAMPLES // len(taps), 1)
    for start in range(0, result.shape[-1], step):
        numbers = torch.arange(start, min(start + step, result.shape[-1]), device=padded.device)
        phases = numbers % new
        first = phases * old // new
        weights = _weights(first[:, None] + taps, phases[:, None], old, new, torch.float64)
        places = numbers // new * old + first
        result[:, start : start + step] = (padded[:, places[:, None] + taps] * weights).sum(dim=-1)


def _reach(old: int, new: int) -> int:
    """Input samples on each side that an output sample hears."""
    return math.ceil(_CROSSINGS * old / (_ROLLOFF * min(old, new)))


def _weights(taps: Tensor, phases: Tensor, old: int, new: int, precision: torch.dtype) -> Tensor:
    """What input sample ``taps - reach`` of a block weighs in its output sample ``phases``, float32."""
    times = (taps - _reach(old, new)).to(precision) / old - phases.to(precision) / new
    u = (times * (_ROLLOFF * min(old, new))).clamp_(-_CROSSINGS, _CROSSINGS)
    window = torch.cos(u * math.pi / _CROSSINGS / 2).square()
    u *= math.pi
    sinc = torch.where(u == 0, torch.ones_like(u), u.sin() / u)
    return (sinc * (window * (_ROLLOFF * min(old, new) / old))).float()
