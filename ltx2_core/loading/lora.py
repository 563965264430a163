"""LoRA on a loaded transformer, by peft: injected once, its strength changed per phase without writing a weight.

Works with peft 0.17 and newer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..kernels.quantise import FP8
from ..kernels.scaled_merge import merge_rows
from ..models.meta_device import OnMeta
from ..models.scaled_linear import ScaledLinear
from .lora_file import LoRAFile, LoRATarget, LoRAWeights, check_fit

__all__ = [
    "LoRAFile",
    "LoRATarget",
    "LoRAWeights",
    "check_fit",
    "delta_weight",
    "inject",
    "linear_layers",
    "merge",
    "set_adapters",
]

# peft compares every layer with every other one of a call: two LoRAs on 1,660 layers take 3 s in groups, 11 s at once.
_GROUP = 64


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer by module path."""
    return {n: (m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def inject(model: nn.Module, adapters: Sequence[tuple[str, LoRAFile]], device: torch.device | None = None) -> None:
    """Reads LoRAs into adapters of ``model``, inactive until :func:`set_adapters` gives them a strength.

    The matrices get the dtype that the model's weights have, beside fp8 weights the one that their layer computes in.

    Args:
        adapters: name and file of each; names are unique and hold no dot. Every target is a linear layer of the
            model with the right size, which :func:`check_fit` checks.
        device: of the matrices; None: the weights' own.
    """
    for name, lora in adapters:
        _inject_layers(model, name, lora)
        layers: dict[str, Any] = {path: model.get_submodule(path) for path in lora.targets}
        base: nn.Linear = next(iter(layers.values())).base_layer
        dtype = base.dtype if isinstance(base, ScaledLinear) else base.weight.dtype
        for path, weights in lora.read(device or base.weight.device, dtype).items():
            layer = layers[path]
            layer.lora_A[name].weight = nn.Parameter(weights.down, requires_grad=False)
            layer.lora_B[name].weight = nn.Parameter(weights.up, requires_grad=False)
            layer.lora_alpha[name] = weights.alpha
    model.eval()
    set_adapters(model, {name: 0.0 for name, _ in adapters})


def _inject_layers(model: nn.Module, name: str, lora: LoRAFile) -> None:
    """Wraps the target layers; the adapter's weights stay on the meta device."""
    from peft import LoraConfig, inject_adapter_in_model

    by_rank: dict[int, list[str]] = defaultdict(list)
    for path, target in lora.targets.items():
        by_rank[target.rank].append(path)
    for rank, paths in by_rank.items():
        for start in range(0, len(paths), _GROUP):
            # A model of its own, of these layers only: no patterns to match, and peft looks at nothing else
            group = nn.Module()
            members = {str(number): path for number, path in enumerate(paths[start : start + _GROUP])}
            for number, path in members.items():
                group.add_module(number, model.get_submodule(path))
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(members), init_lora_weights=False)
            # Not low_cpu_mem_usage, which replaces nn.Module.register_parameter for every thread
            with OnMeta():
                inject_adapter_in_model(config, group, adapter_name=name)
            for number, path in members.items():
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, group.get_submodule(number))


def set_adapters(model: nn.Module, strengths: Mapping[str, float]) -> None:
    """Sets how strongly adapters change the model's output; no weight is written.

    An adapter of strength 0 is not computed at all. Adapters that are not named keep their strength.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    if not strengths:
        return
    found: set[str] = set()
    for layer in _adapted_layers(model):
        found.update(layer.scaling)
        for name, strength in strengths.items():
            layer.set_scale(name, strength)
        active = [name for name, scale in layer.scaling.items() if scale]
        if layer.active_adapters != active:
            layer.set_adapter(active)
            layer.requires_grad_(False)  # peft makes what it activates trainable
    if unknown := set(strengths) - found:
        raise ValueError(
            f"no adapter named {', '.join(sorted(unknown))}; there are: {', '.join(sorted(found)) or 'none'}"
        )


# Looking through the 20,000 modules of a full-size transformer takes longer than merging into it
_FOUND: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def _adapted_by_weight(model: nn.Module) -> Mapping[str, Any]:
    if model not in _FOUND:
        _FOUND[model] = {f"{path}.weight": layer for path, layer in _adapted_by_path(model)}
    return _FOUND[model]


def _adapted_layers(model: nn.Module) -> Iterator[Any]:
    return (layer for _, layer in _adapted_by_path(model))


def _adapted_by_path(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer))


def merge(model: nn.Module, weights: Mapping[str, Tensor], strengths: Mapping[str, float]) -> None:
    """Adds adapters into weights: W += strength * alpha / rank * up @ down, products summed in float32, rounded once.

    Where W is fp8, the sum is made in float32 and quantised anew, its scales with it.

    Args:
        model: the one that :func:`inject` wrapped; its matrices are on the weights' device.
        weights: by name in the unwrapped model, all of them or some, written in place. An fp8 weight comes with its
            ``weight_scale``.
        strengths: by adapter; one after the other where several change a layer.
    """
    adapted = _adapted_by_weight(model)
    for path, weight in weights.items():
        if (layer := adapted.get(path)) is None:
            continue
        active = {n: s * layer.lora_alpha[n] / layer.r[n] for n, s in strengths.items() if n in layer.scaling and s}
        changes = [(layer.lora_B[n].weight, layer.lora_A[n].weight, factor) for n, factor in active.items()]
        if weight.dtype is FP8 and changes:
            merge_rows(weight, weights[f"{path}_scale"], changes)
            continue
        for up, down, factor in changes:
            weight.addmm_(up, down, alpha=factor)


def delta_weight(layer: Any, adapter: str, strength: float) -> Tensor:
    """strength * alpha / rank * up @ down of one layer that :func:`inject` wrapped.

    This is what an adapter of this strength adds to the layer's weight, whatever strength it has now: (out, in), in the
    adapter's dtype and on its device.
    """
    scale = strength * layer.lora_alpha[adapter] / layer.r[adapter]
    delta: Tensor = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight * scale
    return delta
