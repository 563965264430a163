"""A small DiT with random weights, and what a denoising stage gives it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from ltx2_two_stage.ltx2_core.loading.synthetic import fill_random_, tiny_config
from ltx2_two_stage.ltx2_core.models.transformer.config import TransformerConfig
from ltx2_two_stage.ltx2_core.models.transformer.model import LTXTransformer
from ltx2_two_stage.ltx2_core.models.transformer.positions import audio_positions, video_positions
from ltx2_two_stage.ltx2_core.sampling.evaluate import GuidedModel
from ltx2_two_stage.ltx2_core.sampling.state import StreamState
from ltx2_two_stage.ltx2_core.types import (
    AudioGeometry,
    AudioLatentShape,
    CrossTimestepRule,
    Guidance,
    PromptContext,
    ScaleFactors,
    StreamGuidance,
    VideoLatentShape,
)
from torch import Tensor

MEL_BINS, TEXT_TOKENS, FPS = 16, 6, 24.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class TinyStage:
    """Streams and prompts for one model; ``video`` and ``audio`` are pure noise at first."""

    model: LTXTransformer
    video: StreamState
    audio: StreamState
    positive: PromptContext
    negative: PromptContext

    def guided(self, guidance: Guidance, **settings: Any) -> GuidedModel:
        return GuidedModel(
            self.model,
            self.positive,
            self.negative,
            guidance,
            self.model.stream_rope(self.video.positions, "video", self.video.latent.dtype),
            self.model.stream_rope(self.audio.positions, "audio", self.audio.latent.dtype),
            **{"cross_rule": CrossTimestepRule.SPLIT, **settings},
        )

    def with_image(self, strength: float = 0.7) -> TinyStage:
        """The same with a first frame that is given, mostly."""
        frame = self.video.latent[:, : self.video.latent.shape[1] // 2]
        tokens = torch.randn(frame.shape, generator=torch.Generator().manual_seed(4)).to(frame)
        return replace(self, video=self.video.with_replaced(tokens, strength))


def tiny_transformer(generation: Literal["2.0", "2.3"] = "2.3", layers: int = 3) -> TransformerConfig:
    return replace(TransformerConfig.from_metadata(tiny_config(generation)), num_layers=layers)


def build_stage(
    config: TransformerConfig,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    grid: tuple[int, int, int] = (2, 2, 3),
    audio_frames: int = 5,
    text_tokens: int = TEXT_TOKENS,
) -> TinyStage:
    """Random weights under which every part has an effect, made on ``device``, and random tokens and texts."""
    generator = torch.Generator(device).manual_seed(3)
    with torch.device("meta"):
        model = LTXTransformer(config).to(dtype)
    fill_random_(model.eval().requires_grad_(False), generator)
    shape = VideoLatentShape(1, config.video.channels, *grid)
    audio_shape = AudioLatentShape(1, config.audio.channels // MEL_BINS, audio_frames, MEL_BINS)
    geometry = AudioGeometry(16000, 160, 4, audio_shape.channels, MEL_BINS)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device).to(dtype)

    def prompt() -> PromptContext:
        widths = [config.caption_channels or stream.width for stream in (config.video, config.audio)]
        return PromptContext(*(random(1, text_tokens, width) for width in widths))

    video_at = video_positions(shape, FPS, ScaleFactors(8, 32, 32), device)
    return TinyStage(
        model,
        StreamState.start(random(1, shape.token_count, shape.channels), video_at),
        StreamState.start(
            random(1, audio_frames, audio_shape.token_channels), audio_positions(audio_shape, geometry, device)
        ),
        prompt(),
        prompt(),
    )


def standard_guidance(block: int, skip: int = 0) -> Guidance:
    """The scales of the official 2.3 recipe."""
    return Guidance(
        StreamGuidance(3.0, 1.0, 3.0, 0.7, (block,), skip),
        StreamGuidance(7.0, 1.0, 3.0, 0.7, (block,), skip),
    )
