"""What a CONDITIONING or a LATENT carries beside its tensors: read in one place, so that nothing is ignored silently.

Keys that change nothing here are known by name. A value that the host's own samplers would follow and ours do not is
refused by its name; a text under an unknown key is a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..ltx2_core.errors import SettingError
from ..ltx2_core.plain_text import plain
from .conversions import PROMPT_KEY, RAW_KEY, Conditioning

RATE_KEY = "frame_rate"  # what ComfyUI's LTXVConditioning writes


def _anything(_value: Any) -> bool:
    return True


def _is(neutral: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and math.isclose(value, neutral)


def _all_ones(value: Any) -> bool:
    return torch.is_tensor(value) and bool((value == 1).all())


# Key -> whether a value changes nothing
_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    PROMPT_KEY: _anything,
    RAW_KEY: _anything,
    RATE_KEY: _anything,  # see check_rate
    "pooled_output": _anything,  # LTX-2 takes none, in the host's model neither
    "set_area_to_bounds": _anything,  # with a mask alone
    "mask_strength": _anything,
    "control_apply_to_uncond": _anything,  # with a ControlNet alone
    "attention_mask": _all_ones,
    "mask": _all_ones,
    "strength": _is(1.0),
    "start_percent": _is(0.0),
    "end_percent": _is(1.0),
    "clip_start_percent": _is(0.0),
    "clip_end_percent": _is(1.0),
}
_WORDS: Mapping[str, str] = {
    "start_percent": "a range of steps",
    "end_percent": "a range of steps",
    "clip_start_percent": "a range of steps",
    "clip_end_percent": "a range of steps",
    "area": "an area of the picture",
    "mask": "a mask over the picture",
    "strength": "a strength of the prompt",
    "hooks": "hooks",
    "control": "a ControlNet",
    "attention_mask": "a mask over the text",
    "keyframe_idxs": "guide frames",
    "guide_attention_entries": "guide frames",
    "generated_keyframes": "generated keyframes",
    "ref_audio": "reference audio",
    "reference_latents": "reference images",
    "concat_latent_image": "an image to start from",
    "default": "a default prompt for the other areas",
}
_FIX = "Leave that node out; LTX-2 Image Condition and LTX-2 Recipe do such work here."


def read_conditioning(conditioning: Conditioning | None, setting: str, fps: float | None) -> tuple[str, ...]:
    """Checks what a prompt carries.

    Args:
        setting: the input that it comes from.
        fps: rate of the clip; None where this CONDITIONING decides it, or the node does.

    Returns:
        Sentences that the user should read.

    Raises:
        SettingError: it is no single prompt, or asks for something that would not be followed.
    """
    extra = _single(conditioning, setting)
    notes = []
    for key, value in extra.items():
        if _neutral(key, value):
            continue
        if isinstance(value, str) and key not in _WORDS:
            notes.append(f"The {setting} conditioning's {plain(key, 40)} ({plain(value, 60)!r}) is not read.")
            continue
        problem = f"the {setting} conditioning has {_WORDS.get(key, 'it')}, which LTX-2 nodes do not follow"
        raise SettingError(plain(str(key), 40), _shown(value), problem, _FIX)
    rate = conditioned_rate(extra)
    if rate is not None and fps is not None and not math.isclose(rate, fps, rel_tol=1e-4):
        problem = f"the {setting} conditioning is for this rate, and the clip for {fps:g} frames per second"
        raise SettingError(RATE_KEY, rate, problem, "Set both to the same rate.")
    return tuple(notes)


def conditioned_rate(extra: Mapping[str, Any]) -> float | None:
    """Frames per second that a CONDITIONING is for; None where it does not say.

    Raises:
        SettingError: it says something else than a rate.
    """
    rate = extra.get(RATE_KEY)
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
        raise SettingError(RATE_KEY, _shown(rate), "must be a positive number", "Set it in LTXVConditioning.")
    return float(rate)


def latent_notices(latent: Mapping[str, Any]) -> tuple[str, ...]:
    """What stage 2 does not follow of a LATENT, in sentences."""
    notes = []
    if _masks_anything(latent.get("noise_mask")):
        notes.append("LTX-2 Refine does not follow the latent's noise mask; connect images to keep their frames.")
    numbers = latent.get("batch_index")
    if isinstance(numbers, (list, tuple)) and any(numbers):
        notes.append("LTX-2 Refine draws its noise by the seed alone, not by the latent's number in its batch.")
    return tuple(notes)


def _single(conditioning: Conditioning | None, setting: str) -> Mapping[str, Any]:
    fix = "Connect LTX-2 Text Encode, or ComfyUI's text encoder for this checkpoint."
    if conditioning is None:
        raise SettingError(setting, None, "is connected, but holds no prompt", fix)
    if len(conditioning) != 1:
        raise SettingError(setting, f"{len(conditioning)} prompts", "must be one prompt", fix)
    entry = conditioning[0]
    if len(entry) != 2 or not torch.is_tensor(entry[0]) or not isinstance(entry[1], Mapping):
        raise SettingError(setting, type(entry).__name__, "is no prompt of a text encoder", fix)
    extra: Mapping[str, Any] = entry[1]
    return extra


def _neutral(key: str, value: Any) -> bool:
    if value is None or value is False or (isinstance(value, (str, list, tuple, dict)) and not value):
        return True
    harmless = _HARMLESS.get(key)
    return harmless is not None and harmless(value)


def _shown(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else type(value).__name__


def _masks_anything(mask: Any) -> bool:
    if mask is None:
        return False
    parts = mask.unbind() if getattr(mask, "is_nested", False) else [mask]
    return any(bool((part < 1).any()) for part in parts if torch.is_tensor(part))
