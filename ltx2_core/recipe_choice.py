"""What a user asks of a recipe: an official one, and the values that take the place of its own."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import SettingError
from .protocols import Models
from .recipes import DEV, DISTILLED_RECIPE, REVISIONS, AudioSource, Recipe, Revision, official_recipe
from .types import Guidance, StreamGuidance

# For ``RecipeChoice.schedule_tokens``: the schedule is shifted by the tokens that the clip has in stage 1
CLIP_TOKENS = 0


@dataclass(frozen=True)
class GuidanceChoice:
    """Values for one stream's :class:`StreamGuidance`; None leaves the recipe's."""

    cfg: float | None = None
    stg: float | None = None
    modality: float | None = None
    rescale: float | None = None
    blocks: tuple[int, ...] | None = None
    skip: int | None = None

    def applied(self, setting: str, guidance: StreamGuidance) -> StreamGuidance:
        """The guidance with these values in place of its own.

        Raises:
            SettingError: blocks are given, and the STG that would perturb them is off; or a rescale, and nothing is
                guided that it would scale.
        """
        changed = replace(guidance, **_given(self))
        if self.blocks and changed.stg == 0:
            problem = "the STG scale is 0, so that no block is perturbed"
            raise SettingError(f"{setting} blocks", list(self.blocks), problem, "Set stg too, or leave blocks out.")
        if self.rescale and not changed.guided:
            problem = "nothing is guided, so that nothing is scaled back"
            raise SettingError(
                f"{setting} rescale", self.rescale, problem, "Leave it out, or set cfg, stg or modality."
            )
        return changed


@dataclass(frozen=True)
class RecipeChoice:
    """A recipe by name, and what is different from the official one. None leaves the recipe's value.

    What the recipe is in numbers depends on the checkpoint, which need not be known yet: :meth:`recipe` makes it.

    Attributes:
        preset: one of ``RECIPE_NAMES``.
        schedule_tokens: :data:`CLIP_TOKENS` takes the clip's own.
        distilled_strength: of stage 1 and of stage 2.
        audio_source, revision: of the request that the recipe is for.
    """

    preset: str = "two-stage"
    steps: int | None = None
    sampler: str | None = None
    sigmas: tuple[float, ...] | None = None
    refine_sigmas: tuple[float, ...] | None = None
    schedule_tokens: int | None = None
    separate_passes: bool | None = None
    video: GuidanceChoice = GuidanceChoice()
    audio: GuidanceChoice = GuidanceChoice()
    distilled_strength: tuple[float | None, float | None] = (None, None)
    audio_source: AudioSource | None = None
    revision: Revision = REVISIONS["newest"]

    def recipe(self, generation: str, num_layers: int) -> Recipe:
        """The recipe for a model of this generation and number of blocks.

        Raises:
            SettingError: the preset is unknown, or a value contradicts it or another one, so that it would be ignored.
                Whether a value can work at all, :func:`~.stages.validate.validate` checks.
        """
        official = official_recipe(self.preset, generation, num_layers)
        self._check_schedule(official)
        self._check_second_stage(official)
        first, second = (
            own if own is not None else other
            for own, other in zip(self.distilled_strength, official.distilled_strength, strict=True)
        )
        guidance = Guidance(
            video=self.video.applied("video-guidance", official.guidance.video),
            audio=self.audio.applied("audio-guidance", official.guidance.audio),
        )
        if not official.allows_stg:
            _check_without_stg(official, guidance)
        if self.separate_passes and not (guidance.video.guided or guidance.audio.guided):
            problem = "nothing is guided, so that a step has one pass"
            raise SettingError("guidance-passes", "separate", problem, "Leave it out, or choose another recipe.")
        sigmas = official.sigmas if self.sigmas is None else self.sigmas
        tokens = official.schedule_tokens if self.schedule_tokens is None else self.schedule_tokens or None
        return replace(
            official,
            steps=_steps(self.steps, official.steps, sigmas),
            sampler=self.sampler or official.sampler,
            sigmas=sigmas,
            refine_sigmas=official.refine_sigmas if self.refine_sigmas is None else self.refine_sigmas,
            schedule_tokens=tokens,
            separate_passes=official.separate_passes if self.separate_passes is None else self.separate_passes,
            guidance=guidance,
            distilled_strength=(first, second),
        )

    def recipe_for(self, models: Models) -> Recipe:
        """The recipe for these models.

        The distilled recipe runs a dev checkpoint with the distilled LoRA in both stages, where that is loaded and no
        other strength was asked for.

        Raises:
            SettingError: as :meth:`recipe`.
        """
        recipe = self.recipe(models.generation, models.num_layers)
        if recipe.name != DISTILLED_RECIPE or models.variant != DEV:
            return recipe
        if not models.has_distilled_lora or len(models.distilled_adapters) > 1:  # a user's LoRA does it already
            return recipe
        first, second = (1.0 if own is None else own for own in self.distilled_strength)
        return replace(recipe, distilled_strength=(first, second))

    def _check_schedule(self, official: Recipe) -> None:
        """Fixed sigmas leave nothing to say to the number of steps and to the schedule's shift."""
        sigmas = official.sigmas if self.sigmas is None else self.sigmas
        if sigmas is None:
            return
        whose = f"the {self.preset} recipe has" if self.sigmas is None else "sigmas are given for"
        if self.steps is not None and self.steps != len(sigmas) - 1:
            problem = f"{whose} {len(sigmas) - 1} fixed steps"
            raise SettingError("steps", self.steps, problem, "Leave one of them out, or choose another recipe.")
        if self.schedule_tokens is not None:
            problem = f"{whose} {len(sigmas) - 1} fixed steps, which nothing shifts"
            raise SettingError("schedule-tokens", self.schedule_tokens, problem, "Leave it out.")

    def _check_second_stage(self, official: Recipe) -> None:
        if official.stages == 2:
            return
        problem = f"the {self.preset} recipe has no stage 2"
        if self.distilled_strength[1]:
            raise SettingError("distilled-strength", self.distilled_strength, problem, "Set the second one to 0.")
        if self.refine_sigmas is not None:
            raise SettingError("refine-sigmas", list(self.refine_sigmas), problem, "Leave it out.")
        if self.audio_source is AudioSource.STAGE_2:
            fix = "Leave it out, or choose another recipe."
            raise SettingError("audio-source", self.audio_source.value, problem, fix)


def _check_without_stg(official: Recipe, guidance: Guidance) -> None:
    for name, stream in (("video-guidance", guidance.video), ("audio-guidance", guidance.audio)):
        if stream.stg != 0:
            problem = f"the {official.name} recipe is made without STG"
            fix = f"Leave stg out, or choose the two-stage recipe with the {official.sampler} sampler."
            raise SettingError(f"{name} stg", stream.stg, problem, fix)


def _steps(given: int | None, official: int, sigmas: tuple[float, ...] | None) -> int:
    if sigmas is not None:
        return len(sigmas) - 1
    return official if given is None else given


def _given(choice: GuidanceChoice) -> dict[str, Any]:
    return {f.name: value for f in fields(choice) if (value := getattr(choice, f.name)) is not None}
