"""Group norm, skip connection and SiLU behind a convolution of frames."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .availability import fused


def normalised(
    x: Tensor, bias: Tensor | None, groups: int, weight: Tensor, shift: Tensor, eps: float, skip: Tensor | None
) -> Tensor:
    """SiLU(norm(x + bias) + skip), with the norm over groups of channels and all places of a clip.

    Args:
        x: (B, C, F, H, W); it may be overwritten.
        bias: (C,), still to be added to ``x``.
        groups: a divisor of C.
        weight, shift: (C,), of the norm.
        eps: of the norm.
        skip: as ``x``.

    Returns:
        As ``x``, in channels-last order where kernels are fused.
    """
    if fused(x):
        from .triton.groups import normalised as kernel

        return kernel(x, torch.zeros_like(weight) if bias is None else bias, groups, weight, shift, eps, skip)
    if bias is not None:
        x = x + bias.view(-1, 1, 1, 1)
    out = F.group_norm(x, groups, weight, shift, eps)
    return F.silu(out if skip is None else out + skip)
