"""What is checked when a graph is queued, before any file is open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ltx2_two_stage.nodes.queued import problem_when_queued
from ltx2_two_stage.nodes.sound import to_clip


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"preset": None, "width": None, "height": None, "frames": None, "fps": None},
        {"preset": "two-stage", "width": 768, "height": 512, "frames": 121, "fps": 24.0, "seed": 3},
        {"preset": "one-stage", "width": 96, "height": 544, "frames": 1, "fps": 0.5},
        # A recipe over a link may be of one stage
        {"preset": "hq", "recipe": None, "width": 96},
        {"width": 96},
        {"prompt": ""},
        {"prompt": " \n", "negative_prompt": ""},
    ],
)
def test_what_may_work_is_queued(inputs: dict[str, Any]) -> None:
    assert problem_when_queued(inputs) is None


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"preset": "hq", "width": 96}, "width = 96: must be a multiple of 64 for a two-stage run. Try 64 or 128."),
        ({"preset": "distilled", "height": 544}, "height = 544: must be a multiple of 64"),
        ({"preset": "one-stage", "width": 100}, "width = 100: must be a multiple of 32 for a one-stage run."),
        ({"recipe": None, "width": 100}, "width = 100: must be a multiple of 32"),
        ({"width": 0}, "width = 0"),
        ({"preset": "hq", "frames": 10}, "frames = 10: must be 8 * n + 1. Try 9 or 17."),
        ({"fps": float("nan")}, "fps = nan"),
        ({"fps": float("inf")}, "fps = inf"),
    ],
)
def test_what_cannot_work_is_refused(inputs: dict[str, Any], problem: str) -> None:
    assert problem in problem_when_queued(inputs)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("samples", [1, 1000, 8000 * 3600])
def test_audio_of_any_length_and_layout_is_taken(channels: int, samples: int) -> None:
    waveform = torch.full((1, 1, 1), 0.5).expand(1, channels, samples)
    clip = to_clip({"waveform": waveform, "sample_rate": 8000})
    assert clip.waveform.shape == (1, min(channels, 2), min(samples, 8000 * 60))
    assert bool(clip.notices) == (channels > 2)
