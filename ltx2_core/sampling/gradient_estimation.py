"""Gradient-estimation sampling (docs/model.md 5.3): Euler steps along a velocity that is corrected by the one before.

After Permenter and Yuan, "Interpreting and improving diffusion models from an optimization perspective" (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from .loop import Evaluate
from .state import StreamState
from .steps import euler_step, velocity

GAMMA = 2.0  # 1 makes plain Euler steps


def corrected_estimate(latent: Tensor, flow: Tensor, before: Tensor, sigma: float) -> Tensor:
    """The clean estimate that the extrapolated velocity gamma * (flow - before) + before leads to.

    Args:
        latent: (1, T, C), at noise level ``sigma``.
        flow, before: velocities of this step and of the one before, neither of them corrected.
    """
    total = GAMMA * (flow.float() - before.float()) + before.float()
    return (latent.float() - sigma * total).to(latent.dtype)


def gradient_estimation_loop(
    evaluate: Evaluate,
    video: StreamState,
    audio: StreamState,
    sigmas: Sequence[float],
    on_step: Callable[[int], None],
) -> tuple[StreamState, StreamState]:
    """Denoises both streams along ``sigmas``, with one guided evaluation a step; a step to 0 takes the estimate itself.

    ``sigmas`` are host numbers: no branch and no step waits for the device. ``on_step`` hears how many steps are done
    and may raise to interrupt.
    """
    states = [video, audio]
    flows: list[Tensor] = []
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        estimates = [s.blend(x0) for s, x0 in zip(states, evaluate(states[0], states[1], sigma, step), strict=True)]
        if sigma_next == 0:
            latents = estimates
        else:
            raw = [velocity(s.latent, x0, sigma) for s, x0 in zip(states, estimates, strict=True)]
            if flows:
                estimates = [
                    corrected_estimate(s.latent, now, before, sigma)
                    for s, now, before in zip(states, raw, flows, strict=True)
                ]
            flows = raw
            latents = [euler_step(s.latent, x0, sigma, sigma_next) for s, x0 in zip(states, estimates, strict=True)]
        states = [replace(s, latent=latent) for s, latent in zip(states, latents, strict=True)]
        on_step(step + 1)
    return states[0], states[1]
