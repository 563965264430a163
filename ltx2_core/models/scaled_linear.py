"""Linear layers with fp8 weights and a scale for each row."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.availability import has_fp8_matmul
from ..kernels.quantise import FP8, Quantised, quantise_rows

# Of both sizes, in the fp8 product of NVIDIA GPUs
MULTIPLE = 16


class ScaledLinear(nn.Linear):
    """``x @ (weight * weight_scale).T + bias`` with weights in float8_e4m3fn.

    On hardware with fp8 products the input is quantised too, row by row, as it comes: scales that a file has for its
    inputs are of no use. Elsewhere, and with ``full_precision``, the weight is brought to the input's dtype for each
    call.

    Args:
        layer: whose sizes, device, and bias the new one has. Its weight is not read.
        full_precision: never multiply in fp8.

    Attributes:
        weight: (out, in) float8_e4m3fn.
        weight_scale: (out,) float32, of each row.
        bias: (out,) in the model's dtype, or None.
    """

    weight_scale: nn.Parameter

    def __init__(self, layer: nn.Linear, full_precision: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.full_precision = layer.in_features, layer.out_features, full_precision
        device = layer.weight.device
        weight = torch.empty(layer.weight.shape, dtype=FP8, device=device)
        scale = torch.empty(layer.out_features, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    @property
    def takes_quantised(self) -> bool:
        """Whether the input may come in fp8, and is multiplied so."""
        fits = self.in_features % MULTIPLE == 0 and self.out_features % MULTIPLE == 0
        return fits and not self.full_precision and has_fp8_matmul(self.weight.device)

    def forward(self, x: Tensor | Quantised) -> Tensor:
        """(..., in) -> (..., out) in the bias's dtype where the product is in fp8, else in that of ``x``."""
        if not self.takes_quantised:
            if isinstance(x, Quantised):
                x = (x.values.float() * x.scales).to(torch.bfloat16 if self.bias is None else self.bias.dtype)
            return F.linear(x, self.dequantised(x.dtype), self.bias)
        if not isinstance(x, Quantised):
            x = quantise_rows(x)
        lead = x.values.shape[:-1]
        product: Tensor = torch._scaled_mm(
            x.values.reshape(-1, self.in_features),
            self.weight.t(),
            scale_a=x.scales.reshape(-1, 1),
            scale_b=self.weight_scale[None],
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return torch.unflatten(product, 0, lead)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight that the layer stands for, (out, in); multiplied in float32 and rounded once."""
        return (self.weight.float() * self.weight_scale[:, None]).to(dtype)


def scale_layers(module: nn.Module, paths: Iterable[str], full_precision: Iterable[str] = ()) -> None:
    """Replaces linear layers by :class:`ScaledLinear` ones, whose weights are still to be filled."""
    exact = frozenset(full_precision)
    for path in paths:
        parent, _, name = path.rpartition(".")
        layer = module.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{path} is no linear layer")
        setattr(module.get_submodule(parent), name, ScaledLinear(layer, path in exact))
