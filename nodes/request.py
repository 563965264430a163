"""From a node's inputs to the engine's request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.limits import LONGEST_SECONDS
from ..ltx2_core.media.audio import given_sound
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.recipes import DEFAULT_FPS, DEFAULT_FRAMES, DEFAULT_SIZE
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.stages.validate import check_prompt, check_size
from ..ltx2_core.types import AudioClip, ImageCondition
from .handle import PipelineHandle

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
        audio=None if audio is None else to_clip(audio),
        audio_source=choice.audio_source,
        revision=choice.revision,
    )
    handle.pipeline.validate(request)
    return request


def to_clip(audio: Mapping[str, Any]) -> AudioClip:
    """The sound of an AUDIO, as long as the longest clip; more than two channels are mixed down.

    Raises:
        SettingError: it is no sound, a batch, or holds what is no finite number.
    """
    return given_sound(audio["waveform"], audio["sample_rate"], LONGEST_SECONDS)


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
    except LTX2Error as error:
        return str(error)
    return None
