"""A whole two-stage run on full-size models with random weights made on the GPU.

Random weights say nothing of quality; they have the released models' shapes, dtypes and cost. Needs about 110 GB of
GPU memory::

    python -m ltx2_two_stage.benchmarks.full_size --out results.json
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..device_manager.one_device import OneDeviceResidency
from ..ltx2_core.loading.lora import LoRAWeights, inject, linear_layers, set_adapters
from ..ltx2_core.loading.synthetic import fill_random_, full_size_config, full_size_upsampler_config
from ..ltx2_core.models.audio_vae import AudioDecoder, AudioVAEConfig
from ..ltx2_core.models.text.config import TextConfig
from ..ltx2_core.models.text.connector import TextConnector
from ..ltx2_core.models.transformer.config import TransformerConfig
from ..ltx2_core.models.transformer.model import LTXTransformer
from ..ltx2_core.models.upsampler import LatentUpsampler, UpsamplerConfig, UpsamplerKind
from ..ltx2_core.models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig
from ..ltx2_core.models.vocoder import VocoderConfig, build_vocoder
from ..ltx2_core.pipeline import Pipeline
from ..ltx2_core.recipes import official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import AudioGeometry, Component, Phase, ScaleFactors

logger = logging.getLogger("ltx2.benchmarks")

PROMPT_TOKENS = 100  # an ordinary prompt
DISTILLED = "distilled"
LORA_RANK = 384  # of the official file, capped per layer at min(in, out)
LORA_STD = 0.01
GEMMA_LAYERS, GEMMA_WIDTH = 48, 3840


@dataclass(frozen=True)
class _Tokens:
    ids: tuple[int, ...]
    truncated_from: int | None = None

    def tensor(self, device: torch.device) -> Tensor:
        return torch.tensor(self.ids, device=device)


class _Tokenizer:
    """Prompts of a fixed token count: random weights do not read."""

    def encode(self, text: str, max_tokens: int) -> _Tokens:
        generator = torch.Generator().manual_seed(len(text))
        return _Tokens(tuple(torch.randint(4, 1000, (PROMPT_TOKENS,), generator=generator).tolist()))


class SyntheticModels:
    """Full-size models of one generation, random weights, bfloat16."""

    dtype = torch.bfloat16
    has_upsampler = has_distilled_lora = True

    def __init__(self, generation: str, seed: int = 0) -> None:
        config = full_size_config(generation)  # type: ignore[arg-type]
        self.generation, self.seed = generation, seed
        self.transformer = TransformerConfig.from_metadata(config)
        self.text = TextConfig.from_metadata(config)
        self.video_vae = VideoVAEConfig.from_metadata(config)
        self.audio_vae = AudioVAEConfig.from_metadata(config)
        self.vocoder = VocoderConfig.from_metadata(config)
        self.file_names: Mapping[str, str] = {"models": f"full-size {generation}, random weights (seed {seed})"}

    @property
    def num_layers(self) -> int:
        return self.transformer.num_layers

    @property
    def latent_channels(self) -> int:
        return self.video_vae.latent_channels

    @property
    def scale(self) -> ScaleFactors:
        return self.video_vae.scale

    @property
    def audio_geometry(self) -> AudioGeometry:
        return self.audio_vae.geometry

    def tokenizer(self) -> Any:
        return _Tokenizer()

    def adapter_strengths(self, phase: Phase, distilled_strength: tuple[float, float]) -> Mapping[str, float]:
        return {DISTILLED: distilled_strength[1 if phase is Phase.STAGE_2 else 0]}

    def build(self, component: Component, device: torch.device) -> nn.Module:
        """A component with random weights, made on ``device``."""
        if component is Component.TEXT_ENCODER:
            return _gemma_12b(device)
        generator = torch.Generator(device).manual_seed(self.seed)
        with torch.device("meta"):
            module = self._empty(component)
        dtype = torch.float32 if component is Component.VOCODER else self.dtype
        module = fill_random_(module.to(dtype), generator, device).eval().requires_grad_(False)
        if component is Component.TRANSFORMER:
            lora: Any = _RandomLoRA(module, generator)
            inject(module, [(DISTILLED, lora)])
        logger.info("%s: %.2f GB", component.value, sum(p.nbytes for p in module.parameters()) / 1e9)
        return module

    def _empty(self, component: Component) -> nn.Module:
        if component is Component.TRANSFORMER:
            return LTXTransformer(self.transformer)
        if component is Component.TEXT_CONNECTOR:
            return TextConnector(self.text)
        if component is Component.VIDEO_ENCODER:
            return VideoEncoder(self.video_vae)
        if component is Component.VIDEO_DECODER:
            return VideoDecoder(self.video_vae)
        if component is Component.AUDIO_DECODER:
            return AudioDecoder(self.audio_vae)
        if component is Component.VOCODER:
            return build_vocoder(self.vocoder)
        if component is Component.UPSAMPLER:
            return LatentUpsampler(_upsampler_config(self.generation))
        raise ValueError(f"no benchmark needs {component.value}")


def _upsampler_config(generation: str) -> UpsamplerConfig:
    config = full_size_upsampler_config(generation)  # type: ignore[arg-type]
    kind = UpsamplerKind.X2_RATIONAL if config["rational_resampler"] else UpsamplerKind.X2
    return UpsamplerConfig(kind, config["in_channels"], config["mid_channels"], config["num_blocks_per_stage"])


def _gemma_12b(device: torch.device) -> nn.Module:
    """The text layers of Gemma 3 12B (fact sheet 3.1), initialised by transformers."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    config = Gemma3TextConfig(
        vocab_size=262208,
        hidden_size=GEMMA_WIDTH,
        intermediate_size=15360,
        num_hidden_layers=GEMMA_LAYERS,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        sliding_window=1024,
        attn_implementation="sdpa",
        dtype=torch.bfloat16,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return Gemma3TextModel(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


class _RandomLoRA:
    """The distilled LoRA's shape: every Linear of the DiT, rank 384 capped at min(in, out)."""

    def __init__(self, transformer: nn.Module, generator: torch.Generator) -> None:
        layers = linear_layers(transformer)
        self.targets = {path: _Rank(min(LORA_RANK, *shape)) for path, shape in layers.items()}
        self._layers, self._generator = layers, generator

    def read(self, device: torch.device, dtype: torch.dtype) -> dict[str, LoRAWeights]:
        read = {}
        for path, (out_features, in_features) in self._layers.items():
            rank = self.targets[path].rank
            down = torch.empty(rank, in_features, device=device, dtype=dtype)
            up = torch.empty(out_features, rank, device=device, dtype=dtype)
            for matrix in (down, up):
                matrix.normal_(0, LORA_STD, generator=self._generator)
            read[path] = LoRAWeights(down, up, float(rank))
        return read


@dataclass(frozen=True)
class _Rank:
    rank: int


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    return {
        "gpu": gpu.name,
        "gpu_memory_bytes": gpu.total_memory,
        "driver": driver.stdout.strip(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def measure(generation: str, runs: int, **changes: Any) -> dict[str, Any]:
    """Runs one request ``runs`` times on freshly made models; the first run includes making them.

    Returns:
        The request, one report for each run, and whether all runs after the first gave the same latents bit for bit.
    """
    models = SyntheticModels(generation)
    residency = OneDeviceResidency(
        models.build, torch.device("cuda"), set_adapters, "benchmark: everything resident", reads_from_host=False
    )
    pipeline = Pipeline(models, residency)
    recipe = official_recipe(changes.pop("recipe", "two-stage"), generation, models.num_layers)
    request = replace(GenerationRequest(prompt="a full-size benchmark", recipe=recipe), **changes)
    reports, latents = [], list[dict[str, Tensor]]()
    for run in range(runs):
        result = pipeline.run(request, keep_latents=run < 2)
        reports.append(asdict(result.report))
        latents += [result.latents] if result.latents else []
        total = sum(stage["ms"] for stage in reports[-1]["stages"])
        logger.info("run %d: %.2f s", run + 1, total / 1000)
    finite = all(bool(t.float().isfinite().all()) for t in latents[0].values())
    same = len(latents) < 2 or all(torch.equal(latents[0][name], latents[1][name]) for name in latents[0])
    return {
        "request": {"generation": generation, "recipe": recipe.name, "width": request.width, "height": request.height,
                    "frames": request.frames, "fps": request.fps, "steps": recipe.steps, "dtype": str(models.dtype)},
        "runs": reports,
        "first_two_runs_bit_identical": same,
        "all_finite": finite,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generation", choices=("2.0", "2.3"), default="2.3")
    parser.add_argument("--recipe", default="two-stage")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    result = measure(
        options.generation,
        options.runs,
        recipe=options.recipe,
        width=options.width,
        height=options.height,
        frames=options.frames,
    )
    options.out.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    for stage in result["runs"][-1]["stages"]:
        logger.info("%-10s %9.1f ms  peak %6.2f GB", stage["name"], stage["ms"], stage["peak_bytes"] / 1e9)


if __name__ == "__main__":
    main()
