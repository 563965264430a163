"""Multi-modal guidance: which passes a step needs, and how their estimates combine (fact sheet 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from ..types import Guidance, Perturbation, StreamGuidance

NOTHING = Perturbation()


class Pass(str, Enum):
    """The evaluations that guidance compares, in their official order."""

    COND = "cond"
    UNCOND = "uncond"
    PERTURBED = "perturbed"
    ISOLATED = "isolated"


@dataclass(frozen=True)
class PassPlan:
    """One evaluation: which prompt it reads and what it leaves out."""

    name: Pass
    negative: bool = False
    perturbation: Perturbation = NOTHING


def plan_passes(guidance: Guidance) -> tuple[PassPlan, ...]:
    """The passes that the settings need; every pass evaluates both streams."""
    video, audio = guidance.video, guidance.audio
    plans = [PassPlan(Pass.COND)]
    if needs_negative(guidance):
        plans.append(PassPlan(Pass.UNCOND, negative=True))
    stg = Perturbation(
        video_stg_blocks=frozenset(video.blocks) if not _off(video.stg, 0.0) else frozenset(),
        audio_stg_blocks=frozenset(audio.blocks) if not _off(audio.stg, 0.0) else frozenset(),
    )
    if not (_off(video.stg, 0.0) and _off(audio.stg, 0.0)):
        plans.append(PassPlan(Pass.PERTURBED, perturbation=stg))
    if not (_off(video.modality, 1.0) and _off(audio.modality, 1.0)):
        plans.append(PassPlan(Pass.ISOLATED, perturbation=Perturbation(skip_cross_modal=True)))
    return tuple(plans)


def needs_negative(guidance: Guidance) -> bool:
    """Whether any stream compares against the negative prompt."""
    return not (_off(guidance.video.cfg, 1.0) and _off(guidance.audio.cfg, 1.0))


def skips(guidance: StreamGuidance, step: int) -> bool:
    """Whether a stream reuses its last estimate on this step."""
    return guidance.skip > 0 and step % (guidance.skip + 1) != 0


def combine(guidance: StreamGuidance, estimates: Mapping[Pass, Tensor], float32: bool) -> Tensor:
    """The guided clean estimate of one stream.

    g = c + (cfg-1)(c-u) + stg(c-p) + (modality-1)(c-i); with rescale r, g *= r*std(c)/std(g) + (1-r), the standard
    deviation (unbiased) taken over the whole stream, conditioned tokens included.

    Args:
        estimates: x0 of every pass that ran, (1, T, C) each; one that did not run has a scale that cancels it.
        float32: combine in float32 (the newest revision) or in the estimates' dtype.
    """
    cond = estimates[Pass.COND]
    dtype = cond.dtype
    c = cond.float() if float32 else cond
    scales = ((Pass.UNCOND, guidance.cfg - 1), (Pass.PERTURBED, guidance.stg), (Pass.ISOLATED, guidance.modality - 1))
    guided = c
    for name, scale in scales:
        if name in estimates and scale != 0:
            guided = guided + scale * (c - estimates[name].to(c.dtype))
    if guidance.rescale != 0:
        factor = c.std() / guided.std()
        guided = guided * (guidance.rescale * factor + (1 - guidance.rescale))
    return guided.to(dtype)


def _off(scale: float, neutral: float) -> bool:
    # The official code compares with math.isclose
    return math.isclose(scale, neutral)


def clean_estimate(latent: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
    """x0 = x - (mask * sigma) * v, computed in float32 and returned in the latent's dtype.

    Args:
        latent, velocity: (B, T, C).
        timesteps: (B, T) or (B, 1), mask * sigma.
    """
    return (latent.float() - velocity.float() * timesteps[..., None]).to(latent.dtype)
