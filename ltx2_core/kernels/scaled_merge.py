"""Low-rank changes added into fp8 weights with a scale for each row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .availability import converts_fp8, fused
from .quantise import quantise_into, row_parts

Change = tuple[Tensor, Tensor, float]
"""up (out, rank), down (rank, in) and the factor of their product."""

# A row is in the registers of one program
WIDEST = 32_768


def merge_rows(weight: Tensor, scale: Tensor, changes: Sequence[Change]) -> None:
    """Adds ``factor * up @ down`` to what an fp8 weight stands for, and quantises it anew, in place.

    A product is rounded to the matrices' dtype before it is added in float32: next to fp8's steps that is nothing, and
    in float32 it would take ten times as long.

    Args:
        weight: (out, in) float8_e4m3fn.
        scale: (out,) float32.
    """
    if can_merge(weight, scale):
        from .triton.scaled_merge import add_rows as kernel

        kernel(weight, scale, *_total(changes))
        return
    for part in row_parts(weight):
        rows = weight[part].float() * scale[part, None]
        for up, down, factor in changes:
            rows.add_(up[part] @ down, alpha=factor)
        quantise_into(weight[part], scale[part], rows)


def can_merge(weight: Tensor, scale: Tensor) -> bool:
    """Whether one kernel behind the products adds and quantises."""
    if not fused(weight) or weight.shape[1] > WIDEST or not (weight.is_contiguous() and scale.is_contiguous()):
        return False
    return not weight.is_cuda or converts_fp8(weight.device)


def _total(changes: Sequence[Change]) -> tuple[Tensor, float]:
    """One matrix and its factor; several changes are added up in float32."""
    (up, down, factor), *others = changes
    total = up @ down
    if not others:
        return total, factor
    total = total.float().mul_(factor)
    for other_up, other_down, other_factor in others:
        total.add_(other_up @ other_down, alpha=other_factor)
    return total, 1.0
