"""The transformer against diffusers' LTX2VideoTransformer3DModel with the same weights (docs/model.md 11).

Tolerance: 2e-6 absolute in float32 for outputs of order 1 to 7. The two differ only in how single operations are
fused; a wrong index, rule or rope shows from 1e-2 on.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
import diffusers_models
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers_models import Generation
from ltx2_two_stage.ltx2_core.models.transformer.config import StreamConfig, TransformerConfig
from ltx2_two_stage.ltx2_core.models.transformer.model import LTXTransformer
from ltx2_two_stage.ltx2_core.models.transformer.positions import audio_positions, video_positions
from ltx2_two_stage.ltx2_core.types import (
    AudioGeometry,
    AudioLatentShape,
    BatchItem,
    CrossTimestepRule,
    Perturbation,
    ScaleFactors,
    StreamInput,
    VideoLatentShape,
)

TOLERANCE = 2e-6
BATCH, TEXT_TOKENS, FPS = 2, 16, 24.0
SHAPE = VideoLatentShape(BATCH, 24, 3, 4, 5)
AUDIO_SHAPE = AudioLatentShape(BATCH, 4, 9, 5)
GEOMETRY = AudioGeometry(16000, 160, 4, 4, 5)
SCALE = ScaleFactors(8, 32, 32)
SIGMA = 0.7
BOTH_OLD_RULES = pytest.mark.parametrize("rule", [CrossTimestepRule.OTHER, CrossTimestepRule.OWN])
BOTH_GENERATIONS = pytest.mark.parametrize("generation", ["2.0", "2.3"])


def tiny(generation: Generation, layout: Literal["split", "interleaved"] = "split", float64: bool = True) -> Any:
    new = generation == "2.3"
    return TransformerConfig(
        video=StreamConfig(24, 4, 32, (20, 2048, 2048)),
        audio=StreamConfig(20, 4, 16, (20,)),
        num_layers=3,
        norm_eps=1e-6,
        timestep_scale=1000.0,
        cross_gate_timestep_scale=1000.0,
        rope_theta=10000.0,
        rope_layout=layout,
        rope_float64=float64,
        gated_attention=new,
        prompt_modulation=new,
        caption_channels=None if new else 48,
    )


def fill(model: nn.Module, seed: int) -> None:
    """Weights of docs/model.md 11.2: nothing is zero or one, so no term and no row can be lost unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("_norm.weight"):
            value = 1 + 0.2 * noise
        elif parameter.ndim == 2 and name.endswith(".weight"):
            value = noise * (0.64 / parameter.shape[1]) ** 0.5
        else:
            value = 0.3 * noise
        parameter.data.copy_(value)


class Pair(NamedTuple):
    ours: LTXTransformer
    theirs: LTX2VideoTransformer3DModel


@cache
def pair(generation: Generation, layout: Literal["split", "interleaved"] = "split", float64: bool = True) -> Pair:
    config = tiny(generation, layout, float64)
    ours = LTXTransformer(config).eval().requires_grad_(False)
    fill(ours, seed=11)
    theirs = diffusers_models.transformer(
        generation,
        in_channels=24,
        out_channels=24,
        num_attention_heads=4,
        attention_head_dim=32,
        cross_attention_dim=128,
        audio_in_channels=20,
        audio_out_channels=20,
        audio_num_attention_heads=4,
        audio_attention_head_dim=16,
        audio_cross_attention_dim=64,
        num_layers=3,
        caption_channels=48,
        rope_type=layout,
        rope_double_precision=float64,
    )
    state = {diffusers_models.transformer_key(key): tensor for key, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    return Pair(ours, theirs)


def inputs(model: LTXTransformer) -> tuple[StreamInput, StreamInput]:
    """Plain text-to-video: one noise level for everything."""
    generator = torch.Generator().manual_seed(5)
    captions = model.config.caption_channels

    def stream(name: Literal["video", "audio"], tokens: int, channels: int, width: int, positions: Tensor) -> Any:
        return StreamInput(
            latent=torch.randn(BATCH, tokens, channels, generator=generator),
            timesteps=torch.full((BATCH, 1), SIGMA),
            sigma=torch.full((BATCH,), SIGMA),
            context=torch.randn(BATCH, TEXT_TOKENS, captions or width, generator=generator),
            rope=model.stream_rope(positions, name, torch.float32),
        )

    return (
        stream("video", SHAPE.token_count, 24, 128, video_positions(SHAPE, FPS, SCALE)),
        stream("audio", AUDIO_SHAPE.token_count, 20, 64, audio_positions(AUDIO_SHAPE, GEOMETRY)),
    )


def reference(
    model: LTX2VideoTransformer3DModel, video: StreamInput, audio: StreamInput, rule: CrossTimestepRule, **more: Any
) -> tuple[Tensor, Tensor]:
    """diffusers' answer; it makes positions and rotary tables itself and takes noise levels times 1000."""
    with torch.no_grad():
        out = model(
            hidden_states=video.latent,
            audio_hidden_states=audio.latent,
            encoder_hidden_states=video.context,
            audio_encoder_hidden_states=audio.context,
            timestep=video.timesteps.expand(video.latent.shape[:2]) * 1000,
            audio_timestep=audio.timesteps.expand(audio.latent.shape[:2]) * 1000,
            sigma=video.sigma * 1000,
            audio_sigma=audio.sigma * 1000,
            num_frames=SHAPE.frames,
            height=SHAPE.height,
            width=SHAPE.width,
            fps=FPS,
            audio_num_frames=AUDIO_SHAPE.frames,
            use_cross_timestep=rule is CrossTimestepRule.OTHER,
            **more,
        )
    return out.sample, out.audio_sample


def assert_equal(ours: tuple[Tensor | None, Tensor | None], theirs: tuple[Tensor, Tensor]) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine is not None
        assert expected.std() > 0.5  # a degenerate output would agree with anything
        torch.testing.assert_close(mine, expected, rtol=0, atol=TOLERANCE)


def image_levels() -> Tensor:
    """Per-token noise levels with a clean first latent frame; the second item keeps a little noise there."""
    mask = torch.ones(BATCH, SHAPE.frames, SHAPE.height * SHAPE.width)
    mask[0, 0], mask[1, 0] = 0.0, 0.25
    return mask.flatten(1) * SIGMA


@BOTH_OLD_RULES
@BOTH_GENERATIONS
def test_text_to_video(generation: Generation, rule: CrossTimestepRule) -> None:
    ours, theirs = pair(generation)
    video, audio = inputs(ours)
    assert_equal(ours(video, audio, cross_rule=rule), reference(theirs, video, audio, rule))


@pytest.mark.parametrize("float64", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("layout", ["split", "interleaved"])
@BOTH_GENERATIONS
def test_every_rope(generation: Generation, layout: Literal["split", "interleaved"], float64: bool) -> None:
    ours, theirs = pair(generation, layout, float64)
    video, audio = inputs(ours)
    rule = CrossTimestepRule.OTHER
    assert_equal(ours(video, audio, cross_rule=rule), reference(theirs, video, audio, rule))


@BOTH_OLD_RULES
@BOTH_GENERATIONS
def test_image_to_video_noise_levels(generation: Generation, rule: CrossTimestepRule) -> None:
    ours, theirs = pair(generation)
    video, audio = inputs(ours)
    video = replace(video, timesteps=image_levels())
    assert_equal(ours(video, audio, cross_rule=rule), reference(theirs, video, audio, rule))


@BOTH_OLD_RULES
@BOTH_GENERATIONS
def test_streams_at_different_noise_levels(generation: Generation, rule: CrossTimestepRule) -> None:
    ours, theirs = pair(generation)
    video, audio = inputs(ours)
    audio = replace(audio, timesteps=torch.full((BATCH, 1), 0.3), sigma=torch.tensor([0.3, 0.2]))
    assert_equal(ours(video, audio, cross_rule=rule), reference(theirs, video, audio, rule))


@pytest.mark.parametrize("items", [(True, True), (True, False), (False, True)], ids=["all", "first", "second"])
@BOTH_GENERATIONS
def test_stg(generation: Generation, items: tuple[bool, bool]) -> None:
    ours, theirs = pair(generation)
    video, audio = inputs(ours)
    blocks = frozenset({1})
    perturbed = [BatchItem(i, Perturbation(blocks, blocks) if on else Perturbation()) for i, on in enumerate(items)]
    expected = reference(
        theirs,
        video,
        audio,
        CrossTimestepRule.OTHER,
        spatio_temporal_guidance_blocks=[1],
        perturbation_mask=torch.tensor([0.0 if item else 1.0 for item in items]),
    )
    assert_equal(ours(video, audio, perturbed, CrossTimestepRule.OTHER), expected)


@BOTH_GENERATIONS
def test_isolated_streams(generation: Generation) -> None:
    ours, theirs = pair(generation)
    video, audio = inputs(ours)
    rule = CrossTimestepRule.OTHER
    isolated = reference(theirs, video, audio, rule, isolate_modalities=True)
    together = reference(theirs, video, audio, rule)
    skip = Perturbation(skip_cross_modal=True)
    assert_equal(ours(video, audio, [BatchItem(0, skip), BatchItem(1, skip)], rule), isolated)
    half = tuple(torch.stack((alone[0], both[1])) for alone, both in zip(isolated, together, strict=True))
    assert_equal(ours(video, audio, [BatchItem(0, skip), BatchItem(1)], rule), (half[0], half[1]))


@BOTH_GENERATIONS
def test_one_stream_alone_equals_the_isolated_one(generation: Generation) -> None:
    ours, theirs = pair(generation)
    video, audio = inputs(ours)
    expected = reference(theirs, video, audio, CrossTimestepRule.OTHER, isolate_modalities=True)
    alone_video, no_audio = ours(video, None)
    no_video, alone_audio = ours(None, audio)
    assert no_audio is None and no_video is None
    assert_equal((alone_video, alone_audio), expected)


@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_rope_tables(layout: Literal["split", "interleaved"]) -> None:
    """Exactly equal: both round the same angles."""
    ours, theirs = pair("2.3", layout)
    video, audio = video_positions(SHAPE, FPS, SCALE), audio_positions(AUDIO_SHAPE, GEOMETRY)
    torch.testing.assert_close(video, theirs.rope.prepare_video_coords(BATCH, 3, 4, 5, "cpu", FPS), rtol=0, atol=0)
    torch.testing.assert_close(audio, theirs.audio_rope.prepare_audio_coords(BATCH, 9, "cpu"), rtol=0, atol=0)
    mine = (ours.stream_rope(video, "video", torch.float32), ours.stream_rope(audio, "audio", torch.float32))
    expected = (
        (mine[0].self_attention, theirs.rope(video)),
        (mine[1].self_attention, theirs.audio_rope(audio)),
        (mine[0].cross_attention, theirs.cross_attn_rope(video[:, :1])),
        (mine[1].cross_attention, theirs.cross_attn_audio_rope(audio[:, :1])),
    )
    for rope, (cos, sin) in expected:
        torch.testing.assert_close(rope.cos, cos, rtol=0, atol=0)
        torch.testing.assert_close(rope.sin, sin, rtol=0, atol=0)
