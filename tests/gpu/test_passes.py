"""Batched, branched passes against separate ones in bfloat16, on blocks of the released model's width."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.loading.synthetic import full_size_config
from ltx2_two_stage.ltx2_core.models.transformer.config import TransformerConfig
from ltx2_two_stage.ltx2_core.sampling.guidance import Pass
from tiny_stage import TinyStage, build_stage, standard_guidance
from torch import Tensor

pytestmark = pytest.mark.gpu

LAYERS, STG_BLOCK, SIGMA = 4, 2, 0.7
GRID, AUDIO_FRAMES = (16, 8, 12), 126  # 121 frames of 384x256 with their sound: 1,536 tokens
TEXT_TOKENS = 64  # attention over many random texts would average out to nothing, and prompts would look alike
# Relative L2 of a pass's velocity. Batches of different sizes take different kernels, whose sums round otherwise:
# bfloat16 against float32 is 0.8% over six tiny layers (docs/model.md 2.9). A wrong pass is off by the distance of two
# passes, which is asserted to be three times this and more.
BOUND = 1e-2


@pytest.fixture(scope="module")
def stage(cuda: torch.device) -> TinyStage:
    config = replace(TransformerConfig.from_metadata(full_size_config("2.3")), num_layers=LAYERS)
    return build_stage(config, cuda, torch.bfloat16, GRID, AUDIO_FRAMES, TEXT_TOKENS).with_image()


def velocities(stage: TinyStage, separate: bool) -> dict[str, Tensor]:
    """What the model returns for every pass of both streams."""
    model = stage.guided(standard_guidance(STG_BLOCK), separate=separate)
    found: dict[str, list[Tensor]] = {"video": [], "audio": []}

    def listening(*arguments: Any) -> Any:
        out = stage.model(*arguments)
        found["video"].append(out[0])
        found["audio"].append(out[1])
        return out

    model.transformer = listening
    model(stage.video, stage.audio, SIGMA, 0)
    assert len(found["video"]) == (len(Pass) if separate else 1)
    passes = {stream: torch.cat(parts).float() for stream, parts in found.items()}
    return {f"{stream} {name.value}": v[i] for stream, v in passes.items() for i, name in enumerate(Pass)}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_batched_passes_equal_separate_ones(
    stage: TinyStage, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    batched, separate = velocities(stage, False), velocities(stage, True)
    errors = {name: relative(batched[name], v) for name, v in separate.items()}
    distances = {
        f"{stream} {name.value}": relative(separate[f"{stream} {name.value}"], separate[f"{stream} cond"])
        for stream in ("video", "audio")
        for name in (Pass.UNCOND, Pass.PERTURBED, Pass.ISOLATED)
    }
    with capsys.disabled():
        sys.stdout.write(f"\n{torch.cuda.get_device_name()}, relative L2, batched against separate passes: {errors}\n")
        sys.stdout.write(f"against the conditional pass: {distances}\n")
    for name, value in errors.items():
        record_property(f"relative L2 of {name}", value)
    assert max(errors.values()) < BOUND
    assert min(distances.values()) > 3 * BOUND
