"""The smallest kernel: whether Triton works at all."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _trial(out, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(out + index, index)


def trial(device: torch.device) -> torch.Tensor:
    """Compiles and launches a kernel; raises whatever Triton raises. The result counts from 0 to 15."""
    out = torch.empty(16, dtype=torch.int32, device=device)
    _trial[(1,)](out, SIZE=16)
    return out
