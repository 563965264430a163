"""Activations in fp8 with one scale per row, as the row-wise fp8 matrix product takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
# A row of zeros keeps a scale that can be divided by
SMALLEST = 1e-12


class Quantised(NamedTuple):
    """``values * scales`` approximates a tensor (..., K)."""

    values: Tensor  # (..., K) float8_e4m3fn
    scales: Tensor  # (..., 1) float32: the largest magnitude of each row over 448


def quantise_rows(x: Tensor) -> Quantised:
    """Every row's largest magnitude becomes 448."""
    # Not a division: by a number, GPUs and CPUs round it differently
    scales = x.detach().abs().amax(-1, keepdim=True).float().clamp_min(SMALLEST) * (1 / FP8_MAX)
    return Quantised((x.float() / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales)
