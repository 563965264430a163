"""What is wrong with a clip, as far as a queued graph tells. Nothing here asks the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.recipes import DEFAULT_FPS, DEFAULT_FRAMES, DEFAULT_SIZE, RECIPE_NAMES
from ..ltx2_core.stages.belonging import check_negative
from ..ltx2_core.stages.validate import check_prompt, check_size
from .recipe_values import check_when_queued

_RELEASED_LAYERS = 48
_RELEASED_SCALE = (8, 32, 32)  # frames, rows and columns of a latent's cell, in every released video VAE


def problem_when_queued(inputs: Mapping[str, Any]) -> str | None:
    """What is wrong with a clip, in words, as far as a node's inputs tell, or None.

    Models with another video VAE than the released ones are checked by :func:`~.request.clip_request`, before any
    weight is read.

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
