"""``ltx2 bench modes``: the same two-stage run in every device mode, one after the other in one process."""

from __future__ import annotations

import gc
import logging
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..assembly import open_manager
from ..device_manager.manager import DeviceManager
from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.pipeline import Pipeline
from ..ltx2_core.recipes import Recipe, official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import Component, Phase, VideoSize
from .synthetic_models import SyntheticModels

logger = logging.getLogger("ltx2.benchmarks")

# Steps of a run whose times do not count, or of one that need only end
SHORT_STEPS = 2
FIRST, ANOTHER = "a full-size benchmark", "another prompt of the same length"


@dataclass(frozen=True)
class ModesBenchmark:
    """What is run.

    Attributes:
        modes: device modes, one after the other; the first is the one that others are compared with.
        caps_gb: then, for each, what auto does when this process may take only so much of the GPU.
        new_prompt: a counted run with a new prompt comes before the one that repeats it.
    """

    generation: str
    recipe: str
    size: VideoSize
    modes: tuple[str, ...]
    caps_gb: tuple[float, ...] = ()
    new_prompt: bool = True

    def request(self, models: SyntheticModels) -> GenerationRequest:
        recipe = official_recipe(self.recipe, self.generation, models.num_layers)
        width, height = self.size.width, self.size.height
        return GenerationRequest(prompt=FIRST, recipe=recipe, width=width, height=height, frames=self.size.frames)

    def run(self) -> dict[str, Any]:
        """All modes and caps, for the JSON file."""
        results: list[dict[str, Any]] = []
        reference: Mapping[str, Tensor] | None = None
        for mode in self.modes:
            outcome, latents = _measure(self, mode, short=False)
            if reference is None:
                reference = latents
            outcome["differs_from_first_mode_in"] = _differences(reference, latents)
            results.append(outcome)
            del latents
            _empty()
        for outcome in results[1:]:
            outcome["against_first_mode"] = _against(results[0], outcome)
        return {"machine": machine(), "modes": results, "capped": [self._capped(cap) for cap in self.caps_gb]}

    def _capped(self, cap_gb: float) -> dict[str, Any]:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * 1e9 / total))
        try:
            outcome, _ = _measure(self, "auto", short=cap_gb < LARGE_CAP_GB)
        except LTX2Error as error:
            outcome = {"error": str(error)}
            logger.info("cap %g GB: %s", cap_gb, error)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            _empty()
        return {"cap_gb": cap_gb, **outcome}


# From here on both DiTs fit, and the capped run is worth its full length
LARGE_CAP_GB = 90.0


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


def _measure(benchmark: ModesBenchmark, mode: str, short: bool) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """One mode on freshly made models: a short run that warms everything up, a new prompt, the same prompt again.

    Args:
        short: the counted runs have few steps too.

    Returns:
        What was measured, and the last run's latents on the CPU.
    """
    models = SyntheticModels(benchmark.generation)
    manager = open_manager(models, torch.device("cuda"), mode, benchmark.size)
    pipeline = Pipeline(models, manager)
    full = benchmark.request(models)
    few = replace(full, recipe=replace(full.recipe, steps=SHORT_STEPS))
    counted = replace(few if short else full, prompt=ANOTHER)
    runs: dict[str, dict[str, Any]] = {}
    kept: list[dict[str, Tensor]] = []
    plan = [("first", few if benchmark.new_prompt else replace(few, prompt=ANOTHER)), ("same_prompt", counted)]
    if benchmark.new_prompt:
        plan.insert(1, ("new_prompt", counted))
    for name, request in plan:
        # Nothing waits for the device here: a run starts while the last one's restore is still under way
        begin = time.perf_counter()
        result = pipeline.run(request, keep_latents=True)
        seconds = round(time.perf_counter() - begin, 3)
        runs[name] = {"steps": request.recipe.steps, "total_s": seconds, "stages": asdict(result.report)["stages"]}
        runs[name]["reserved_bytes"] = torch.cuda.max_memory_reserved()
        kept = [*kept[-1:], result.latents]
        stages = ", ".join(f"{s['name']} {s['ms']:.0f}" for s in runs[name]["stages"])
        logger.info("%s, %s: %.2f s (ms: %s)", mode, name, seconds, stages)
    warm = [stage["peak_bytes"] for name in runs if name != "first" for stage in runs[name]["stages"]]
    outcome = {
        "request": {"generation": models.generation, "recipe": full.recipe.name, **benchmark.size._asdict(),
                    "fps": full.fps, "dtype": str(models.dtype)},
        "mode": manager.mode,
        "mode_reason": manager.mode_reason,
        "runs": runs,
        "peak_bytes": max(warm),
        "idle_switch_ms": _switch_times(manager, models, full.recipe),
        "where": manager.status(),
        "last_two_runs_differ_in": _differences(kept[0], kept[-1]) if benchmark.new_prompt else None,
        "all_finite": all(bool(t.float().isfinite().all()) for t in kept[-1].values()),
    }  # fmt: skip
    manager.drop()
    logger.info("%s: %.2f s, peak %.1f GB, idle switch %s ms, host %s, differs between runs: %s", outcome["mode"],
                runs["same_prompt"]["total_s"], max(warm) / 1e9, outcome["idle_switch_ms"],
                outcome["where"]["host"], outcome["last_two_runs_differ_in"])  # fmt: skip
    return outcome, kept[-1]


def _empty() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


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


def _against(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """How much longer a mode takes than the first one, in ms, and where: what of its work is exposed.

    ``to_stage_2`` is what the stages up to the refinement take longer, ``back`` what decoding and everything outside
    of the stages does, in the run that repeats the prompt.
    """
    ms = {
        mode["mode"]: {stage["name"]: stage["ms"] for stage in mode["runs"]["same_prompt"]["stages"]}
        for mode in (first, other)
    }
    longer = {name: value - ms[first["mode"]].get(name, 0.0) for name, value in ms[other["mode"]].items()}
    total = [mode["runs"]["same_prompt"]["total_s"] for mode in (first, other)]
    new = [mode["runs"].get("new_prompt", {}).get("total_s", math.nan) for mode in (first, other)]
    switch = sum(longer.get(phase.value, 0.0) for phase in (Phase.STAGE_1, Phase.UPSAMPLE, Phase.STAGE_2))
    return {
        "stages_ms": {name: round(value, 1) for name, value in longer.items()},
        "to_stage_2_ms": round(switch, 1),
        "back_ms": round((total[1] - total[0]) * 1000 - switch, 1),
        "total": round(total[1] / total[0], 4),
        **({} if math.isnan(new[0]) else {"new_prompt_s": round((new[1] - total[1]) - (new[0] - total[0]), 3)}),
    }


def _differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative L2 of every tensor that is not the same bit for bit."""
    return {
        name: round(float((first[name].double() - tensor.double()).norm() / tensor.double().norm()), 8)
        for name, tensor in second.items()
        if not torch.equal(first[name], tensor)
    }
