"""Matrix products of linear layers, with what follows them in their epilogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .availability import fused


def through(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's result. There are a thousand plain linear layers in each call of the DiT, and a module's own way to
    its result takes Python 3 us each: without hooks it is left out."""
    if type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks):
        return F.linear(x, layer.weight, layer.bias)
    return layer(x)  # type: ignore[no-any-return]


def gelu_in_product(x: Tensor, layer: nn.Module) -> bool:
    """Whether :func:`linear_gelu` serves: a plain layer, on an NVIDIA GPU, in the layer's own dtype."""
    return (
        type(layer) is nn.Linear
        and layer.bias is not None
        and x.is_cuda
        and torch.version.hip is None
        and x.dtype == layer.weight.dtype
        and x.dtype in (torch.bfloat16, torch.float16)
        and fused(x)
    )


def linear_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """The tanh form of GELU of a linear layer, (B, T, K) -> (B, T, N): cuBLASLt applies it before it rounds."""
    assert layer.bias is not None
    flat: Tensor = torch._addmm_activation(layer.bias, x.flatten(0, -2), layer.weight.t(), use_gelu=True)
    return torch.unflatten(flat, 0, x.shape[:-1])
