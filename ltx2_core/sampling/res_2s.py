"""The HQ recipe's sampler: a second-order exponential integrator with noise injection (docs/model.md 5.4).

States are float64 between evaluations and take the model's dtype only to be evaluated. All coefficients are Python
floats, and whether a step is the last one is an argument, so no step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .loop import Evaluate
from .state import StreamState

# Generators of the injected noise, independent of the run's seed and made anew in every stage
STEP_NOISE_SEED = -1
SUBSTEP_NOISE_SEED = 9999
# The last full step ends here instead of at 0, and one plain evaluation follows
LAST_SIGMA = 0.0011
_ETA = 0.5
_SIGMA_UP_LIMIT = 0.9999
# The anchor is refined on small steps that are not at the very end
_REFINE_BELOW_H = 0.5
_REFINE_ABOVE_SIGMA = 0.03
# Below it, phi 2 comes from its series: four terms leave 1e-15, and the difference would lose more than 1e-13
_SERIES_BELOW = 1e-3


class Coefficients(NamedTuple):
    """Of one step from sigma to sigma_next, with h = ln(sigma / sigma_next)."""

    h: float
    a21: float
    b1: float
    b2: float
    sub_sigma: float  # where the second evaluation happens: the geometric mean


def coefficients(sigma: float, sigma_next: float) -> Coefficients:
    """Runge-Kutta coefficients for a midpoint at half the logarithmic step."""
    h = math.log(sigma / sigma_next)
    b2 = 2 * _phi2(-h)
    return Coefficients(h, _phi1(-h / 2) / 2, _phi1(-h) - b2, b2, math.sqrt(sigma * sigma_next))


def _phi1(z: float) -> float:
    return math.expm1(z) / z if z else 1.0


def _phi2(z: float) -> float:
    if abs(z) < _SERIES_BELOW:
        return 1 / 2 + z / 6 + z**2 / 24 + z**3 / 120
    return (math.expm1(z) - z) / z**2


def inject_noise(anchor: Tensor, target: Tensor, sigma: float, sigma_next: float, noise: Tensor) -> Tensor:
    """Mixes noise into ``target`` (at ``sigma_next``), keeping its total noise level.

    Args:
        anchor: where the step began, at ``sigma``.
        sigma_next: above 0.
        noise: standard normal, of ``target``'s shape.
    """
    up = min(_ETA * sigma_next, _SIGMA_UP_LIMIT * sigma_next)
    remaining = math.sqrt(sigma_next**2 - up**2)
    alpha = (1 - sigma_next) + remaining
    down = remaining / alpha
    eps = (anchor - target) / (sigma - sigma_next)
    return alpha * (anchor - sigma * eps + down * eps) + up * noise


def draw_injected_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Float64 noise, normalised over everything and then over tokens and channels of each item."""
    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    return (noise - noise.mean(dim=(-2, -1), keepdim=True)) / noise.std(dim=(-2, -1), keepdim=True)


class StepNoise:
    """The noise that a stage injects, in its official order: substep video, substep audio, step video, step audio."""

    def __init__(self, device: torch.device) -> None:
        self._step = torch.Generator(device=device).manual_seed(STEP_NOISE_SEED)
        self._substep = torch.Generator(device=device).manual_seed(SUBSTEP_NOISE_SEED)

    def step(self, like: Tensor) -> Tensor:
        return draw_injected_noise(like.shape, self._step)

    def substep(self, like: Tensor) -> Tensor:
        return draw_injected_noise(like.shape, self._substep)


@dataclass
class _Stream:
    """One stream inside one step."""

    state: StreamState
    anchor: Tensor  # float64
    first: Tensor  # clean estimate at sigma, float64

    def midpoint(self, c: Coefficients, sigma: float, noise: Tensor) -> StreamState:
        """The state of the second evaluation; may move the anchor."""
        middle = self.anchor + c.h * c.a21 * (self.first - self.anchor)
        middle = self.state.blend(inject_noise(self.anchor, middle, sigma, c.sub_sigma, noise))
        if c.h < _REFINE_BELOW_H and sigma > _REFINE_ABOVE_SIGMA:
            # Limit of the official loop A <- M - h a21 (D - A), where 1 - h a21 = sub_sigma / sigma
            self.anchor = self.first + (middle - self.first) * (sigma / c.sub_sigma)
        return replace(self.state, latent=middle.to(self.state.latent.dtype))

    def finish(self, c: Coefficients, second: Tensor, sigma: float, sigma_next: float, noise: Tensor) -> StreamState:
        slope = c.b1 * (self.first - self.anchor) + c.b2 * (second - self.anchor)
        target = inject_noise(self.anchor, self.anchor + c.h * slope, sigma, sigma_next, noise)
        return replace(self.state, latent=self.state.blend(target).to(self.state.latent.dtype))


def res_2s_step(
    evaluate: Evaluate,
    video: StreamState,
    audio: StreamState,
    sigma: float,
    sigma_next: float,
    step: int,
    noise: StepNoise,
    terminal: bool,
) -> tuple[StreamState, StreamState]:
    """Both streams from ``sigma`` to ``sigma_next``, in two guided evaluations.

    Args:
        step: number of the step, for guidance that skips steps.
        terminal: the step ends at noise level 0: the result is the clean estimate, from one evaluation, without noise.
    """
    states = (video, audio)
    first = _blended(states, evaluate(video, audio, sigma, step))
    if terminal:
        video, audio = (replace(state, latent=x0) for state, x0 in zip(states, first, strict=True))
        return video, audio
    c = coefficients(sigma, sigma_next)
    streams = [_Stream(state, state.latent.double(), x0.double()) for state, x0 in zip(states, first, strict=True)]
    middle = [s.midpoint(c, sigma, noise.substep(s.anchor)) for s in streams]
    # The official loop evaluates the midpoint as step 0 of a schedule of its own: no stream skips there
    second = _blended(states, evaluate(middle[0], middle[1], c.sub_sigma, 0))
    video, audio = (
        s.finish(c, x0.double(), sigma, sigma_next, noise.step(s.anchor)) for s, x0 in zip(streams, second, strict=True)
    )
    return video, audio


def res_2s_loop(
    evaluate: Evaluate,
    video: StreamState,
    audio: StreamState,
    sigmas: Sequence[float],
    on_step: Callable[[int], None],
) -> tuple[StreamState, StreamState]:
    """Denoises both streams along ``sigmas``, two guided evaluations a step and one at the end if they end in 0.

    ``on_step`` hears how many intervals of ``sigmas`` are done; the evaluation at the end belongs to the last one.
    """
    if sigmas[-1] == 0:
        sigmas = (*sigmas[:-1], LAST_SIGMA, 0.0)
    noise = StepNoise(video.latent.device)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        terminal = sigma_next == 0
        video, audio = res_2s_step(evaluate, video, audio, sigma, sigma_next, step, noise, terminal)
        if not terminal:
            on_step(step + 1)
    return video, audio


def _blended(states: tuple[StreamState, StreamState], estimates: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [state.blend(x0) for state, x0 in zip(states, estimates, strict=True)]
