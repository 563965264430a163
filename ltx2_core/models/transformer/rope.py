"""Rotary position embeddings over seconds and pixels (RoFormer, arXiv 2104.09864; docs/model.md 2.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.rope import split_heads
from ...types import Rope
from .batch import batch_items
from .config import RopeLayout


def rope_table(
    positions: Tensor,
    width: int,
    heads: int,
    max_positions: Sequence[int],
    theta: float,
    layout: RopeLayout,
    float64: bool,
    dtype: torch.dtype,
) -> Rope:
    """cos and sin for tokens at ``positions``.

    Args:
        positions: (B, axes, T, 2) start and end; the middle counts. Their dtype is kept up to the angles, so that
            bfloat16 positions reproduce the revisions that rounded them.
        width: of all heads together; every axis takes ``width // (2 * axes)`` frequencies.
        max_positions: per axis, the position that turns the highest frequency to ``theta * pi / 2``.
        float64: spread the frequencies in float64 and round them once, not in float32.
        dtype: of the result; angles are float32.
    """
    axes = positions.shape[1]
    frequencies = _frequencies(width // (2 * axes), theta, float64, positions.device)
    middle = (positions[..., 0] + positions[..., 1]) / 2.0
    fraction = torch.stack([middle[:, axis] / limit for axis, limit in enumerate(max_positions)], dim=-1)
    # (B, T, axes, n) -> frequency-major: the axes of one frequency are neighbours
    angles = ((fraction * 2 - 1)[..., None] * frequencies).transpose(-1, -2).flatten(2)
    # What the axes leave over stays unturned, in front
    angles = F.pad(angles, (width // 2 - angles.shape[-1], 0))
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    if layout == "interleaved":
        return Rope(cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1))
    return Rope(split_heads(cos, heads).contiguous(), split_heads(sin, heads).contiguous())


def rope_items(rope: Rope, items: slice) -> Rope:
    """The table of some batch items."""
    return Rope(batch_items(rope.cos, items), batch_items(rope.sin, items))


def _frequencies(count: int, theta: float, float64: bool, device: torch.device) -> Tensor:
    # On the CPU: not every device has float64, and pow differs between devices by more than these angles forgive.
    exponents = torch.linspace(0.0, 1.0, count, dtype=torch.float64 if float64 else torch.float32, device="cpu")
    return (theta**exponents * math.pi / 2).to(device, torch.float32)
