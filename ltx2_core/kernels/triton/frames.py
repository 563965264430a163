"""What is done to frames between the convolutions of the video autoencoder."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from .channels_last import LAYOUT, WARPS, empty, rows_of, tile_of
from .launch import launched


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
    x: Tensor,
    bias: Tensor | None,
    kept: Tensor | None,
    edges: tuple[int, int, int],
    eps: float | None,
    keep: int,
) -> tuple[Tensor, Tensor | None]:
    """As the contract's; ``edges`` are before, after and margin, and ``x`` is left as it was."""
    x, x_rows = rows_of(x)
    (batch, channels, frames, height, width), (before, after, margin) = x.shape, edges
    padded = height + 2 * margin, width + 2 * margin
    length = before + frames + after
    out = empty(x, batch, channels, length, *padded)
    rest = empty(x, batch, channels, min(keep, length), *padded) if keep else None
    rows = batch * length * padded[0] * padded[1]
    tile, block = tile_of(channels)
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
            0 if rest is None else rest.shape[2],
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
    """As the contract's."""
    target = out
    out, out_rows = rows_of(out)
    skip, skip_rows = rows_of(skip)
    batch, channels = out.shape[:2]
    item_rows = out[0, 0].numel()
    tile, block = tile_of(channels)
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
