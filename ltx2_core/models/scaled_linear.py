"""Linear layers with fp8 weights and a scale for each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.availability import has_fp8_matmul
from ..kernels.quantise import FP8, FP8_MAX, Quantised, quantise_rows
from ..kernels.scaled_merge import Change, can_merge, merge_rows
from .scaled_weights import dequantised

__all__ = ["FP8", "FP8_MAX", "ScaledLinear", "merge_into", "quantise_into", "scale_layers"]

# Of both sizes, in the fp8 product of NVIDIA GPUs
MULTIPLE = 16
# cuBLAS (13.0) has no product of few rows for the widest inputs: not of 2 to 16 rows of 16,384 numbers, but of 252
WIDE, LEAST_ROWS_OF_WIDE = 16_384, 256
# Numbers that are in float32 at a time: 32 MB, and some copies of them, beside weights that fill the GPU
_PART = 2**23
# On the host: what stays in a processor's caches. Two cores quantise 2.5 GB/s in such parts and 0.3 in larger ones
_CPU_PART = 2**20


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


def quantise_into(weight: Tensor | None, scale: Tensor | None, rows: Tensor) -> None:
    """Writes numbers as fp8 weights with a scale for each row, in place and part by part.

    Args:
        weight: (out, in) float8_e4m3fn; None leaves it out.
        scale: (out,) float32; None leaves it out.
        rows: (out, in) of any floating-point dtype.
    """
    for part in _row_parts(rows):
        values, scales = quantise_rows(rows[part])
        if weight is not None:
            weight[part] = values
        if scale is not None:
            scale[part] = scales[:, 0].to(scale.device)


def merge_into(weight: Tensor, scale: Tensor, changes: Sequence[Change]) -> None:
    """Adds ``factor * up @ down`` to what an fp8 weight stands for, and quantises it anew, in place.

    A product is rounded to the matrices' dtype before it is added in float32: next to fp8's steps that is nothing, and
    in float32 it would take ten times as long.

    Args:
        weight: (out, in) float8_e4m3fn.
        scale: (out,) float32.
        changes: up (out, rank), down (rank, in) and factor of each.
    """
    if can_merge(weight, scale):
        merge_rows(weight, scale, changes)
        return
    for part in _row_parts(weight):
        rows = weight[part].float() * scale[part, None]
        for up, down, factor in changes:
            rows.add_(up[part] @ down, alpha=factor)
        quantise_into(weight[part], scale[part], rows)


def _row_parts(weight: Tensor) -> Iterator[slice]:
    """Slices of a weight's rows, each of a size that may be in float32 beside it."""
    count = max(1, (_PART if weight.is_cuda else _CPU_PART) // weight.shape[1])
    return (slice(begin, begin + count) for begin in range(0, len(weight), count))
