"""The second-order sampler against the fact sheet's numbers and the official iteration written out as a loop."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from ltx2_two_stage.ltx2_core.sampling.res_2s import (
    LAST_SIGMA,
    coefficients,
    draw_injected_noise,
    inject_noise,
    res_2s_loop,
)
from ltx2_two_stage.ltx2_core.sampling.state import StreamState


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
    # the fact sheet prints up to eight digits, and its 0.993491 is itself rounded
    assert c.a21 == pytest.approx(a21, abs=6e-8)
    assert c.b1 == pytest.approx(b1, abs=2e-7)
    assert c.b2 == pytest.approx(b2, abs=2e-7)


@pytest.mark.parametrize(("sigma", "following"), [(0.9, 0.7), (0.3, 0.0011), (1.0, 0.999999)])
def test_coefficient_identities(sigma: float, following: float) -> None:
    c, ratio = coefficients(sigma, following), following / sigma
    assert c.h * c.a21 == pytest.approx(1 - math.sqrt(ratio), abs=1e-12)
    assert c.h * (c.b1 + c.b2) == pytest.approx(1 - ratio, abs=1e-12)


def test_no_step_at_all() -> None:
    c = coefficients(0.5, 0.5)
    assert (c.h, c.a21, c.b1, c.b2) == (0.0, 0.5, 0.0, 1.0)


def test_injection_keeps_the_clean_part_and_the_noise_level() -> None:
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
    # the clean part enters as a float32 product, as in the official code
    return x * state.mask.double() + (state.clean.float() * (1 - state.mask)).double()


def _oracle(evaluate, states, sigmas):  # type: ignore[no-untyped-def]
    """The recipe of fact sheet 5.4 step by step, the anchor iteration as its hundred repetitions."""
    step_g, sub_g = torch.Generator().manual_seed(-1), torch.Generator().manual_seed(9999)
    x = [s.latent.double() for s in states]
    sigmas = [*sigmas[:-1], LAST_SIGMA]

    def noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        w = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return (w - w.mean()) / w.std()

    for s, n in pairwise(sigmas):
        h = math.log(s / n)
        a21 = (1 - math.exp(-h / 2)) / h
        b2 = 2 * (n / s - 1 + h) / h / h
        b1 = (1 - n / s) / h - b2
        q = math.sqrt(s * n)
        anchors = [v.clone() for v in x]
        firsts = [_blend(st, d) for st, d in zip(states, evaluate(x, s), strict=True)]
        mids = []
        for st, a, d in zip(states, anchors, firsts, strict=True):
            mids.append(_blend(st, inject_noise(a, a + h * a21 * (d - a), s, q, noise(a, sub_g))))
        if h < 0.5 and s > 0.03:
            for i in range(len(x)):
                for _ in range(100):
                    anchors[i] = mids[i] - h * a21 * (firsts[i] - anchors[i])
        seconds = [_blend(st, d) for st, d in zip(states, evaluate(mids, q), strict=True)]
        for i, st in enumerate(states):
            a = anchors[i]
            target = a + h * (b1 * (firsts[i] - a) + b2 * (seconds[i] - a))
            x[i] = _blend(st, inject_noise(a, target, s, n, noise(a, step_g)))
    return [_blend(st, d) for st, d in zip(states, evaluate(x, sigmas[-1]), strict=True)]


@pytest.mark.parametrize(
    "sigmas", [(1.0, 0.9934, 0.9, 0.7, 0.3, 0.1, 0.0), (0.909375, 0.725, 0.421875, 0.0)], ids=["stage 1", "stage 2"]
)
def test_trajectory_equals_the_loop_written_out(sigmas: tuple[float, ...]) -> None:
    weight = [_randn(4, 4, seed=7) * 0.3, _randn(4, 4, seed=8) * 0.3]
    video = StreamState.start(_randn(1, 6, 4), _randn(1, 3, 6, 2)).with_replaced(_randn(1, 2, 4, seed=3), 0.7)
    audio = StreamState.start(_randn(1, 5, 4, seed=4), _randn(1, 1, 5, 2))

    def denoised(latents: list[torch.Tensor], sigma: float) -> list[torch.Tensor]:
        return [torch.tanh(v @ w) * (1 - 0.2 * sigma) for v, w in zip(latents, weight, strict=True)]

    calls: list[float] = []

    def evaluate(v: StreamState, a: StreamState, sigma: float, step: int):  # type: ignore[no-untyped-def]
        calls.append(sigma)
        return denoised([v.latent, a.latent], sigma)

    done: list[int] = []
    ours = res_2s_loop(evaluate, video, audio, sigmas, done.append)
    expected = _oracle(denoised, [video, audio], sigmas)
    assert len(calls) == 2 * (len(sigmas) - 1) + 1
    assert done == list(range(1, len(sigmas)))
    for state, oracle in zip(ours, expected, strict=True):
        # float64 throughout; the closed form of the anchor iteration agrees to rounding
        assert (state.latent - oracle).abs().max() < 1e-12
