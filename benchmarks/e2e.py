"""``ltx2 bench e2e``: whole runs through the pipeline, without file encoding, and what fp8 changes in them."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..assembly import open_manager
from ..device_manager.modes import MODES
from ..ltx2_core.pipeline import Pipeline
from ..ltx2_core.recipes import official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import VideoSize
from .measure import JSON, Deadline, Save, machine, release
from .shapes import Factory
from .synthetic_models import SyntheticModels

logger = logging.getLogger("ltx2.benchmarks")

# Each is encoded anew
_PROMPT = "a full-size benchmark, {}x{}, run {:02d}"


def check_requests(models: SyntheticModels, requests: Iterable[GenerationRequest]) -> None:
    """Raises :class:`SettingError` where the pipeline refuses one of them; nothing of a device is asked for that."""
    manager: Any = None
    pipeline = Pipeline(models, manager)
    for request in requests:
        pipeline.validate(request)


@dataclass(frozen=True)
class E2EBenchmark:
    """What is run.

    Attributes:
        models: makes the models of a precision.
        sizes: one after the other with the same loaded models.
        precisions: each loads anew; where there are several, the others' results are compared with the first one's.
        repeat: warm runs of each size, each with a new prompt.
        steps: of stage 1; None: the recipe's.
    """

    models: Factory
    recipe: str
    sizes: Sequence[VideoSize]
    mode: str = MODES[0].name
    precisions: Sequence[str] = ("bf16",)
    repeat: int = 3
    steps: int | None = None
    limit_s: float | None = None

    def request(self, models: SyntheticModels, size: VideoSize, run: int) -> GenerationRequest:
        recipe = official_recipe(self.recipe, models.generation, models.num_layers)
        if self.steps is not None:
            recipe = replace(recipe, steps=self.steps)
        prompt = _PROMPT.format(size.width, size.height, run)
        return GenerationRequest(prompt, recipe, width=size.width, height=size.height, frames=size.frames)

    def check(self) -> None:
        """Raises :class:`SettingError` where a size or the recipe cannot work."""
        models = self.models(self.precisions[0])
        check_requests(models, (self.request(models, size, 0) for size in self.sizes))

    def run(self, save: Save, device: torch.device | None = None) -> JSON:
        """All precisions and sizes; ``save`` takes the figures after each run."""
        device, deadline = device or torch.device("cuda"), Deadline(self.limit_s)
        figures: JSON = {"benchmark": "e2e", "machine": machine(device), "rows": []}
        references: dict[VideoSize, Mapping[str, Tensor]] = {}
        for precision in self.precisions:
            models = self.models(precision)
            largest = max(self.sizes, key=lambda size: size.width * size.height)
            manager = open_manager(models, device, self.mode, largest)
            pipeline = Pipeline(models, manager)
            for size in self.sizes:
                row: JSON = {
                    "recipe": self.recipe,
                    "size": list(size),
                    "precision": precision,
                    "mode": manager.mode,
                    "mode_reason": manager.mode_reason,
                }
                figures["rows"].append(row)
                latents = self._runs(models, pipeline, size, row, deadline, lambda: save(figures))
                if latents and size in references:
                    row["against"] = self.precisions[0]
                    row["differences"] = differences(references[size], latents)
                    logger.info("%s against %s: %s", precision, self.precisions[0], row["differences"])
                elif latents and len(self.precisions) > 1:
                    references[size] = latents
                save(figures)
            manager.drop()
            del pipeline, manager
            release(device)
        return figures

    def _runs(
        self,
        models: SyntheticModels,
        pipeline: Pipeline,
        size: VideoSize,
        row: JSON,
        deadline: Deadline,
        saved: Any,
    ) -> Mapping[str, Tensor]:
        """A first run, then warm ones into ``row``; the latents of run 1, where others are compared with it."""
        latents: Mapping[str, Tensor] = {}
        warm: list[JSON] = []
        for run in range(self.repeat + 1):
            if run and not deadline.allows(1000 * (warm[-1] if warm else row["first_run"])["total_s"]):
                row["left_out"] = f"{self.repeat + 1 - run} of {self.repeat} warm runs"
                break
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            # The latents' way to the host is timed by nobody: the run that keeps them is one more
            outcome = _timed(pipeline, self.request(models, size, run))
            if run:
                warm.append(outcome)
            else:
                row["first_run"] = outcome
            row["warm"] = summary(warm)
            logger.info("%dx%d run %d: %.2f s", size.width, size.height, run, outcome["total_s"])
            saved()
        if len(self.precisions) > 1 and warm:
            latents = pipeline.run(self.request(models, size, 0), keep_latents=True).latents
            row["all_finite"] = all(bool(t.float().isfinite().all()) for t in latents.values())
        return latents


def _timed(pipeline: Pipeline, request: GenerationRequest) -> JSON:
    begin = time.perf_counter()
    result = pipeline.run(request)
    total = time.perf_counter() - begin
    return {"total_s": round(total, 3), "stages": asdict(result.report)["stages"]}


def summary(runs: Sequence[Mapping[str, Any]]) -> JSON:
    """Totals and stages of warm runs: medians over them, the largest peak."""
    if not runs:
        return {}
    totals = [run["total_s"] for run in runs]
    stages = {
        stage["name"]: {
            "ms": round(statistics.median(of["ms"] for of in _stages(runs, stage["name"])), 1),
            "peak_bytes": max(of["peak_bytes"] for of in _stages(runs, stage["name"])),
        }
        for stage in runs[0]["stages"]
    }
    return {
        "total_s": {"min": min(totals), "median": statistics.median(totals), "max": max(totals), "runs": len(totals)},
        "stages": stages,
        "peak_bytes": max(stage["peak_bytes"] for stage in stages.values()),
    }


def _stages(runs: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [stage for run in runs for stage in run["stages"] if stage["name"] == name]


def differences(expected: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Relative L2 of each latent and of the sound, and the frames' PSNR in dB (None where they are equal)."""
    found: dict[str, float | None] = {}
    for name in ("stage1_video", "stage1_audio", "stage2_video", "stage2_audio", "audio_waveform"):
        if name in expected:
            mine, theirs = expected[name].double(), other[name].double()
            found[name] = round(float((theirs - mine).norm() / mine.norm()), 6)
    found["frames_psnr_db"] = psnr(expected["frames"], other["frames"])
    return found


def psnr(expected: Tensor, other: Tensor) -> float | None:
    """Of uint8 pictures (F, H, W, 3), over all of them."""
    # Frame by frame: float64 of a whole clip takes 6 GB at 1920x1088
    squares = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(expected, other, strict=True))
    return round(10 * math.log10(255**2 * expected.numel() / squares), 2) if squares else None
