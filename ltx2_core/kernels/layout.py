"""Moves between space, time and channels, in the channel orders of the official weights (docs/model.md 7.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .availability import fused

Stride = tuple[int, int, int]  # time, height, width


def space_to_depth(x: Tensor, stride: Stride) -> Tensor:
    """(B, C, F, H, W) to (B, C * pt * ph * pw, F / pt, H / ph, W / pw); channel order (c, pt, ph, pw), pw fastest."""
    (b, c, f, h, w), (pt, ph, pw) = x.shape, stride
    cells = x.reshape(b, c, f // pt, pt, h // ph, ph, w // pw, pw)
    return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def depth_to_space(x: Tensor, stride: Stride) -> Tensor:
    """The inverse of :func:`space_to_depth`."""
    (b, c, f, h, w), (pt, ph, pw) = x.shape, stride
    cells = x.reshape(b, c // (pt * ph * pw), pt, ph, pw, f, h, w)
    return cells.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """(B, C, F, H, W) to (B, C * patch^2, F, H / patch, W / patch).

    Unlike the blocks inside the networks, the offset along the width is the slower index here:
    channel = c * patch^2 + x_offset * patch + y_offset.
    """
    b, c, f, h, w = pixels.shape
    cells = pixels.reshape(b, c, f, h // patch, patch, w // patch, patch)
    return cells.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`patchify`."""
    b, c, f, h, w = x.shape
    cells = x.reshape(b, c // patch**2, patch, patch, f, h, w)
    return cells.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def unfold(x: Tensor, bias: Tensor | None, stride: Stride, dropped: int) -> Tensor:
    """:func:`depth_to_space` of ``x`` plus a bias (C * pt * ph * pw,), without the first ``dropped`` frames.

    ``x`` is overwritten where a bias is given.
    """
    if fused(x):
        from .triton.layout import unfold as kernel

        return kernel(x, bias, stride, dropped)
    if bias is not None:
        x.add_(bias.view(-1, 1, 1, 1))
    return depth_to_space(x, stride)[:, :, dropped:]


def to_pixels(x: Tensor, bias: Tensor, patch: int) -> Tensor:
    """:func:`unpatchify` of ``x`` plus a bias (C * patch^2,); ``x`` is overwritten."""
    return unpatchify(x.add_(bias.view(-1, 1, 1, 1)), patch)


def to_bytes(x: Tensor, bias: Tensor, patch: int) -> Tensor:
    """The pixels of the first batch item, nominally in [-1, 1], as bytes; ``x`` is overwritten.

    Args:
        x: (B, 3 * patch^2, F, H, W).
        bias: (3 * patch^2,), still to be added to ``x``.
        patch: pixels per side of a patch.

    Returns:
        (F, H * patch, W * patch, 3) uint8, contiguous, on the device of ``x``. Truncated, not rounded, and clipped, as
        in the official code (docs/model.md 7.1).
    """
    if fused(x):
        from .triton.layout import to_bytes as kernel

        return kernel(x, bias, patch)
    unit = to_pixels(x[:1], bias, patch)[0].float().add(1.0).mul_(0.5).clamp_(0.0, 1.0)
    return unit.mul_(255.0).to(torch.uint8).permute(1, 2, 3, 0).contiguous()  # CFHW -> FHWC
