"""``ltx2 bench dit``: steps of the full-size DiT, with each choice of kernels and precision in turns."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ltx2_core.sampling.passes import Role, block_evaluations
from .ceilings import Rates, matmul_rates
from .flops import Flops, dit_flops, one_pass
from .measure import (
    JSON,
    Deadline,
    Samples,
    Save,
    Timer,
    in_turns,
    kernels,
    launches,
    machine,
    release,
    timer_for,
    with_kernels,
)
from .shapes import SHAPES, Factory, Inputs, Shape, Step
from .synthetic_models import SyntheticModels

logger = logging.getLogger("ltx2.benchmarks")

# Shapes whose velocities are compared with float32: one pass each, 1 and 5 s of float32 arithmetic on an H200
COMPARED = ("A1", "B")
# From here on time is compared with the count of operations: in shorter calls, launches take a share of it
FOLLOWS_ABOVE_TOKENS = 4000
# Times the floor that a call takes at most where it is not the launches that count, to plan with
USUAL = 1.5


@dataclass(frozen=True)
class DitBenchmark:
    """What is measured.

    Attributes:
        models: makes the models of a precision.
        shapes: in this order; see :data:`SHAPES`.
        kernels: choices of the engine's kernels, in turns; the first is the one whose launches and bare calls are
            counted.
        limit_s: nothing more is begun after so many seconds.
    """

    models: Factory
    shapes: Sequence[Shape] = tuple(SHAPES.values())
    precisions: Sequence[str] = ("bf16",)
    kernels: Sequence[str] = ("auto", "eager")
    repeat: int = 5
    limit_s: float | None = None

    def run(self, save: Save, device: torch.device | None = None, timer: Timer | None = None) -> JSON:
        """All shapes in every precision; ``save`` takes the figures after each row."""
        device = device or torch.device("cuda")
        timer, deadline = timer or timer_for(device), Deadline(self.limit_s)
        rates = matmul_rates(device)
        figures: JSON = {"benchmark": "dit", "machine": machine(device), "matmul": rates.summary()}
        figures.update(rows=[], left_out=[])
        references: Mapping[str, _Velocities] = {}
        if compared := [shape for shape in self.shapes if shape.name in COMPARED]:
            references = _references(self.models("bf16"), compared, device)
            release(device)
        for precision in self.precisions:
            models = self.models(precision)
            transformer = models.filled_transformer(device)
            for shape in self.shapes:
                # Until the first round is over: two calls before it, and one of the DiT alone
                expected = USUAL * rates.floor_ms(counted(models, shape), precision)
                if not deadline.allows((3 * len(self.kernels) + 1) * expected):
                    figures["left_out"].append(f"{shape.name} {precision}")
                    continue
                figures["rows"] += self._rows(
                    models, transformer, shape, rates, references.get(shape.name), device, timer, deadline
                )
                save(figures)
                release(device)
            del transformer
            release(device)
        figures["follows_flops"] = follows_flops(figures["rows"])
        save(figures)
        return figures

    def _rows(
        self,
        models: SyntheticModels,
        transformer: nn.Module,
        shape: Shape,
        rates: Rates,
        reference: _Velocities | None,
        device: torch.device,
        timer: Timer,
        deadline: Deadline,
    ) -> list[JSON]:
        """One row for each choice of kernels."""
        step = Inputs.draw(models, shape, device).step(models, shape, transformer)
        guided = {setting: with_kernels(setting, step.evaluate) for setting in self.kernels}
        samples = in_turns(guided, self.repeat, timer, deadline, device)
        rows = []
        for setting in self.kernels:
            row = described(models, shape) | {"precision": models.precision, "kernels": setting}
            rows.append(row)
            if samples[setting].error is not None:
                row["error"] = samples[setting].error
                continue
            row |= rated(samples[setting], counted(models, shape), rates, models.precision)
            row["peak_bytes_beyond_weights"] = samples[setting].peak_bytes
            if setting == self.kernels[0] and deadline.allows(samples[setting].median * (self.repeat + 2)):
                bare = {"the DiT alone": with_kernels(setting, step.call_transformer)}
                (alone,) = in_turns(bare, self.repeat, timer, deadline, device).values()
                row["dit_ms"] = alone.summary()
            if deadline.allows(2 * samples[setting].median):
                row["launches"] = launches(guided[setting], device)
            if reference is not None:
                with kernels(setting):
                    row["relative_l2"] = reference.differences(step)
            logger.info(
                "%s %s %s: %.1f ms (%.1f to %.1f), %.0f TFLOP/s, %.2f of the floor",
                *(shape.name, models.precision, setting, samples[setting].median),
                *(min(samples[setting].ms), max(samples[setting].ms), row["tflop_per_s"], row["times_floor"]),
            )
        return rows


def counted(models: SyntheticModels, shape: Shape) -> Flops:
    return dit_flops(models.transformer, shape.tokens(models), shape.calls(models))


def described(models: SyntheticModels, shape: Shape) -> JSON:
    """What a shape is, and what it takes to compute it."""
    guidance, separate = shape.settings(models)
    tokens, flops = shape.tokens(models), counted(models, shape)
    evaluations = block_evaluations(guidance, Role.GUIDED, Role.GUIDED, models.num_layers, separate)
    return {
        "shape": shape.name,
        "what": shape.what,
        "size": list(shape.size),
        "tokens": {"video": tokens.video, "audio": tokens.audio, "text": tokens.text},
        "passes": shape.passes(models),
        "block_evaluations": list(evaluations),
        "tflop": round(flops.total / 1e12, 3),
        "tflop_linear": round(flops.linear / 1e12, 3),
        "tflop_attention": round(flops.attention / 1e12, 3),
        "tflop_unshared": round(shape.passes(models) * one_pass(models.transformer, tokens).total / 1e12, 3),
    }


def rated(samples: Samples, flops: Flops, rates: Rates, precision: str) -> JSON:
    """Times against what the machine's matrix products allow."""
    floor = rates.floor_ms(flops, precision)
    return {
        "guided_ms": samples.summary(),
        "tflop_per_s": round(flops.total / samples.median / 1e9, 1),
        "ms_per_tflop": round(samples.median / flops.total * 1e12, 4),
        "floor_ms": round(floor, 2),
        "times_floor": round(samples.median / floor, 3),
    }


def follows_flops(rows: Sequence[Mapping[str, Any]]) -> JSON | None:
    """How far the time for an operation strays over a sweep, above :data:`FOLLOWS_ABOVE_TOKENS` video tokens.

    Returns:
        By kernels and precision: the mean of the largest and the smallest ms per TFLOP, and how far, relative to it,
        they are apart from it. None: the rows are no sweep.
    """
    swept: dict[str, list[float]] = {}
    for row in rows:
        if row["what"] in ("sizes", "lengths") and row["tokens"]["video"] > FOLLOWS_ABOVE_TOKENS and "error" not in row:
            swept.setdefault(f"{row['precision']} {row['kernels']}", []).append(row["ms_per_tflop"])
    if not swept:
        return None
    return {
        name: {
            "ms_per_tflop": round((max(values) + min(values)) / 2, 4),
            "within": round((max(values) - min(values)) / (max(values) + min(values)), 4),
        }
        for name, values in swept.items()
    }


@dataclass(frozen=True)
class _Velocities:
    """The velocities of a shape's one call in float32, on the CPU."""

    video: Tensor
    audio: Tensor

    @classmethod
    def of(cls, step: Step) -> _Velocities:
        ((video, audio),) = step.call_transformer()
        assert video is not None and audio is not None
        return cls(video.float().cpu(), audio.float().cpu())

    def differences(self, step: Step) -> dict[str, float]:
        """Relative L2 norms of what a step's call gives."""
        other = _Velocities.of(step)
        return {
            name: round(float((theirs.double() - mine.double()).norm() / mine.double().norm()), 7)
            for name, mine, theirs in (("video", self.video, other.video), ("audio", self.audio, other.audio))
        }


def _references(models: SyntheticModels, shapes: Sequence[Shape], device: torch.device) -> dict[str, _Velocities]:
    """Velocities in float32 by PyTorch's own kernels, with the bfloat16 weights."""
    transformer = models.filled_transformer(device)
    references = {}
    with torch.no_grad(), kernels("eager"), float32_weights(transformer):
        for shape in shapes:
            step = Inputs.draw(models, shape, device).step(models, shape, transformer, torch.float32)
            references[shape.name] = _Velocities.of(step)
            logger.info("%s: float32 velocities", shape.name)
    return references


@contextmanager
def float32_weights(transformer: nn.Module) -> Iterator[None]:
    """The weights in float32 while they are used: one block's at a time, so that 2 GB suffice for 38."""
    kept: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, _: Any = None) -> None:
        for parameter in module.parameters():
            kept[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters():
            parameter.data = kept.pop(parameter)

    blocks = transformer.get_submodule("transformer_blocks")
    hooks = [block.register_forward_pre_hook(widen) for block in blocks.children()]
    hooks += [block.register_forward_hook(restore) for block in blocks.children()]
    try:
        inside = set(blocks.parameters())
        for parameter in transformer.parameters():
            if parameter not in inside:
                kept[parameter] = parameter.data
                parameter.data = parameter.data.float()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in kept.items():
            parameter.data = data
