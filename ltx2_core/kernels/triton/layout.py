"""Moves between channels and space at the end of a decoder."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .channels_last import TILE, WARPS, empty, rows_of
from .launch import launched, power_of_2_from

PIXELS = 1024  # bytes of a picture that a program makes
COLOURS = 3


@launched(pointers=3, any_number=["rows", "x_rows", "frames", "height", "width", "dropped"])
def _unfold(
    x,
    bias,
    out,
    rows,
    x_rows,
    frames,
    height,
    width,
    dropped,
    C: tl.constexpr,
    STRIDE_T: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    CELLS: tl.constexpr = STRIDE_T * STRIDE_H * STRIDE_W
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None, None]
    c = tl.arange(0, BLOCK)[None, :, None]
    cell = tl.arange(0, CELLS)[None, None, :]
    column = row % width
    y = row // width % height
    frame = row // width // height % frames
    b = row // width // height // frames
    inside = (row < rows) & (c < C)
    at = (b * x_rows + (frame * height + y) * width + column).to(tl.int64) * (C * CELLS) + c * CELLS + cell
    value = tl.load(x + at, mask=inside, other=0.0)
    if BIASED:
        own = tl.load(bias + c * CELLS + cell, mask=c < C, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + own).to(out.dtype.element_ty)
    frame = frame * STRIDE_T + cell // (STRIDE_H * STRIDE_W) - dropped
    y = y * STRIDE_H + cell // STRIDE_W % STRIDE_H
    column = column * STRIDE_W + cell % STRIDE_W
    frame_number = b * (frames * STRIDE_T - dropped) + frame
    at = ((frame_number * (height * STRIDE_H) + y) * (width * STRIDE_W) + column).to(tl.int64) * C + c
    tl.store(out + at, value, mask=inside & (frame >= 0))


def unfold(x: Tensor, bias: Tensor | None, stride: tuple[int, int, int], dropped: int) -> Tensor:
    """As the contract's; ``x`` is left as it was."""
    cells = stride[0] * stride[1] * stride[2]
    x, x_rows = rows_of(x)
    batch, channels, frames, height, width = x.shape
    channels //= cells
    out = empty(x, batch, channels, max(0, frames * stride[0] - dropped), height * stride[1], width * stride[2])
    rows = batch * frames * height * width
    if not rows:
        return out
    block = power_of_2_from(channels)
    tile = max(1, TILE // (block * cells))
    _unfold(
        (-(-rows // tile),),
        (x, bias if bias is not None else x, out),
        (rows, x_rows, frames, height, width, dropped),
        (channels, *stride, bias is not None, tile, block),
        num_warps=WARPS,
    )
    return out


@launched(pointers=3, any_number=["height", "width"])
def _to_bytes(x, bias, out, height, width, PATCH: tl.constexpr, BLOCK: tl.constexpr):
    line = tl.program_id(0)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = number < width * PATCH * 3
    colour = number % 3
    column = number // 3
    y = line % (height * PATCH)
    frame = line // (height * PATCH)
    channel = colour * (PATCH * PATCH) + column % PATCH * PATCH + y % PATCH
    row = ((frame * height + y // PATCH) * width).to(tl.int64)
    at = (row + column // PATCH) * (3 * PATCH * PATCH) + channel
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    # Pixels are rounded to the network's precision before they are bytes, as the eager version has them
    value = value.to(x.dtype.element_ty).to(tl.float32)
    value = tl.minimum(tl.maximum((value + 1.0) * 0.5, 0.0), 1.0) * 255.0
    tl.store(out + line.to(tl.int64) * (width * PATCH * 3) + number, value.to(tl.uint8), mask=inside)


def to_bytes(x: Tensor, bias: Tensor, patch: int) -> Tensor:
    """As the contract's; ``x`` is left as it was."""
    x, _ = rows_of(x[:1])
    _, _, frames, height, width = x.shape
    out = torch.empty(frames, height * patch, width * patch, COLOURS, dtype=torch.uint8, device=x.device)
    lines, line = out.shape[0] * out.shape[1], out.shape[2] * COLOURS
    _to_bytes((lines, -(-line // PIXELS)), (x, bias, out), (height, width), (patch, PIXELS), num_warps=WARPS)
    return out
