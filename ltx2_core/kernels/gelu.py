"""The tanh form of GELU behind a linear layer."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activation import Activation, Needs
from .availability import fused


def linear_gelu(x: Activation, layer: nn.Module, reader: nn.Module) -> Activation:
    """GELU of a linear layer's result, (B, T, K) -> (B, T, N).

    Args:
        reader: the layer that takes the result. It gets the form that it takes; plain numbers where the product itself
            applies the GELU.
    """
    if x.plain is not None and in_product(layer, x.plain):
        return Activation(_product_gelu(x.plain, layer))
    return gelu(x.through(layer), Needs.of((reader,)))


def gelu(x: Tensor, needs: Needs) -> Activation:
    """GELU of (B, T, D)."""
    if fused(x) and needs.quantised and not needs.plain:
        from .triton.gelu import gelu_quantised as kernel

        return kernel(x)
    return Activation.of(F.gelu(x, approximate="tanh"), needs)


def in_product(layer: nn.Module, x: Tensor) -> TypeGuard[nn.Linear]:
    """Whether the product applies the GELU: of a plain layer, on an NVIDIA GPU, in the layer's own dtype."""
    return (
        type(layer) is nn.Linear
        and layer.bias is not None
        and x.is_cuda
        and torch.version.hip is None
        and x.dtype == layer.weight.dtype
        and x.dtype in (torch.bfloat16, torch.float16)
        and fused(x)
    )


def _product_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """cuBLASLt applies it before it rounds."""
    flat: Tensor = torch._addmm_activation(layer.bias, x.flatten(0, -2), layer.weight.t(), use_gelu=True)
    return torch.unflatten(flat, 0, x.shape[:-1])
