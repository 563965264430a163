"""The passes of a step: how many blocks they cost, and that sharing and leaving out change no number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from ltx2_two_stage.ltx2_core.sampling.guidance import Pass, combine
from ltx2_two_stage.ltx2_core.sampling.passes import BlockEvaluations, Role, block_evaluations, plan_calls
from ltx2_two_stage.ltx2_core.types import BatchItem, Guidance, Perturbation, StreamGuidance, StreamInput
from tiny_stage import TinyStage, build_stage, standard_guidance, tiny_transformer
from torch import Tensor, nn

GUIDED, GIVEN, SKIPPED = Role.GUIDED, Role.GIVEN, Role.SKIPPED
LAYERS = 3
ROLES = list(itertools.product(Role, Role))
# (video, audio): the same, either first, several, at the very beginning, one stream without, none
BLOCKS = [((1,), (1,)), ((2,), (1,)), ((1, 2), (2,)), ((0,), (2,)), ((), (2,)), ((), ())]
SCALES = list(itertools.product((1.0, 3.0), (0.0, 1.0), (1.0, 2.0)))  # cfg, stg, modality


@cache
def stage(generation: Literal["2.0", "2.3"] = "2.3", layers: int = LAYERS) -> TinyStage:
    return build_stage(tiny_transformer(generation, layers)).with_image()


def all_guidances() -> Iterator[Guidance]:
    for video, audio in itertools.product(SCALES, SCALES):
        stg = video[1] or audio[1]
        for blocks in BLOCKS if stg else BLOCKS[:1]:
            yield Guidance(
                StreamGuidance(*video, rescale=0.7, blocks=blocks[0]),
                StreamGuidance(*audio, rescale=0.3, blocks=blocks[1]),
            )


@contextmanager
def counted(blocks: nn.ModuleList) -> Iterator[list[int]]:
    """Adds up the items of each stream that the blocks compute, and holds their order."""
    counts, last = [0, 0], [-1]

    def count(index: int) -> Any:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            assert index == last[0] + 1 or (index == 0 and last[0] == len(blocks) - 1) or last[0] == -1
            last[0] = index
            for number, stream in enumerate(output):
                if stream is not None and stream.enabled:
                    counts[number] += stream.x.shape[0]

        return hook

    hooks = [block.register_forward_hook(count(index)) for index, block in enumerate(blocks)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def table(guidance: Guidance, roles: tuple[Role, Role], layers: int, separate: bool) -> tuple[int, int]:
    """The planner's table, from the settings alone."""
    streams = list(zip((guidance.video, guidance.audio), roles, strict=True))
    guided = [g for g, role in streams if role is GUIDED]
    if not guided:
        return 0, 0
    both = layers * (2 if any(g.cfg != 1 for g in guided) else 1)
    perturbed = [block for g, role in streams if g.stg != 0 and role is not SKIPPED for block in g.blocks]
    if perturbed and any(g.stg != 0 for g in guided):
        both += layers - (0 if separate else min(perturbed))
    first, second = (
        0 if role is SKIPPED else both + (layers if role is GUIDED and g.modality != 1 else 0) for g, role in streams
    )
    return first, second


@pytest.mark.parametrize("roles", ROLES, ids=lambda roles: "-".join(role.value for role in roles))
def test_every_combination_costs_what_the_table_says(roles: tuple[Role, Role]) -> None:
    tiny = stage()
    measured: dict[Any, tuple[int, ...]] = {}  # many settings come to the same calls
    for guidance, separate in itertools.product(all_guidances(), (False, True)):
        calls = tuple((call.passes, call.items) for call in plan_calls(guidance, *roles, separate))
        if calls not in measured:
            with counted(tiny.model.transformer_blocks) as counts:
                tiny.guided(guidance, separate=separate).estimates(tiny.video, tiny.audio, 0.7, *roles)
            measured[calls] = tuple(counts)
        cost = block_evaluations(guidance, *roles, LAYERS, separate)
        assert measured[calls] == cost == table(guidance, roles, LAYERS, separate), (guidance, separate)


def test_the_guided_recipe_of_48_blocks_takes_164_evaluations_instead_of_192() -> None:
    tiny, guidance = stage(layers=48), standard_guidance(28)
    model = tiny.guided(guidance)
    for separate, expected in ((False, 164), (True, 192)):
        model.separate = separate
        with counted(tiny.model.transformer_blocks) as counts:
            model(tiny.video, tiny.audio, 0.7, 0)
        assert counts == [expected, expected]
        assert block_evaluations(guidance, GUIDED, GUIDED, 48, separate) == BlockEvaluations(expected, expected)


def test_skipped_steps_cost_what_they_need() -> None:
    tiny = stage()
    full = standard_guidance(1)
    guidance = replace(full, video=replace(full.video, skip=1), audio=replace(full.audio, skip=2))
    model, costs = tiny.guided(guidance), []
    for step in range(7):
        with counted(tiny.model.transformer_blocks) as counts:
            model(tiny.video, tiny.audio, 0.7, step)
        costs.append(tuple(counts))
    whole = 3 * LAYERS + LAYERS - 1
    assert costs == [(whole, whole), (0, 0), (whole, 0), (0, whole), (whole, 0), (0, 0), (whole, whole)]


@pytest.mark.parametrize(
    ("guidance", "names"),
    [
        (Guidance(), ["cond"]),
        (standard_guidance(28), ["cond", "uncond", "perturbed", "isolated"]),
        (Guidance(StreamGuidance(cfg=3)), ["cond", "uncond"]),
        (Guidance(audio=StreamGuidance(cfg=7)), ["cond", "uncond"]),
        (Guidance(audio=StreamGuidance(stg=1, blocks=(1,))), ["cond", "perturbed"]),
        (Guidance(StreamGuidance(stg=1)), ["cond"]),
        (Guidance(StreamGuidance(modality=3)), ["cond", "isolated"]),
    ],
    ids=["none", "full", "video cfg", "audio cfg", "audio stg", "stg without blocks", "modality"],
)
def test_passes_that_run(guidance: Guidance, names: list[str]) -> None:
    (together,) = plan_calls(guidance, GUIDED, GUIDED)
    assert [name.value for name in together.passes] == names
    apart = plan_calls(guidance, GUIDED, GUIDED, separate=True)
    assert [name.value for call in apart for name in call.passes] == names


def test_only_computed_streams_with_stg_are_perturbed() -> None:
    guidance = Guidance(StreamGuidance(stg=0, blocks=(2,)), StreamGuidance(stg=1, blocks=(1,)))
    assert plan_calls(guidance, GUIDED, GUIDED)[0].items[-1].perturbation == Perturbation(frozenset(), frozenset({1}))
    both = Guidance(StreamGuidance(stg=1, blocks=(1,)), StreamGuidance(stg=1, blocks=(2,)))
    assert plan_calls(both, SKIPPED, GUIDED)[0].items[-1].perturbation == Perturbation(frozenset(), frozenset({2}))
    assert plan_calls(both, GIVEN, GUIDED)[0].items[-1].first_block == 1  # the audio hears a perturbed video


@contextmanager
def batches(module: nn.Module) -> Iterator[list[int]]:
    seen: list[int] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[0]))
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_keys_and_values_of_a_text_are_made_once_a_prompt(generation: Literal["2.0", "2.3"]) -> None:
    tiny = stage(generation)
    last = tiny.model.transformer_blocks[-1]
    layers = [last.attn2.to_k, last.attn2.to_v, last.audio_attn2.to_k, last.audio_attn2.to_v]
    if generation == "2.0":
        layers += [tiny.model.caption_projection.linear_1, tiny.model.audio_caption_projection.linear_2]
    one_prompt = Guidance(StreamGuidance(stg=1, modality=3, blocks=(1,)))
    for guidance, separate, expected in (
        (standard_guidance(1), False, [2]),
        (one_prompt, False, [1]),
        (standard_guidance(1), True, [1, 1, 1, 1]),
    ):
        for layer in layers:
            with batches(layer) as seen:
                tiny.guided(guidance, separate=separate)(tiny.video, tiny.audio, 0.7, 0)
            assert seen == expected


def test_tokens_and_noise_levels_are_embedded_once() -> None:
    tiny = stage()
    with batches(tiny.model.patchify_proj) as tokens, batches(tiny.model.adaln_single.linear) as levels:
        tiny.guided(standard_guidance(1))(tiny.video, tiny.audio, 0.7, 0)
    assert tokens == levels == [1]
    shapes: list[torch.Size] = []
    hook = tiny.model.adaln_single.linear.register_forward_hook(lambda _module, _inputs, out: shapes.append(out.shape))
    tiny.guided(Guidance())(tiny.video, tiny.audio, 0.7, 0)
    hook.remove()
    assert [shape[1] for shape in shapes] == [2]  # the free tokens' level and the image's, not one for each token


# -- equal numbers --------------------------------------------------------------------------------------------------

# Float32 rounding, relative to the outputs' standard deviation: batching and sharing only change in what order a
# product's terms are added. The largest difference measured is 1.1e-6; leaving a pass, a stream or a block out that
# matters moves results by 1e-2 and more.
ROUNDING = 2e-6
SIGMA = 0.7
Plain = dict[tuple[Pass, Perturbation], tuple[Tensor | None, ...]]


def plain_pass(tiny: TinyStage, roles: tuple[Role, Role], name: Pass, perturbation: Perturbation) -> Any:
    """Clean estimates of one pass from a call of its own: batch 1, a noise level per token, nothing shared."""

    def stream(kind: Literal["video", "audio"], role: Role) -> StreamInput:
        prompt, state = (tiny.negative if name is Pass.UNCOND else tiny.positive), getattr(tiny, kind)
        return StreamInput(
            latent=state.latent,
            timesteps=state.mask[..., 0] * SIGMA,
            sigma=torch.tensor([0.0 if state.frozen else SIGMA]),
            context=getattr(prompt, kind),
            rope=tiny.model.stream_rope(state.positions, kind, torch.float32),
            enabled=role is not SKIPPED,
        )

    inputs = [stream("video", roles[0]), stream("audio", roles[1])]
    velocities = tiny.model(*inputs, [BatchItem(perturbation=perturbation)])
    return tuple(
        None if v is None else s.latent - s.timesteps[..., None] * v for s, v in zip(inputs, velocities, strict=True)
    )


def plainly(tiny: TinyStage, roles: tuple[Role, Role], guidance: Guidance, known: Plain) -> dict[Pass, Any]:
    """All four passes, needed or not."""
    stg = Perturbation(*(frozenset(g.blocks if g.stg else ()) for g in (guidance.video, guidance.audio)))
    perturbations = {Pass.PERTURBED: stg, Pass.ISOLATED: Perturbation(skip_cross_modal=True)}
    passes = {}
    for name in Pass:
        key = (name, perturbations.get(name, Perturbation()))
        if key not in known:
            known[key] = plain_pass(tiny, roles, *key)
        passes[name] = known[key]
    return passes


def formula(guidance: StreamGuidance, passes: list[Tensor]) -> Tensor:
    """docs/model.md 6, in float64."""
    c, u, p, i = (x0.double() for x0 in passes)
    g = c + (guidance.cfg - 1) * (c - u) + guidance.stg * (c - p) + (guidance.modality - 1) * (c - i)
    return g * (guidance.rescale * c.std() / g.std() + 1 - guidance.rescale)


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).abs().max() / expected.double().std())


def with_given(tiny: TinyStage, roles: tuple[Role, Role]) -> TinyStage:
    def given(state: Any, role: Role) -> Any:
        values = torch.zeros_like(state.mask_values)
        return replace(state, mask_values=values, uniform=False, frozen=True) if role is GIVEN else state

    return replace(tiny, video=given(tiny.video, roles[0]), audio=given(tiny.audio, roles[1]))


def check(tiny: TinyStage, roles: tuple[Role, Role], guidance: Guidance, known: Plain) -> float:
    """The largest error of any pass and of the guided result, for both ways to run."""
    expected = plainly(tiny, roles, guidance, known)
    worst = 0.0
    for separate in (False, True):
        found = tiny.guided(guidance, separate=separate).estimates(tiny.video, tiny.audio, SIGMA, *roles)
        for index, settings in enumerate((guidance.video, guidance.audio)):
            assert bool(found[index]) == (roles[index] is GUIDED)
            for name, x0 in found[index].items():
                worst = max(worst, error(x0, expected[name][index]))
            if found[index]:
                guided = combine(settings, found[index], float32=True)
                wanted = formula(settings, [expected[name][index] for name in Pass])
                # The passes' rounding grows with the scales
                scales = 1 + 2 * (settings.cfg - 1 + settings.stg + settings.modality - 1)
                worst = max(worst, error(guided, wanted) / scales)
    return worst


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_shared_and_branched_passes_equal_plain_ones(generation: Literal["2.0", "2.3"]) -> None:
    known: Plain = {}
    for video, audio in itertools.product(SCALES, SCALES):
        guidance = Guidance(
            StreamGuidance(*video, rescale=0.7, blocks=(1, 2)), StreamGuidance(*audio, rescale=0.3, blocks=(2,))
        )
        assert check(stage(generation), (GUIDED, GUIDED), guidance, known) <= ROUNDING


@pytest.mark.parametrize("roles", [r for r in ROLES if GUIDED in r], ids=lambda r: "-".join(role.value for role in r))
def test_every_role_and_branch_point_equals_plain_passes(roles: tuple[Role, Role]) -> None:
    tiny, known = with_given(stage(), roles), {}
    for blocks in BLOCKS:
        full = standard_guidance(1)
        guidance = Guidance(replace(full.video, blocks=blocks[0]), replace(full.audio, blocks=blocks[1]))
        only_video = replace(guidance, audio=replace(full.audio, stg=0.0, modality=1.0))
        assert check(tiny, roles, guidance, known) <= ROUNDING
        assert check(tiny, roles, only_video, known) <= ROUNDING


def test_leaving_a_pass_out_would_show() -> None:
    """The passes differ by far more than the tolerance, in the model and at the blocks that the tests above use."""
    tiny = stage()
    passes = plainly(tiny, (GUIDED, GUIDED), standard_guidance(2), {})
    for (_, first), (_, second) in itertools.combinations(passes.items(), 2):
        assert min(error(x, y) for x, y in zip(first, second, strict=True)) > 1e-2
