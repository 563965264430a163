"""A whole two-stage run on full-size models with random weights made on the GPU.

Random weights say nothing of quality; they have the released models' shapes, dtypes and cost. Needs about 110 GB of
GPU memory::

    python -m ltx2_two_stage.benchmarks.full_size --out results.json
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..assembly import open_manager
from ..device_manager.manager import DeviceManager
from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.loading.lora import LoRAWeights, inject, linear_layers
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
from ..ltx2_core.recipes import Recipe, official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import AudioGeometry, Component, Phase, ScaleFactors, VideoSize

logger = logging.getLogger("ltx2.benchmarks")

PROMPT_TOKENS = 100  # an ordinary prompt
DISTILLED = "distilled"
LORA_RANK = 384  # of the official file, capped per layer at min(in, out)
LORA_STD = 0.01
GEMMA_LAYERS, GEMMA_WIDTH = 48, 3840
GEMMA_BYTES = 23_532_000_000


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

    def skeleton(self, component: Component) -> nn.Module:
        """A component on the meta device, without LoRAs."""
        dtype = torch.float32 if component is Component.VOCODER else self.dtype
        with torch.device("meta"):
            return self._empty(component).to(dtype).eval().requires_grad_(False)

    def fill(self, component: Component, tensors: Mapping[str, Tensor]) -> None:
        """Random weights, made on the GPU tensor by tensor, for memory on the GPU or on the host."""
        generator = torch.Generator("cuda").manual_seed(self.seed)
        for name, tensor in tensors.items():
            value = torch.empty(tensor.shape, device="cuda", dtype=tensor.dtype)
            spread = 0.8 / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 and "table" not in name else 0.2
            value.normal_(1.0 if name.endswith("norm.weight") else 0.0, spread, generator=generator)
            tensor.copy_(value)

    def adapt(self, transformer: nn.Module) -> None:
        """The distilled LoRA with random matrices, in host memory."""
        lora: Any = _RandomLoRA(transformer, torch.Generator("cuda").manual_seed(self.seed + 1))
        inject(transformer, [(DISTILLED, lora)], torch.device("cpu"))

    def component_bytes(self, component: Component) -> int:
        if component is Component.TEXT_ENCODER:
            return GEMMA_BYTES
        return sum(tensor.nbytes for tensor in self.skeleton(component).state_dict().values())

    def adapter_bytes(self) -> int:
        layers = linear_layers(self.skeleton(Component.TRANSFORMER)).values()
        return sum(min(LORA_RANK, *shape) * sum(shape) * self.dtype.itemsize for shape in layers)

    def build(self, component: Component, device: torch.device) -> nn.Module:
        """A component with random weights, made on the GPU and brought to ``device``."""
        if component is Component.TEXT_ENCODER:
            return _gemma_12b(torch.device("cuda")).to(device)
        generator = torch.Generator("cuda").manual_seed(self.seed)
        module = fill_random_(self.skeleton(component), generator, "cuda").to(device)
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
    torch.manual_seed(0)
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
                matrix.copy_(torch.empty_like(matrix, device="cuda").normal_(0, LORA_STD, generator=self._generator))
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


def measure(generation: str, mode: str, runs: int, recipe_name: str, size: VideoSize) -> dict[str, Any]:
    """Runs one request ``runs`` times in one device mode on freshly made models; the first run includes making them.

    The last run but one takes a new prompt, so that it shows what encoding costs; the last one repeats it.

    Returns:
        The request, one report for each run with its whole time, latents of the last run, what differed between runs.
    """
    models = SyntheticModels(generation)
    manager = open_manager(models, torch.device("cuda"), mode, size)
    pipeline = Pipeline(models, manager)
    recipe = official_recipe(recipe_name, generation, models.num_layers)
    request = GenerationRequest(
        prompt="a full-size benchmark", recipe=recipe, width=size.width, height=size.height, frames=size.frames
    )
    reports: list[dict[str, Any]] = []
    kept: list[dict[str, Tensor]] = []
    for run in range(runs):
        if run == runs - 2:
            request = replace(request, prompt="another prompt of the same length")
        torch.cuda.synchronize()
        begin = time.perf_counter()
        result = pipeline.run(request, keep_latents=True)
        torch.cuda.synchronize()
        total = time.perf_counter() - begin
        report = asdict(result.report)
        reports.append({**report, "total_s": round(total, 3), "reserved_bytes": torch.cuda.max_memory_reserved()})
        kept.append(result.latents)
        stages = ", ".join(f"{s['name']} {s['ms']:.0f}" for s in report["stages"])
        logger.info("%s run %d: %.2f s (ms: %s)", mode, run + 1, total, stages)
    switches = _switch_times(manager, models, recipe)
    peak = max(stage["peak_bytes"] for report in reports[1:] for stage in report["stages"])
    outcome = {
        "request": {"generation": generation, "recipe": recipe.name, **size._asdict(), "fps": request.fps,
                    "steps": recipe.steps, "dtype": str(models.dtype)},
        "mode": manager.mode,
        "mode_reason": manager.mode_reason,
        "runs": reports,
        "peak_bytes_after_first_run": peak,
        "idle_switch_ms": switches,
        "where": manager.status(),
        "last_two_runs_differ_in": _differences(kept[-2], kept[-1]),
        "all_finite": all(bool(t.float().isfinite().all()) for t in kept[-1].values()),
        "latents": kept[-1],
    }  # fmt: skip
    manager.drop()
    return outcome


def capped(generation: str, caps_gb: Sequence[float], recipe: str, size: VideoSize) -> list[dict[str, Any]]:
    """What auto does when this process may take only so much of the GPU: a finished run, or an error with numbers."""
    total = torch.cuda.get_device_properties(0).total_memory
    results = []
    for cap in caps_gb:
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 1e9 / total))
        try:
            outcome = measure(generation, "auto", 2, recipe, size)
            outcome.pop("latents")
        except LTX2Error as error:
            outcome = {"error": str(error)}
        results.append({"cap_gb": cap, **outcome})
        logger.info("cap %g GB: %s", cap, outcome.get("error") or outcome["mode_reason"])
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(1.0)
    return results


def _switch_times(manager: DeviceManager, models: SyntheticModels, recipe: Recipe, rounds: int = 5) -> dict[str, float]:
    """Median ms from asking for the transformer to having it, with nothing to hide the work behind."""
    times: dict[str, list[float]] = {"to_stage_2": [], "to_stage_1": []}
    for _ in range(rounds):
        for name, phase in (("to_stage_2", Phase.STAGE_2), ("to_stage_1", Phase.STAGE_1)):
            strengths = models.adapter_strengths(phase, recipe.distilled_strength)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            with manager.use(Component.TRANSFORMER, phase, strengths):
                torch.cuda.synchronize()
                times[name].append((time.perf_counter() - begin) * 1000)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def _differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative L2 of every tensor that is not the same bit for bit."""
    return {
        name: round(float((first[name].double() - tensor.double()).norm() / tensor.double().norm()), 8)
        for name, tensor in second.items()
        if not torch.equal(first[name], tensor)
    }


def compare_modes(generation: str, modes: Sequence[str], runs: int, recipe: str, size: VideoSize) -> dict[str, Any]:
    """All modes one after the other in one process, and how their latents differ from the first one's."""
    results = []
    reference: Mapping[str, Tensor] | None = None
    for mode in filter(None, modes):
        result = measure(generation, mode, runs, recipe, size)
        latents = result.pop("latents")
        reference = reference or latents
        result["differs_from_first_mode_in"] = _differences(reference, latents)
        results.append(result)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return {"machine": machine(), "modes": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generation", choices=("2.0", "2.3"), default="2.3")
    parser.add_argument("--recipe", default="two-stage")
    parser.add_argument("--modes", default="resident", help="device modes, separated by commas; empty for none")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--caps", default="", help="also run auto with the process held to so many GB, by commas")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    size = VideoSize(options.frames, options.height, options.width)
    result = compare_modes(options.generation, options.modes.split(","), options.runs, options.recipe, size)
    if options.caps:
        caps = [float(cap) for cap in options.caps.split(",")]
        result["capped"] = capped(options.generation, caps, options.recipe, size)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    for mode in result["modes"]:
        peak = mode["peak_bytes_after_first_run"] / 1e9
        logger.info("%-13s %6.2f s  peak %6.2f GB", mode["mode"], mode["runs"][-1]["total_s"], peak)
        logger.info("  idle switch, ms: %s; host: %s", mode["idle_switch_ms"], mode["where"]["host"])
        logger.info("  differs between runs: %s; from the first mode: %s", mode["last_two_runs_differ_in"],
                    mode["differs_from_first_mode_in"])  # fmt: skip


if __name__ == "__main__":
    main()
