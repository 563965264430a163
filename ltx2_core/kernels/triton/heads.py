"""What happens to queries, keys and attention results. One program takes one row: all heads of a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...types import Rope
from ..activation import Activation, Needs
from ..quantise import Quantised
from .fp8 import LARGEST_FP8, SMALLEST_MAGNITUDE, empty_rows
from .launch import launched, power_of_2_from


@triton.jit
def _norm_rope_row(x, weight, cos, sin, first, second, table, D, eps, ROPE: tl.constexpr):
    a = tl.load(x + first).to(tl.float32)
    b = tl.load(x + second).to(tl.float32)
    factor = tl.rsqrt((tl.sum(tl.sum(a * a, 1), 0) + tl.sum(tl.sum(b * b, 1), 0)) / D + eps)
    a = a * factor * tl.load(weight + first).to(tl.float32)
    b = b * factor * tl.load(weight + second).to(tl.float32)
    if ROPE:
        c = tl.load(cos + table).to(tl.float32)
        s = tl.load(sin + table).to(tl.float32)
        turned = a * c - b * s
        b = b * c + a * s
        a = turned
    tl.store(x + first, a.to(x.dtype.element_ty))
    tl.store(x + second, b.to(x.dtype.element_ty))


@launched(pointers=6, any_number=["T"])
def _norm_rope(
    q,
    k,
    q_weight,
    k_weight,
    cos,
    sin,
    table_batch,
    T,
    D,
    eps,
    GROUPS: tl.constexpr,
    HALF: tl.constexpr,
    ROPE: tl.constexpr,
    PAIR: tl.constexpr,
):
    row = tl.program_id(0)
    group = tl.arange(0, GROUPS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    first = group * (2 * HALF) + column
    second = first + HALF
    table = (row // T) * table_batch + (group * T + row % T) * HALF + column
    start = row.to(tl.int64) * D
    _norm_rope_row(q + start, q_weight, cos, sin, first, second, table, D, eps, ROPE)
    if PAIR:
        _norm_rope_row(k + start, k_weight, cos, sin, first, second, table, D, eps, ROPE)


def norm_rope_(x: tuple[Tensor, ...], weights: tuple[Tensor, ...], eps: float, rope: Rope | None) -> None:
    """Norm and rotary embedding of one or two tensors (B, T, width) of the same shape, in place.

    Args:
        x: queries, keys, or both, which share the rotary table.
        weights: (width,) of each one's norm.
        rope: split layout, batch 1 or B; None leaves the turning out.
    """
    first, second = x[0], x[-1]
    batch, tokens, width = first.shape
    groups, half = (1, power_of_2_from(width) // 2) if rope is None else (rope.cos.shape[1], rope.cos.shape[3])
    if not (first.is_contiguous() and second.is_contiguous() and first.shape == second.shape):
        raise ValueError("queries and keys that are turned together must be of one shape, each in one piece")
    _norm_rope(
        (batch * tokens,),
        (first, second, weights[0], weights[-1], *((None, None) if rope is None else (rope.cos, rope.sin))),
        (0 if rope is None or rope.cos.shape[0] == 1 else rope.cos.stride(0), tokens, width, eps),
        (groups, half, rope is not None, len(x) == 2),
        num_warps=max(1, min(8, width // 512)),
    )


@launched(pointers=4)
def _gate_heads(
    x,
    logits,
    fp8,
    scales,
    D,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GATED: tl.constexpr,
    PLAIN: tl.constexpr,
    QUANTISED: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.arange(0, HEADS)
    places = row.to(tl.int64) * D + head[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    y = tl.load(x + places).to(tl.float32)
    if GATED:
        gates = 2 * tl.sigmoid(tl.load(logits + row.to(tl.int64) * HEADS + head).to(tl.float32))
        y = y * gates[:, None]
    if PLAIN:
        tl.store(x + places, y.to(x.dtype.element_ty))
    if QUANTISED:
        scale = tl.maximum(tl.max(tl.max(tl.abs(y), 1), 0), SMALLEST_MAGNITUDE) / LARGEST_FP8
        tl.store(fp8 + places, (y / scale).to(fp8.dtype.element_ty))
        tl.store(scales + row, scale)


def gate_heads(x: Tensor, logits: Tensor | None, heads: int, needs: Needs) -> Activation:
    """As the contract's."""
    x = x.contiguous()
    width = x.shape[-1]
    quantised = empty_rows(x) if needs.quantised else None
    _gate_heads(
        (x.numel() // width,),
        (x, logits.contiguous() if logits is not None else None, *(quantised or (None, None))),
        (width,),
        (heads, width // heads, logits is not None, needs.plain, needs.quantised),
        num_warps=max(1, min(8, width // 512)),
    )
    return Activation(x if needs.plain else None, quantised)


@launched(pointers=5, any_number=["rows"])
def _gate_logits(
    values, scales, weight, bias, out, rows, D, HEADS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    head = tl.arange(0, HEADS)
    channel = tl.arange(0, CHANNELS)
    start = row.to(tl.int64)[:, None] * D
    total = tl.zeros((ROWS, HEADS), dtype=tl.float32)
    for at in range(0, D, CHANNELS):
        x = tl.load(values + start + (at + channel)[None, :], mask=inside[:, None], other=0.0)
        w = tl.load(weight + head[None, :] * D + (at + channel)[:, None])
        # Every fp8 number is a bfloat16 number too
        total += tl.dot(x.to(w.dtype), w)
    total = total * tl.load(scales + row, mask=inside, other=0.0)[:, None]
    total += tl.load(bias + head).to(tl.float32)[None, :]
    places = row.to(tl.int64)[:, None] * HEADS + head[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=inside[:, None])


def gate_logits(x: Quantised, weight: Tensor, bias: Tensor, channels: int) -> Tensor:
    """As the contract's, for tokens in fp8, whose width ``channels`` divides: so many are taken at a time."""
    values = x.values.contiguous()
    heads, width = weight.shape
    rows = values.numel() // width
    out = torch.empty(*values.shape[:-1], heads, dtype=weight.dtype, device=values.device)
    per_program = 64 if rows >= 2048 else 16
    _gate_logits(
        (-(-rows // per_program),),
        (values, x.scales.contiguous(), weight, bias, out),
        (rows, width),
        (heads, per_program, channels),
        num_warps=4,
    )
    return out
