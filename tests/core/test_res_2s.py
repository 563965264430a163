"""The second-order sampler against the numbers of docs/model.md 5.4 and the official iteration as a loop."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, getcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.sampling.res_2s import (
    LAST_SIGMA,
    StepNoise,
    coefficients,
    draw_injected_noise,
    inject_noise,
    res_2s_loop,
    res_2s_step,
)
from ltx2_two_stage.ltx2_core.sampling.schedules import fixed_sigmas, guided_sigmas
from ltx2_two_stage.ltx2_core.sampling.state import StreamState
from ltx2_two_stage.ltx2_core.types import Guidance, StreamGuidance
from tiny_stage import build_stage, tiny_transformer


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("sigma", "following", "a21", "b1", "b2"),
    [
        (0.909375, 0.725, 0.47271675, -0.03376264, 0.928563),
        (0.725, 0.421875, 0.43803314, -0.06934577, 0.84151997),
        (0.421875, 0.0011, 0.15950136, -0.1121652, 0.27981114),
        (1.0, 0.993491, 0.4991846, -0.00108483, 0.99782679),
    ],
)
def test_coefficients_equal_the_measured_ones(sigma: float, following: float, a21: float, b1: float, b2: float) -> None:
    c = coefficients(sigma, following)
    # docs/model.md 5.4 prints up to eight digits, and its 0.993491 is itself rounded
    assert c.a21 == pytest.approx(a21, abs=6e-8)
    assert c.b1 == pytest.approx(b1, abs=2e-7)
    assert c.b2 == pytest.approx(b2, abs=2e-7)


def _exact(sigma: float, following: float) -> tuple[float, ...]:
    """h, a21, b1, b2 and the sub-sigma with 60 digits, from the definitions (docs/model.md 5.4)."""
    getcontext().prec = 60
    s, n = Decimal(sigma), Decimal(following)
    h = (s / n).ln()
    a21 = ((-h / 2).exp() - 1) / (-h / 2) / 2
    b2 = 2 * ((-h).exp() - 1 + h) / h**2
    b1 = ((-h).exp() - 1) / -h - b2
    return tuple(float(value) for value in (h, a21, b1, b2, (s * n).sqrt()))


SCHEDULES = {
    "HQ": guided_sigmas(15, 8160),
    "HQ at 4K": guided_sigmas(15, 32_640),
    "forty steps": guided_sigmas(40, 4096),
    "three hundred steps": guided_sigmas(300, 32_640),
    "stage 2": fixed_sigmas((0.909375, 0.725, 0.421875, 0.0)),
    "close": (1.0, 1.0 - 1e-9, 0.9, 0.9 - 1e-6, 0.9 - 1e-4, 0.0),
}


@pytest.mark.parametrize("sigmas", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_coefficients_against_sixty_digits(sigmas: tuple[float, ...]) -> None:
    for sigma, following in pairwise((*sigmas[:-1], LAST_SIGMA)):
        if sigma != following:  # float32 has equal neighbours near 1 where the shift is large
            # the logarithm of a quotient near 1 is as exact as the quotient: 1e-16
            assert coefficients(sigma, following) == pytest.approx(_exact(sigma, following), abs=1e-12, rel=0)


def test_no_step_at_all() -> None:
    c = coefficients(0.5, 0.5)
    assert (c.h, c.a21, c.b1, c.b2) == (0.0, 0.5, 0.0, 1.0)


def _sde(a: torch.Tensor, y: torch.Tensor, s: float, n: float, w: torch.Tensor) -> torch.Tensor:
    """SDE(A, Y, s, n, w) of docs/model.md 5.4."""
    up = min(0.5 * n, 0.9999 * n)
    r = math.sqrt(n**2 - up**2)
    alpha = (1 - n) + r
    eps = (a - y) / (s - n)
    d = a - s * eps
    return alpha * (d + r / alpha * eps) + up * w


@pytest.mark.parametrize(("s", "n"), [(1.0, 0.99), (0.909375, 0.725), (0.725, 0.421875), (0.1, 0.0011)])
def test_sde_step_equals_the_formula(s: float, n: float) -> None:
    anchor, target, w = _randn(1, 64, 8), _randn(1, 64, 8, seed=1), _randn(1, 64, 8, seed=2)
    # eps is of order 1 / (s - n), 100 at most here: float64 rounding
    assert (inject_noise(anchor, target, s, n, w) - _sde(anchor, target, s, n, w)).abs().max() <= 1e-12


def test_sde_step_keeps_the_clean_part_and_the_noise_level() -> None:
    clean, eps, w = _randn(1, 64, 8), _randn(1, 64, 8, seed=1), _randn(1, 64, 8, seed=2)
    s, n = 0.725, 0.421875
    anchor, target = (1 - s) * clean + s * eps, (1 - n) * clean + n * eps
    mixed = inject_noise(anchor, target, s, n, w)
    remaining = mixed - (1 - n) * clean
    # (1-n) clean + r eps + up w with r^2 + up^2 = n^2
    assert torch.allclose(remaining, math.sqrt(n**2 - (0.5 * n) ** 2) * eps + 0.5 * n * w, atol=1e-12)


def test_injected_noise_is_normalised_float64() -> None:
    noise = draw_injected_noise(torch.Size((1, 33, 7)), torch.Generator().manual_seed(-1))
    assert noise.dtype == torch.float64
    assert abs(noise.mean()) < 1e-15 and abs(noise.std() - 1) < 1e-12


def _blend(state: StreamState, x: torch.Tensor) -> torch.Tensor:
    # mask and clean tokens are float32, as in the official code: the model's estimates are blended in float32
    return (x * state.mask + state.clean.float() * (1 - state.mask)).double()


def _oracle(evaluate: Any, states: list[StreamState], sigmas: tuple[float, ...]) -> list[torch.Tensor]:
    """The recipe of docs/model.md 5.4 step by step, the anchor iteration as its hundred repetitions.

    ``evaluate(latents, sigma, step)`` takes and gives the states' dtype.
    """
    step_g, sub_g = torch.Generator().manual_seed(-1), torch.Generator().manual_seed(9999)
    dtype = states[0].latent.dtype
    x = [s.latent.double() for s in states]

    def noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        w = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return (w - w.mean()) / w.std()

    def denoise(latents: list[torch.Tensor], sigma: float, step: int) -> list[torch.Tensor]:
        found = evaluate([v.to(dtype) for v in latents], sigma, step)
        return [_blend(st, d) for st, d in zip(states, found, strict=True)]

    steps = len(sigmas) - 1
    for step, (s, n) in enumerate(pairwise((*sigmas[:-1], 0.0011))):
        h, a21, b1, b2, q = _exact(s, n)
        anchors = [v.clone() for v in x]
        firsts = denoise(x, s, step)
        mids = []
        for st, a, d in zip(states, anchors, firsts, strict=True):
            mids.append(_blend(st, _sde(a, a + h * a21 * (d - a), s, q, noise(a, sub_g))))
        if h < 0.5 and s > 0.03:
            for i in range(len(x)):
                for _ in range(100):
                    anchors[i] = mids[i] - h * a21 * (firsts[i] - anchors[i])
        seconds = denoise(mids, q, 0)
        for i, st in enumerate(states):
            a = anchors[i]
            target = a + h * (b1 * (firsts[i] - a) + b2 * (seconds[i] - a))
            x[i] = _blend(st, _sde(a, target, s, n, noise(a, step_g))).to(dtype).double()
    return denoise(x, 0.0011, steps)


def _states() -> tuple[StreamState, StreamState]:
    video = StreamState.start(_randn(1, 6, 4), _randn(1, 3, 6, 2)).with_replaced(_randn(1, 2, 4, seed=3), 0.7)
    return video, StreamState.start(_randn(1, 5, 4, seed=4), _randn(1, 1, 5, 2))


@pytest.mark.parametrize(
    "sigmas",
    [
        (1.0, 0.9934, 0.9, 0.7, 0.3, 0.1, 0.0),
        guided_sigmas(15, 8160),
        (0.909375, 0.725, 0.421875, 0.0),
        (0.5, 0.029, 0.02, 0.01, 0.0),
        (1.0, 0.0),
    ],
    ids=["few", "HQ", "stage 2", "no refinement at the end", "one step"],
)
def test_trajectory_equals_the_loop_written_out(sigmas: tuple[float, ...]) -> None:
    weight = [_randn(4, 4, seed=7) * 0.3, _randn(4, 4, seed=8) * 0.3]
    video, audio = _states()
    calls: list[tuple[float, int]] = []

    def denoised(latents: list[torch.Tensor], sigma: float, step: int) -> list[torch.Tensor]:
        calls.append((sigma, step))
        return [torch.tanh(v @ w) * (1 - 0.2 * sigma) for v, w in zip(latents, weight, strict=True)]

    def evaluate(v: StreamState, a: StreamState, sigma: float, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = denoised([v.latent, a.latent], sigma, step)
        return first, second

    done: list[int] = []
    ours = res_2s_loop(evaluate, video, audio, sigmas, done.append)
    our_calls = calls.copy()
    calls.clear()
    expected = _oracle(denoised, [video, audio], sigmas)
    assert len(calls) == 2 * (len(sigmas) - 1) + 1
    assert our_calls == [(pytest.approx(sigma, abs=1e-15), step) for sigma, step in calls]
    assert done == list(range(1, len(sigmas)))
    for state, oracle in zip(ours, expected, strict=True):
        # float64 throughout; the closed form of the anchor iteration agrees to rounding
        assert (state.latent - oracle).abs().max() <= 1e-12


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_float32_run_of_a_tiny_model_equals_the_loop_written_out(generation: Any) -> None:
    """1e-6 on latents of order 1: both evaluate the same model, and their states differ by less than float32 shows."""
    stage = build_stage(tiny_transformer(generation)).with_image()
    guidance = Guidance(StreamGuidance(3.0, modality=3.0, rescale=0.45), StreamGuidance(7.0, modality=3.0, rescale=1.0))
    sigmas = guided_sigmas(4, 8160)
    ours = res_2s_loop(stage.guided(guidance, separate=True), stage.video, stage.audio, sigmas, lambda _: None)
    model = stage.guided(guidance, separate=True)

    def evaluate(latents: list[torch.Tensor], sigma: float, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return model(replace(stage.video, latent=latents[0]), replace(stage.audio, latent=latents[1]), sigma, step)

    expected = _oracle(evaluate, [stage.video, stage.audio], sigmas)
    for state, oracle in zip(ours, expected, strict=True):
        assert state.latent.dtype == torch.float32
        assert oracle.std() > 0.3
        assert (state.latent - oracle).abs().max() <= 1e-6


def test_a_terminal_step_is_one_estimate_without_noise() -> None:
    class NoNoise(StepNoise):
        def step(self, _like: torch.Tensor) -> torch.Tensor:
            raise AssertionError("a terminal step draws nothing")

        substep = step

    video, audio = _states()
    calls: list[tuple[float, int]] = []

    def evaluate(v: StreamState, a: StreamState, sigma: float, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((sigma, step))
        return v.latent * 0.5, a.latent * 0.25

    noise = NoNoise(torch.device("cpu"))
    ended = res_2s_step(evaluate, video, audio, 0.3, 0.0, 4, noise, terminal=True)
    assert calls == [(0.3, 4)]
    assert torch.equal(ended[0].latent, video.blend(video.latent * 0.5))
    assert torch.equal(ended[1].latent, audio.latent * 0.25)
    with pytest.raises(AssertionError, match="draws nothing"):
        res_2s_step(evaluate, video, audio, 0.3, 0.1, 4, noise, terminal=False)
