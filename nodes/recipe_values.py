"""Widget values to a choice of recipe. A widget always has a value: one of them stands for the preset's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TypeVar

from ..ltx2_core.errors import SettingError
from ..ltx2_core.recipe_choice import GuidanceChoice, RecipeChoice
from ..ltx2_core.recipes import RECIPES, REVISIONS, SAMPLERS, AudioSource
from ..ltx2_core.stages.validate import check_recipe

FROM_PRESET = "preset"
NO_BLOCKS = "none"
_UNSET = -1
# More than any model has: which blocks there are, the checkpoint says
_ANY_LAYERS = 1_000_000
_PASSES = {"together": False, "separate": True}

Number = TypeVar("Number", int, float)
Schedule = tuple[int, str, str, str, int, str]


def guidance_choice(
    stream: str, cfg: float, stg: float, modality: float, rescale: float, blocks: str, skip: int
) -> GuidanceChoice:
    """One stream's guidance.

    Raises:
        SettingError: a negative number other than -1, or blocks that are no list of numbers.
    """
    return GuidanceChoice(
        cfg=_own(f"{stream}_cfg", cfg),
        stg=_own(f"{stream}_stg", stg),
        modality=_own(f"{stream}_modality", modality),
        rescale=_own(f"{stream}_rescale", rescale),
        blocks=() if blocks.strip() == NO_BLOCKS else _listed(f"{stream}_blocks", blocks, int, "28, 29"),
        skip=_own(f"{stream}_skip", skip),
    )


def recipe_choice(
    preset: str,
    schedule: Schedule,
    video: GuidanceChoice,
    audio: GuidanceChoice,
    strengths: tuple[float, float],
    audio_source: str,
    revision: str,
) -> RecipeChoice:
    """The choice as a whole.

    Args:
        schedule: steps, sampler, sigmas, refine sigmas, schedule tokens and guidance passes.
        strengths: of the distilled LoRA in stage 1 and in stage 2.

    Raises:
        SettingError: a text that is not among the known ones, or no list of numbers; a negative number.
    """
    steps, sampler, sigmas, refine_sigmas, schedule_tokens, passes = schedule
    sources = {source.value: source for source in AudioSource}
    chosen_passes = _chosen("guidance_passes", passes, _PASSES)
    chosen_source = _chosen("audio_source", audio_source, sources)
    return RecipeChoice(
        preset=preset,
        steps=steps or None,
        sampler=_chosen("sampler", sampler, SAMPLERS),
        sigmas=_listed("sigmas", sigmas, float, "1, 0.9, 0.5, 0"),
        refine_sigmas=_listed("refine_sigmas", refine_sigmas, float, "0.909375, 0.725, 0.421875, 0"),
        schedule_tokens=_own("schedule_tokens", schedule_tokens),
        separate_passes=None if chosen_passes is None else _PASSES[chosen_passes],
        video=video,
        audio=audio,
        distilled_strength=(
            _own("distilled_strength_1", strengths[0]),
            _own("distilled_strength_2", strengths[1]),
        ),
        audio_source=None if chosen_source is None else sources[chosen_source],
        revision=REVISIONS[_known("revision", revision, REVISIONS)],
    )


def check_when_queued(choice: RecipeChoice) -> None:
    """Raises :class:`SettingError` for what can work with no checkpoint, before any file is open."""
    for generation in RECIPES:
        check_recipe(choice.recipe(generation, _ANY_LAYERS), _ANY_LAYERS)


def _own(setting: str, value: Number) -> Number | None:
    """The value; None where it stands for the preset's."""
    if value == _UNSET:
        return None
    if not math.isfinite(value) or value < 0:
        fix = "-1 takes the preset's."
        raise SettingError(setting, value, "must be a number that is not negative", fix)
    return value


def _listed(setting: str, text: str, read: Callable[[str], Number], example: str) -> tuple[Number, ...] | None:
    """Numbers between commas; None where there is no text."""
    if not text.strip():
        return None
    try:
        return tuple(read(part) for part in text.split(","))
    except ValueError:
        fix = f"Write numbers with commas between them, such as {example}, or leave it empty for the preset's."
        raise SettingError(setting, text, "is no list of numbers", fix) from None


def _chosen(setting: str, value: str, options: Collection[str]) -> str | None:
    return None if value == FROM_PRESET else _known(setting, value, options)


def _known(setting: str, value: str, options: Collection[str]) -> str:
    if value not in options:
        raise SettingError(setting, value, "is not a known choice", f"Choose one of: {', '.join(options)}.")
    return value
