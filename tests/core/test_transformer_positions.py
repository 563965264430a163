"""Token positions and rotary tables by hand (docs/model.md 2.6 and 4.4)."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels.rope import rotate
from ltx2_two_stage.ltx2_core.models.transformer.positions import audio_positions, keyframe_positions, video_positions
from ltx2_two_stage.ltx2_core.models.transformer.rope import rope_table
from ltx2_two_stage.ltx2_core.types import AudioGeometry, AudioLatentShape, Rope, ScaleFactors, VideoLatentShape

SCALE = ScaleFactors(8, 32, 32)
FPS = 24.0


def test_video_tokens_run_over_width_first() -> None:
    positions = video_positions(VideoLatentShape(2, 128, 3, 2, 4), FPS, SCALE)
    assert positions.shape == (2, 3, 24, 2) and positions.dtype == torch.float32
    torch.testing.assert_close(positions[0], positions[1], rtol=0, atol=0)
    token = 1 * 8 + 1 * 4 + 3  # frame 1, row 1, column 3
    assert positions[0, 1, token].tolist() == [32.0, 64.0]
    assert positions[0, 2, token].tolist() == [96.0, 128.0]


def test_video_times() -> None:
    positions = video_positions(VideoLatentShape(1, 128, 4, 1, 1), FPS, SCALE)
    expected = torch.tensor([(0, 1), (1, 9), (9, 17), (17, 25)], dtype=torch.float32) / FPS
    torch.testing.assert_close(positions[0, 0], expected, rtol=0, atol=0)  # one division, correctly rounded


@pytest.mark.parametrize(
    ("frame", "latent_frames", "single", "expected"),
    [
        (40, 1, True, [(40, 41)]),
        (40, 1, False, [(40, 48)]),
        (40, 2, True, [(40, 48), (48, 56)]),
        (0, 2, True, [(0, 1), (1, 9)]),
        (0, 1, False, [(0, 1)]),
    ],
)
def test_keyframe_times(frame: int, latent_frames: int, single: bool, expected: list[tuple[int, int]]) -> None:
    shape = VideoLatentShape(1, 128, latent_frames, 1, 2)
    positions = keyframe_positions(shape, frame, FPS, SCALE, single)
    times = (positions[0, 0, ::2] * FPS).round().tolist()
    assert times == [list(map(float, pair)) for pair in expected]
    whole = video_positions(shape, FPS, SCALE)
    torch.testing.assert_close(positions[:, 1:], whole[:, 1:], rtol=0, atol=0)


def test_audio_times() -> None:
    geometry = AudioGeometry(16000, 160, 4, 8, 16)
    positions = audio_positions(AudioLatentShape(2, 8, 4, 16), geometry)
    assert positions.shape == (2, 1, 4, 2) and positions.dtype == torch.float32
    expected = torch.tensor([[0, 0.01], [0.01, 0.05], [0.05, 0.09], [0.09, 0.13]])
    torch.testing.assert_close(positions[1, 0], expected, rtol=0, atol=1e-8)  # last bit of a division


def angle(fraction: float, index: int, count: int) -> float:
    """As the tables have it: frequency rounded to float32, everything after in float32."""
    frequency = torch.tensor(math.pi / 2 * 10000.0 ** (index / (count - 1)), dtype=torch.float64).float()
    return float((torch.tensor(fraction) * 2 - 1) * frequency)


def table(layout: Literal["split", "interleaved"], dtype: torch.dtype = torch.float32) -> tuple[Rope, torch.Tensor]:
    positions = video_positions(VideoLatentShape(1, 4, 2, 2, 3), FPS, SCALE)
    return rope_table(positions, 32, 2, (20, 2048, 2048), 10000.0, layout, True, dtype), positions


@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_every_entry_of_a_table(layout: Literal["split", "interleaved"]) -> None:
    rope, positions = table(layout)
    count = 32 // 6
    fractions = positions.mean(-1)[0] / torch.tensor([20.0, 2048.0, 2048.0])[:, None]
    for token in range(12):
        angles = [angle(float(fractions[axis, token]), j, count) for j in range(count) for axis in range(3)]
        expected = [0.0] * (16 - len(angles)) + angles  # what is left over stands in front, unturned
        if layout == "split":
            cos, sin = rope.cos[0, :, token].flatten(), rope.sin[0, :, token].flatten()
        else:
            cos, sin = rope.cos[0, token, ::2], rope.sin[0, token, ::2]
            assert torch.equal(cos, rope.cos[0, token, 1::2]) and torch.equal(sin, rope.sin[0, token, 1::2])
        wanted = torch.tensor(expected, dtype=torch.float64)
        # Angles reach 1.6e4, where one rounding more or less of float32 is 1e-3
        torch.testing.assert_close(cos.double(), wanted.cos(), rtol=0, atol=2e-3)
        torch.testing.assert_close(sin.double(), wanted.sin(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_rotation_turns_pairs(layout: Literal["split", "interleaved"]) -> None:
    """Each pair is a complex number times exp(i angle); float32 rounding only."""
    rope, _ = table(layout)
    x = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(0))  # table of batch 1 serves all three
    turned = rotate(x, rope, 2)
    assert turned.shape == (3, 2, 12, 16)
    heads = x.unflatten(-1, (2, 16)).transpose(1, 2)
    if layout == "split":
        pairs, out = torch.complex(heads[..., :8], heads[..., 8:]), torch.complex(turned[..., :8], turned[..., 8:])
        phase = torch.complex(rope.cos, rope.sin)
    else:
        pairs = torch.complex(heads[..., ::2].contiguous(), heads[..., 1::2].contiguous())
        out = torch.complex(turned[..., ::2].contiguous(), turned[..., 1::2].contiguous())
        phase = torch.complex(rope.cos[..., ::2].contiguous(), rope.sin[..., ::2].contiguous())
        phase = phase.unflatten(-1, (2, 8)).transpose(1, 2)
    torch.testing.assert_close(out, pairs * phase, rtol=0, atol=1e-6)


def test_only_the_table_is_rounded_to_the_models_dtype() -> None:
    rounded, _ = table("split", torch.bfloat16)
    exact, _ = table("split")
    torch.testing.assert_close(rounded.cos, exact.cos.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(rounded.sin, exact.sin.bfloat16(), rtol=0, atol=0)


def test_bfloat16_positions_keep_their_rounding() -> None:
    """Revisions before 2026-05-11 rounded video positions; that has to show in the table."""
    _, positions = table("split")
    settings = (32, 2, (20, 2048, 2048), 10000.0, "split", True, torch.float32)
    old, new = rope_table(positions.bfloat16(), *settings), rope_table(positions, *settings)
    assert (old.cos - new.cos).abs().max() > 0.1
    assert old.cos.dtype == torch.float32
