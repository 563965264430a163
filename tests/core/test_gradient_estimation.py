"""The gradient-estimation sampler against a re-computation with rational numbers, and its edge cases."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from ltx2_two_stage.ltx2_core.sampling.gradient_estimation import GAMMA, corrected_estimate, gradient_estimation_loop
from ltx2_two_stage.ltx2_core.sampling.loop import euler_loop
from ltx2_two_stage.ltx2_core.sampling.state import StreamState
from ltx2_two_stage.ltx2_core.sampling.steps import velocity
from torch import Tensor

SIGMAS = (1.0, 0.875, 0.625, 0.25, 0.125, 0.0)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _state(tokens: int, seed: int) -> StreamState:
    return StreamState.start(_randn(1, tokens, 4, seed=seed), _randn(1, 3, tokens, 2))


def _estimate(x: Tensor, sigma: float, step: int) -> Tensor:
    """Something that depends on everything, without any library function."""
    return x * (0.5 - 0.25 * sigma) + 0.125 * step


def evaluate(video: StreamState, audio: StreamState, sigma: float, step: int) -> tuple[Tensor, Tensor]:
    return _estimate(video.latent, sigma, step), _estimate(audio.latent, sigma, step + 1)


def expected(start: float, first_step: int, sigmas: tuple[float, ...]) -> Fraction:
    """docs/model.md 5.3 for one number, exactly."""
    x, before = Fraction(start), None
    for step, (s, n) in enumerate(pairwise(Fraction(sigma) for sigma in sigmas)):
        x0 = x * (Fraction(1, 2) - s / 4) + Fraction(1, 8) * (step + first_step)
        if n == 0:
            return x0
        v = (x - x0) / s
        total = v if before is None else 2 * (v - before) + before
        x, before = x + total * (n - s), v
    return x


@pytest.mark.parametrize("sigmas", [SIGMAS, SIGMAS[:-1], SIGMAS[:2], (0.875, 0.0)], ids=len)
def test_every_number_is_the_exact_one(sigmas: tuple[float, ...]) -> None:
    steps: list[int] = []
    video, audio = gradient_estimation_loop(evaluate, _state(3, 1), _state(2, 2), sigmas, steps.append)
    assert steps == list(range(1, len(sigmas)))
    for result, start, first in ((video, _state(3, 1), 0), (audio, _state(2, 2), 1)):
        exact = torch.tensor([float(expected(x, first, sigmas)) for x in start.latent.flatten().tolist()])
        # float32: five steps of a few roundings each, on numbers of order one that gamma may double
        torch.testing.assert_close(result.latent.flatten(), exact, rtol=0, atol=5e-6)
    if len(sigmas) > 3:
        euler, _ = euler_loop(evaluate, _state(3, 1), _state(2, 2), sigmas, steps.append)
        assert (euler.latent - video.latent).abs().max() > 1e-2, "the correction must matter"


def test_the_first_step_and_a_constant_velocity_are_eulers() -> None:
    latent, flow = _randn(1, 3, 4), _randn(1, 3, 4, seed=1)
    # gamma * 0 + flow: x0 = x - sigma * v, rounded once
    assert (corrected_estimate(latent, flow, flow, 0.5) - (latent - 0.5 * flow)).abs().max() < 1e-6
    assert GAMMA == 2
    one, _ = gradient_estimation_loop(evaluate, _state(3, 1), _state(2, 2), (1.0, 0.5), lambda _: None)
    other, _ = euler_loop(evaluate, _state(3, 1), _state(2, 2), (1.0, 0.5), lambda _: None)
    assert torch.equal(one.latent, other.latent)


def test_bfloat16_states_are_rounded_as_the_official_code_rounds_them() -> None:
    video = StreamState.start(_randn(1, 3, 4).bfloat16(), _randn(1, 3, 3, 2))
    latent = video.latent
    x0s = [_randn(1, 3, 4, seed=seed).bfloat16() for seed in (1, 2, 3)]

    def fixed(_video: StreamState, audio: StreamState, _sigma: float, step: int) -> tuple[Tensor, Tensor]:
        return x0s[step], audio.latent

    result, _ = gradient_estimation_loop(fixed, video, _state(2, 2), (1.0, 0.75, 0.5), lambda _: None)
    first = velocity(latent, x0s[0], 1.0)
    assert first.dtype == torch.bfloat16
    latent = (latent.float() + first.float() * -0.25).bfloat16()
    now = velocity(latent, x0s[1], 0.75)
    x0 = (latent.float() - 0.75 * (2 * (now.float() - first.float()) + first.float())).bfloat16()
    latent = (latent.float() + velocity(latent, x0, 0.75).float() * -0.25).bfloat16()
    assert torch.equal(result.latent, latent)


def test_given_tokens_and_streams_stay_as_they_are() -> None:
    kept = _randn(1, 1, 4, seed=5)
    video = _state(3, 1).with_replaced(kept, 1.0, start=1, overwrite=True)
    audio = StreamState.given(_randn(1, 2, 4, seed=6), _randn(1, 1, 2, 2))
    video_out, audio_out = gradient_estimation_loop(evaluate, video, audio, SIGMAS, lambda _: None)
    assert torch.equal(audio_out.latent, audio.latent)
    assert torch.equal(video_out.latent[:, 1:2], kept)
    assert not torch.equal(video_out.latent[:, :1], video.latent[:, :1])


def test_an_interrupt_passes_through() -> None:
    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradient_estimation_loop(evaluate, _state(3, 1), _state(2, 2), SIGMAS, stop)
