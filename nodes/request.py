"""From a node's inputs to the engine's request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.recipes import DEFAULT_FPS, DEFAULT_FRAMES, DEFAULT_SIZE, RECIPE_NAMES
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.stages.belonging import check_given, check_negative
from ..ltx2_core.stages.validate import check_prompt, check_size
from ..ltx2_core.types import ImageCondition
from .conversions import to_clip
from .handle import PipelineHandle
from .recipe_values import check_when_queued
from .sockets import Unconnected, linked

_RELEASED_LAYERS = 48
_RELEASED_SCALE = (8, 32, 32)  # frames, rows and columns of a latent's cell, in every released video VAE


def clip_request(
    handle: PipelineHandle,
    prompt: str,
    negative_prompt: str,
    choice: RecipeChoice,
    width: int,
    height: int,
    frames: int,
    fps: float,
    seed: int,
    images: tuple[ImageCondition, ...] | Unconnected | None,
    audio: Mapping[str, Any] | Unconnected | None,
    notices: tuple[str, ...] = (),
) -> GenerationRequest:
    """The request, checked.

    Args:
        audio: the host's AUDIO.
        notices: what the user should read of how the node made this of its inputs.

    Raises:
        SettingError: before any weight is read.
    """
    pictures, sound = linked("images", images, "image"), linked("audio", audio, "sound")
    request = GenerationRequest(
        prompt=prompt,
        recipe=handle.chosen(choice),
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        seed=seed,
        images=pictures or (),
        audio=None if sound is None else to_clip(sound),
        audio_source=choice.audio_source,
        revision=choice.revision,
        notices=notices,
    )
    handle.pipeline.validate(request)
    check_given(choice, request)
    return request


def node_choice(
    preset: str, steps: int, recipe: RecipeChoice | Unconnected | None
) -> tuple[RecipeChoice, tuple[str, ...]]:
    """The linked recipe, else the node's own preset and steps; and what the user should read of that.

    Raises:
        SettingError: a link for the recipe brings none.
    """
    own = linked("recipe", recipe, "recipe")
    if own is None:
        return RecipeChoice(preset, steps or None), ()
    note = f"The linked recipe takes the place of this node's {steps} steps."
    return own, (note,) if steps else ()


def problem_when_queued(inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with a clip, in words, as far as a node's inputs tell, or None.

    Models with another video VAE than the released ones are checked by :func:`clip_request`, before any weight is read.

    Args:
        inputs: of LTX-2 Denoise or LTX-2 Generate; what comes over a link is None. A linked recipe takes the preset's
            place.
    """
    width, height = DEFAULT_SIZE
    values: dict[str, Any] = {"width": width, "height": height, "frames": DEFAULT_FRAMES, "fps": DEFAULT_FPS}
    values |= {name: inputs[name] for name in values if inputs.get(name) is not None}
    # Half the size works for fewer stages, so that one stage refuses only what no recipe takes
    two = "recipe" not in inputs and inputs.get("preset") not in (None, "one-stage")
    try:
        check_size(**values, stages=2 if two else 1, scale=_RELEASED_SCALE)
        if inputs.get("prompt") is not None:
            check_prompt(inputs["prompt"])
        if "recipe" not in inputs and inputs.get("preset") in RECIPE_NAMES:
            _check_preset(inputs["preset"], inputs.get("steps"), inputs.get("negative_prompt"))
    except LTX2Error as error:
        return str(error)
    return None


def _check_preset(preset: str, steps: int | None, negative_prompt: str | None) -> None:
    """Raises :class:`SettingError` for what a preset ignores, whatever the checkpoint."""
    choice = RecipeChoice(preset, steps or None)
    check_when_queued(choice)
    check_negative(choice.recipe("2.3", _RELEASED_LAYERS), negative_prompt or "")
