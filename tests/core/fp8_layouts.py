"""Tiny checkpoints with fp8 weights in every layout that exists."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

FP8 = torch.float8_e4m3fn
Change = Callable[[dict[str, Tensor], dict[str, str]], None]


def rewrite(source: Path, target: Path, *changes: Change) -> Path:
    """A copy of a file with something changed in it."""
    with safe_open(source, "pt") as file:
        tensors, metadata = load_file(source), dict(file.metadata())
    for change in changes:
        change(tensors, metadata)
    save_file(tensors, target, metadata)
    return target


def fp8_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix(".weight") for key, t in tensors.items() if t.dtype is FP8 and key.endswith(".weight")]


def marker(**more: Any) -> Tensor:
    text = json.dumps({"format": "float8_e4m3fn", **more})
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def without_input_scales(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
    for layer in fp8_layers(tensors):
        del tensors[f"{layer}.input_scale"]


def row_scales(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
    """A scale for each row, (out, 1), none like the next."""
    for layer in fp8_layers(tensors):
        rows = len(tensors[f"{layer}.weight"])
        tensors[f"{layer}.weight_scale"] = tensors[f"{layer}.weight_scale"] * torch.linspace(0.5, 1.5, rows)[:, None]


def comfy_markers(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
    for number, layer in enumerate(fp8_layers(tensors)):
        tensors[f"{layer}.comfy_quant"] = marker(full_precision_matrix_mult=True) if number % 2 else marker()


def comfy_metadata(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    layers: dict[str, Any] = {layer: {"format": "float8_e4m3fn"} for layer in fp8_layers(tensors)}
    layers["a.layer.of.another.file"] = {"format": "nvfp4"}
    metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})


def legacy(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
    """ComfyUI's older layout."""
    for layer in fp8_layers(tensors):
        tensors[f"{layer}.scale_weight"] = tensors.pop(f"{layer}.weight_scale").reshape(1)
        tensors[f"{layer}.scale_input"] = tensors.pop(f"{layer}.input_scale")
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(0, dtype=FP8)


def cast(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
    """Weights and biases without scales."""
    for layer in fp8_layers(tensors):
        scale = tensors.pop(f"{layer}.weight_scale")
        del tensors[f"{layer}.input_scale"]
        tensors[f"{layer}.weight"] = (tensors[f"{layer}.weight"].float() * scale).to(FP8)
        tensors[f"{layer}.bias"] = tensors[f"{layer}.bias"].to(FP8)


def everywhere(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
    """Matrices of connectors and projections in fp8 too."""
    for key in [key for key, t in tensors.items() if "connector." in key or "aggregate_embed" in key]:
        weight = tensors[key]
        if key.endswith(".weight") and weight.ndim == 2:
            scale = weight.abs().max().float() / 448
            tensors[key], tensors[f"{key}_scale"] = (weight.float() / scale).to(FP8), scale
            tensors[f"{key.removesuffix('.weight')}.input_scale"] = torch.tensor(0.01)


def dequantised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """What the fp8 weights stand for, in float32."""
    metadata.pop("_quantization_metadata", None)
    layers = fp8_layers(tensors)
    for layer in layers:
        scale = torch.ones(1)
        for end in (".weight_scale", ".scale_weight"):
            scale = tensors.pop(layer + end, scale)
        for end in (".input_scale", ".scale_input", ".comfy_quant"):
            tensors.pop(layer + end, None)
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].float() * scale.reshape(-1, 1)
    for key, tensor in list(tensors.items()):
        if key.endswith("scaled_fp8"):
            del tensors[key]
        elif tensor.dtype is FP8:
            tensors[key] = tensor.float()


LAYOUTS: Mapping[str, tuple[Change, ...]] = {
    "official": (),
    "a scale for each row": (row_scales,),
    "comfy": (without_input_scales, comfy_markers),
    "comfy with metadata": (comfy_metadata,),
    "comfy, older": (legacy,),
    "cast": (cast,),
    "everywhere": (everywhere,),
}
