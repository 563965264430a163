"""Matrix products of linear layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def through(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's result. There are a thousand plain linear layers in each call of the DiT, and a module's own way to
    its result takes Python 3 us each: without hooks it is left out."""
    if type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks):
        return F.linear(x, layer.weight, layer.bias)
    return layer(x)  # type: ignore[no-any-return]
