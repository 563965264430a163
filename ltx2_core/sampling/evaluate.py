"""The guided evaluation of the DiT: every pass that a step needs, and their estimates combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..protocols import Velocities
from ..types import CrossTimestepRule, Guidance, PromptContext, StreamGuidance, StreamInput, StreamRope
from .guidance import Pass, clean_estimate, combine, needs_negative, skips
from .passes import Call, Role, plan_calls
from .state import StreamState

Estimates = dict[Pass, Tensor]
"""Clean estimates (1, T, C) of one stream, by the pass that made them."""


class GuidedModel:
    """Evaluates both streams with every pass that the guidance needs.

    Contexts and rotary tables are prepared once for all steps. One instance serves one stage: it keeps the last
    estimate of a stream that skips steps.

    Args:
        transformer: the DiT, or what replays its calls.
        positive, negative: text embeddings; ``negative`` may be None when no stream uses cfg.
        video_rope, audio_rope: from ``transformer.stream_rope``.
        float32_guidance: see :func:`combine`.
        frozen_sigma_zero: a frozen stream reports noise level 0 (the newest revision).
        separate: run the passes one after the other, see :mod:`.passes`.
    """

    def __init__(
        self,
        transformer: Velocities,
        positive: PromptContext,
        negative: PromptContext | None,
        guidance: Guidance,
        video_rope: StreamRope,
        audio_rope: StreamRope,
        cross_rule: CrossTimestepRule,
        float32_guidance: bool = True,
        frozen_sigma_zero: bool = True,
        separate: bool = False,
    ) -> None:
        self.transformer, self.guidance, self.cross_rule = transformer, guidance, cross_rule
        self.video_rope, self.audio_rope = video_rope, audio_rope
        self.float32_guidance, self.frozen_sigma_zero = float32_guidance, frozen_sigma_zero
        self.separate = separate
        prompts = [positive]
        if needs_negative(guidance):
            if negative is None:
                raise ValueError("the guidance needs a negative prompt's embeddings, and none were given")
            prompts.append(negative)
        self.video_contexts = torch.cat([prompt.video for prompt in prompts])
        self.audio_contexts = torch.cat([prompt.audio for prompt in prompts])
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, video: StreamState, audio: StreamState, sigma: float, step: int) -> tuple[Tensor, Tensor]:
        """Guided clean estimates (1, T, C) of both streams at noise level ``sigma``."""
        roles = self._role(video, self.guidance.video, step), self._role(audio, self.guidance.audio, step)
        video_estimates, audio_estimates = self.estimates(video, audio, sigma, *roles)
        last_video, last_audio = self._last or (video.latent, audio.latent)
        self._last = (
            self._guide(self.guidance.video, roles[0], video, video_estimates, last_video),
            self._guide(self.guidance.audio, roles[1], audio, audio_estimates, last_audio),
        )
        return self._last

    def estimates(
        self, video: StreamState, audio: StreamState, sigma: float, video_role: Role, audio_role: Role
    ) -> tuple[Estimates, Estimates]:
        """The clean estimates of every pass, of the streams that are guided, before they are combined."""
        calls = plan_calls(self.guidance, video_role, audio_role, self.separate)
        if not calls:
            return {}, {}
        video_in = self._input(video, sigma, self.video_contexts, self.video_rope, video_role)
        audio_in = self._input(audio, sigma, self.audio_contexts, self.audio_rope, audio_role)
        video_out: Estimates = {}
        audio_out: Estimates = {}
        for call in calls:
            with_video, with_audio = any(i.video for i in call.items), any(i.audio for i in call.items)
            velocities = self.transformer(
                replace(video_in, context=video_in.context[call.prompts]) if with_video else None,
                replace(audio_in, context=audio_in.context[call.prompts]) if with_audio else None,
                call.items,
                self.cross_rule,
            )
            if video_role is Role.GUIDED:
                video_out |= _by_pass(call, [i.video for i in call.items], video, sigma, velocities[0])
            if audio_role is Role.GUIDED:
                audio_out |= _by_pass(call, [i.audio for i in call.items], audio, sigma, velocities[1])
        return video_out, audio_out

    def _role(self, state: StreamState, guidance: StreamGuidance, step: int) -> Role:
        if self._last is not None and skips(guidance, step):
            return Role.SKIPPED
        return Role.GIVEN if state.frozen else Role.GUIDED

    def _input(self, state: StreamState, sigma: float, contexts: Tensor, rope: StreamRope, role: Role) -> StreamInput:
        scalar = 0.0 if state.frozen and self.frozen_sigma_zero else sigma
        return StreamInput(
            # Batch 1: every pass has the same tokens at the same noise levels, and the DiT embeds them once
            latent=state.latent,
            timesteps=state.levels(sigma),
            sigma=torch.full((1,), scalar, dtype=torch.float32, device=state.latent.device),
            context=contexts,
            rope=rope,
            enabled=role is not Role.SKIPPED,
            token_levels=state.token_values,
        )

    def _guide(
        self, guidance: StreamGuidance, role: Role, state: StreamState, estimates: Mapping[Pass, Tensor], last: Tensor
    ) -> Tensor:
        if role is Role.SKIPPED:
            return last
        if role is Role.GIVEN:
            return state.latent
        return combine(guidance, estimates, self.float32_guidance)


def _by_pass(
    call: Call, present: Sequence[bool], state: StreamState, sigma: float, velocity: Tensor | None
) -> Estimates:
    """Clean estimates from the velocities (B, T, C) of the items that compute a stream."""
    if velocity is None:
        return {}
    x0 = clean_estimate(state.latent, velocity, state.timesteps(sigma))
    names = [name for name, here in zip(call.passes, present, strict=True) if here]
    return {name: x0[i : i + 1] for i, name in enumerate(names)}
