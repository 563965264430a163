"""Whole denoising loops on a GPU, where torch raises an error at every operation that waits for the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from device_waits import waiting_is_an_error
from ltx2_two_stage.ltx2_core.sampling.gradient_estimation import gradient_estimation_loop
from ltx2_two_stage.ltx2_core.sampling.loop import euler_loop
from ltx2_two_stage.ltx2_core.sampling.res_2s import res_2s_loop
from ltx2_two_stage.ltx2_core.sampling.schedules import guided_sigmas
from ltx2_two_stage.ltx2_core.types import Guidance, StreamGuidance
from tiny_stage import build_stage, standard_guidance, tiny_transformer

pytestmark = pytest.mark.gpu

SIGMAS = guided_sigmas(3, 4096)
FULL = standard_guidance(1)
SKIPPING = replace(FULL, video=replace(FULL.video, skip=1))
HQ = Guidance(StreamGuidance(3.0, modality=3.0, rescale=0.45), StreamGuidance(7.0, modality=3.0, rescale=1.0))


def test_the_watch_notices(cuda: torch.device) -> None:
    x = torch.ones(3, device=cuda)
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchron"):
        x.sum().item()


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize(
    ("loop", "guidance", "separate"),
    [
        (euler_loop, FULL, False),
        (euler_loop, SKIPPING, False),
        (euler_loop, Guidance(), False),
        (gradient_estimation_loop, FULL, False),
        (res_2s_loop, HQ, True),
        (res_2s_loop, Guidance(), True),
    ],
    ids=["guided", "skipping", "stage 2", "gradient estimation", "HQ", "HQ stage 2"],
)
def test_a_whole_loop_never_waits(
    cuda: torch.device, loop: Any, guidance: Guidance, separate: bool, image: bool
) -> None:
    stage = build_stage(tiny_transformer("2.3"), cuda, torch.bfloat16)
    stage = stage.with_image() if image else stage
    steps: list[int] = []
    # At first kernels are loaded and libraries choose their algorithms
    loop(stage.guided(guidance, separate=separate), stage.video, stage.audio, SIGMAS, steps.append)
    model = stage.guided(guidance, separate=separate)
    with waiting_is_an_error():
        video, audio = loop(model, stage.video, stage.audio, SIGMAS, steps.append)
    assert steps == [1, 2, 3, 1, 2, 3]
    assert video.latent.isfinite().all() and audio.latent.isfinite().all()
