"""Schedules, noise, guidance arithmetic, masks and the Euler loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ltx2_two_stage.ltx2_core.recipes import REVISIONS
from ltx2_two_stage.ltx2_core.sampling.evaluate import GuidedModel
from ltx2_two_stage.ltx2_core.sampling.guidance import Pass, clean_estimate, combine, scale_of, skips
from ltx2_two_stage.ltx2_core.sampling.loop import euler_loop
from ltx2_two_stage.ltx2_core.sampling.noise import add_noise, draw_noise
from ltx2_two_stage.ltx2_core.sampling.schedules import fixed_sigmas, guided_sigmas
from ltx2_two_stage.ltx2_core.sampling.state import StreamState, audio_tokens, from_tokens, video_tokens
from ltx2_two_stage.ltx2_core.sampling.steps import euler_step
from ltx2_two_stage.ltx2_core.types import (
    AudioLatentShape,
    CrossTimestepRule,
    Guidance,
    PromptContext,
    Rope,
    StreamGuidance,
    StreamRope,
    VideoLatentShape,
)

# Measured values (docs/model.md 5.1), printed with 6 digits: hence half a unit of the sixth
SIX_DIGITS = 6e-7
NEWEST = REVISIONS["newest"]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=_generator(seed))


@pytest.mark.parametrize(
    ("steps", "tokens", "expected"),
    [
        (15, 4096, "1 .98725 .972823 .956368 .937421 .915374 .889394 .858329 .820523 .773514 .713477 .634123 .524345 "
         ".362494 .1 0"),
        (15, 8160, "1 .993491 .986015 .97734 .967151 .955015 .940314 .92214 .899096 .868923 .827707 .768028 .673897 "
         ".503378 .1 0"),
        (30, 4096, "1 .994957 .989603 .983908 .97784 .971358 .964421 .956978 .948972 .940336 .930994 .920854 .90981 "
         ".897735 .884479 .869858 .853651 .835584 .815319 .792427 .766363 .736418 .701656 .660813 .612141 .553148 "
         ".480164 .387541 .26612 .1 0"),
    ],
    ids=["15 steps", "HQ", "2.3"],
)  # fmt: skip
def test_schedule_equals_the_published_values(steps: int, tokens: int, expected: str) -> None:
    ours = torch.tensor(guided_sigmas(steps, tokens), dtype=torch.float64)
    theirs = torch.tensor([float(v) for v in expected.split()], dtype=torch.float64)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= SIX_DIGITS


def test_schedule_of_one_step_is_a_single_jump() -> None:
    assert guided_sigmas(1, 4096) == (1.0, 0.0)


def test_fixed_sigmas_are_float32_numbers() -> None:
    assert fixed_sigmas((0.725, 0.0)) == (torch.tensor(0.725, dtype=torch.float32).item(), 0.0)


def test_token_orders() -> None:
    video = _randn(1, 3, 2, 4, 5)
    tokens = video_tokens(video)
    assert torch.equal(tokens[0, 1 * 20 + 2 * 5 + 3], video[0, :, 1, 2, 3])
    assert torch.equal(from_tokens(tokens, VideoLatentShape(1, 3, 2, 4, 5)), video)
    audio = _randn(1, 8, 6, 16)
    tokens = audio_tokens(audio)
    assert tokens[0, 4, 3 * 16 + 7] == audio[0, 3, 4, 7]
    assert torch.equal(from_tokens(tokens, AudioLatentShape(1, 8, 6, 16)), audio)


def test_appended_tokens_are_cut_off() -> None:
    video = _randn(1, 3, 2, 2, 2)
    tokens = torch.cat([video_tokens(video), torch.full((1, 4, 3), 7.0)], dim=1)
    assert torch.equal(from_tokens(tokens, VideoLatentShape(1, 3, 2, 2, 2)), video)


def test_noise_is_drawn_in_bfloat16_token_layout_video_then_audio() -> None:
    ours = _generator(5)
    first, second = draw_noise(6, 4, ours), draw_noise(3, 2, ours)
    oracle = _generator(5)
    assert torch.equal(first, torch.randn(1, 6, 4, generator=oracle, dtype=torch.bfloat16))
    assert torch.equal(second, torch.randn(1, 3, 2, generator=oracle, dtype=torch.bfloat16))


def _state(strength: float | None) -> StreamState:
    state = StreamState.start(_randn(1, 6, 4, seed=1), _randn(1, 3, 6, 2, seed=2))
    return state if strength is None else state.with_replaced(_randn(1, 2, 4, seed=3), strength)


@pytest.mark.parametrize("strength", [None, 1.0, 0.0, 0.4], ids=["plain", "kept", "ignored", "partial"])
def test_noise_blend_of_the_newest_revision(strength: float | None) -> None:
    state = _state(strength)
    noisy = add_noise(state, _generator(9), 0.75, NEWEST)
    n = torch.randn(1, 6, 4, generator=_generator(9), dtype=torch.bfloat16).double()
    m, x, c = state.mask.double(), state.latent.double(), state.clean.double()
    expected = (1 - m) * c + m * (0.25 * x + 0.75 * n)
    # float32 rounding of two interpolations of O(1) numbers
    assert (noisy.latent.double() - expected).abs().max() < 1e-6


def test_noise_blend_of_the_older_revisions() -> None:
    old = REVISIONS["1.0.0"]
    state = StreamState.start(_randn(1, 6, 4, seed=1), _randn(1, 3, 6, 2)).with_replaced(
        _randn(1, 2, 4, seed=3), 0.4, overwrite=True
    )
    noisy = add_noise(state, _generator(9), 0.75, old)
    n = torch.randn(1, 6, 4, generator=_generator(9), dtype=torch.bfloat16).double()
    m, c = state.mask.double(), state.clean.double()
    expected = n * (m * 0.75) + c * (1 - m * 0.75)
    assert (noisy.latent.double() - expected).abs().max() < 1e-6
    newest = add_noise(_state(0.4), _generator(9), 0.75, NEWEST)
    assert not torch.allclose(noisy.latent[:, :2], newest.latent[:, :2], atol=1e-3), "partial strength must differ"


def test_kept_tokens_stay_clean_through_noise_and_loop() -> None:
    state = add_noise(_state(1.0), _generator(), 1.0, NEWEST)
    assert torch.equal(state.latent[:, :2], state.clean[:, :2])

    def evaluate(
        video: StreamState, audio: StreamState, _sigma: float, _step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return video.latent * 0.5, audio.latent * 0.5

    steps: list[int] = []
    video, _ = euler_loop(evaluate, state, _state(None), (1.0, 0.6, 0.0), steps.append)
    assert steps == [1, 2]
    # sigma 0.6 and 1.0 divide and multiply back: float32 rounding
    assert (video.latent[:, :2] - state.clean[:, :2]).abs().max() < 1e-6


def test_last_euler_step_returns_the_estimate() -> None:
    latent, x0 = _randn(1, 5, 4), _randn(1, 5, 4, seed=1)
    assert (euler_step(latent, x0, 0.7, 0.0) - x0).abs().max() < 1e-6  # float32 rounding
    half = euler_step(latent.bfloat16(), x0.bfloat16(), 0.7, 0.0)
    velocity = ((latent.bfloat16().float() - x0.bfloat16().float()) / 0.7).bfloat16()
    assert torch.equal(half, (latent.bfloat16().float() + velocity.float() * -0.7).bfloat16())


def test_appended_mask_is_rounded_to_the_model_dtype() -> None:
    state = StreamState.start(_randn(1, 4, 4).bfloat16(), _randn(1, 3, 4, 2))
    state = state.with_appended(_randn(1, 2, 4).bfloat16(), 0.9, _randn(1, 3, 2, 2))
    assert state.mask[0, -1, 0] == torch.tensor(1.0 - 0.9).bfloat16().float()
    assert torch.equal(state.latent[:, 4:], torch.zeros(1, 2, 4).bfloat16())
    assert state.positions.shape == (1, 3, 6, 2)


def test_timesteps_are_one_value_while_the_mask_is_uniform() -> None:
    assert _state(None).timesteps(0.5).tolist() == _state(None).levels(0.5).tolist() == [[0.5]]
    assert _state(1.0).timesteps(0.5).tolist() == [[0.0, 0.0, 0.5, 0.5, 0.5, 0.5]]


def test_noise_levels_are_as_few_as_the_conditionings() -> None:
    state = _state(0.5).with_appended(_randn(1, 2, 4), 1.0, _randn(1, 3, 2, 2)).with_replaced(_randn(1, 1, 4), 0.25, 1)
    assert state.levels(0.5).tolist() == [[0.5, 0.25, 0.0, 0.375]]
    assert state.timesteps(0.5).tolist() == [[0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0]]
    assert torch.equal(state.mask[..., 0] * 0.5, state.timesteps(0.5))


@pytest.mark.parametrize("float32", [True, False])
def test_guidance_formula(float32: bool) -> None:
    names = (Pass.COND, Pass.UNCOND, Pass.PERTURBED, Pass.ISOLATED)
    passes = {p: _randn(1, 9, 4, seed=i) for i, p in enumerate(names)}
    settings = StreamGuidance(3, 1, 3, 0.7)
    c, u, p, i = (passes[n].double() for n in names)
    g = c + 2 * (c - u) + (c - p) + 2 * (c - i)
    g = g * (0.7 * c.std() / g.std() + 0.3)
    # float32 rounding of a sum of O(10) numbers
    assert (combine(settings, passes, float32).double() - g).abs().max() < 1e-5


def test_guidance_in_bfloat16_rounds_only_where_asked() -> None:
    passes = {Pass.COND: _randn(1, 64, 8).bfloat16(), Pass.UNCOND: _randn(1, 64, 8, seed=1).bfloat16()}
    exact = combine(StreamGuidance(cfg=3.3), passes, True)
    coarse = combine(StreamGuidance(cfg=3.3), passes, False)
    assert exact.dtype == coarse.dtype == torch.bfloat16
    assert not torch.equal(exact, coarse)


def test_neutral_scales_are_exactly_zero() -> None:
    # 1 + 1e-12 is neutral to the official code, which compares with math.isclose
    for name in (Pass.UNCOND, Pass.PERTURBED, Pass.ISOLATED):
        assert scale_of(StreamGuidance(cfg=1 + 1e-12), name) == 0
    settings = StreamGuidance(cfg=3, stg=0.5, modality=2)
    assert [scale_of(settings, p) for p in (Pass.UNCOND, Pass.PERTURBED, Pass.ISOLATED)] == [2, 0.5, 1]


@pytest.mark.parametrize(("skip", "expected"), [(0, [0, 0, 0, 0]), (1, [0, 1, 0, 1]), (2, [0, 1, 1, 0])])
def test_skipped_steps(skip: int, expected: list[int]) -> None:
    assert [int(skips(StreamGuidance(skip=skip), step)) for step in range(4)] == expected


def test_clean_estimate_leaves_tokens_of_timestep_zero_alone() -> None:
    x, v = _randn(1, 3, 4), _randn(1, 3, 4, seed=1)
    x0 = clean_estimate(x, v, torch.tensor([[0.0, 0.5, 1.0]]))
    assert torch.equal(x0[:, 0], x[:, 0])
    assert (x0[:, 1] - (x[:, 1] - 0.5 * v[:, 1])).abs().max() < 1e-6


class _Recorder:
    """Stands in for the DiT: velocity depends on the context, so that passes can be told apart."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool, bool]] = []

    def __call__(self, video, audio, items, cross_rule):  # type: ignore[no-untyped-def]  # noqa: ARG002 - as the DiT
        assert video.sigma.shape == audio.sigma.shape == (1,)
        self.calls.append((len(items), video.enabled, audio.enabled))
        means = [s.context.mean(dim=(1, 2))[[item.context for item in items], None, None] for s in (video, audio)]
        return video.latent * means[0], audio.latent * means[1]


def _model(guidance: Guidance, transformer: _Recorder) -> GuidedModel:
    rope = StreamRope(Rope(torch.zeros(1), torch.zeros(1)), Rope(torch.zeros(1), torch.zeros(1)))
    prompts = [PromptContext(torch.full((1, 2, 3), v), torch.full((1, 2, 3), v)) for v in (0.5, 0.25)]
    return GuidedModel(transformer, *prompts, guidance, rope, rope, CrossTimestepRule.SPLIT)


def test_guided_model_combines_both_prompts() -> None:
    video, audio = _state(None), _state(None)
    model = _model(Guidance(StreamGuidance(cfg=3)), _Recorder())
    x0, x0_audio = model(video, audio, 0.8, 0)
    c, u = (video.latent * (1 - 0.8 * k) for k in (0.5, 0.25))
    assert (x0 - (c + 2 * (c - u))).abs().max() < 1e-6  # float32 rounding
    assert (x0_audio - c).abs().max() < 1e-6  # the uncond pass ran, but audio has cfg 1


def test_a_skipping_stream_is_disabled_and_reuses_its_estimate() -> None:
    recorder = _Recorder()
    model = _model(Guidance(StreamGuidance(skip=1), StreamGuidance(skip=0)), recorder)
    video, audio = _state(None), _state(None)
    first, _ = model(video, audio, 0.8, 0)
    moved = replace(video, latent=video.latent * 2)
    again, _ = model(moved, audio, 0.6, 1)
    assert again is first
    assert recorder.calls == [(1, True, True), (1, False, True)]


def test_a_given_stream_keeps_its_tokens_whatever_its_guidance() -> None:
    recorder = _Recorder()
    model = _model(Guidance(audio=StreamGuidance(cfg=7, modality=3, rescale=0.7)), recorder)
    audio = _state(None)
    given = replace(audio, mask_values=torch.zeros(1), uniform=False, frozen=True)
    _, x0_audio = model(_state(None), given, 0.8, 0)
    assert torch.equal(x0_audio, audio.latent)
    assert recorder.calls == [(1, True, True)]


def test_both_streams_skipping_cost_nothing() -> None:
    recorder = _Recorder()
    model = _model(Guidance(StreamGuidance(skip=2), StreamGuidance(skip=2)), recorder)
    results = [model(_state(None), _state(None), 0.8, step) for step in range(4)]
    assert len(recorder.calls) == 2
    assert results[1] == results[0]  # the very tensors
    assert results[2] == results[0]


def test_missing_negative_prompt_is_an_error() -> None:
    rope = StreamRope(Rope(torch.zeros(1), torch.zeros(1)), Rope(torch.zeros(1), torch.zeros(1)))
    prompt = PromptContext(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="negative"):
        GuidedModel(_Recorder(), prompt, None, Guidance(StreamGuidance(cfg=3)), rope, rope, CrossTimestepRule.SPLIT)
