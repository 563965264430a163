"""Group norm, skip connection and SiLU behind a convolution, in channels-last order.

The channels of a group lie side by side in every row. A program takes a stretch of rows of one group: there are many
more of them than groups, which alone would leave most of a GPU idle. The first kernel leaves each stretch's mean and
sum of squares around it, the second joins those of a group, always in the same order, and writes the result.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .channels_last import rows_of
from .launch import launched, power_of_2_from

TILE = 4096  # numbers that a program takes
WARPS = 4
JOINED = 256  # stretches that are joined at a time


@launched(pointers=4, any_number=["rows", "x_rows"])
def _moments(
    x, bias, means, squares, rows, x_rows, C: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    item = tl.program_id(0) // (C // WIDTH)
    first = tl.program_id(0) % (C // WIDTH) * WIDTH
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    within = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows)[:, None] & (within < WIDTH)
    at = (item * x_rows + row).to(tl.int64)[:, None] * C + first + within
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + first + within, mask=within < WIDTH, other=0.0).to(tl.float32)
    count = tl.minimum(rows - tl.program_id(1) * ROWS, ROWS) * WIDTH
    mean = tl.sum(tl.sum(tl.where(inside, value, 0.0), 1), 0) / count
    apart = tl.where(inside, value - mean, 0.0)
    number = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(means + number, mean)
    tl.store(squares + number, tl.sum(tl.sum(apart * apart, 1), 0))


@launched(pointers=7, any_number=["rows", "x_rows", "skip_rows"])
def _apply(
    x, bias, skip, weight, shift, means, squares, rows, x_rows, skip_rows, eps, C: tl.constexpr, WIDTH: tl.constexpr,
    SKIPPED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, JOINED: tl.constexpr,
):  # fmt: skip
    stretches = tl.num_programs(1)
    group = tl.program_id(0) * stretches
    index = tl.arange(0, JOINED)
    total = tl.zeros([JOINED], tl.float32)
    for start in range(0, stretches, JOINED):
        number = start + index
        size = tl.maximum(tl.minimum(rows - number * ROWS, ROWS), 0).to(tl.float32)
        total += size * tl.load(means + group + number, mask=number < stretches, other=0.0)
    mean = tl.sum(total, 0) / rows
    total = tl.zeros([JOINED], tl.float32)
    for start in range(0, stretches, JOINED):
        number = start + index
        size = tl.maximum(tl.minimum(rows - number * ROWS, ROWS), 0).to(tl.float32) * WIDTH
        apart = tl.load(means + group + number, mask=number < stretches, other=0.0) - mean
        total += tl.load(squares + group + number, mask=number < stretches, other=0.0) + size * apart * apart
    inverse = tl.rsqrt(tl.sum(total, 0) / rows / WIDTH + eps)

    item = tl.program_id(0) // (C // WIDTH)
    first = tl.program_id(0) % (C // WIDTH) * WIDTH
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    within = tl.arange(0, BLOCK)[None, :]
    own = within < WIDTH
    inside = (row < rows)[:, None] & own
    at = x + (item * x_rows + row).to(tl.int64)[:, None] * C + first + within
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + first + within, mask=own, other=0.0).to(tl.float32)
    scale = tl.load(weight + first + within, mask=own, other=0.0).to(tl.float32) * inverse
    value = (value - mean) * scale + tl.load(shift + first + within, mask=own, other=0.0).to(tl.float32)
    if SKIPPED:
        beside = skip + (item * skip_rows + row).to(tl.int64)[:, None] * C + first + within
        value += tl.load(beside, mask=inside, other=0.0).to(tl.float32)
    value *= tl.sigmoid(value)
    tl.store(at, value.to(x.dtype.element_ty), mask=inside)


def normalised(
    x: Tensor, bias: Tensor, groups: int, weight: Tensor, shift: Tensor, eps: float, skip: Tensor | None
) -> Tensor:
    """As the contract's; ``x`` is overwritten where it is in channels-last order."""
    x, x_rows = rows_of(x)
    beside, beside_rows = (x, x_rows) if skip is None else rows_of(skip)
    batch, channels = x.shape[:2]
    rows, width = x[0, 0].numel(), channels // groups
    block = power_of_2_from(width)
    tile = max(1, TILE // block)
    grid = batch * groups, -(-rows // tile)
    means, squares = torch.empty(2, *grid, dtype=torch.float32, device=x.device)
    _moments(grid, (x, bias, means, squares), (rows, x_rows), (channels, width, tile, block), num_warps=WARPS)
    _apply(
        grid,
        (x, bias, beside, weight, shift, means, squares),
        (rows, x_rows, beside_rows, eps),
        (channels, width, skip is not None, tile, block, JOINED),
        num_warps=WARPS,
    )
    return x
