"""What belongs together: recipe, variant of the checkpoint, LoRAs, and everything else that is given.

What contradicts itself, or would be ignored, is refused. What many people mean is done, and :func:`notices` says so;
they also say what is loaded and has no effect, where a file may serve other runs too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import NoReturn

from ..errors import SettingError
from ..plain_text import LONGEST_LINE, plain
from ..protocols import Models
from ..recipe_choice import GuidanceChoice, RecipeChoice
from ..recipes import DEV, DISTILLED, DISTILLED_RECIPE, Recipe
from ..request import GenerationRequest
from ..sampling.guidance import needs_negative
from ..types import Phase
from .plan import appends, placed_images

_PHASES = (Phase.STAGE_1, Phase.STAGE_2)


def check_belonging(models: Models, request: GenerationRequest, refining: bool = False) -> None:
    """Whether recipe, checkpoint, LoRAs and texts fit each other.

    Args:
        refining: stage 1 is over, and what it alone would need does not matter any more.

    Raises:
        SettingError: they do not, or one would be ignored.
    """
    recipe, guidance = request.recipe, request.effective_guidance
    guided = guidance.video.guided or guidance.audio.guided
    if models.variant == DISTILLED and guided and not refining and recipe.name != DISTILLED_RECIPE:
        problem = f"guides its steps, and {_checkpoint(models)} is a distilled checkpoint, made for steps without"
        fix = "Choose the distilled recipe, or give the dev checkpoint."
        raise SettingError("recipe", recipe.name, problem, fix)
    check_adapters(models, recipe, (Phase.STAGE_2,) if refining else _PHASES[: recipe.stages])
    if not refining:
        _check_unused(request)


def check_adapters(models: Models, recipe: Recipe, phases: Sequence[Phase]) -> None:
    """Whether the distilled LoRA acts where the checkpoint needs it, and not where it is distilled itself.

    Args:
        phases: the stages that will run.

    Raises:
        SettingError: the other way round.
    """
    if models.variant == DISTILLED:
        for name in sorted(set().union(*(_distilling(models, recipe, phase) for phase in phases))):
            _refuse_on_distilled(models, recipe, name)
    if models.variant == DEV and recipe.name == DISTILLED_RECIPE and not models.distilled_adapters:
        problem = f"makes unguided steps, and {_checkpoint(models)} is a dev checkpoint: nothing but grain comes of it"
        fix = "Give the distilled LoRA too, or the distilled checkpoint, or choose the two-stage recipe."
        raise SettingError("recipe", recipe.name, problem, fix)


def check_given(choice: RecipeChoice, request: GenerationRequest, image_crf: int | None = None) -> None:
    """Whether values that were chosen have an effect on what is given.

    Args:
        request: made by that choice.
        image_crf: as it was asked for, None where it was not.

    Raises:
        SettingError: a value has none.
    """
    if image_crf is not None and not request.images:
        raise SettingError("image-crf", image_crf, "no image is given", "Leave it out, or give an image.")
    if request.audio is None:
        return
    for key, value in _given(choice.audio):
        problem = "the sound is given, so that nothing of it is guided"
        raise SettingError(f"audio-guidance {key}", value, problem, "Leave it out; the picture's is video-guidance.")
    if choice.separate_passes and not request.recipe.guidance.video.guided:
        problem = "the sound is given and the picture is not guided, so that a step has one pass"
        raise SettingError("guidance-passes", "separate", problem, "Leave it out, or guide the picture.")


def check_negative(recipe: Recipe, negative_prompt: str) -> None:
    """Raises :class:`SettingError` where a text is given and nothing is guided away from it."""
    if negative_prompt.strip() and not needs_negative(recipe.guidance):
        problem = f"the {recipe.name} recipe guides nothing away from it here"
        fix = "Leave it empty, or choose a guided recipe, or set cfg above 1."
        raise SettingError("negative-prompt", negative_prompt, problem, fix)


def notices(models: Models, request: GenerationRequest) -> tuple[str, ...]:
    """What the user should read about how these models make what was asked for, a sentence or two each."""
    return tuple(plain(notice, LONGEST_LINE * 2) for notice in _notices(models, request))


def _notices(models: Models, request: GenerationRequest) -> Iterator[str]:
    recipe = request.recipe
    if models.variant == DEV:
        yield from _dev_notices(models, recipe)
    yield from _doubled(models, recipe)
    yield from _unused_loras(models, recipe)
    if recipe.stages == 1 and models.has_upsampler:
        yield f"The {recipe.name} recipe takes no upsampler: the one that is loaded is not used."
    yield from _image_notices(models, request)


def _refuse_on_distilled(models: Models, recipe: Recipe, name: str) -> NoReturn:
    problem = f"{_checkpoint(models)} is a distilled checkpoint: the distilled LoRA would act on top"
    if name in models.user_adapters:
        fix = "Leave the LoRA out, or give the dev checkpoint."
        raise SettingError("lora", models.user_adapters[name], problem, fix)
    fix = "Set it to 0,0, or choose the distilled recipe, or give the dev checkpoint."
    raise SettingError("distilled-strength", list(recipe.distilled_strength), problem, fix)


def _check_unused(request: GenerationRequest) -> None:
    recipe = request.recipe
    check_negative(replace(recipe, guidance=request.effective_guidance), request.negative_prompt)
    if recipe.stages == 1 and recipe.distilled_strength[1]:
        problem = f"the {recipe.name} recipe has no stage 2"
        raise SettingError("distilled-strength", list(recipe.distilled_strength), problem, "Set the second one to 0.")


def _distilling(models: Models, recipe: Recipe, phase: Phase) -> set[str]:
    """Names of the distilled LoRAs that act in a stage, given as such or as a user's."""
    strengths = models.adapter_strengths(phase, recipe.distilled_strength)
    return {name for name in models.distilled_adapters if strengths.get(name)}


def _dev_notices(models: Models, recipe: Recipe) -> Iterator[str]:
    first, second = (_distilling(models, recipe, phase) for phase in _PHASES)
    if recipe.name == DISTILLED_RECIPE and first and second:
        one, two = recipe.distilled_strength
        how = "" if not models.has_distilled_lora else f", at strength {one:g} in stage 1 and {two:g} in stage 2"
        yield f"{_checkpoint(models)} is a dev checkpoint: the distilled recipe runs it with the distilled LoRA{how}."
    guided = recipe.guidance.video.guided
    for stage, lacks in ((1, not first and not guided), (2, not second and recipe.stages == 2)):
        if lacks:
            yield (
                f"Stage {stage} runs the dev checkpoint without guidance and without the distilled LoRA: expect grain."
            )


def _doubled(models: Models, recipe: Recipe) -> Iterator[str]:
    for stage, phase in enumerate(_PHASES[: recipe.stages], 1):
        acting = _distilling(models, recipe, phase)
        if len(acting) > 1:
            names = sorted(models.user_adapters.get(name, "the one given as such") for name in acting)
            yield f"Stage {stage} runs {len(acting)} distilled LoRAs at once: {' and '.join(names)}."


def _unused_loras(models: Models, recipe: Recipe) -> Iterator[str]:
    strengths = [models.adapter_strengths(phase, recipe.distilled_strength) for phase in _PHASES[: recipe.stages]]
    where = "both stages" if recipe.stages == 2 else "the one stage"
    for name in dict.fromkeys(name for stage in strengths for name in stage):
        if any(stage.get(name) for stage in strengths):
            continue
        if name in models.user_adapters:
            yield f"The LoRA {models.user_adapters[name]} has no effect: its strength is 0 in {where}."
        elif recipe.name == DISTILLED_RECIPE and models.variant not in (DEV, DISTILLED):
            yield (
                f"The distilled LoRA is not used: whether {_checkpoint(models)} is distilled already, its name does not"
                " say. For a dev checkpoint set distilled-strength to 1,1."
            )
        elif recipe.stages == 1 or models.variant != DEV:
            yield f"The distilled LoRA is loaded and not used: its strength is 0 in {where}."


def _image_notices(models: Models, request: GenerationRequest) -> Iterator[str]:
    if request.recipe.appends_images and not request.images:
        yield f"The {request.recipe.name} recipe has no image to pass through: the picture follows the prompt alone."
    placed = placed_images(models, request)
    replaced = Counter(image.frame for image in placed if not appends(request, image.frame))
    for frame, count in replaced.items():
        if count > 1:
            yield f"{count} images are for frame {frame}: the last of them is shown."
    ignored = [image.frame for image in placed if not image.strength]
    if ignored:
        yield f"Images of strength 0 are not followed: frame {', '.join(map(str, ignored))}."


def _given(choice: GuidanceChoice) -> list[tuple[str, object]]:
    values = ((field.name, getattr(choice, field.name)) for field in fields(choice))
    return [(name, value) for name, value in values if value is not None]


def _checkpoint(models: Models) -> str:
    """The checkpoint's file, without its folders."""
    return models.file_names.get("checkpoint", "the checkpoint").replace("\\", "/").rpartition("/")[2]
