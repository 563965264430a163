"""The smallest kernel: whether Triton works at all, and how it can be launched."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compiled import OPTIONS, launch_compiled

SIZE = 16


@triton.jit(do_not_specialize=["start"])
def _trial(out, start, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(out + index, start + index)


def trial(device: torch.device) -> Tensor:
    """Compiles and launches a kernel; raises whatever Triton raises. The result counts from 0 to 15."""
    out = _empty(device)
    _trial[(1,)](out, 0, SIZE=SIZE, **OPTIONS)
    return out


def trial_again(device: torch.device) -> bool:
    """Whether the compiled kernel, launched by an address, does its work; raises whatever Triton raises."""
    out = _empty(device)
    compiled = _trial[(1,)](_empty(device), 0, SIZE=SIZE, **OPTIONS)
    launch_compiled(compiled, (1,), device.index, out.data_ptr(), SIZE, SIZE)
    # Asking for the numbers would be taken for a wait that somebody forgot
    numbers = out.to("cpu", non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return numbers.tolist() == list(range(SIZE, 2 * SIZE))


def _empty(device: torch.device) -> Tensor:
    return torch.empty(SIZE, dtype=torch.int32, device=device)
