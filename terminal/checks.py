"""What can be said about an option without any file: bounds of numbers, and texts that can be written."""

from __future__ import annotations

import argparse
import os
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
    for setting, path in _paths(arguments):
        _check_name(setting, path)


def _paths(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            yield name.replace("_", "-"), value
    yield from (("lora", lora.path) for lora in arguments.lora)
    yield from (("image", image.image) for image in arguments.image if isinstance(image.image, Path))


def _check_name(setting: str, path: Path) -> None:
    """Whether the system can be asked for a file of this name at all; that there is none is for others to say."""
    try:
        os.stat(path)  # noqa: PTH116 - Path.exists hides some of the reasons
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError as error:  # NUL, or half of an emoji
        raise SettingError(setting, str(path), "cannot be the name of a file", "Give a file's name.") from error
    except OSError as error:
        raise SettingError(setting, path, f"cannot be looked at ({error.strerror})", "Give another file.") from error


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
