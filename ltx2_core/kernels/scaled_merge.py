"""Low-rank changes added into fp8 weights with a scale for each row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .availability import converts_fp8, fused

Change = tuple[Tensor, Tensor, float]
"""up (out, rank), down (rank, in) and the factor of their product."""

# A row is in the registers of one program
WIDEST = 32_768


def can_merge(weight: Tensor, scale: Tensor) -> bool:
    """Whether :func:`merge_rows` serves these weights."""
    if not fused(weight) or weight.shape[1] > WIDEST or not (weight.is_contiguous() and scale.is_contiguous()):
        return False
    return not weight.is_cuda or converts_fp8(weight.device)


def merge_rows(weight: Tensor, scale: Tensor, changes: Sequence[Change]) -> None:
    """Adds ``factor * up @ down`` to each row and quantises it anew, in place: one kernel behind the products.

    Several changes are added up in float32 first.

    Args:
        weight: (out, in) float8_e4m3fn.
        scale: (out,) float32.
    """
    from .scaled_merge_triton import add_rows

    (up, down, factor), *others = changes
    total = up @ down
    if others:
        total = total.float().mul_(factor)
        factor = 1.0
        for other_up, other_down, other_factor in others:
            total.add_(other_up @ other_down, alpha=other_factor)
    add_rows(weight, scale, total, factor)
