"""Recipe x variant of the checkpoint x everything given: refused, done and said, or taken in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.protocols import Models
from ltx2_two_stage.ltx2_core.recipe_choice import GuidanceChoice, RecipeChoice
from ltx2_two_stage.ltx2_core.recipes import RECIPE_NAMES
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.stages.belonging import check_belonging, check_given, check_negative, notices
from ltx2_two_stage.ltx2_core.types import AudioClip, ImageCondition, Phase, ScaleFactors

SCALE = ScaleFactors(8, 32, 32)
SOUND = AudioClip(torch.zeros(1, 2, 480), 48_000)


@dataclass
class Loaded:
    """Models of a variant, with the strengths of users' LoRAs in both stages by file; names alone, no weights."""

    variant: str = "dev"
    has_distilled_lora: bool = True
    loras: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    generation: str = "2.3"
    num_layers: int = 48
    has_upsampler: bool = True
    scale: ScaleFactors = SCALE

    @property
    def file_names(self) -> Mapping[str, str]:
        return {"checkpoint": f"models/ltx-2.3-22b-{self.variant}.safetensors"}

    @property
    def user_adapters(self) -> Mapping[str, str]:
        return {name: name for name in self.loras}

    @property
    def distilled_adapters(self) -> set[str]:
        own = {"distilled"} if self.has_distilled_lora else set()
        return own | {name for name in self.loras if "distilled" in name}

    def adapter_strengths(self, phase: Phase, distilled_strength: tuple[float, float]) -> Mapping[str, float]:
        stage = 0 if phase is Phase.STAGE_1 else 1
        own = {"distilled": distilled_strength[stage]} if self.has_distilled_lora else {}
        return own | {name: strengths[stage] for name, strengths in self.loras.items()}


def models(**values: Any) -> Models:
    return cast(Models, Loaded(**values))


def said(loaded: Models, choice: RecipeChoice, **given: Any) -> tuple[str, ...]:
    """What a run says, once it is checked as both doors check it."""
    request = GenerationRequest("a", choice.recipe_for(loaded), **given)
    check_belonging(loaded, request)
    check_given(choice, request, given.get("image_crf"))
    return notices(loaded, request)


NONE = "none"
# variant, distilled LoRA -> recipe -> the beginning of the only notice, or the setting of the refusal
ALONE: Mapping[tuple[str, bool], Mapping[str, str | tuple[str, str]]] = {
    ("dev", True): {
        "two-stage": NONE,
        "hq": NONE,
        "distilled": "ltx-2.3-22b-dev.safetensors is a dev checkpoint: the distilled recipe runs it with the distilled"
        " LoRA, at strength 1 in stage 1 and 1 in stage 2.",
    },
    ("dev", False): {
        "two-stage": "Stage 2 runs the dev checkpoint without guidance and without the distilled LoRA: expect grain.",
        "distilled": ("recipe", "nothing but grain comes of it"),
    },
    ("distilled", True): {
        **dict.fromkeys(("two-stage", "hq", "keyframes", "one-stage"), ("recipe", "is a distilled checkpoint")),
        "distilled": "The distilled LoRA is loaded and not used: its strength is 0 in both stages.",
    },
    ("distilled", False): {"distilled": NONE, "two-stage": ("recipe", "Choose the distilled recipe")},
    ("unknown", True): {"two-stage": NONE, "hq": NONE, "distilled": "The distilled LoRA is not used: whether"},
    ("unknown", False): {"distilled": NONE},
}


@pytest.mark.parametrize(
    ("variant", "lora", "recipe", "outcome"),
    [(*key, recipe, outcome) for key, row in ALONE.items() for recipe, outcome in row.items()],
)
def test_recipe_and_checkpoint(variant: str, lora: bool, recipe: str, outcome: str | tuple[str, str]) -> None:
    loaded = models(variant=variant, has_distilled_lora=lora)
    if isinstance(outcome, tuple):
        setting, words = outcome
        with pytest.raises(SettingError, match=rf"^{setting} = '{recipe}': .*{words}"):
            said(loaded, RecipeChoice(recipe))
        return
    found = said(loaded, RecipeChoice(recipe))
    assert [notice[: len(outcome)] for notice in found] == ([] if outcome is NONE else [outcome])


# What is chosen or given beside it -> the refusal, on models where the recipe itself works
REFUSED: Mapping[str, tuple[dict[str, Any], RecipeChoice, dict[str, Any], str]] = {
    "negative prompt, nothing guided": (
        {"variant": "distilled", "has_distilled_lora": False},
        RecipeChoice("distilled"),
        {"negative_prompt": "blurry"},
        "negative-prompt = 'blurry': the distilled recipe guides nothing away from it",
    ),
    "negative prompt, only the sound was guided by it": (
        {},
        RecipeChoice(video=GuidanceChoice(cfg=1.0)),
        {"negative_prompt": "blurry", "audio": SOUND},
        "negative-prompt = 'blurry'",
    ),
    "steps": ({}, RecipeChoice("distilled", steps=4), {}, "steps = 4: the distilled recipe has 8 fixed steps"),
    "guidance of a given sound": (
        {},
        RecipeChoice(audio=GuidanceChoice(cfg=4.0)),
        {"audio": SOUND},
        "audio-guidance cfg = 4.0: the sound is given",
    ),
    "passes of a given sound": (
        {},
        RecipeChoice(separate_passes=True, video=GuidanceChoice(1.0, 0.0, 1.0, 0.0)),
        {"audio": SOUND},
        "guidance-passes = 'separate'",
    ),
    "quality of no image": ({}, RecipeChoice(), {"image_crf": 20}, "image-crf = 20: no image is given"),
    "distilled LoRA of a user on a distilled checkpoint": (
        {"variant": "distilled", "loras": {"ltx-2.3-distilled-lora.safetensors": (1.0, 1.0)}},
        RecipeChoice("distilled"),
        {},
        "lora = 'ltx-2.3-distilled-lora.safetensors'",
    ),
    "its strength on a distilled checkpoint": (
        {"variant": "distilled"},
        RecipeChoice("distilled", distilled_strength=(0.5, None)),
        {},
        r"distilled-strength = [0.5, 0.0]",
    ),
    "strength of a stage that is not run": (
        {},
        RecipeChoice("one-stage", distilled_strength=(None, 0.5)),
        {},
        "the one-stage recipe has no stage 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_ignored_is_refused(name: str) -> None:
    loaded, choice, given, message = REFUSED[name]
    with pytest.raises(SettingError) as refusal:
        said(models(**loaded), choice, **given)
    assert message in str(refusal.value) and refusal.value.fix.endswith(".")


PICTURE = torch.zeros(3, 32, 32)
SAID: Mapping[str, tuple[dict[str, Any], RecipeChoice, dict[str, Any], list[str]]] = {
    "a user's LoRA of strength 0": (
        {"loras": {"style.safetensors": (0.0, 0.0)}},
        RecipeChoice(),
        {},
        ["The LoRA style.safetensors has no effect: its strength is 0 in both stages."],
    ),
    "a user's distilled LoRA acts, ours adds nothing": (
        {"has_distilled_lora": False, "loras": {"ltx-2.3-distilled-lora.safetensors": (1.0, 1.0)}},
        RecipeChoice("distilled"),
        {},
        ["ltx-2.3-22b-dev.safetensors is a dev checkpoint: the distilled recipe runs it with the distilled LoRA."],
    ),
    "strengths that were asked for": (
        {},
        RecipeChoice("distilled", distilled_strength=(0.5, None)),
        {},
        [
            "ltx-2.3-22b-dev.safetensors is a dev checkpoint: the distilled recipe runs it with the distilled LoRA, "
            "at strength 0.5 in stage 1 and 1 in stage 2."
        ],
    ),
    "the distilled LoRA twice": (
        {"loras": {"ltx-2.3-distilled-lora.safetensors": (0.0, 0.5)}},
        RecipeChoice(),
        {},
        ["Stage 2 runs 2 distilled LoRAs at once: ltx-2.3-distilled-lora.safetensors and the one given as such."],
    ),
    "keyframes of nothing": (
        {},
        RecipeChoice("keyframes"),
        {},
        ["The keyframes recipe has no image to pass through: the picture follows the prompt alone."],
    ),
    "what one stage does not take": (
        {},
        RecipeChoice("one-stage"),
        {},
        [
            "The distilled LoRA is loaded and not used: its strength is 0 in the one stage.",
            "The one-stage recipe takes no upsampler: the one that is loaded is not used.",
        ],
    ),
    "two images on the first frame": (
        {},
        RecipeChoice(),
        {"images": (ImageCondition(PICTURE, 0), ImageCondition(PICTURE, 0))},
        ["2 images are for frame 0: the last of them is shown."],
    ),
    "two keyframes on one frame are both followed": (
        {},
        RecipeChoice(),
        {"images": (ImageCondition(PICTURE, 8), ImageCondition(PICTURE, 8))},
        [],
    ),
    "two first images that are keyframes": (
        {},
        RecipeChoice("keyframes"),
        {"images": (ImageCondition(PICTURE, 0), ImageCondition(PICTURE, 0))},
        [],
    ),
    "an image of strength 0": (
        {},
        RecipeChoice(),
        {"images": (ImageCondition(PICTURE, 8, 0.0),)},
        ["Images of strength 0 are not followed: frame 8."],
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_what_has_no_effect_or_is_done_otherwise_is_said(name: str) -> None:
    loaded, choice, given, wanted = SAID[name]
    assert list(said(models(**loaded), choice, **given)) == wanted


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_a_negative_prompt_of_spaces_is_none(recipe: str) -> None:
    check_negative(RecipeChoice(recipe).recipe("2.3", 48), " \n")


def test_refining_asks_nothing_of_stage_1() -> None:
    """A latent of other nodes is refined with the two-stage recipe's stage 2 by a distilled checkpoint as well."""
    loaded = models(variant="distilled", has_distilled_lora=False)
    request = GenerationRequest("a", RecipeChoice("two-stage").recipe_for(loaded))
    check_belonging(loaded, request, refining=True)
    with pytest.raises(SettingError, match="recipe = 'two-stage'"):
        check_belonging(loaded, request)
