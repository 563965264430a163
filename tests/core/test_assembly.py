"""What a run is planned to need beside weights."""

from __future__ import annotations

import pytest
import torch
from ltx2_two_stage.assembly import activation_bytes
from ltx2_two_stage.benchmarks.synthetic_models import SyntheticModels
from ltx2_two_stage.ltx2_core.models.video_vae import VideoDecoder
from ltx2_two_stage.ltx2_core.types import Component, VideoSize

MODELS = SyntheticModels("2.3")

# Peaks of decoding by PyTorch's own kernels in GiB, and frames a pass: one H200, bf16
MEASURED = {(768, 512): (1.95, 42), (1536, 1024): (4.01, 10), (1920, 1088): (4.83, 8), (2560, 1440): (6.25, 4)}


@pytest.mark.parametrize("size", MEASURED, ids=lambda size: f"{size[0]}x{size[1]}")
def test_decoding_fits_what_was_measured(size: tuple[int, int]) -> None:
    """The peaks belong to a number of frames a pass: who changes it has to measure them again."""
    (width, height), (gib, frames) = size, MEASURED[size]
    decoder = MODELS.skeleton(Component.VIDEO_DECODER)
    assert isinstance(decoder, VideoDecoder)
    decoder = decoder.to(torch.bfloat16)
    assert decoder.frames_per_pass(height // 32, width // 32) == frames
    assert 1.01 * gib * 2**30 < activation_bytes(MODELS, VideoSize(121, height, width)) < 1.35 * gib * 2**30


def test_a_long_clip_is_planned_by_its_tokens() -> None:
    long = VideoSize(1921, 512, 768)
    tokens = 241 * 16 * 24
    assert activation_bytes(MODELS, long) == 90_000 * tokens > activation_bytes(MODELS, VideoSize(121, 512, 768))
