"""From a node's inputs to the engine's request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..ltx2_core.errors import SettingError
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.recipes import RECIPE_NAMES
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import AudioClip, ImageCondition
from .handle import PipelineHandle


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
    images: tuple[ImageCondition, ...] | None,
    audio: Mapping[str, Any] | None,
) -> GenerationRequest:
    """The request, checked.

    Args:
        audio: the host's AUDIO.

    Raises:
        SettingError: before any weight is read.
    """
    request = GenerationRequest(
        prompt=prompt,
        recipe=handle.chosen(choice),
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        seed=seed,
        images=images or (),
        audio=None if audio is None else AudioClip(audio["waveform"], int(audio["sample_rate"])),
        audio_source=choice.audio_source,
        revision=choice.revision,
    )
    handle.pipeline.validate(request)
    return request


def problem_when_queued(
    preset: str | None, width: int | None, height: int | None, frames: int | None, fps: float | None
) -> str | None:
    """What is wrong with a clip whatever the model, in words, or None.

    Which sizes fit, the video VAE says, and no file is open yet: :func:`clip_request` checks that before any weight is
    read. Inputs that come over a link are None: not known yet.
    """
    if preset is not None and preset not in RECIPE_NAMES:
        fix = f"Choose one of: {', '.join(RECIPE_NAMES)}."
        return str(SettingError("preset", preset, "is not a known preset", fix))
    for name, value in (("width", width), ("height", height), ("frames", frames)):
        if value is not None and value < 1:
            return str(SettingError(name, value, "must be at least 1", "The node's default suits every model."))
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        return str(SettingError("fps", fps, "must be a positive number", "The models are made for 24 or 25."))
    return None
