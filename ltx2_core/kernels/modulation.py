"""Residual updates, norms and modulation in one pass over the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .activation import Activation, Needs
from .availability import fused
from .rows import Affine, Row


def modulate(x: Tensor, affine: Affine, needs: Needs) -> Activation:
    """(B, T, D) tokens, scaled and shifted without a norm."""
    if fused(x):
        from .triton.modulation import residual_norm as kernel

        return kernel(x, None, None, (affine,), None, (needs,), slice(None))[1][0]
    return Activation.of(_eager_affine(x, affine), needs)


def residual_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Row | None,
    outputs: Sequence[Affine | None],
    eps: float,
    needs: Sequence[Needs],
    updated: slice = slice(None),
) -> tuple[Tensor, tuple[Activation, ...]]:
    """x + gate * update, and norms of it over the channels, each modulated in its own way.

    Args:
        x: (B, T, D).
        update: (b, T, D) for the batch items ``updated``, in order; None leaves ``x`` as it is.
        gate: None is 1.
        outputs: a modulation for each result; None is the root mean square norm alone.
        needs: the forms of each result.

    Returns:
        The new tokens (``x`` itself without an update), and the modulated norms.
    """
    if fused(x):
        from .triton.modulation import residual_norm as kernel

        return kernel(x, update, gate, outputs, eps, needs, updated)
    if update is not None:
        x = _eager_update(x, update, gate, updated)
    normed = F.rms_norm(x, x.shape[-1:], eps=eps) if outputs else x
    results = (normed if affine is None else _eager_affine(normed, affine) for affine in outputs)
    return x, tuple(Activation.of(result, need) for result, need in zip(results, needs, strict=True))


def _eager_update(x: Tensor, update: Tensor, gate: Row | None, updated: slice) -> Tensor:
    start, stop, _ = updated.indices(x.shape[0])
    some = x[updated]
    values = None if gate is None else gate.values()
    if values is not None and values.shape[0] > 1:
        values = values[updated]
    new = some + update if values is None else torch.addcmul(some, update, values)
    if stop - start == x.shape[0]:
        return new
    return torch.cat([x[:start], new, x[stop:]])


def _eager_affine(x: Tensor, affine: Affine) -> Tensor:
    return torch.addcmul(affine.shift.values(), x, 1 + affine.scale.values())
