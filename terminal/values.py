"""Arguments that pack several values into one word, as the engine's types. Every error names the setting."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from ..ltx2_core.errors import SettingError
from ..ltx2_core.limits import checked
from ..ltx2_core.recipe_choice import GuidanceChoice
from ..ltx2_core.types import ImageCondition

LoRAStage = Literal["1", "2", "both"]
_LORA_STAGES: Mapping[str, LoRAStage] = {"1": "1", "2": "2", "both": "both"}

IMAGE_FORM = "FILE[@FRAME[:STRENGTH]]"
LAST_FRAME = "last"
LORA_FORM = "FILE:STRENGTH[:STAGE]"
GUIDANCE_FORM = "KEY=VALUE[,KEY=VALUE]..."


@dataclass(frozen=True)
class LoRAArgument:
    """One ``--lora``: the file, its strength, and the stage that it acts in."""

    path: Path
    strength: float
    stage: LoRAStage = "both"


def number(setting: str, text: str, value: object = None) -> float:
    """A finite decimal number; ``value`` is what the error shows when the number is a part of it.

    Raises:
        SettingError: it is not one.
    """
    try:
        result = float(text)
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise SettingError(setting, text if value is None else value, f"{text!r} is not a number", "Write 0.8 or 3.")
    return result


def whole(setting: str, text: str, value: object = None) -> int:
    """A whole number; see :func:`number`."""
    try:
        return int(text)
    except ValueError:
        shown = text if value is None else value
        raise SettingError(setting, shown, f"{text!r} is not a whole number", "Write digits only.") from None


def image_condition(text: str, setting: str = "image") -> ImageCondition:
    """``FILE[@FRAME[:STRENGTH]]``; a name that exists as it stands is a file, whatever signs it holds.

    FRAME is a number, from the end where it is negative, or ``last``.
    The parts are split off from the right, so that a drive letter's colon stays with its path.

    Raises:
        SettingError: the part after the @ is not a frame, or the strength is not a number.
    """
    file, at, tail = text.rpartition("@")
    if not at or os.path.isfile(text):  # noqa: PTH113 - Path.is_file raises for a name that is too long
        return ImageCondition(Path(text))
    frame, colon, strength = tail.partition(":")
    try:
        index = -1 if frame == LAST_FRAME else int(frame)
        share = float(strength) if colon else 1.0
    except ValueError:
        problem = f"there is no such file, and {tail!r} is not a frame with an optional strength"
        raise SettingError(setting, text, problem, f"Write {IMAGE_FORM}, such as first.png@0:0.9.") from None
    if not file:
        raise SettingError(setting, text, "names no file", f"Write {IMAGE_FORM}, such as first.png@0:0.9.")
    return ImageCondition(Path(file), index, share)


def lora(text: str, setting: str = "lora") -> LoRAArgument:
    """``FILE:STRENGTH[:STAGE]``, split from the right; STAGE is 1, 2 or both.

    Raises:
        SettingError: the strength is missing, not a number or too large, or the stage is unknown.
    """
    fix = f"Write {LORA_FORM}, such as style.safetensors:0.8 or style.safetensors:0.8:2."
    file, _, last = text.rpartition(":")
    stage: str = "both"
    before, _, middle = file.rpartition(":")
    if before and _is_number(middle):
        file, stage, last = before, last, middle
    if not file or not _is_number(last):
        raise SettingError(setting, text, "has no strength", fix)
    if stage not in _LORA_STAGES:
        raise SettingError(setting, text, f"stage {stage!r} is not 1, 2 or both", fix)
    return LoRAArgument(Path(file), _strength(setting, last, text), _LORA_STAGES[stage])


def strength_pair(text: str, setting: str = "distilled-strength") -> tuple[float, float]:
    """``S1,S2``: the distilled LoRA's strength in stage 1 and in stage 2.

    Raises:
        SettingError: not two numbers, or too large ones.
    """
    parts = text.split(",")
    if len(parts) != 2:
        raise SettingError(setting, text, "must be two numbers", "Write stage 1, then stage 2, such as 0,1.")
    return _strength(setting, parts[0], text), _strength(setting, parts[1], text)


def _strength(setting: str, text: str, value: object) -> float:
    return checked("lora strength", number(setting, text, value), setting)


def sigmas(setting: str, text: str) -> tuple[float, ...]:
    """``1,0.9,0.5,0``: noise levels; the engine checks their order.

    Raises:
        SettingError: a part is not a number.
    """
    return tuple(number(setting, part, text) for part in text.split(","))


def _blocks(setting: str, text: str, value: object) -> tuple[int, ...]:
    return tuple(sorted({whole(setting, part, value) for part in text.split("/")}))


_GUIDANCE_KEYS: Mapping[str, Callable[[str, str, object], Any]] = {
    "cfg": number,
    "stg": number,
    "rescale": number,
    "modality": number,
    "blocks": _blocks,
    "skip": whole,
}


def guidance(text: str, setting: str) -> GuidanceChoice:
    """``cfg=3,stg=1,rescale=0.7,modality=3,blocks=28/29,skip=0``: any part of it, several blocks with a slash.

    Raises:
        SettingError: an unknown key, one given twice, or a value that is not a number.
    """
    choice: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key not in _GUIDANCE_KEYS:
            _reject_key(setting, text, key, f"is not one of {', '.join(_GUIDANCE_KEYS)}")
        if key in choice:
            _reject_key(setting, text, key, "is given twice")
        choice[key] = _GUIDANCE_KEYS[key](f"{setting} {key}", value, text)
    return GuidanceChoice(**choice)


def _reject_key(setting: str, text: str, key: str, problem: str) -> NoReturn:
    raise SettingError(
        setting, text, f"{key!r} {problem}", "Write cfg=3,stg=1,rescale=0.7,modality=3,blocks=28,skip=0."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
