"""GELU, quantised where it is computed. One program takes one row."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ..activation import Activation
from .fp8 import LARGEST_FP8, SMALLEST_MAGNITUDE, empty_rows
from .launch import launched, power_of_2_from


@launched(pointers=3)
def _gelu_quantised(x, fp8, scales, D, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    offset = row.to(tl.int64) * D
    y = tl.load(x + offset + columns, mask=inside, other=0.0).to(tl.float32)
    # x * (1 + tanh(u)) / 2 = x * sigmoid(2u)
    y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    scale = tl.maximum(tl.max(tl.abs(y), 0), SMALLEST_MAGNITUDE) / LARGEST_FP8
    tl.store(fp8 + offset + columns, (y / scale).to(fp8.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def gelu_quantised(x: Tensor) -> Activation:
    """The tanh form of GELU of (B, T, D), in fp8."""
    x = x.contiguous()
    width = x.shape[-1]
    block = power_of_2_from(width)
    quantised = empty_rows(x)
    _gelu_quantised(
        (x.numel() // width,), (x, *quantised), (width,), (block,), num_warps=max(1, min(16, block // 1024))
    )
    return Activation(None, quantised)
