"""The anti-aliased SnakeBeta activation of BigVGAN (Lee et al., 2023), docs/model.md 7.4.

A periodic nonlinearity makes frequencies above the band; evaluating it at twice the rate between two low-pass filters
keeps most of them from folding back.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.availability import fused

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


class Upsample(LowPass):
    """Doubles the rate: (B, C, T) to (B, C, 2 T), edges replicated."""

    def forward(self, x: Tensor) -> Tensor:
        channels, edge = x.shape[1], TAPS // 2 - 1
        kernel = (2.0 * self.filter).expand(channels, -1, -1)
        x = F.pad(x, (edge, edge), mode="replicate")
        crop = 2 * edge + edge
        return F.conv_transpose1d(x, kernel, stride=2, groups=channels)[..., crop:-crop]


class Downsample(nn.Module):
    """Halves the rate: (B, C, 2 T) to (B, C, T), edges replicated."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = F.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return F.conv1d(x, self.lowpass.filter.expand(channels, -1, -1), stride=2, groups=channels)


class SnakeBeta(nn.Module):
    """x + sin(a x)^2 / b per channel, with a and b stored as logarithms (Ziyin et al., 2020; BigVGAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.alpha.exp().unsqueeze(-1)
        amplitude = (self.beta.exp() + SNAKE_EPS).reciprocal().unsqueeze(-1)
        return torch.addcmul(x, (x * frequency).sin().square(), amplitude)


class AntiAliasedSnake(nn.Module):
    """SnakeBeta at twice the rate, (B, C, T) in and out.

    Depthwise convolutions are the fastest form that was tried: keeping the two phases of the doubled signal apart, so
    that it is never interleaved, took 4 to 12% longer over the whole 2.3 vocoder (one H200, 5 s of sound, float32).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = Upsample()
        self.act = SnakeBeta(channels)
        self.downsample = Downsample()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Where kernels are fused the result is in channels-last order; ``bias`` (C,) is still to be added to ``x``."""
        if fused(x):
            from ...kernels.snake_triton import anti_aliased_snake

            act, up, down = self.act, self.upsample.filter, self.downsample.lowpass.filter
            return anti_aliased_snake(x, bias, act.alpha, act.beta, SNAKE_EPS, up, down)
        if bias is not None:
            x = x + bias.unsqueeze(-1)
        out: Tensor = self.downsample(self.act(self.upsample(x)))
        return out
