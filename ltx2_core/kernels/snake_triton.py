"""Triton's version of the anti-aliased SnakeBeta activation: both filters and the sine in one kernel.

A program takes a stretch of one channel. It writes what the sine makes at twice the rate, with three samples more at
each end, to a place of its own in memory, which the caches hold, and filters it from there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
REACH = 3  # samples of the doubled signal's phases to each side that an output is made of
PAIRS = 6  # of taps: one filter for the even samples of the doubled signal, one for the odd ones


@triton.jit(do_not_specialize=["channels"])
def _snake(
    x, alpha, beta, up, down, scratch, out, channels, length, eps, REACH: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    begin = tl.program_id(1) * (BLOCK - 2 * REACH)
    index = tl.arange(0, BLOCK)
    c = row % channels
    frequency = tl.exp(tl.load(alpha + c).to(tl.float32))
    amplitude = 1.0 / (tl.exp(tl.load(beta + c).to(tl.float32)) + eps)
    source = x + row.to(tl.int64) * length

    t = begin - REACH + index
    last = length - 1
    inner = tl.minimum(tl.maximum(t, 0), last)
    even = tl.zeros([BLOCK], tl.float32)
    odd = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(PAIRS):
        at = tl.minimum(tl.maximum(inner + (2 - k), 0), last)
        even += 2.0 * tl.load(up + 2 * k + 1).to(tl.float32) * tl.load(source + at).to(tl.float32)
        at = tl.minimum(tl.maximum(inner + (3 - k), 0), last)
        odd += 2.0 * tl.load(up + 2 * k).to(tl.float32) * tl.load(source + at).to(tl.float32)
    # Beyond the ends the doubled signal repeats its first sample, an even one, and its last, an odd one
    first = tl.where(t > last, odd, even)
    second = tl.where(t < 0, even, odd)
    sine = tl.sin(first * frequency)
    first += sine * sine * amplitude
    sine = tl.sin(second * frequency)
    second += sine * sine * amplitude

    own = scratch + (row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (2 * BLOCK)
    tl.store(own + index, first)
    tl.store(own + BLOCK + index, second)
    tl.debug_barrier()
    t = begin + index
    wanted = (index < BLOCK - 2 * REACH) & (t < length)
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(PAIRS):
        total += tl.load(down + 2 * k + 1).to(tl.float32) * tl.load(own + index + (k + 1), mask=wanted, other=0.0)
        total += tl.load(down + 2 * k).to(tl.float32) * tl.load(own + BLOCK + index + k, mask=wanted, other=0.0)
    tl.store(out + row.to(tl.int64) * length + t, total.to(out.dtype.element_ty), mask=wanted)


def anti_aliased_snake(x: Tensor, alpha: Tensor, beta: Tensor, eps: float, up: Tensor, down: Tensor) -> Tensor:
    """The activation of (B, C, T).

    Args:
        x: (B, C, T).
        alpha, beta: (C,), logarithms.
        eps: added to the exponential of ``beta``.
        up, down: (1, 1, 12), the filters in front of and behind the sine.
    """
    x = x.contiguous()
    batch, channels, length = x.shape
    out = torch.empty_like(x)
    stretches = triton.cdiv(length, BLOCK - 2 * REACH)
    scratch = torch.empty(batch * channels * stretches * 2 * BLOCK, dtype=torch.float32, device=x.device)
    _snake[(batch * channels, stretches)](
        x, alpha, beta, up, down, scratch, out, channels, length, eps, REACH=REACH, PAIRS=PAIRS, BLOCK=BLOCK,
        num_warps=4,
    )  # fmt: skip
    return out
