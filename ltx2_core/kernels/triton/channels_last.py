"""Frames (B, C, F, H, W) in channels-last order, as rows that each hold a pixel's channels.

Tensor cores take that order without transposing. A program takes a few rows and all of their channels, so that a norm
reads its input once. Frames follow each other without gaps, so that a piece of a clip is one range of rows in every
batch item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import power_of_2_from

LAYOUT = torch.channels_last_3d
# Numbers that a program takes at a time: 32 for each of its threads.
TILE = 4096
WARPS = 4


def tile_of(channels: int) -> tuple[int, int]:
    """Rows that a program takes, and the power of two that holds their channels."""
    block = power_of_2_from(channels)
    return max(1, TILE // block), block


def empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAYOUT)


def rows_of(x: Tensor) -> tuple[Tensor, int]:
    """``x``, copied only where its batch items are not in channels-last order, and rows from one item to the next."""
    _, channels, frames, height, width = x.shape
    places = height * width
    expected = (1, places * channels, width * channels, channels)
    if any(size > 1 and own != wanted for size, own, wanted in zip(x.shape[1:], x.stride()[1:], expected, strict=True)):
        x = x.contiguous(memory_format=LAYOUT)
        return x, frames * places
    if x.shape[0] == 1:
        return x, frames * places
    step, rest = divmod(x.stride(0), channels)
    return (x, step) if not rest else (x.contiguous(memory_format=LAYOUT), frames * places)
