"""Runs with stacks of LoRAs on tiny files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.device_manager import modes
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.recipe_choice import RecipeChoice
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.types import PromptContext
from safetensors.torch import load_file, save_file
from torch import Tensor

CPU = torch.device("cpu")
MODES = tuple(sorted(mode.name for mode in modes.MODES))
Latents = Mapping[str, Tensor]
Texts = tuple[PromptContext, PromptContext | None]


def write_other(tiny: TinyFiles) -> Path:
    """Another LoRA on some of the layers, of other numbers."""
    path = tiny.folder / "other.safetensors"
    tensors = {key: tensor for key, tensor in load_file(tiny.lora).items() if ".attn" in key}
    assert 0 < len(tensors) < len(load_file(tiny.lora))
    save_file({key: tensor.flip(-1).contiguous() * 0.7 for key, tensor in tensors.items()}, path)
    return path


def open_models(tiny: TinyFiles, *loras: LoRASource) -> ModelSet:
    files = ModelFiles(tiny.checkpoint, tiny.gemma, tiny.upsampler, tiny.distilled_lora, loras)
    return ModelSet.open(files, torch.float32)


def open_pipeline(tiny: TinyFiles, mode: str, *loras: LoRASource, device: torch.device = CPU) -> Pipeline:
    models = open_models(tiny, *loras)
    return Pipeline(models, open_manager(models, device, mode))


def add(pipeline: Pipeline, *loras: LoRASource) -> Pipeline:
    models = pipeline.models
    for lora in loras:
        assert isinstance(models, ModelSet)
        models = models.with_lora(lora)
    return pipeline.with_models(models)


def request_for(preset: str) -> GenerationRequest:
    recipe = RecipeChoice(preset, steps=None if preset == "distilled" else 2).recipe("2.3", 3)
    return GenerationRequest("waves", recipe, "still", width=128, height=64, frames=9)


def run(pipeline: Pipeline, texts: Texts, preset: str = "two-stage") -> Latents:
    """The denoising stages of a run."""
    request = request_for(preset)
    first = pipeline.denoise(request, *texts)
    latents = {"stage1_video": first.video, "stage1_audio": first.audio}
    if request.recipe.stages == 2:
        last = pipeline.refine(request, pipeline.upsample(first), texts[0])
        latents |= {"stage2_video": last.video, "stage2_audio": last.audio}
    return latents


def differences(one: Latents, another: Latents) -> dict[str, float]:
    assert one.keys() == another.keys()
    return {name: float((one[name] - another[name]).abs().max()) for name in one}


def stack(tiny: TinyFiles, other: Path) -> tuple[LoRASource, ...]:
    return (
        LoRASource(tiny.lora, 0.6, "1"),
        LoRASource(other, -0.5, "2"),
        LoRASource(tiny.lora, 0.4, "both"),
    )
