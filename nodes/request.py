"""From a node's inputs to the engine's request."""

from __future__ import annotations

from ..ltx2_core.errors import LTX2Error, SettingError
from ..ltx2_core.recipes import RECIPE_NAMES, official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.stages.validate import check_size
from ..ltx2_core.types import ImageCondition, ScaleFactors
from .handle import PipelineHandle

# What every released video VAE has. Only the check at queueing assumes it: no file is open then. The run itself is
# checked again with the scale of the loaded file.
_RELEASED_SCALE = ScaleFactors(8, 32, 32)
_ANY_GENERATION = "2.3"


def clip_request(
    handle: PipelineHandle,
    prompt: str,
    negative_prompt: str,
    preset: str,
    width: int,
    height: int,
    frames: int,
    fps: float,
    seed: int,
    steps: int,
    images: tuple[ImageCondition, ...] | None,
) -> GenerationRequest:
    """The request, checked.

    Raises:
        SettingError: before any weight is read.
    """
    request = GenerationRequest(
        prompt=prompt,
        recipe=handle.recipe(preset, steps),
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        seed=seed,
        images=images or (),
    )
    handle.pipeline.validate(request)
    return request


def problem_when_queued(
    preset: str | None, width: int | None, height: int | None, frames: int | None, fps: float | None
) -> str | None:
    """What is wrong with a clip's size, in words, or None. Inputs that come over a link are None: not known yet."""
    try:
        stages = 1 if preset is None else _stages(preset)
        whole = stages * _RELEASED_SCALE.height
        check_size(
            whole if width is None else width,
            whole if height is None else height,
            1 if frames is None else frames,
            1.0 if fps is None else fps,
            stages,
            _RELEASED_SCALE,
        )
    except LTX2Error as error:
        return str(error)
    return None


def _stages(preset: str) -> int:
    if preset not in RECIPE_NAMES:
        raise SettingError("preset", preset, "is not a known preset", f"Choose one of: {', '.join(RECIPE_NAMES)}.")
    return official_recipe(preset, _ANY_GENERATION).stages
