"""Which tensors of a safetensors file are fp8 weights, and what scales them: official and ComfyUI's layouts.

Told from dtypes, scales and markers alone (docs/model.md 1.4): which layers are in fp8 differs from file to file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

FP8_NAME = "F8_E4M3"  # the format's name of float8_e4m3fn
FORMAT = "float8_e4m3fn"  # ComfyUI's
METADATA_KEY = "_quantization_metadata"
_MARKER, _LEGACY_MARKER = ".comfy_quant", "scaled_fp8"
# After a layer's name, newer files first
_SCALES = (".weight_scale", ".scale_weight")
_INPUT_SCALES = (".input_scale", ".scale_input")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_FULL_PRECISION = "full_precision_matrix_mult"

# Quantised weights that are not read, by dtype
_OTHERS: Mapping[str, str] = {
    "F8_E5M2": "fp8 weights of the kind e5m2",
    "F8_E4M3FNUZ": "fp8 weights of the kind e4m3fnuz",
    "F8_E5M2FNUZ": "fp8 weights of the kind e5m2fnuz",
    "I8": "int8 weights",
    "U8": "weights of 4 bits (nvfp4 or alike)",
    "F4": "weights of 4 bits",
}
_USE_FP8 = "Use the bf16 file of the same model, or one with fp8 weights of the kind e4m3fn."
_DAMAGED = "Use the official file, or a conversion with its scales and markers kept."


class StoredTensor(Protocol):
    """What a header says of a tensor."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class ScaledWeightsError(ValueError):
    """Quantised weights that cannot be read."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem, self.fix = problem, fix


@dataclass(frozen=True)
class ScaledWeights:
    """The fp8 tensors of a file.

    Attributes:
        layout: who writes such files, in words; None: the file has no fp8 tensor.
        scales: name of an fp8 weight -> name of its scale, one number or one for each row. Weights that are not named
            stand for themselves.
        full_precision: fp8 weights that are never to be multiplied in fp8.
        beside: scales and markers, which are no tensors of a model.
    """

    layout: str | None
    scales: Mapping[str, str]
    full_precision: frozenset[str]
    beside: frozenset[str]

    @classmethod
    def find(
        cls, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str], read: Callable[[str], bytes]
    ) -> ScaledWeights:
        """Looks at a file's header.

        Args:
            read: gives the bytes of a small tensor.

        Raises:
            ScaledWeightsError: weights are quantised in another way, or scales and markers do not fit the weights.
        """
        legacy = [name for name in tensors if name.rpartition(".")[2] == _LEGACY_MARKER]
        stored = _stored_markers(tensors, read)
        markers = {**_metadata_markers(tensors, metadata), **stored}
        for layer, marker in markers.items():
            _check(f"{layer}.weight", marker, tensors)
        exact = {f"{layer}.weight" for layer, marker in markers.items() if marker.get(_FULL_PRECISION)}
        for name, tensor in tensors.items():
            if (name in legacy or name.endswith(".weight")) and tensor.dtype in _OTHERS:
                raise ScaledWeightsError(f"holds {_OTHERS[tensor.dtype]} ({name})", _USE_FP8)
        weights = [name for name, t in tensors.items() if t.dtype == FP8_NAME and name.endswith(".weight")]
        layers = {name: name.removesuffix(".weight") for name in weights}
        scales = {name: scale for name, layer in layers.items() if (scale := _scale(layer, tensors))}
        inputs = {layer + end for layer in layers.values() for end in _INPUT_SCALES} & tensors.keys()
        # A weight without a scale stands for itself only where no tensor of the file says otherwise
        if scales or markers or legacy or inputs:
            for name in weights:
                if name not in scales and len(tensors[name].shape) > 1:
                    raise ScaledWeightsError(f"has no scale for {name}", _DAMAGED)
        if any(tensors[name].shape == (2,) for name in legacy):
            exact.update(weights)  # so ComfyUI tells files that are to be multiplied in full precision
        beside = {*scales.values(), *inputs, *legacy, *(layer + _MARKER for layer in stored)}
        has_fp8 = any(tensor.dtype == FP8_NAME and name not in legacy for name, tensor in tensors.items())
        layout = _layout(bool(stored), bool(markers), bool(legacy), scales) if has_fp8 else None
        return cls(layout, scales, frozenset(exact), frozenset(beside))


def dequantised(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A weight in ``dtype``; multiplied in float32 and rounded once.

    Args:
        weight: float8_e4m3fn.
        scale: one number, or one for each row; None is 1.
    """
    if scale is None:
        return weight.to(dtype)
    rows = scale.reshape(-1, *(1,) * (weight.ndim - 1)).to(device=weight.device, dtype=torch.float32)
    return (weight.float() * rows).to(dtype)


def _stored_markers(tensors: Mapping[str, StoredTensor], read: Callable[[str], bytes]) -> dict[str, dict[str, Any]]:
    """Layer -> what the tensor beside it says."""
    markers = {}
    for name in tensors:
        if name.endswith(_MARKER):
            layer = name.removesuffix(_MARKER)
            if f"{layer}.weight" not in tensors:
                raise ScaledWeightsError(f"marks a layer that has no weight ({name})", _DAMAGED)
            markers[layer] = _parsed(read(name), name)
    return markers


def _metadata_markers(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The same from the metadata. A file that was split keeps those of layers that it has no more."""
    if METADATA_KEY not in metadata:
        return {}
    layers = _parsed(metadata[METADATA_KEY], METADATA_KEY).get("layers")
    if not isinstance(layers, dict) or not all(isinstance(marker, dict) for marker in layers.values()):
        raise ScaledWeightsError(f"has damaged metadata: {METADATA_KEY} lists no layers", _DAMAGED)
    return {layer: marker for layer, marker in layers.items() if f"{layer}.weight" in tensors}


def _parsed(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ScaledWeightsError(f"has a damaged marker: {name} is not a JSON object", _DAMAGED)
    return value


def _check(weight: str, marker: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    kind = marker.get("format")
    unknown = [key for key, value in marker.items() if key not in ("format", _FULL_PRECISION) and value]
    if kind != FORMAT or unknown:
        what = f"{kind}" + (f" with {', '.join(unknown)}" if unknown else "")
        raise ScaledWeightsError(f"holds weights in a format that is not supported: {what} ({weight})", _USE_FP8)
    if tensors[weight].dtype != FP8_NAME:
        raise ScaledWeightsError(f"says that {weight} is {FORMAT}; it is {tensors[weight].dtype}", _DAMAGED)


def _scale(layer: str, tensors: Mapping[str, StoredTensor]) -> str | None:
    """Name of the scale of a layer's weight, or None where it has none."""
    found = [layer + end for end in _SCALES if layer + end in tensors]
    if not found:
        return None
    if len(found) > 1:
        raise ScaledWeightsError(f"scales a weight twice: {found[0]} and {found[1]}", _DAMAGED)
    scale, shape = tensors[found[0]], tensors[f"{layer}.weight"].shape
    rows = shape[0] if shape else 1
    if scale.dtype not in _FLOATS or scale.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
        problem = f"has a scale that fits no weight of {list(shape)}: {found[0]} is {scale.dtype} {list(scale.shape)}"
        raise ScaledWeightsError(problem, _DAMAGED)
    return found[0]


def _layout(stored: bool, marked: bool, legacy: bool, scales: Mapping[str, str]) -> str:
    if stored:
        return "ComfyUI's, with comfy_quant markers"
    if marked:
        return f"ComfyUI's, with {METADATA_KEY}"
    if legacy or any(scale.endswith(_SCALES[1]) for scale in scales.values()):
        return "ComfyUI's older one (scaled_fp8)"
    return "official" if scales else "no scales (cast)"
