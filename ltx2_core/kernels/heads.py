"""What happens to queries, keys and attention results between the matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import Rope
from .activation import Activation, Needs
from .availability import fused
from .products import through
from .rope import rotate, split_heads

# Of the tokens, that the kernel of the gates takes at a time
GATE_CHANNELS = 128


def can_norm_rope(x: Tensor, rope: Rope | None) -> bool:
    """Whether one kernel norms and turns: fused kernels run, and the rotary layout is split, in powers of two."""
    if not fused(x):
        return False
    width = x.shape[-1]
    if rope is None:
        return _is_power_of_2(width)
    if rope.cos.ndim != 4:
        return False
    groups, half = rope.cos.shape[1], rope.cos.shape[3]
    return _is_power_of_2(groups) and _is_power_of_2(half) and 2 * groups * half == width


def norm_rope(
    x: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    eps: float,
    ropes: tuple[Rope | None, ...],
    heads: int,
) -> tuple[Tensor, ...]:
    """Root mean square norm over all heads, then rotary embedding, split into heads.

    Args:
        x: tensors (B, T, width), such as queries and keys; they may be overwritten.
        weights: (width,) of each one's norm.
        ropes: the rotary table of each one, batch 1 or B; None leaves the turning out.
        heads: that attend, whatever number a table was made for.

    Returns:
        (B, heads, T, head_dim) each.
    """
    if all(map(can_norm_rope, x, ropes)):
        _fused_norm_rope(x, weights, eps, ropes)
        return tuple([split_heads(part, heads) for part in x])
    normed = [F.rms_norm(part, part.shape[-1:], weight, eps) for part, weight in zip(x, weights, strict=True)]
    return tuple(
        [
            split_heads(part, heads) if rope is None else rotate(part, rope, heads)
            for part, rope in zip(normed, ropes, strict=True)
        ]
    )


def _fused_norm_rope(
    x: tuple[Tensor, ...], weights: tuple[Tensor, ...], eps: float, ropes: tuple[Rope | None, ...]
) -> None:
    """In place; two of one shape that share a table in one launch."""
    from .triton.heads import norm_rope_ as kernel

    if len(x) == 2 and x[0].shape == x[1].shape and _same(*ropes):
        kernel(x, weights, eps, ropes[0])
        return
    for part, weight, rope in zip(x, weights, ropes, strict=True):
        kernel((part,), (weight,), eps, rope)


def _same(first: Rope | None, second: Rope | None) -> bool:
    """Whether both are one table."""
    if first is None or second is None:
        return first is second
    return first is second or first.cos is second.cos


def gates_need(layer: nn.Module | None, queries: Needs) -> Needs:
    """The forms in which the layer of the gates reads its input, beside queries that read it in theirs.

    Its weight stays as it is: gates are sensitive, and 32 columns cost next to nothing. It takes fp8 tokens where the
    queries do, which spares writing and reading them a second time.
    """
    if layer is None or (type(layer) is nn.Linear and not queries.plain):
        return queries
    return Needs(True, queries.quantised)


def gate_logits(x: Activation, layer: nn.Module) -> Tensor:
    """(B, T, heads) of a linear layer with few outputs."""
    if x.plain is not None:
        return through(layer, x.plain)
    assert x.quantised is not None
    values, scales = x.quantised
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    if fused(values) and _is_power_of_2(weight.shape[0]) and values.shape[-1] % GATE_CHANNELS == 0:
        from .triton.heads import gate_logits as kernel

        return kernel(x.quantised, weight, bias, GATE_CHANNELS)
    return F.linear((values.float() * scales).to(weight.dtype), weight, bias)


def gate_heads(x: Tensor, logits: Tensor | None, heads: int, needs: Needs) -> Activation:
    """Every head's result times twice a sigmoid.

    Args:
        x: (B, T, heads * head_dim); it is overwritten.
        logits: (B, T, heads); None leaves the gates out.
    """
    powers = _is_power_of_2(heads) and _is_power_of_2(x.shape[-1] // heads)
    if powers and (logits is not None or needs.quantised) and fused(x):
        from .triton.heads import gate_heads as kernel

        return kernel(x, logits, heads, needs)
    if logits is not None:
        x = (torch.unflatten(x, -1, (heads, -1)) * (2 * torch.sigmoid(logits))[..., None]).flatten(-2)
    return Activation.of(x, needs)


def _is_power_of_2(number: int) -> bool:
    return number & (number - 1) == 0
