"""``ltx2 bench modes``: the same two-stage run in every device mode, one after the other in one process."""

from __future__ import annotations

import gc
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..assembly import open_manager
from ..device_manager.manager import DeviceManager
from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.loading.synthetic import Variant
from ..ltx2_core.pipeline import Pipeline
from ..ltx2_core.recipes import Recipe, official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import Component, Phase, VideoSize
from .e2e import check_requests
from .measure import machine
from .synthetic_models import SyntheticModels

logger = logging.getLogger("ltx2.benchmarks")

# Steps of a run whose times do not count, or of one that need only end
SHORT_STEPS = 2
FIRST, ANOTHER = "a full-size benchmark", "another prompt of the same length"


@dataclass(frozen=True)
class ModesBenchmark:
    """What is run.

    Attributes:
        sizes: of the clips; every mode loads its models once for all of them. The first gets a run more, with a new
            prompt.
        modes: device modes, one after the other; the first is the one that others are compared with.
        caps_gb: then, for each, what auto does with the first size when this process may take only so much of the GPU.
        precision: of the transformer's large linear layers.
    """

    generation: Variant
    recipe: str
    sizes: tuple[VideoSize, ...]
    modes: tuple[str, ...]
    caps_gb: tuple[float, ...] = ()
    precision: str = "bf16"

    def request(self, models: SyntheticModels, size: VideoSize) -> GenerationRequest:
        recipe = official_recipe(self.recipe, self.generation, models.num_layers)
        return GenerationRequest(prompt=FIRST, recipe=recipe, width=size.width, height=size.height, frames=size.frames)

    def check(self) -> None:
        """Raises :class:`SettingError` where a size or the recipe cannot work."""
        models = SyntheticModels(self.generation, precision=self.precision)
        check_requests(models, (self.request(models, size) for size in self.sizes))

    def run(self, save: Callable[[dict[str, Any]], None]) -> None:
        """All modes and caps; ``save`` takes the figures after each of them."""
        figures: dict[str, Any] = {"machine": machine(), "modes": [], "capped": []}
        references: list[tuple[dict[str, Any], Mapping[str, Tensor]]] = []
        for mode in self.modes:
            measured = _measure(self, mode, self.sizes, short=False)
            references = references or measured
            for (reference, expected), (outcome, latents) in zip(references, measured, strict=True):
                if outcome is not reference:
                    outcome["against_first_mode"] = _against(reference, outcome)
                    outcome["differs_from_first_mode_in"] = _differences(expected, latents)
                    logger.info("%s", outcome["against_first_mode"])
                figures["modes"].append(outcome)
            del measured
            _empty()
            save(figures)
        for cap in self.caps_gb:
            figures["capped"].append(self._capped(cap))
            save(figures)

    def _capped(self, cap_gb: float) -> dict[str, Any]:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * 1e9 / total))
        try:
            (outcome, _), *_ = _measure(self, "auto", self.sizes[:1], short=cap_gb < LARGE_CAP_GB)
        except LTX2Error as error:
            outcome = {"error": str(error)}
            logger.info("cap %g GB: %s", cap_gb, error)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            _empty()
        return {"cap_gb": cap_gb, **outcome}


# From here on both DiTs fit, and the capped run is worth its full length
LARGE_CAP_GB = 90.0


def _measure(
    benchmark: ModesBenchmark, mode: str, sizes: Sequence[VideoSize], short: bool
) -> list[tuple[dict[str, Any], Mapping[str, Tensor]]]:
    """One mode on freshly made models.

    Args:
        short: the counted runs have few steps too.

    Returns:
        For every size what was measured, and the last run's latents on the CPU.
    """
    models = SyntheticModels(benchmark.generation, precision=benchmark.precision)
    manager = open_manager(models, torch.device("cuda"), mode, max(sizes, key=lambda size: size.width * size.height))
    pipeline = Pipeline(models, manager)
    measured = []
    for size in sizes:
        full = benchmark.request(models, size)
        few = replace(full, recipe=replace(full.recipe, steps=SHORT_STEPS))
        counted = replace(few if short else full, prompt=ANOTHER)
        plan = [("first", few), ("new_prompt", counted), ("same_prompt", counted)]
        outcome, latents = _measure_runs(mode, pipeline, plan if size == sizes[0] else [plan[0], plan[2]])
        outcome = {
            "request": {"generation": models.generation, "recipe": full.recipe.name, **size._asdict(),
                        "fps": full.fps, "dtype": str(models.dtype), "precision": models.precision},
            "mode": manager.mode,
            "mode_reason": manager.mode_reason,
            **outcome,
            "idle_switch_ms": _switch_times(manager, models, full.recipe),
            "where": manager.status(),
        }  # fmt: skip
        logger.info("%s: idle switch %s ms, %s", outcome["mode"], outcome["idle_switch_ms"], outcome["where"]["host"])
        measured.append((outcome, latents))
    manager.drop()
    return measured


def _measure_runs(
    mode: str, pipeline: Pipeline, plan: Sequence[tuple[str, GenerationRequest]]
) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Runs by name; the first does not count."""
    runs: dict[str, dict[str, Any]] = {}
    latents: list[Mapping[str, Tensor]] = []
    for name, request in plan:
        # Nothing waits for the device here: a run starts while the last one's restore is still under way
        begin = time.perf_counter()
        result = pipeline.run(request, keep_latents=True)
        seconds = round(time.perf_counter() - begin, 3)
        runs[name] = {"steps": request.recipe.steps, "total_s": seconds, "stages": asdict(result.report)["stages"]}
        runs[name]["reserved_bytes"] = torch.cuda.max_memory_reserved()
        latents = [*latents[-1:], result.latents]
        stages = ", ".join(f"{s['name']} {s['ms']:.0f} ({s['peak_bytes'] / 1e9:.1f})" for s in runs[name]["stages"])
        logger.info(
            "%s %dx%d, %s: %.2f s (ms, peak GB: %s)", mode, request.width, request.height, name, seconds, stages
        )
    counted = [name for name in runs if name != "first"]
    outcome = {
        "runs": runs,
        "peak_bytes": max(stage["peak_bytes"] for name in counted for stage in runs[name]["stages"]),
        "all_finite": all(bool(t.float().isfinite().all()) for t in latents[-1].values()),
    }
    if len(counted) > 1:
        outcome["last_two_runs_differ_in"] = _differences(latents[0], latents[1])
    return outcome, latents[-1]


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
            with manager.use(Component.TRANSFORMER, strengths):
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
