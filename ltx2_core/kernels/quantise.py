"""Numbers in fp8 with one scale per row, as the row-wise fp8 matrix product takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
# A row of zeros keeps a scale that can be divided by
SMALLEST = 1e-12
# Numbers that are in float32 at a time: 32 MB, and some copies of them, beside weights that fill the GPU
_PART = 2**23
# On the host: what stays in a processor's caches. Two cores quantise 2.5 GB/s in such parts and 0.3 in larger ones
_CPU_PART = 2**20


class Quantised(NamedTuple):
    """``values * scales`` approximates a tensor (..., K)."""

    values: Tensor  # (..., K) float8_e4m3fn
    scales: Tensor  # (..., 1) float32: the largest magnitude of each row over 448


def quantise_rows(x: Tensor) -> Quantised:
    """Every row's largest magnitude becomes 448."""
    # Not a division: by a number, GPUs and CPUs round it differently
    scales = x.detach().abs().amax(-1, keepdim=True).float().clamp_min(SMALLEST) * (1 / FP8_MAX)
    return Quantised((x.float() / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales)


def quantise_into(weight: Tensor | None, scale: Tensor | None, rows: Tensor) -> None:
    """Writes numbers as fp8 weights with a scale for each row, in place and part by part.

    Args:
        weight: (out, in) float8_e4m3fn; None leaves it out.
        scale: (out,) float32; None leaves it out.
        rows: (out, in) of any floating-point dtype.
    """
    for part in row_parts(rows):
        values, scales = quantise_rows(rows[part])
        if weight is not None:
            weight[part] = values
        if scale is not None:
            scale[part] = scales[:, 0].to(scale.device)


def row_parts(weight: Tensor) -> Iterator[slice]:
    """Slices of a weight's rows, each of a size that may be in float32 beside it."""
    count = max(1, (_PART if weight.is_cuda else _CPU_PART) // weight.shape[1])
    return (slice(begin, begin + count) for begin in range(0, len(weight), count))
