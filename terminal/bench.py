"""``ltx2 bench``: its arguments, and what runs them. Benchmarks are in the repository, not in what is published."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..device_manager.modes import MODES, mode_names
from ..ltx2_core.errors import LTX2Error, SettingError
from ..ltx2_core.plain_text import json_text
from ..ltx2_core.recipes import DEFAULT_FRAMES, DEFAULT_SIZES, RECIPE_NAMES

if TYPE_CHECKING:
    from ..ltx2_core.types import VideoSize

Save = Callable[[dict[str, Any]], None]
Work = Callable[[Save], object]

_SIZES = "x".join(map(str, DEFAULT_SIZES["two-stage"]))
_DIT_SHAPES = "A1,A4,B,C3,E2,D"
_PRECISIONS = ("bf16", "fp8")
_KERNELS = ("auto", "eager")
_PARTS = "text,upsample,video,audio"
_DECODED = "768x512,1920x1088"
_CONTESTANTS = "ours,ours eager,diffusers,diffusers compiled,ltx-core,ltx-core compiled,ltx-core captured"
DESCRIPTION = (
    "Measures on a GPU, with full-size models of random weights: nothing is downloaded. About 60 GB of VRAM; whole "
    f"runs take what their device mode takes, 115 GB in {MODES[0]}."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmarks as subcommands."""
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    modes = benchmarks.add_parser("modes", allow_abbrev=False, help="a run in every device mode, side by side")
    _shared(modes)
    modes.add_argument("--recipe", choices=RECIPE_NAMES, default="two-stage")
    modes.add_argument("--sizes", default=_SIZES, metavar="WxH,WxH", help=f"of the clips (default {_SIZES})")
    modes.add_argument("--frames", type=int, default=DEFAULT_FRAMES, metavar="N")
    modes.add_argument(
        "--modes",
        default=",".join(mode.name for mode in MODES),
        metavar="M,M",
        help=f"of {', '.join(mode_names())} (default: all but auto); the first is compared with",
    )
    modes.add_argument("--caps", default="", metavar="GB,GB", help="also: auto, held to so much GPU memory")
    modes.add_argument("--precision", choices=_PRECISIONS, default="bf16", help="of the linears (default bf16)")
    load = benchmarks.add_parser("load", allow_abbrev=False, help="how fast a checkpoint comes into a host snapshot")
    _shared(load)
    load.add_argument("--file", type=Path, required=True, metavar="F", help="a new file: 38 GB are written, and stay")
    ceilings = benchmarks.add_parser("ceilings", allow_abbrev=False, help="matrix products, attention and copies alone")
    _shared(ceilings)
    dit = benchmarks.add_parser("dit", allow_abbrev=False, help="steps of the transformer, shape by shape")
    _shared(dit)
    dit.add_argument("--shapes", default=_DIT_SHAPES, metavar="S,S", help=f"of {_DIT_SHAPES} (the default)")
    dit.add_argument("--sweep", action="store_true", help="also one pass at 8 sizes and 7 lengths")
    dit.add_argument("--precision", default="bf16", metavar="P,P", help="bf16 (default), fp8 or both, of the linears")
    dit.add_argument("--kernels", default="auto,eager", metavar="K,K", help="auto, eager or both (default), in turns")
    _repeated(dit, 5)
    decode = benchmarks.add_parser("decode", allow_abbrev=False, help="everything around the transformer, part by part")
    _shared(decode)
    decode.add_argument("--parts", default=_PARTS, metavar="P,P", help=f"of {_PARTS} (the default)")
    decode.add_argument("--sizes", default=_DECODED, metavar="WxH,WxH", help=f"of the clips (default {_DECODED})")
    decode.add_argument("--frames", type=int, default=DEFAULT_FRAMES, metavar="N")
    _repeated(decode, 5)
    e2e = benchmarks.add_parser("e2e", allow_abbrev=False, help="whole runs, without writing files")
    _shared(e2e)
    e2e.add_argument("--recipe", choices=RECIPE_NAMES, default="two-stage")
    e2e.add_argument(
        "--sizes", default=_SIZES, metavar="WxH,WxH", help=f"of the clips, with the same models (default {_SIZES})"
    )
    e2e.add_argument("--frames", type=int, default=DEFAULT_FRAMES, metavar="N")
    e2e.add_argument("--steps", type=int, metavar="N", help="of stage 1 (default: the recipe's)")
    e2e.add_argument("--mode", choices=mode_names(), default=MODES[0].name, help="device mode (default %(default)s)")
    e2e.add_argument("--precision", choices=_PRECISIONS, default="bf16", help="of the linears (default bf16)")
    e2e.add_argument("--compare", choices=_PRECISIONS, help="then runs in this precision, and how the results differ")
    _repeated(e2e, 3)
    peers = benchmarks.add_parser(
        "peers",
        allow_abbrev=False,
        help="beside diffusers and ltx-core, with our weights",
        description="Needs diffusers and ltx-core beside the pack: what is not installed is left out, and named.",
    )
    _shared(peers)
    peers.add_argument("--shapes", default=_DIT_SHAPES, metavar="S,S", help=f"of {_DIT_SHAPES} (the default)")
    peers.add_argument("--contestants", default=_CONTESTANTS, metavar="C,C", help=f"of {_CONTESTANTS} (the default)")
    peers.add_argument("--no-video", action="store_true", help="leave the video decoders out")
    _repeated(peers, 5)


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generation", choices=("2.0", "2.3"), default="2.3")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="JSON with all figures and the machine")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="log everything")
    volume.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")


def _repeated(parser: argparse.ArgumentParser, repeat: int) -> None:
    parser.add_argument("--repeat", type=int, default=repeat, metavar="N", help=f"of every timing (default {repeat})")
    parser.add_argument(
        "--limit-s", type=float, metavar="S", help="begin nothing more after S seconds; what is measured stays"
    )


def bench(arguments: argparse.Namespace) -> None:
    """Runs one benchmark and writes its figures, after each of its parts.

    Raises:
        LTX2Error: a value is unusable, or there is no GPU.
    """
    from ..ltx2_core.whole_file import whole_file
    from .streams import say

    _check_file("out", arguments.out)
    work = _WORK[arguments.benchmark](arguments)
    _require_gpu()

    def save(figures: dict[str, Any]) -> None:
        # What was saved before stays whole when the process is ended meanwhile
        text = json_text(figures, indent=2) + "\n"
        with whole_file(arguments.out, "out") as part:
            part.write_text(text, encoding="utf-8")

    work(save)
    say(str(arguments.out))


def _check_file(setting: str, path: Path) -> None:
    """Raises :class:`LTX2Error` where no file can be written."""
    from ..ltx2_core.whole_file import check_writable

    if not path.parent.is_dir():
        raise SettingError(setting, path, "lies in a folder that does not exist", "Make the folder first.")
    check_writable(path, setting)


def _load(arguments: argparse.Namespace) -> Work:
    _check_file("file", arguments.file)
    if arguments.file.exists():
        raise SettingError("file", arguments.file, "is there already, and is never replaced", "Name a new file.")
    _benchmark("load").check_room(arguments.generation, arguments.file)
    return lambda save: save(_benchmark("load").run(arguments.generation, arguments.file))


def _ceilings(arguments: argparse.Namespace) -> Work:
    return lambda save: _benchmark("ceilings").run(save)


def _modes(arguments: argparse.Namespace) -> Work:
    modes = _names(arguments.modes)
    for mode in modes:
        if mode not in mode_names():
            raise SettingError("modes", mode, "is no device mode", f"Choose from: {', '.join(mode_names())}.")
    try:
        caps = tuple(float(cap) for cap in _names(arguments.caps))
        if not all(cap > 0 for cap in caps):
            raise ValueError("a cap is not above 0")
    except ValueError as error:
        problem = "must be numbers of GB above 0"
        raise SettingError("caps", arguments.caps, problem, "For example: --caps 60,48.") from error
    if not (modes or caps):
        raise SettingError("modes", arguments.modes, "names none, and there are no caps", "Leave it out for all modes.")
    sizes = _sizes("sizes", arguments.sizes, arguments.frames)
    benchmark = _benchmark("modes").ModesBenchmark(
        arguments.generation, arguments.recipe, sizes, modes, caps, arguments.precision
    )
    benchmark.check()
    work: Work = benchmark.run
    return work


def _dit(arguments: argparse.Namespace) -> Work:
    _check_repeated(arguments)
    precisions = _chosen("precision", arguments.precision, _PRECISIONS)
    kernels = _chosen("kernels", arguments.kernels, _KERNELS)
    shapes = _shapes(arguments)
    if arguments.sweep:
        shapes += _benchmark("shapes").sweep()
    models = partial(_benchmark("synthetic_models").SyntheticModels, arguments.generation, 0)
    benchmark = _benchmark("dit").DitBenchmark(models, shapes, precisions, kernels, arguments.repeat, arguments.limit_s)
    work: Work = benchmark.run
    return work


def _decode(arguments: argparse.Namespace) -> Work:
    _check_repeated(arguments)
    parts = _chosen("parts", arguments.parts, _PARTS.split(","))
    sizes = _sizes("sizes", arguments.sizes, arguments.frames)
    models = _benchmark("synthetic_models").SyntheticModels(arguments.generation)
    benchmark = _benchmark("decode").DecodeBenchmark(models, sizes, parts, arguments.repeat, arguments.limit_s)
    benchmark.check()
    work: Work = benchmark.run
    return work


def _e2e(arguments: argparse.Namespace) -> Work:
    _check_repeated(arguments)
    if arguments.compare == arguments.precision:
        raise SettingError("compare", arguments.compare, "is the precision that it is compared with", "Name the other.")
    if arguments.steps is not None and arguments.steps < 1:
        raise SettingError("steps", arguments.steps, "must be 1 or more", "Leave it out for the recipe's.")
    precisions = tuple(filter(None, (arguments.precision, arguments.compare)))
    benchmark = _benchmark("e2e").E2EBenchmark(
        partial(_benchmark("synthetic_models").SyntheticModels, arguments.generation, 0),
        arguments.recipe,
        _sizes("sizes", arguments.sizes, arguments.frames),
        arguments.mode,
        precisions,
        arguments.repeat,
        arguments.steps,
        arguments.limit_s,
    )
    benchmark.check()
    work: Work = benchmark.run
    return work


def _peers(arguments: argparse.Namespace) -> Work:
    _check_repeated(arguments)
    contestants = _chosen("contestants", arguments.contestants, _CONTESTANTS.split(","))
    shapes = _shapes(arguments)
    module = _benchmark("peers")
    benchmark = module.PeersBenchmark(
        _benchmark("synthetic_models").SyntheticModels(arguments.generation),
        shapes,
        contestants,
        None if arguments.no_video else module.DECODED,
        arguments.repeat,
        arguments.limit_s,
    )
    work: Work = benchmark.run
    return work


_WORK: Mapping[str, Callable[[argparse.Namespace], Work]] = {
    "modes": _modes,
    "load": _load,
    "ceilings": _ceilings,
    "dit": _dit,
    "decode": _decode,
    "e2e": _e2e,
    "peers": _peers,
}


def _check_repeated(arguments: argparse.Namespace) -> None:
    if arguments.repeat < 1:
        raise SettingError("repeat", arguments.repeat, "must be 1 or more", "3 show how far timings scatter.")
    if arguments.limit_s is not None and not arguments.limit_s > 0:
        raise SettingError("limit-s", arguments.limit_s, "must be above 0", "Leave it out for no limit.")


def _names(value: str) -> tuple[str, ...]:
    """What stands between commas, without repetition."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, value.split(",")))))


def _chosen(setting: str, value: str, choices: Collection[str]) -> tuple[str, ...]:
    """Names by commas, each of them known, without repetition."""
    chosen = _names(value)
    for name in chosen or (value,):
        if name not in choices:
            raise SettingError(setting, name, "is not known", f"Choose from: {', '.join(choices)}.")
    return chosen


def _shapes(arguments: argparse.Namespace) -> tuple[Any, ...]:
    known = _benchmark("shapes").SHAPES
    if arguments.shapes == "" and getattr(arguments, "sweep", False):
        return ()
    return tuple(known[name] for name in _chosen("shapes", arguments.shapes, known))


def _sizes(setting: str, value: str, frames: int) -> tuple[VideoSize, ...]:
    from ..ltx2_core.types import VideoSize

    try:
        pairs = [tuple(map(int, size.split("x"))) for size in _names(value) or (value,)]
        return tuple(VideoSize(frames, height, width) for width, height in pairs)
    except ValueError as error:
        raise SettingError(setting, value, "must be WxH, by commas", f"For example: {_SIZES}.") from error


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
        raise LTX2Error(
            "ltx2 bench needs an NVIDIA GPU, and torch finds none. Run it where nvidia-smi lists one, with a PyTorch "
            "for CUDA."
        )
