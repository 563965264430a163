"""The anti-aliased SnakeBeta activation: both filters and the sine in one kernel.

Memory is in channels-last order, in which the convolutions beside it are faster. A program takes a stretch of a few
channels. It writes what the sine makes at twice the rate, with three samples more at each end, to a place of its own in
memory, which the caches hold, and filters it from there. The number of channels is known to the compiler no closer than
whether 16 divides it: a vocoder has eleven of them, and each version of this kernel takes it most of a second.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .launch import launched, power_of_2_from

TILE = 2048  # samples that a program takes, of all its channels together
CHANNELS = 32  # that a program takes at most: what one access to memory brings in float32
REACH = 3  # samples of the doubled signal's phases to each side that an output is made of
WARPS = 8
PAIRS = 6  # of taps: one filter for the even samples of the doubled signal, one for the odd ones


@launched(pointers=8, any_number=["length"])
def _snake(
    x, bias, alpha, beta, up, down, scratch, out, length, C, eps, BIASED: tl.constexpr, REACH: tl.constexpr,
    PAIRS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    parts = tl.cdiv(C, BLOCK)
    item = tl.program_id(0) // parts
    within = tl.arange(0, BLOCK)[None, :]
    c = tl.program_id(0) % parts * BLOCK + within
    begin = tl.program_id(1) * (ROWS - 2 * REACH)
    index = tl.arange(0, ROWS)[:, None]
    channel = c < C
    frequency = tl.exp(tl.load(alpha + c, mask=channel, other=0.0).to(tl.float32))
    amplitude = 1.0 / (tl.exp(tl.load(beta + c, mask=channel, other=0.0).to(tl.float32)) + eps)
    source = x + item.to(tl.int64) * length * C + c

    t = begin - REACH + index
    last = length - 1
    inner = tl.minimum(tl.maximum(t, 0), last)
    even = tl.zeros([ROWS, BLOCK], tl.float32)
    odd = tl.zeros([ROWS, BLOCK], tl.float32)
    for k in tl.static_range(PAIRS):
        at = tl.minimum(tl.maximum(inner + (2 - k), 0), last).to(tl.int64) * C
        even += 2.0 * tl.load(up + 2 * k + 1).to(tl.float32) * tl.load(source + at, mask=channel).to(tl.float32)
        at = tl.minimum(tl.maximum(inner + (3 - k), 0), last).to(tl.int64) * C
        odd += 2.0 * tl.load(up + 2 * k).to(tl.float32) * tl.load(source + at, mask=channel).to(tl.float32)
    if BIASED:
        # What is the same everywhere passes the filter times the sum of its taps
        own = tl.load(bias + c, mask=channel, other=0.0).to(tl.float32) * 2.0
        for k in tl.static_range(PAIRS):
            even += own * tl.load(up + 2 * k + 1).to(tl.float32)
            odd += own * tl.load(up + 2 * k).to(tl.float32)
    # Beyond the ends the doubled signal repeats its first sample, an even one, and its last, an odd one
    first = tl.where(t > last, odd, even)
    second = tl.where(t < 0, even, odd)
    sine = tl.sin(first * frequency)
    first += sine * sine * amplitude
    sine = tl.sin(second * frequency)
    second += sine * sine * amplitude

    number = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    place = scratch + number * (2 * ROWS * BLOCK) + index * BLOCK + within
    tl.store(place, first)
    tl.store(place + ROWS * BLOCK, second)
    tl.debug_barrier()
    t = begin + index
    wanted = (index < ROWS - 2 * REACH) & (t < length) & channel
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for k in tl.static_range(PAIRS):
        total += tl.load(down + 2 * k + 1).to(tl.float32) * tl.load(place + (k + 1) * BLOCK, mask=wanted, other=0.0)
        total += tl.load(down + 2 * k).to(tl.float32) * tl.load(place + (ROWS + k) * BLOCK, mask=wanted, other=0.0)
    at = (item.to(tl.int64) * length + t) * C + c
    tl.store(out + at, total.to(out.dtype.element_ty), mask=wanted)


def anti_aliased_snake(
    x: Tensor, bias: Tensor | None, alpha: Tensor, beta: Tensor, eps: float, up: Tensor, down: Tensor
) -> Tensor:
    """As the contract's; the filters have 12 taps."""
    x = x.transpose(1, 2).contiguous()
    batch, length, channels = x.shape
    out = torch.empty_like(x)
    block = min(CHANNELS, power_of_2_from(channels))
    rows = TILE // block
    grid = batch * -(-channels // block), -(-length // (rows - 2 * REACH))
    scratch = torch.empty(grid[0] * grid[1] * 2 * rows * block, dtype=torch.float32, device=x.device)
    _snake(
        grid,
        (x, x if bias is None else bias, alpha, beta, up, down, scratch, out),
        (length, channels, eps),
        (bias is not None, REACH, PAIRS, rows, block),
        num_warps=WARPS,
    )
    return out.transpose(1, 2)
