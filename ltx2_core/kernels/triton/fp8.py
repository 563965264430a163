"""Rows in fp8, as kernels write them."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..quantise import FP8, FP8_MAX, SMALLEST, Quantised

SMALLEST_MAGNITUDE = tl.constexpr(SMALLEST)
LARGEST_FP8 = tl.constexpr(FP8_MAX)


def empty_rows(x: Tensor) -> Quantised:
    """Room for the rows of (..., K) in fp8."""
    return Quantised(
        torch.empty(x.shape, dtype=FP8, device=x.device),
        torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device),
    )
