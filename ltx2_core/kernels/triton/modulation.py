"""Residual updates, norms and modulation. One program takes a few rows, a whole row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activation import Activation, Needs
from ..rows import Affine, Row
from .fp8 import LARGEST_FP8, SMALLEST_MAGNITUDE, empty_rows
from .launch import launched, power_of_2_from

# Where rows are many, a program takes several, so that it reads the modulation once for all of them
ROWS_PER_PROGRAM = 4
MANY_ROWS = 4096

NONE, SHARED, OF_LEVEL, OF_TOKEN = 0, 1, 2, 3
"""What a modulation vector depends on: there is none; nothing; the token's level; the token, or the batch item."""


@triton.jit
def _vector(table, row, vectors, at, batch_stride, level_stride, levels, b, t, columns, inside, D, KIND: tl.constexpr):
    start = vectors + at * D
    if KIND == 2:
        start += b * batch_stride + tl.load(levels + t) * level_stride
    elif KIND == 3:
        start += b * batch_stride + t * level_stride
    own = tl.load(table + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    return own + tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _write(y, out, fp8, scales, offset, row, columns, inside, PLAIN: tl.constexpr, QUANTISED: tl.constexpr):
    if PLAIN:
        tl.store(out + offset + columns, y.to(out.dtype.element_ty), mask=inside)
    if QUANTISED:
        y = tl.where(inside, y, 0.0)
        scale = tl.maximum(tl.max(tl.abs(y), 0), SMALLEST_MAGNITUDE) / LARGEST_FP8
        tl.store(fp8 + offset + columns, (y / scale).to(fp8.dtype.element_ty), mask=inside)
        tl.store(scales + row, scale)


# Numbers that are 0, 1 or a multiple of 16 by chance would each compile a kernel of their own
_ANY_NUMBER = [
    *("gate_row", "gate_at", "scale_0", "scale_at_0", "shift_0", "shift_at_0", "scale_1", "scale_at_1", "shift_1"),
    *("shift_at_1", "rows", "first_updated", "last_updated", "T"),
]


@launched(pointers=15, any_number=_ANY_NUMBER)
def _residual_norm(
    x,
    update,
    x_out,
    out_0,
    fp8_0,
    scales_0,
    out_1,
    fp8_1,
    scales_1,
    gate_table,
    gate_vectors,
    gate_levels,
    table,
    vectors,
    levels,
    gate_row,
    gate_at,
    gate_batch,
    gate_level,
    batch_stride,
    level_stride,
    scale_0,
    scale_at_0,
    shift_0,
    shift_at_0,
    scale_1,
    scale_at_1,
    shift_1,
    shift_at_1,
    rows,
    first_updated,
    last_updated,
    T,
    D,
    eps,
    UPDATED: tl.constexpr,
    GATE: tl.constexpr,
    NORM: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KIND: tl.constexpr,
    PLAIN_0: tl.constexpr,
    QUANTISED_0: tl.constexpr,
    PLAIN_1: tl.constexpr,
    QUANTISED_1: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    first = tl.program_id(0) * ROWS
    if GATE == 1:
        gate = _vector(gate_table, gate_row, gate_vectors, gate_at, 0, 0, gate_levels, 0, 0, columns, inside, D, 1)
    if KIND == 1:
        factor_0 = 1 + _vector(table, scale_0, vectors, scale_at_0, 0, 0, levels, 0, 0, columns, inside, D, 1)
        add_0 = _vector(table, shift_0, vectors, shift_at_0, 0, 0, levels, 0, 0, columns, inside, D, 1)
        if OUTPUTS == 2:
            factor_1 = 1 + _vector(table, scale_1, vectors, scale_at_1, 0, 0, levels, 0, 0, columns, inside, D, 1)
            add_1 = _vector(table, shift_1, vectors, shift_at_1, 0, 0, levels, 0, 0, columns, inside, D, 1)
    for index in range(ROWS):
        row = first + index
        if row < rows:
            b = row // T
            t = row % T
            offset = row.to(tl.int64) * D
            value = tl.load(x + offset + columns, mask=inside, other=0.0)
            if UPDATED:
                if (row >= first_updated) & (row < last_updated):
                    at = (row - first_updated).to(tl.int64) * D
                    change = tl.load(update + at + columns, mask=inside, other=0.0).to(tl.float32)
                    if GATE > 1:
                        gate = _vector(
                            gate_table,
                            gate_row,
                            gate_vectors,
                            gate_at,
                            gate_batch,
                            gate_level,
                            gate_levels,
                            b,
                            t,
                            columns,
                            inside,
                            D,
                            GATE,
                        )
                    if GATE > 0:
                        change = change * gate
                    # What later readers of the tokens see is rounded, so the norm takes that
                    value = (value.to(tl.float32) + change).to(x.dtype.element_ty)
                tl.store(x_out + offset + columns, value, mask=inside)
            y = value.to(tl.float32)
            if NORM:
                y = y * tl.rsqrt(tl.sum(y * y, 0) / D + eps)
            if OUTPUTS > 0:
                if KIND > 1:
                    factor_0 = 1 + _vector(
                        table, scale_0, vectors, scale_at_0, batch_stride, level_stride, levels, b, t, columns, inside,
                        D, KIND,
                    )  # fmt: skip
                    add_0 = _vector(
                        table, shift_0, vectors, shift_at_0, batch_stride, level_stride, levels, b, t, columns, inside,
                        D, KIND,
                    )  # fmt: skip
                y_0 = y
                if KIND > 0:
                    y_0 = y * factor_0 + add_0
                _write(y_0, out_0, fp8_0, scales_0, offset, row, columns, inside, PLAIN_0, QUANTISED_0)
            if OUTPUTS == 2:
                if KIND > 1:
                    factor_1 = 1 + _vector(
                        table, scale_1, vectors, scale_at_1, batch_stride, level_stride, levels, b, t, columns, inside,
                        D, KIND,
                    )  # fmt: skip
                    add_1 = _vector(
                        table, shift_1, vectors, shift_at_1, batch_stride, level_stride, levels, b, t, columns, inside,
                        D, KIND,
                    )  # fmt: skip
                _write(y * factor_1 + add_1, out_1, fp8_1, scales_1, offset, row, columns, inside, PLAIN_1, QUANTISED_1)


def residual_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Row | None,
    outputs: Sequence[Affine | None],
    eps: float | None,
    needs: Sequence[Needs],
    updated: slice,
) -> tuple[Tensor, tuple[Activation, ...]]:
    """As the contract's; ``eps`` None leaves the norm out."""
    x = x.contiguous()
    batch, tokens, width = x.shape
    rows = batch * tokens
    begin, end, _ = updated.indices(batch)
    fresh = torch.empty_like(x) if update is not None else x
    results = [_result(x, need) for need in needs]
    modulations = [affine for affine in outputs if affine is not None]
    main = modulations[0].scale if modulations else None
    places = [0] * 8
    for number, affine in enumerate(modulations):
        places[4 * number : 4 * number + 4] = affine.scale.row, affine.scale.at, affine.shift.row, affine.shift.at
    several = rows >= MANY_ROWS
    per_program = ROWS_PER_PROGRAM if several else 1
    block = power_of_2_from(width)
    forms = [*needs, *[Needs(False, False)] * (2 - len(needs))]
    _residual_norm(
        (-(-rows // per_program),),
        (
            x,
            update.contiguous() if update is not None else None,
            fresh,
            *_pointers(results),
            *_row_pointers(gate),
            *_row_pointers(main),
        ),
        (
            *((gate.row, gate.at) if gate is not None else (0, 0)),
            *_strides(gate),
            *_strides(main),
            *places,
            rows,
            begin * tokens,
            end * tokens,
            tokens,
            width,
            eps or 0.0,
        ),
        (
            update is not None,
            _kind(gate),
            eps is not None,
            len(outputs),
            _kind(main),
            *forms[0],
            *forms[1],
            per_program,
            block,
        ),
        num_warps=_warps(block, needs),
    )
    return fresh, tuple(results)


def _warps(block: int, needs: Sequence[Needs]) -> int:
    """One H200, rows of 4,096 after an update: 4 warps write one plain result 7% faster than 8 do, two results as fast,
    and 6,144 rows in fp8 slower."""
    one = len(needs) == 1 and not needs[0].quantised
    return max(1, min(8, block // (1024 if one else 512)))


def _kind(row: Row | None) -> int:
    if row is None:
        return NONE
    if row.token_levels is not None:
        return OF_LEVEL
    return SHARED if row.vectors.shape[:2] == (1, 1) else OF_TOKEN


def _strides(row: Row | None) -> tuple[int, int]:
    """Numbers from one batch item's vector, and from one level's, to the next."""
    if row is None:
        return 0, 0
    batch, levels = row.vectors.shape[:2]
    return (row.vectors.stride(0) if batch > 1 else 0, row.vectors.stride(1) if levels > 1 else 0)


def _row_pointers(row: Row | None) -> tuple[Tensor | None, ...]:
    return (None, None, None) if row is None else (row.table, row.vectors, row.token_levels)


def _result(x: Tensor, needs: Needs) -> Activation:
    return Activation(torch.empty_like(x) if needs.plain else None, empty_rows(x) if needs.quantised else None)


def _pointers(results: Sequence[Activation]) -> list[Tensor | None]:
    pointers: list[Tensor | None] = []
    for result in results:
        pointers += [result.plain, *(result.quantised or (None, None))]
    return pointers + [None] * (6 - len(pointers))
