"""What can be said about an option without any file: bounds of numbers, and texts that can be written."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..ltx2_core.errors import SettingError
from ..ltx2_core.limits import LIMITS, checked
from ..ltx2_core.recipe_choice import CLIP_TOKENS

_SCALES = ("cfg", "stg", "modality", "rescale", "skip")


def check_options(arguments: argparse.Namespace) -> None:
    """Checks the options of ``ltx2 generate`` before a file is opened or fetched for them.

    Raises:
        SettingError: the first number out of bounds, or the first text that cannot be used.
    """
    for row, value, setting in _numbers(arguments):
        if value is not None:
            checked(row, value, setting)
    for name, path in vars(arguments).items():
        if isinstance(path, Path) and "\0" in str(path):
            raise SettingError(name.replace("_", "-"), path, "holds a NUL character", "Give a file's name.")


def _numbers(arguments: argparse.Namespace) -> Iterator[tuple[str, object, str]]:
    """Row of the table, value and what the user calls it."""
    options = vars(arguments)
    for row in LIMITS:
        value = options.get(row.replace("-", "_"))
        if row == "distilled-strength":
            yield from ((row, strength, row) for strength in value or ())
        elif not (row == "schedule-tokens" and value == CLIP_TOKENS):
            yield row, value, row
    for stream in ("video", "audio"):
        guidance = options[f"{stream}_guidance"]
        yield from ((key, getattr(guidance, key), f"{stream}-guidance {key}") for key in _SCALES)
    yield from (("lora strength", lora.strength, "lora strength") for lora in options["lora"])
    for image in options["image"]:
        yield "image frame", image.frame, "image frame"
        yield "image strength", image.strength, "image strength"
