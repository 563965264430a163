"""The anti-aliased SnakeBeta activation of BigVGAN (Lee et al., 2023), docs/model.md 7.4.

A periodic nonlinearity makes frequencies above the band; evaluating it at twice the rate between two low-pass filters
keeps most of them from folding back.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from ...kernels.snake import anti_aliased_snake

TAPS = 12
CUTOFF = 0.25  # half the band at twice the rate
HALF_WIDTH = 0.3  # of the transition band, as a share of the sampling rate
SNAKE_EPS = 1e-9


@functools.lru_cache(maxsize=8)
def kaiser_sinc_taps(taps: int, cutoff: float, half_width: float) -> tuple[float, ...]:
    """A low-pass filter of unit gain at DC: a sinc under a Kaiser window, ``taps`` of them, an even number.

    The window's shape follows from the width of the transition by Kaiser's design formulas (Oppenheim and Schafer,
    Discrete-Time Signal Processing, 7.5.3).
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation > 50.0:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21.0:
        beta = 0.5842 * (attenuation - 21.0) ** 0.4 + 0.07886 * (attenuation - 21.0)
    else:
        beta = 0.0
    # On the CPU even while modules are built on the meta device.
    cpu, f64 = torch.device("cpu"), torch.float64
    time = torch.arange(taps, dtype=f64, device=cpu) - (taps - 1) / 2
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=f64, device=cpu)
    response = window * torch.sinc(2 * cutoff * time)
    return tuple((response / response.sum()).tolist())


class LowPass(nn.Module):
    """Holds a filter that the checkpoint stores, (1, 1, taps)."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = kaiser_sinc_taps(TAPS, CUTOFF, HALF_WIDTH)
        self.register_buffer("filter", torch.tensor(taps).view(1, 1, -1))


class Downsample(nn.Module):
    """Only here for the checkpoint's key names."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()


class SnakeBeta(nn.Module):
    """Holds the logarithms of a frequency and of an amplitude for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))


class AntiAliasedSnake(nn.Module):
    """SnakeBeta at twice the rate, (B, C, T) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = LowPass()
        self.act = SnakeBeta(channels)
        self.downsample = Downsample()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Where kernels are fused the result is in channels-last order; ``bias`` (C,) is still to be added to ``x``."""
        act, up, down = self.act, self.upsample.filter, self.downsample.lowpass.filter
        return anti_aliased_snake(x, bias, act.alpha, act.beta, SNAKE_EPS, up, down)
