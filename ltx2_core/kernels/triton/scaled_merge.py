"""Changes of fp8 weights with a scale for each row. One program takes one row."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ..quantise import FP8_MAX, SMALLEST
from .launch import launched, power_of_2_from

SMALLEST_MAX = tl.constexpr(SMALLEST)
INVERSE_MAX = tl.constexpr(1 / FP8_MAX)


@launched(pointers=3, any_number=["factor"])
def _add_rows(weight, scale, change, factor, D, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    offset = row.to(tl.int64) * D
    y = tl.load(weight + offset + columns, mask=inside, other=0.0).to(tl.float32) * tl.load(scale + row)
    y += factor * tl.load(change + offset + columns, mask=inside, other=0.0).to(tl.float32)
    new = tl.maximum(tl.max(tl.abs(y), 0), SMALLEST_MAX) * INVERSE_MAX
    tl.store(weight + offset + columns, tl.div_rn(y, new).to(weight.dtype.element_ty), mask=inside)
    tl.store(scale + row, new)


def add_rows(weight: Tensor, scale: Tensor, change: Tensor, factor: float) -> None:
    """Adds ``factor * change``, (out, in), to the rows that ``weight * scale`` stands for; both are written anew."""
    rows, width = weight.shape
    block = power_of_2_from(width)
    _add_rows((rows,), (weight, scale, change), (factor, width), (block,), num_warps=max(1, min(16, block // 1024)))
