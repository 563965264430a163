"""Multi-modal guidance: what it compares, and how the estimates combine (docs/model.md 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

from torch import Tensor

from ..types import Guidance, StreamGuidance


class Pass(str, Enum):
    """The evaluations that guidance compares, in their official order."""

    COND = "cond"
    UNCOND = "uncond"
    PERTURBED = "perturbed"
    ISOLATED = "isolated"


def scale_of(guidance: StreamGuidance, name: Pass) -> float:
    """Factor of the difference between the conditional and another estimate; 0 where the setting is neutral."""
    scale, neutral = {
        Pass.UNCOND: (guidance.cfg, 1.0),
        Pass.PERTURBED: (guidance.stg, 0.0),
        Pass.ISOLATED: (guidance.modality, 1.0),
    }[name]
    # The official code compares with math.isclose
    return 0.0 if math.isclose(scale, neutral) else scale - neutral


def needs_negative(guidance: Guidance) -> bool:
    """Whether any stream compares against the negative prompt."""
    return any(scale_of(stream, Pass.UNCOND) != 0 for stream in (guidance.video, guidance.audio))


def skips(guidance: StreamGuidance, step: int) -> bool:
    """Whether a stream reuses its last estimate on this step."""
    return guidance.skip > 0 and step % (guidance.skip + 1) != 0


def combine(guidance: StreamGuidance, estimates: Mapping[Pass, Tensor], float32: bool) -> Tensor:
    """The guided clean estimate of one stream.

    g = c + (cfg-1)(c-u) + stg(c-p) + (modality-1)(c-i); with rescale r, g *= r*std(c)/std(g) + (1-r), the standard
    deviation (unbiased) taken over the whole stream, conditioned tokens included.

    Args:
        estimates: x0 of every pass that ran, (1, T, C) each; one that did not run would have cancelled itself.
        float32: combine in float32 (the newest revision) or in the estimates' dtype.
    """
    cond = estimates[Pass.COND]
    dtype = cond.dtype
    c = cond.float() if float32 else cond
    guided = c
    for name in (Pass.UNCOND, Pass.PERTURBED, Pass.ISOLATED):
        scale = scale_of(guidance, name)
        if name in estimates and scale != 0:
            guided = guided + scale * (c - estimates[name].to(c.dtype))
    if guidance.rescale != 0:
        factor = c.std() / guided.std()
        guided = guided * (guidance.rescale * factor + (1 - guidance.rescale))
    return guided.to(dtype)


def clean_estimate(latent: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
    """x0 = x - (mask * sigma) * v, computed in float32 and returned in the latent's dtype.

    Args:
        latent, velocity: (B, T, C).
        timesteps: (B, T) or (B, 1), mask * sigma.
    """
    return (latent.float() - velocity.float() * timesteps[..., None]).to(latent.dtype)
