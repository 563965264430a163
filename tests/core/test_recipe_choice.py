"""Recipes as a table, and what users change of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.recipe_choice import CLIP_TOKENS, GuidanceChoice, RecipeChoice
from ltx2_two_stage.ltx2_core.recipes import (
    DISTILLED_SIGMAS,
    RECIPE_NAMES,
    RECIPES,
    SAMPLERS,
    STAGE_2_SIGMAS,
    AudioSource,
    Recipe,
    official_recipe,
)
from ltx2_two_stage.ltx2_core.stages.denoise import LOOPS
from ltx2_two_stage.ltx2_core.stages.validate import check_recipe
from ltx2_two_stage.ltx2_core.types import Guidance, StreamGuidance

LAYERS = 48
STAGE_1, STAGE_2 = AudioSource.STAGE_1, AudioSource.STAGE_2


def guided(block: int) -> Guidance:
    return Guidance(StreamGuidance(3, 1, 3, 0.7, (block,)), StreamGuidance(7, 1, 3, 0.7, (block,)))


HQ = Guidance(StreamGuidance(3, 0, 3, 0.45), StreamGuidance(7, 0, 3, 1.0))


# The numbers of docs/model.md 6 and 8, written out once more
@pytest.mark.parametrize(
    ("name", "generation", "stages", "steps", "guidance", "tokens", "sampler", "strengths", "audio"),
    [
        ("two-stage", "2.3", 2, 30, guided(28), 4096, "euler", (0.0, 1.0), None),
        ("two-stage", "2.0", 2, 40, guided(29), 4096, "euler", (0.0, 1.0), None),
        ("one-stage", "2.3", 1, 30, guided(28), 4096, "euler", (0.0, 0.0), STAGE_1),
        ("one-stage", "2.0", 1, 40, guided(29), 4096, "euler", (0.0, 0.0), STAGE_1),
        ("hq", "2.3", 2, 15, HQ, None, "res_2s", (0.25, 0.5), None),
        ("hq", "2.0", 2, 15, HQ, None, "res_2s", (0.25, 0.5), None),
        ("keyframes", "2.3", 2, 30, guided(28), 4096, "euler", (0.0, 1.0), STAGE_2),
        ("keyframes", "2.0", 2, 40, guided(29), 4096, "euler", (0.0, 1.0), STAGE_2),
        ("distilled", "2.3", 2, 8, Guidance(), 4096, "euler", (0.0, 0.0), STAGE_2),
        ("distilled", "2.0", 2, 8, Guidance(), 4096, "euler", (0.0, 0.0), STAGE_2),
    ],
)
def test_the_table_holds_the_official_numbers(
    name: str,
    generation: str,
    stages: int,
    steps: int,
    guidance: Guidance,
    tokens: int | None,
    sampler: str,
    strengths: tuple[float, float],
    audio: AudioSource | None,
) -> None:
    recipe = official_recipe(name, generation)
    assert (recipe.name, recipe.stages, recipe.steps, recipe.guidance) == (name, stages, steps, guidance)
    assert (recipe.schedule_tokens, recipe.sampler, recipe.distilled_strength) == (tokens, sampler, strengths)
    assert recipe.appends_images == (name == "keyframes")
    assert recipe.audio_source is audio and recipe.refine_sigmas == STAGE_2_SIGMAS
    assert recipe.sigmas == (DISTILLED_SIGMAS if name == "distilled" else None)
    check_recipe(recipe, LAYERS)


def test_every_sampler_has_a_loop() -> None:
    assert set(LOOPS) == set(SAMPLERS)


@pytest.mark.parametrize(("layers", "blocks"), [(48, (28,)), (29, (28,)), (28, (16,)), (3, (1,)), (1, (0,))])
def test_a_smaller_model_perturbs_the_block_at_the_same_depth(layers: int, blocks: tuple[int, ...]) -> None:
    recipe = official_recipe("two-stage", "2.3", layers)
    assert recipe.guidance.video.blocks == recipe.guidance.audio.blocks == blocks
    check_recipe(recipe, layers)


@pytest.mark.parametrize("generation", RECIPES)
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_choice_of_nothing_is_the_official_recipe(name: str, generation: str) -> None:
    assert RecipeChoice(name).recipe(generation, LAYERS) == official_recipe(name, generation, LAYERS)


OVERRIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "steps": ({"steps": 7}, {"steps": 7}),
    "sampler": ({"sampler": "gradient_estimation"}, {"sampler": "gradient_estimation"}),
    "sigmas": ({"sigmas": (1.0, 0.5, 0.0)}, {"sigmas": (1.0, 0.5, 0.0), "steps": 2}),
    "sigmas and their steps": ({"sigmas": (1.0, 0.0), "steps": 1}, {"sigmas": (1.0, 0.0), "steps": 1}),
    "refine sigmas": ({"refine_sigmas": (0.5, 0.0)}, {"refine_sigmas": (0.5, 0.0)}),
    "schedule tokens": ({"schedule_tokens": 99}, {"schedule_tokens": 99}),
    "the clip's tokens": ({"schedule_tokens": CLIP_TOKENS}, {"schedule_tokens": None}),
    "separate passes": ({"separate_passes": True}, {"separate_passes": True}),
    "strength 1": ({"distilled_strength": (0.5, None)}, {"distilled_strength": (0.5, 1.0)}),
    "strength 2": ({"distilled_strength": (None, 0.0)}, {"distilled_strength": (0.0, 0.0)}),
    "video": (
        {"video": GuidanceChoice(1.5, 0.5, 2.0, 0.1, (0, 2), 1)},
        {"guidance": Guidance(StreamGuidance(1.5, 0.5, 2.0, 0.1, (0, 2), 1), guided(28).audio)},
    ),
    "audio": (
        {"audio": GuidanceChoice(stg=0.0)},
        {"guidance": replace(guided(28), audio=replace(guided(28).audio, stg=0.0))},
    ),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_every_value_can_be_overridden_alone(name: str) -> None:
    given, changed = OVERRIDES[name]
    recipe = RecipeChoice("two-stage", **given).recipe("2.3", LAYERS)
    assert recipe == replace(official_recipe("two-stage", "2.3", LAYERS), **changed)
    check_recipe(recipe, LAYERS)


def test_no_number_of_a_recipe_is_out_of_reach() -> None:
    changed = {key for _, changes in OVERRIDES.values() for key in changes}
    fixed = {"name", "stages", "allows_stg", "appends_images"}  # what makes a preset that preset
    asked_for_in_the_request = {"audio_source"}
    assert changed | fixed | asked_for_in_the_request == {field.name for field in fields(Recipe)}
    assert {f.name for f in fields(GuidanceChoice)} == {f.name for f in fields(StreamGuidance)}


@pytest.mark.parametrize(
    ("preset", "given", "setting"),
    [
        ("none", {}, "recipe"),
        ("distilled", {"steps": 4}, "steps"),
        ("two-stage", {"sigmas": (1.0, 0.5, 0.0), "steps": 3}, "steps"),
        ("distilled", {"schedule_tokens": 4096}, "schedule-tokens"),
        ("distilled", {"separate_passes": True}, "guidance-passes"),
        ("two-stage", {"sigmas": (1.0, 0.0), "schedule_tokens": 99}, "schedule-tokens"),
        ("one-stage", {"distilled_strength": (None, 0.5)}, "distilled-strength"),
        ("one-stage", {"refine_sigmas": STAGE_2_SIGMAS}, "refine-sigmas"),
        ("one-stage", {"audio_source": STAGE_2}, "audio-source"),
        ("two-stage", {"video": GuidanceChoice(stg=0.0, blocks=(3,))}, "video-guidance blocks"),
        ("distilled", {"audio": GuidanceChoice(blocks=(3,))}, "audio-guidance blocks"),
        ("hq", {"audio": GuidanceChoice(stg=1.0, blocks=(3,))}, "audio-guidance stg"),
    ],
)
def test_what_would_be_ignored_is_refused(preset: str, given: dict[str, Any], setting: str) -> None:
    with pytest.raises(SettingError) as caught:
        RecipeChoice(preset, **given).recipe("2.3", LAYERS)
    assert caught.value.setting == setting and caught.value.fix


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"sampler": "heun"}, "sampler"),
        ({"steps": 0}, "steps"),
        ({"schedule_tokens": 0}, "schedule-tokens"),
        ({"sigmas": ()}, "sigmas"),
        ({"sigmas": (1.0, float("nan"), 0.0)}, "sigmas"),
        ({"sigmas": (0.9, 0.0)}, "sigmas"),
        ({"refine_sigmas": (0.5, 0.6, 0.0)}, "refine-sigmas"),
        ({"refine_sigmas": (0.0, 0.0)}, "refine-sigmas"),
        ({"sampler": "res_2s", "refine_sigmas": (0.5, 0.0005, 0.0)}, "refine-sigmas"),
        ({"distilled_strength": (0.0, float("inf"))}, "distilled-strength"),
        ({"guidance": Guidance(StreamGuidance(cfg=float("nan")))}, "video-guidance cfg"),
        ({"guidance": Guidance(audio=StreamGuidance(stg=1.0))}, "audio-guidance blocks"),
        ({"guidance": Guidance(audio=StreamGuidance(stg=1.0, blocks=(48,)))}, "audio-guidance blocks"),
        ({"guidance": Guidance(StreamGuidance(skip=-1))}, "video-guidance skip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_cannot_work_are_refused_by_name(changes: dict[str, Any], setting: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_recipe(replace(official_recipe("two-stage", "2.3"), **changes), LAYERS)
    assert caught.value.setting == setting and caught.value.fix
