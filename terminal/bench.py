"""``ltx2 bench``: its arguments, and what runs them. Benchmarks are in the repository, not in what is published."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from ..device_manager.modes import MODE_NAMES
from ..ltx2_core.errors import LTX2Error, SettingError
from ..ltx2_core.recipes import DEFAULT_FRAMES, DEFAULT_SIZES, RECIPE_NAMES

_SIZES = "x".join(map(str, DEFAULT_SIZES["two-stage"]))
DESCRIPTION = "Measures on a GPU, with full-size models of random weights: nothing is downloaded, about 60 GB of VRAM."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmarks as subcommands."""
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    modes = benchmarks.add_parser("modes", allow_abbrev=False, help="a run in every device mode, side by side")
    _shared(modes)
    modes.add_argument("--recipe", choices=RECIPE_NAMES, default="two-stage")
    modes.add_argument("--sizes", default=_SIZES, metavar="WxH,WxH", help=f"of the clips (default {_SIZES})")
    modes.add_argument("--frames", type=int, default=DEFAULT_FRAMES, metavar="N")
    modes.add_argument(
        "--modes", default=",".join(MODE_NAMES[1:]), metavar="M,M", help="device modes; the first is compared with"
    )
    modes.add_argument("--caps", default="", metavar="GB,GB", help="also: auto, held to so much GPU memory")
    load = benchmarks.add_parser("load", allow_abbrev=False, help="a checkpoint from disk into a host snapshot")
    _shared(load)
    load.add_argument("--file", type=Path, required=True, metavar="F", help="38 GB are written there, and stay")


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generation", choices=("2.0", "2.3"), default="2.3")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="JSON with all figures and the machine")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="log everything")
    volume.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")


def bench(arguments: argparse.Namespace) -> None:
    """Runs one benchmark and writes its figures.

    Raises:
        SettingError: a value is unusable, or there is no GPU.
    """
    if not arguments.out.parent.is_dir():
        raise SettingError("out", arguments.out, "lies in a folder that does not exist", "Make the folder first.")
    work = _modes(arguments) if arguments.benchmark == "modes" else None
    _require_gpu()

    def save(figures: dict[str, Any]) -> None:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")

    if work is not None:
        work.run(save)
    else:
        save(_benchmark("load").run(arguments.generation, arguments.file))
    sys.stdout.write(f"{arguments.out}\n")


def _modes(arguments: argparse.Namespace) -> Any:
    from ..ltx2_core.types import VideoSize

    modes = tuple(filter(None, arguments.modes.split(",")))
    for mode in modes:
        if mode not in MODE_NAMES:
            raise SettingError("modes", mode, "is no device mode", f"Choose from: {', '.join(MODE_NAMES)}.")
    try:
        caps = tuple(float(cap) for cap in filter(None, arguments.caps.split(",")))
    except ValueError as error:
        raise SettingError("caps", arguments.caps, "must be numbers of GB", "For example: --caps 60,48.") from error
    try:
        pairs = [tuple(map(int, size.split("x"))) for size in arguments.sizes.split(",")]
        sizes = tuple(VideoSize(arguments.frames, height, width) for width, height in pairs)
    except ValueError as error:
        raise SettingError("sizes", arguments.sizes, "must be WxH, by commas", f"For example: {_SIZES}.") from error
    return _benchmark("modes").ModesBenchmark(arguments.generation, arguments.recipe, sizes, modes, caps)


def _benchmark(name: str) -> Any:
    package = __package__.rpartition(".")[0]
    try:
        return importlib.import_module(f"{package}.benchmarks.{name}")
    except ModuleNotFoundError as error:
        if "benchmarks" not in str(error.name):
            raise
        raise LTX2Error("ltx2 bench needs the repository: this installation has no benchmarks folder") from error


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise LTX2Error("ltx2 bench needs an NVIDIA GPU, and torch finds none")
