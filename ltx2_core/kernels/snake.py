"""The anti-aliased SnakeBeta activation of BigVGAN (Lee et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .availability import fused


def anti_aliased_snake(
    x: Tensor, bias: Tensor | None, alpha: Tensor, beta: Tensor, eps: float, up: Tensor, down: Tensor
) -> Tensor:
    """SnakeBeta at twice the rate, (B, C, T) in and out; the result is in channels-last order where kernels are fused.

    Depthwise convolutions are the fastest eager form that was tried: keeping the two phases of the doubled signal
    apart, so that it is never interleaved, took 4 to 12% longer over the whole 2.3 vocoder (one H200, 5 s of sound,
    float32).

    Args:
        bias: (C,), still to be added to ``x``.
        alpha, beta: (C,), logarithms.
        eps: added to the exponential of ``beta``.
        up, down: (1, 1, 12), the filters in front of and behind the sine.
    """
    if fused(x):
        from .triton.snake import anti_aliased_snake as kernel

        return kernel(x, bias, alpha, beta, eps, up, down)
    if bias is not None:
        x = x + bias.unsqueeze(-1)
    return halved_rate(snake(doubled_rate(x, up), alpha, beta, eps), down)


def snake(x: Tensor, alpha: Tensor, beta: Tensor, eps: float) -> Tensor:
    """x + sin(a x)^2 / b per channel, with a and b given as logarithms (Ziyin et al., 2020; BigVGAN)."""
    frequency = alpha.exp().unsqueeze(-1)
    amplitude = (beta.exp() + eps).reciprocal().unsqueeze(-1)
    return torch.addcmul(x, (x * frequency).sin().square(), amplitude)


def doubled_rate(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, T) to (B, C, 2 T), edges replicated; ``taps`` are a filter (1, 1, n)."""
    channels, edge = x.shape[1], taps.shape[-1] // 2 - 1
    kernel = (2.0 * taps).expand(channels, -1, -1)
    x = F.pad(x, (edge, edge), mode="replicate")
    crop = 2 * edge + edge
    return F.conv_transpose1d(x, kernel, stride=2, groups=channels)[..., crop:-crop]


def halved_rate(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, 2 T) to (B, C, T), edges replicated; ``taps`` are a filter (1, 1, n)."""
    channels, half = x.shape[1], taps.shape[-1] // 2
    x = F.pad(x, (half - 1, half), mode="replicate")
    return F.conv1d(x, taps.expand(channels, -1, -1), stride=2, groups=channels)
