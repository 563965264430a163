"""From a node's inputs to the engine's request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.stages.belonging import check_given
from ..ltx2_core.types import ImageCondition
from .handle import PipelineHandle
from .sockets import Unconnected, linked
from .sound import to_clip


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
