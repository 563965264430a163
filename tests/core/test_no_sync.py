"""Nothing in a denoising loop makes the host wait for the device: a GPU always has the next work in its queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from host_waits import HostWaits
from ltx2_two_stage.ltx2_core.recipes import official_recipe
from ltx2_two_stage.ltx2_core.sampling.gradient_estimation import gradient_estimation_loop
from ltx2_two_stage.ltx2_core.sampling.loop import euler_loop
from ltx2_two_stage.ltx2_core.sampling.res_2s import res_2s_loop
from ltx2_two_stage.ltx2_core.sampling.schedules import guided_sigmas
from ltx2_two_stage.ltx2_core.sampling.state import StreamState
from ltx2_two_stage.ltx2_core.types import CrossTimestepRule, Guidance
from tiny_stage import TinyStage, build_stage, standard_guidance, tiny_transformer
from torch import Tensor

SIGMAS = guided_sigmas(3, 4096)
ORDINARY: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "branch": lambda x: bool(x.sum() > 0),
    "number": lambda x: float(x[0]),
    "list": lambda x: x.tolist(),
    "host list": lambda _: torch.tensor([1.0, 2.0]),
    "index list": lambda x: x[[0, 1]],
    "mask": lambda x: x[x > 0],
    "moved": lambda x: x.to("cpu", torch.float64),
    "to the host": lambda x: x.cpu(),
    "array": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: torch.unique(x),
}


@pytest.mark.parametrize("wait", ORDINARY.values(), ids=ORDINARY.keys())
def test_the_watch_notices(wait: Callable[[Tensor], Any]) -> None:
    x = torch.randn(4)
    with HostWaits() as waits:
        wait(x)
    assert waits.seen


def test_the_watch_lets_work_on_the_device_pass() -> None:
    x, index = torch.randn(4), torch.tensor([1, 2])
    with HostWaits() as waits:
        y = (x.double() * 0.5 + torch.full((1,), 0.7)).float().index_select(0, index)
        torch.cat([y, x[1:3]]).std()
    assert waits.seen == []


def run(stage: TinyStage, loop: Any, guidance: Guidance, sigmas: Sequence[float], **settings: Any) -> list[int]:
    steps: list[int] = []
    model = stage.guided(guidance, **settings)
    with HostWaits() as waits:
        loop(model, stage.video, stage.audio, sigmas, steps.append)
    assert waits.seen == []
    return steps


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_a_whole_euler_loop_never_waits(generation: Literal["2.0", "2.3"], image: bool) -> None:
    stage = build_stage(tiny_transformer(generation))
    stage = stage.with_image() if image else stage
    full = standard_guidance(1)
    skipping = replace(full, video=replace(full.video, skip=1))
    for guidance, rule in ((full, CrossTimestepRule.SPLIT), (skipping, CrossTimestepRule.OTHER)):
        assert run(stage, euler_loop, guidance, SIGMAS, cross_rule=rule) == [1, 2, 3]


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_a_whole_hq_loop_never_waits(image: bool) -> None:
    """Both stages: noise is injected, the anchor is refined, and the terminal step is known beforehand."""
    stage = build_stage(tiny_transformer("2.3"))
    stage = stage.with_image() if image else stage
    recipe = official_recipe("hq", "2.3", num_layers=3)
    assert run(stage, res_2s_loop, recipe.guidance, SIGMAS, separate=recipe.separate_passes) == [1, 2, 3]
    assert run(stage, res_2s_loop, Guidance(), recipe.refine_sigmas) == [1, 2, 3]


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_a_whole_gradient_estimation_loop_never_waits(image: bool) -> None:
    stage = build_stage(tiny_transformer("2.3"))
    stage = stage.with_image() if image else stage
    assert run(stage, gradient_estimation_loop, standard_guidance(1), SIGMAS) == [1, 2, 3]


@pytest.mark.parametrize("loop", [euler_loop, gradient_estimation_loop, res_2s_loop])
def test_a_given_sound_makes_no_loop_wait(loop: Any) -> None:
    stage = build_stage(tiny_transformer("2.3"))
    given = replace(stage, audio=StreamState.given(stage.audio.latent, stage.audio.positions))
    assert run(given, loop, standard_guidance(1), SIGMAS) == [1, 2, 3]
