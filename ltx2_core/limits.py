"""The one table of bounds: what every number that a user gives must be, on the command line and in nodes alike."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import SettingError

__all__ = ["LIMITS", "LONGEST_SECONDS", "MOST_STEPS", "MOST_TOKENS", "Limit", "checked", "checked_clip"]

# Three times the 20 s that released models' positions span: further off nothing was trained, and memory runs out
LONGEST_SECONDS = 60
# Of the last stage: 3840x2176 for 20 s at 25 frames per second has 522,240
MOST_TOKENS = 2**19
MOST_STEPS = 1000
# Far beyond any clip; the schedule's shift grows exponentially and leaves the numbers of a computer at 2 million
_MOST_SCHEDULE_TOKENS = 1_000_000


@dataclass(frozen=True)
class Limit:
    """What a number must be.

    Attributes:
        least, most: the bounds, both allowed.
        whole: it counts something.
        fix: what to do instead, as a full sentence.
        unit: of the number, as a word.
        problem: what is wrong with another one, where the bounds alone do not say it.
    """

    least: float
    most: float
    whole: bool
    fix: str
    unit: str = ""
    problem: str = ""

    @property
    def words(self) -> str:
        """What is wrong with a value that is none of these, as the rest of a sentence."""
        if self.problem:
            return self.problem
        kind = "a whole number" if self.whole else "a number"
        unit = f" {self.unit}" if self.unit else ""
        return f"must be {kind} between {self.least} and {self.most}{unit}"


_SIZE_FIX = "The released models are made for sizes around 768x512 and above."
_SIZE = "must be a multiple of 64, or of 32 for a one-stage run, between 32 and 8192 pixels"
_RATE_FIX = "Give one between 0.01 and 240. The models are made for 24 or 25 frames per second."
_STRENGTH_FIX = "1 is as the file was made, 0 is off."
_SCALE_FIX = "Leave it out for the recipe's."

LIMITS: Mapping[str, Limit] = {
    "width": Limit(32, 8192, True, _SIZE_FIX, "pixels", _SIZE),
    "height": Limit(32, 8192, True, _SIZE_FIX, "pixels", _SIZE),
    "frames": Limit(1, 8193, True, "Give 8 * n + 1 frames: 121 at 24 frames per second are 5 seconds."),
    "fps": Limit(0.01, 240.0, False, _RATE_FIX, "frames per second", "must be a positive number"),
    "seed": Limit(0, 2**64 - 1, True, "Choose a seed from 0 to 2^64 - 1."),
    "steps": Limit(1, MOST_STEPS, True, "Give at least 1: the official recipes take 15 to 40."),
    "schedule-tokens": Limit(1, _MOST_SCHEDULE_TOKENS, True, "The official recipes take 4096, or the clip's own."),
    "cfg": Limit(-100.0, 100.0, False, _SCALE_FIX),
    "stg": Limit(-100.0, 100.0, False, _SCALE_FIX),
    "modality": Limit(-100.0, 100.0, False, _SCALE_FIX),
    "rescale": Limit(-100.0, 100.0, False, _SCALE_FIX),
    "skip": Limit(0, 100, True, "0 evaluates every step.", "steps"),
    "distilled-strength": Limit(-100.0, 100.0, False, "The official value is 1."),
    "lora strength": Limit(-100.0, 100.0, False, _STRENGTH_FIX),
    "image-crf": Limit(0, 51, True, "0 skips the round trip; 51 is the coarsest of H.264."),
    "image frame": Limit(-8193, 8192, True, "Choose a frame inside the clip; -1 is the last."),
    "image strength": Limit(0.0, 1.0, False, "1 (kept) is the official value, 0 ignores the image."),
}


def checked(name: str, value: object, setting: str | None = None) -> int | float:
    """The number, as Python's own int or float.

    Args:
        name: row of :data:`LIMITS`.
        value: anything; numbers of NumPy and of others count as numbers, texts and truth values do not.
        setting: what the user calls it; None: the name.

    Raises:
        SettingError: another type, not finite, or out of bounds.
    """
    limit = LIMITS[name]
    number = _number(value, limit.whole)
    if number is None or not limit.least <= number <= limit.most:
        raise SettingError(name if setting is None else setting, value, limit.words, limit.fix)
    return number


def _number(value: object, whole: bool) -> int | float | None:
    """The number that a value is, None where it is none of this kind. No integer is too long to be looked at."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return None if whole or not math.isfinite(number) else number


def checked_clip(width: int, height: int, frames: int, scale: tuple[int, int, int]) -> None:
    """Whether a clip of these numbers, each of them good, is one that can be made at all.

    Args:
        scale: frames, rows and columns that a token covers.

    Raises:
        SettingError: it has more tokens than :data:`MOST_TOKENS`.
    """
    time, tall, wide = scale
    tokens = ((frames - 1) // time + 1) * (height // tall) * (width // wide)
    if tokens > MOST_TOKENS:
        problem = f"has {tokens:,} tokens; the largest clip has {MOST_TOKENS:,}"
        fix = "Give fewer frames or a smaller size: 3840x2176 takes 505 frames."
        raise SettingError("width x height x frames", f"{width}x{height}x{frames}", problem, fix)
