"""Linear layers with fp8 weights and a scale for each row."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.availability import has_fp8_matmul
from ..kernels.quantise import FP8, Quantised, quantise_rows
from .scaled_weights import dequantised

# Of both sizes, in the fp8 product of NVIDIA GPUs
MULTIPLE = 16
# cuBLAS (13.0) has no product of few rows for the widest inputs: not of 2 to 16 rows of 16,384 numbers, but of 252
WIDE, LEAST_ROWS_OF_WIDE = 16_384, 256


class ScaledLinear(nn.Linear):
    """``x @ (weight * weight_scale).T + bias`` with weights in float8_e4m3fn.

    On hardware with fp8 products a bfloat16 model's input is quantised too, row by row, as it comes: scales that a file
    has for its inputs are of no use. Elsewhere, and with ``full_precision``, the weight is brought to the input's dtype
    for each call.

    Args:
        layer: whose sizes, device, dtype and bias the new one has. Its weight is not read.
        full_precision: never multiply in fp8.

    Attributes:
        weight: (out, in) float8_e4m3fn.
        weight_scale: (out,) float32, of each row.
        bias: (out,) in the model's dtype, or None.
        dtype: the model's.
    """

    weight_scale: nn.Parameter

    def __init__(self, layer: nn.Linear, full_precision: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.full_precision = layer.in_features, layer.out_features, full_precision
        self.dtype, device = layer.weight.dtype, layer.weight.device
        weight = torch.empty(layer.weight.shape, dtype=FP8, device=device)
        scale = torch.empty(layer.out_features, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    @property
    def takes_quantised(self) -> bool:
        """Whether the input may come in fp8, and is multiplied so. Products with row scales come in bfloat16 only."""
        fits = self.in_features % MULTIPLE == 0 and self.out_features % MULTIPLE == 0
        wanted = fits and not self.full_precision and self.dtype is torch.bfloat16
        return wanted and has_fp8_matmul(self.weight.device)

    def forward(self, x: Tensor | Quantised) -> Tensor:
        """(..., in) -> (..., out) in bfloat16 where the product is in fp8, else in the dtype of ``x``."""
        if not self.takes_quantised:
            if isinstance(x, Quantised):
                x = (x.values.float() * x.scales).to(self.dtype)
            return F.linear(x, self.dequantised(x.dtype), self.bias)
        if not isinstance(x, Quantised):
            x = quantise_rows(x)
        shape = x.values.shape
        values, scales = x.values.reshape(-1, self.in_features), x.scales.reshape(-1, 1)
        if self.in_features >= WIDE and len(values) < LEAST_ROWS_OF_WIDE:
            rows = len(values)
            values, scales = _more_rows(values.view(torch.uint8)).view(FP8), _more_rows(scales)
            return self._product(values, scales)[:rows].view(*shape[:-1], self.out_features)
        return self._product(values, scales).view(*shape[:-1], self.out_features)

    def _product(self, values: Tensor, scales: Tensor) -> Tensor:
        # A module looks for its tensors in three places each time, and there are 640 products in a call of the DiT
        own = self._parameters
        weight, scale = own["weight"], own["weight_scale"]
        assert weight is not None
        assert scale is not None
        product: Tensor = torch._scaled_mm(
            values,
            weight.t(),
            scale_a=scales,
            scale_b=scale.unsqueeze(0),
            bias=own.get("bias"),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return product

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight that the layer stands for, (out, in); multiplied in float32 and rounded once."""
        return dequantised(self.weight, self.weight_scale, dtype)


def _more_rows(part: Tensor) -> Tensor:
    return F.pad(part, (0, 0, 0, LEAST_ROWS_OF_WIDE - len(part)))


def scale_layers(module: nn.Module, paths: Iterable[str], full_precision: Iterable[str] = ()) -> None:
    """Replaces linear layers by :class:`ScaledLinear` ones, whose weights are still to be filled."""
    exact = frozenset(full_precision)
    for path in paths:
        parent, _, name = path.rpartition(".")
        layer = module.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{path} is no linear layer")
        setattr(module.get_submodule(parent), name, ScaledLinear(layer, path in exact))
