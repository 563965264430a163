"""A small module with fp8 weights and their scales, its source, and what it must compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from ltx2_two_stage.device_manager.base_weights import SwitchableSpec
from ltx2_two_stage.device_manager.host_memory import PinnedBudget
from ltx2_two_stage.device_manager.layout import unique_tensors
from ltx2_two_stage.device_manager.modes import Mode
from ltx2_two_stage.device_manager.streams import Streams
from ltx2_two_stage.device_manager.switchable import SwitchableModule
from ltx2_two_stage.ltx2_core.kernels.quantise import quantise_into
from ltx2_two_stage.ltx2_core.loading.lora import LoRAFile, inject, merge, set_adapters
from ltx2_two_stage.ltx2_core.models.scaled_linear import scale_layers
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, RANK = 32, 4
SCALED = ("layers.0", "layers.1", "layers.3", "first")


class Model(nn.Module):
    """Layers in fp8 and one that is not, with one outside the list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def skeleton(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.device("meta"):
        model = Model().to(dtype).eval().requires_grad_(False)
    scale_layers(model, SCALED)
    return model


class Source:
    """Weights "on disk", and a LoRA on every layer.

    Args:
        folder: where the LoRA is written.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)

        def numbers(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator) / WIDTH**0.5

        self.dtype = dtype
        model = skeleton(dtype).to_empty(device="cpu")
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and path in SCALED:
                quantise_into(layer.weight, layer.get_parameter("weight_scale"), numbers(WIDTH, WIDTH))
            elif isinstance(layer, nn.Linear):
                layer.weight.copy_(numbers(WIDTH, WIDTH))
            if isinstance(layer, nn.Linear):
                layer.bias.copy_(numbers(WIDTH))
        self.weights = {name: tensor.detach() for name, tensor in unique_tensors(model)}
        file = folder / "lora.safetensors"
        paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        sizes = {"A": (RANK, WIDTH), "B": (WIDTH, RANK)}
        sides = {(path, side): numbers(*size) for path in paths for side, size in sizes.items()}
        save_file({f"diffusion_model.{path}.lora_{side}.weight": m for (path, side), m in sides.items()}, file)
        self.lora = LoRAFile.open(file, "lora")

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(self.weights[name])

    def adapt(self, module: nn.Module, names: Collection[str]) -> None:
        inject(module, [(name, self.lora) for name in names], torch.device("cpu"))

    def switchable(self, mode: Mode, streams: Streams) -> SwitchableModule:
        spec = SwitchableSpec(lambda: skeleton(self.dtype), self.fill, "layers", self.adapt, set_adapters, merge)
        return SwitchableModule(spec, mode, streams, PinnedBudget(), lambda _h2d, _d2h: None)

    def module(self, device: torch.device) -> Any:
        model = skeleton(self.dtype).to_empty(device=device)
        self.fill(dict(unique_tensors(model)))
        return model

    def inputs(self, device: torch.device) -> Tensor:
        return torch.linspace(-1, 1, 3 * WIDTH, device=device).view(3, WIDTH).to(self.dtype)

    def merged(self, strength: float, device: torch.device) -> Tensor:
        """What a module gives that was merged in one piece."""
        model, wrapped = self.module(device), self.module(device)
        inject(wrapped, [("style", self.lora)])
        with torch.inference_mode():
            merge(wrapped, dict(unique_tensors(model)), {"style": strength})
            return model(self.inputs(device))  # type: ignore[no-any-return]

    def dynamic(self, strength: float, device: torch.device) -> Tensor:
        """What a module gives with the adapter beside its weights."""
        model = self.module(device)
        inject(model, [("style", self.lora)])
        set_adapters(model, {"style": strength})
        with torch.inference_mode():
            return model(self.inputs(device))  # type: ignore[no-any-return]

    def assert_clean(self, switchable: SwitchableModule) -> None:
        """The base weights are those of the source, in their dtypes."""
        with switchable.use({"style": 0.0}) as module:
            for name, tensor in unique_tensors(module):
                assert tensor.dtype is self.weights[name].dtype, name
                assert torch.equal(tensor.cpu().float(), self.weights[name].float()), name


def run(switchable: SwitchableModule, source: Source, strength: float, then: float | None = None) -> Tensor:
    """One use; ``then`` is prefetched before its last of two evaluations."""
    with torch.inference_mode(), switchable.use({"style": strength}) as module:
        x = source.inputs(module.first.bias.device)
        first = module(x)
        if then is not None:
            switchable.prefetch({"style": then})
        result = module(x)
        assert torch.equal(first, result)
        return result.clone()
