"""Matrix products with what follows them in their epilogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .availability import fused


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
