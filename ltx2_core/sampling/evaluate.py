"""The guided evaluation of the DiT: all passes of a step in one batched call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import CrossTimestepRule, Guidance, PromptContext, StreamInput, StreamRope
from .guidance import Pass, clean_estimate, combine, plan_passes, skips
from .state import StreamState


class GuidedModel:
    """Evaluates both streams with every pass that the guidance needs.

    Contexts and rotary tables are prepared once for all steps. One instance serves one stage: it keeps the last
    estimate of a stream that skips steps.

    Args:
        transformer: the DiT, called as ``(video, audio, perturbations, cross_rule)``, returning velocities.
        positive, negative: text embeddings; ``negative`` may be None when no stream uses cfg.
        video_rope, audio_rope: from ``transformer.stream_rope``.
        float32_guidance: see :func:`combine`.
        frozen_sigma_zero: a frozen stream reports noise level 0 (the newest revision).
    """

    def __init__(
        self,
        transformer: Any,
        positive: PromptContext,
        negative: PromptContext | None,
        guidance: Guidance,
        video_rope: StreamRope,
        audio_rope: StreamRope,
        cross_rule: CrossTimestepRule,
        float32_guidance: bool = True,
        frozen_sigma_zero: bool = True,
    ) -> None:
        self.transformer, self.guidance, self.cross_rule = transformer, guidance, cross_rule
        self.video_rope, self.audio_rope = video_rope, audio_rope
        self.float32_guidance, self.frozen_sigma_zero = float32_guidance, frozen_sigma_zero
        self.passes = plan_passes(guidance)
        prompts = [_prompt_of(p.negative, positive, negative) for p in self.passes]
        self.video_context = torch.cat([p.video for p in prompts])
        self.audio_context = torch.cat([p.audio for p in prompts])
        self.perturbations = [p.perturbation for p in self.passes]
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, video: StreamState, audio: StreamState, sigma: float, step: int) -> tuple[Tensor, Tensor]:
        """Guided clean estimates (1, T, C) of both streams at noise level ``sigma``."""
        skip_video, skip_audio = skips(self.guidance.video, step), skips(self.guidance.audio, step)
        if skip_video and skip_audio and self._last is not None:
            return self._last
        video_in = self._input(video, sigma, self.video_context, self.video_rope, not skip_video)
        audio_in = self._input(audio, sigma, self.audio_context, self.audio_rope, not skip_audio)
        v_video, v_audio = self.transformer(video_in, audio_in, self.perturbations, self.cross_rule)
        x0_video = self._guide(self.guidance.video, video_in, v_video, skip_video, 0)
        x0_audio = self._guide(self.guidance.audio, audio_in, v_audio, skip_audio, 1)
        self._last = (x0_video, x0_audio)
        return self._last

    def _input(self, state: StreamState, sigma: float, context: Tensor, rope: StreamRope, enabled: bool) -> StreamInput:
        scalar = 0.0 if state.frozen and self.frozen_sigma_zero else sigma
        return StreamInput(
            latent=state.latent.expand(len(self.passes), -1, -1),
            # Batch 1: every pass has the same noise levels, and the DiT embeds them once
            timesteps=state.timesteps(sigma),
            sigma=torch.full((1,), scalar, dtype=torch.float32, device=state.latent.device),
            context=context,
            rope=rope,
            enabled=enabled,
        )

    def _guide(self, guidance: Any, stream: StreamInput, velocity: Tensor, skip: bool, index: int) -> Tensor:
        if skip and self._last is not None:
            return self._last[index]
        x0 = clean_estimate(stream.latent, velocity, stream.timesteps)
        estimates: dict[Pass, Tensor] = {p.name: x0[i : i + 1] for i, p in enumerate(self.passes)}
        return combine(guidance, estimates, self.float32_guidance)


def _prompt_of(is_negative: bool, positive: PromptContext, negative: PromptContext | None) -> PromptContext:
    if not is_negative:
        return positive
    if negative is None:
        raise ValueError("the guidance needs a negative prompt's embeddings, and none were given")
    return negative
