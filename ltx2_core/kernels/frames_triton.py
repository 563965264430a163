"""Triton's version of :mod:`.frames`, and of the moves between channels and space at the end of a decoder.

Memory is in channels-last order, which tensor cores take without transposing: the channels of a pixel lie side by side,
a row. A program takes a few rows and all of their channels, so that a norm reads its input once. Frames follow each
other without gaps, so that a piece of a clip is one range of rows in every batch item.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .frames import TIME, Edges
from .launch import launched, power_of_2_from

LAYOUT = torch.channels_last_3d
# Numbers that a program takes at a time: 32 for each of its threads.
TILE = 4096
WARPS = 4
PIXELS = 1024  # bytes of a picture that a program makes
COLOURS = 3


@launched(
    pointers=5,
    any_number=["rows", "x_rows", "frames", "height", "width", "before", "kept_frames", "length", "rest_frames"],
)
def _window(
    x,
    bias,
    kept,
    out,
    rest,
    rows,
    x_rows,
    frames,
    height,
    width,
    before,
    kept_frames,
    length,
    rest_frames,
    eps,
    MARGIN: tl.constexpr,
    C: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)[None, :]
    padded_width = width + 2 * MARGIN
    picture = (height + 2 * MARGIN) * padded_width
    place = row % picture
    frame = row // picture % length
    b = row // picture // length
    y = tl.abs(place // padded_width - MARGIN)
    y = tl.where(y < height, y, 2 * height - 2 - y)
    column = tl.abs(place % padded_width - MARGIN)
    column = tl.where(column < width, column, 2 * width - 2 - column)
    source = tl.minimum(tl.maximum(frame - before, 0), frames - 1)
    inside = (row < rows)[:, None] & (c < C)
    old = (frame < kept_frames)[:, None]

    at = (b * x_rows + (source * height + y) * width + column).to(tl.int64)[:, None] * C + c
    value = tl.load(x + at, mask=inside & (frame >= kept_frames)[:, None], other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    if ACTIVATED:
        value *= tl.rsqrt(tl.sum(value * value, 1) / C + eps)[:, None]
        value *= tl.sigmoid(value)
    at = ((b * kept_frames + frame) * picture + place).to(tl.int64)[:, None] * C + c
    same = tl.load(kept + at, mask=inside & old, other=0.0)
    result = tl.where(old, same, value.to(out.dtype.element_ty))
    tl.store(out + row.to(tl.int64)[:, None] * C + c, result, mask=inside)
    late = frame - (length - rest_frames)
    at = ((b * rest_frames + late) * picture + place).to(tl.int64)[:, None] * C + c
    tl.store(rest + at, result, mask=inside & (late >= 0)[:, None])


def window(
    x: Tensor, bias: Tensor | None, kept: Tensor | None, edges: Edges, eps: float | None, keep: int
) -> tuple[Tensor, Tensor | None]:
    """As :func:`.frames.window`; ``x`` is left as it was."""
    x, x_rows = rows_of(x)
    (batch, channels, frames, height, width), (before, after, margin) = x.shape, edges
    padded = height + 2 * margin, width + 2 * margin
    length = before + frames + after
    out = _empty(x, batch, channels, length, *padded)
    rest = _empty(x, batch, channels, min(keep, length), *padded) if keep else None
    rows = batch * length * padded[0] * padded[1]
    tile, block = _tile(channels)
    _window(
        (-(-rows // tile),),
        (
            x,
            bias if bias is not None else x,
            kept.contiguous(memory_format=LAYOUT) if kept is not None else x,
            out,
            rest if rest is not None else out,
        ),
        (
            rows,
            x_rows,
            frames,
            height,
            width,
            before,
            0 if kept is None else before,
            length,
            0 if rest is None else rest.shape[TIME],
            eps or 0.0,
        ),
        (margin, channels, bias is not None, eps is not None, tile, block),
        num_warps=WARPS,
    )
    return out, rest


@launched(pointers=3, any_number=["rows", "item_rows", "out_rows", "skip_rows"])
def _add(
    out,
    bias,
    skip,
    rows,
    item_rows,
    out_rows,
    skip_rows,
    C: tl.constexpr,
    SKIP_C: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows)[:, None] & (c < C)
    b = row // item_rows
    at = out + (b * out_rows + row % item_rows).to(tl.int64)[:, None] * C + c
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        value += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    beside = skip + (b * skip_rows + row % item_rows).to(tl.int64)[:, None] * SKIP_C
    if SKIP_C == C:
        beside += c
    else:
        beside += c % SKIP_C
    value += tl.load(beside, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, value.to(out.dtype.element_ty), mask=inside)


def add_(out: Tensor, bias: Tensor | None, skip: Tensor) -> None:
    """As :func:`.frames.add_`."""
    target = out
    out, out_rows = rows_of(out)
    skip, skip_rows = rows_of(skip)
    batch, channels = out.shape[:2]
    item_rows = out[0, 0].numel()
    tile, block = _tile(channels)
    if not item_rows:
        return
    _add(
        (-(-batch * item_rows // tile),),
        (out, bias if bias is not None else out, skip),
        (batch * item_rows, item_rows, out_rows, skip_rows),
        (channels, skip.shape[1], bias is not None, tile, block),
        num_warps=WARPS,
    )
    if out is not target:  # a library chose another order for a convolution's result
        target.copy_(out)


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
    """As :func:`..models.video_vae.layout.unfold`."""
    cells = stride[0] * stride[1] * stride[2]
    x, x_rows = rows_of(x)
    batch, channels, frames, height, width = x.shape
    channels //= cells
    out = _empty(x, batch, channels, max(0, frames * stride[0] - dropped), height * stride[1], width * stride[2])
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
    """As :func:`..models.video_vae.layout.to_bytes`."""
    x, _ = rows_of(x[:1])
    _, _, frames, height, width = x.shape
    out = torch.empty(frames, height * patch, width * patch, COLOURS, dtype=torch.uint8, device=x.device)
    lines, line = out.shape[0] * out.shape[1], out.shape[2] * COLOURS
    _to_bytes((lines, -(-line // PIXELS)), (x, bias, out), (height, width), (patch, PIXELS), num_warps=WARPS)
    return out


def _tile(channels: int) -> tuple[int, int]:
    """Rows that a program takes, and the power of two that holds their channels."""
    block = power_of_2_from(channels)
    return max(1, TILE // block), block


def _empty(like: Tensor, *shape: int) -> Tensor:
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
