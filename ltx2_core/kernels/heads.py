"""What happens to queries, keys and attention results between the matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import Rope
from .activation import Activation, Needs
from .availability import fused
from .products import through
from .quantise import quantise_rows

# Of the tokens, that the kernel of the gates takes at a time
GATE_CHANNELS = 128


def can_norm_rope(x: Tensor, rope: Rope | None) -> bool:
    """Whether :func:`norm_rope_` serves: fused kernels run, and the rotary layout is split, in powers of two."""
    if not fused(x):
        return False
    width = x.shape[-1]
    if rope is None:
        return _is_power_of_2(width)
    if rope.cos.ndim != 4:
        return False
    groups, half = rope.cos.shape[1], rope.cos.shape[3]
    return _is_power_of_2(groups) and _is_power_of_2(half) and 2 * groups * half == width


def norm_rope_(x: tuple[Tensor, ...], weights: tuple[Tensor, ...], eps: float, rope: Rope | None) -> None:
    """Root mean square norm over all heads, then rotary embedding, in place; only where :func:`can_norm_rope`.

    Args:
        x: one or two tensors (B, T, width) of the same shape, which share the rotary table: queries, keys.
        weights: (width,) of each one's norm.
        rope: split layout, batch 1 or B; None leaves the turning out.
    """
    from . import heads_triton

    heads_triton.norm_rope_(x, weights, eps, rope)


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
        from . import heads_triton

        return heads_triton.gate_logits(x.quantised, weight, bias)
    return F.linear((values.float() * scales).to(weight.dtype), weight, bias)


def gate_heads(x: Tensor, logits: Tensor | None, heads: int, needs: Needs) -> Activation:
    """Every head's result times twice a sigmoid.

    Args:
        x: (B, T, heads * head_dim); it is overwritten.
        logits: (B, T, heads); None leaves the gates out.
    """
    powers = _is_power_of_2(heads) and _is_power_of_2(x.shape[-1] // heads)
    if powers and (logits is not None or needs.quantised) and fused(x):
        from . import heads_triton

        return heads_triton.gate_heads(x, logits, heads, needs)
    if logits is not None:
        x = (torch.unflatten(x, -1, (heads, -1)) * (2 * torch.sigmoid(logits))[..., None]).flatten(-2)
    return Activation(x if needs.plain else None, quantise_rows(x) if needs.quantised else None)


def gelu(x: Tensor, needs: Needs) -> Activation:
    """The tanh form of GELU, (B, T, D)."""
    if fused(x) and needs.quantised and not needs.plain:
        from . import heads_triton

        return heads_triton.gelu_quantised(x)
    x = F.gelu(x, approximate="tanh")
    return Activation(x if needs.plain else None, quantise_rows(x) if needs.quantised else None)


def _is_power_of_2(number: int) -> bool:
    return number & (number - 1) == 0
