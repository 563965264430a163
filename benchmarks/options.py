"""Options that several benchmarks share, and what their values mean."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..device_manager.modes import mode_names
from ..ltx2_core.errors import SettingError
from ..ltx2_core.recipes import DEFAULT_FRAMES, DEFAULT_SIZES, RECIPE_NAMES

if TYPE_CHECKING:
    from ..ltx2_core.types import VideoSize
    from .shapes import Shape

SIZES = "x".join(map(str, DEFAULT_SIZES["two-stage"]))
DIT_SHAPES = "A1,A4,B,C3,E2,D"
PRECISIONS = ("bf16", "fp8")


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generation", choices=("2.0", "2.3"), default="2.3")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="JSON with all figures and the machine")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="log everything")
    volume.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", choices=RECIPE_NAMES, default="two-stage")


def add_clips(parser: argparse.ArgumentParser, sizes: str = SIZES) -> None:
    parser.add_argument("--sizes", default=sizes, metavar="WxH,WxH", help=f"of the clips (default {sizes})")
    parser.add_argument("--frames", type=int, default=DEFAULT_FRAMES, metavar="N")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the linears (default bf16)")


def add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default=DIT_SHAPES, metavar="S,S", help=f"of {DIT_SHAPES} (the default)")


def add_names(parser: argparse.ArgumentParser, option: str, names: Collection[str]) -> None:
    """An option whose value is some of the names, by commas; all of them are the default."""
    default = ",".join(names)
    parser.add_argument(
        f"--{option}",
        default=default,
        metavar=f"{option[0].upper()},{option[0].upper()}",
        help=f"of {default} (the default)",
    )


def add_repeat(parser: argparse.ArgumentParser, repeat: int) -> None:
    parser.add_argument("--repeat", type=int, default=repeat, metavar="N", help=f"of every timing (default {repeat})")
    parser.add_argument(
        "--limit-s", type=float, metavar="S", help="begin nothing more after S seconds; what is measured stays"
    )


def check_repeat(arguments: argparse.Namespace) -> None:
    """Checks what :func:`add_repeat` added.

    Raises:
        SettingError: there would be no timing at all.
    """
    if arguments.repeat < 1:
        raise SettingError("repeat", arguments.repeat, "must be 1 or more", "3 show how far timings scatter.")
    if arguments.limit_s is not None and not arguments.limit_s > 0:
        raise SettingError("limit-s", arguments.limit_s, "must be above 0", "Leave it out for no limit.")


def check_file(setting: str, path: Path) -> None:
    """Raises :class:`SettingError` where no file can be written."""
    from ..ltx2_core.whole_file import check_writable

    if not path.parent.is_dir():
        raise SettingError(setting, path, "lies in a folder that does not exist", "Make the folder first.")
    check_writable(path, setting)


def names_of(value: str) -> tuple[str, ...]:
    """The names between commas, without repetition."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, value.split(",")))))


def chosen(setting: str, value: str, choices: Collection[str]) -> tuple[str, ...]:
    """Names by commas, without repetition.

    Raises:
        SettingError: a name is not known, or there is none.
    """
    names = names_of(value)
    for name in names or (value,):
        if name not in choices:
            raise SettingError(setting, name, "is not known", f"Choose from: {', '.join(choices)}.")
    return names


def modes_of(value: str) -> tuple[str, ...]:
    """Device modes by commas; none is possible.

    Raises:
        SettingError: there is no such mode.
    """
    modes = names_of(value)
    for mode in modes:
        if mode not in mode_names():
            raise SettingError("modes", mode, "is no device mode", f"Choose from: {', '.join(mode_names())}.")
    return modes


def caps_of(value: str) -> tuple[float, ...]:
    """Bounds of the GPU's memory, in GB.

    Raises:
        SettingError: one is no number above 0.
    """
    try:
        caps = tuple(float(cap) for cap in names_of(value))
        if not all(cap > 0 for cap in caps):
            raise ValueError("a cap is not above 0")
    except ValueError as error:
        raise SettingError("caps", value, "must be numbers of GB above 0", "For example: --caps 60,48.") from error
    return caps


def sizes_of(arguments: argparse.Namespace) -> tuple[VideoSize, ...]:
    """The clips that :func:`add_clips` asks for.

    Raises:
        SettingError: a size is not of the form WxH.
    """
    from ..ltx2_core.types import VideoSize

    try:
        pairs = [tuple(map(int, size.split("x"))) for size in names_of(arguments.sizes) or (arguments.sizes,)]
        return tuple(VideoSize(arguments.frames, height, width) for width, height in pairs)
    except ValueError as error:
        raise SettingError("sizes", arguments.sizes, "must be WxH, by commas", f"For example: {SIZES}.") from error


def shapes_of(value: str) -> tuple[Shape, ...]:
    """Shapes of the transformer's tokens, by their names.

    Raises:
        SettingError: a name is not known, or there is none.
    """
    from .shapes import SHAPES

    return tuple(SHAPES[name] for name in chosen("shapes", value, SHAPES))
