"""``ltx2 bench``: a row for every benchmark, with its options and what runs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..device_manager.modes import MODES, mode_names
from ..ltx2_core.errors import LTX2Error, SettingError
from ..ltx2_core.plain_text import json_text
from .options import (
    PRECISIONS,
    add_clips,
    add_common,
    add_names,
    add_precision,
    add_recipe,
    add_repeat,
    add_shapes,
    caps_of,
    check_file,
    check_repeat,
    chosen,
    modes_of,
    shapes_of,
    sizes_of,
)

# What a benchmark needs is imported by the function that makes it: help and usage errors do not wait for torch.

Save = Callable[[dict[str, Any]], None]
Work = Callable[[Save], object]

_KERNELS = ("auto", "eager")
PARTS = ("text", "upsample", "video", "audio")
_DECODED = "768x512,1920x1088"
CONTESTANTS = (
    *("ours", "ours eager", "diffusers", "diffusers compiled"),
    *("ltx-core", "ltx-core compiled", "ltx-core captured"),
)
DESCRIPTION = (
    "Measures on a GPU, with full-size models of random weights: nothing is downloaded. About 60 GB of VRAM; whole "
    f"runs take what their device mode takes, 115 GB in {MODES[0]}."
)


class Benchmark(NamedTuple):
    """A subcommand of ``ltx2 bench``.

    Attributes:
        help: one line of it.
        add_options: adds the options that it alone has.
        work: checks the options, raising :class:`SettingError`; returns what measures, given where figures go.
        description: what it needs beside the GPU.
    """

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], Work]
    description: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmarks as subcommands."""
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, row in BENCHMARKS.items():
        benchmark = benchmarks.add_parser(name, allow_abbrev=False, help=row.help, description=row.description)
        add_common(benchmark)
        row.add_options(benchmark)


def run(arguments: argparse.Namespace) -> None:
    """Runs one benchmark and writes its figures, after each of its parts.

    Raises:
        LTX2Error: a value is unusable, or there is no GPU.
    """
    from ..ltx2_core.whole_file import whole_file
    from ..terminal.streams import say

    check_file("out", arguments.out)
    work = BENCHMARKS[arguments.benchmark].work(arguments)
    _require_gpu()

    def save(figures: dict[str, Any]) -> None:
        # What was saved before stays whole when the process is ended meanwhile
        text = json_text(figures, indent=2) + "\n"
        with whole_file(arguments.out, "out") as part:
            part.write_text(text, encoding="utf-8")

    work(save)
    say(str(arguments.out))


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise LTX2Error(
            "ltx2 bench needs an NVIDIA GPU, and torch finds none. Run it where nvidia-smi lists one, with a PyTorch "
            "for CUDA."
        )


def _modes_options(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_clips(parser)
    parser.add_argument(
        "--modes",
        default=",".join(mode.name for mode in MODES),
        metavar="M,M",
        help=f"of {', '.join(mode_names())} (default: all but auto); the first is compared with",
    )
    parser.add_argument("--caps", default="", metavar="GB,GB", help="also: auto, held to so much GPU memory")
    add_precision(parser)


def _modes(arguments: argparse.Namespace) -> Work:
    from .modes import ModesBenchmark

    modes, caps = modes_of(arguments.modes), caps_of(arguments.caps)
    if not (modes or caps):
        raise SettingError("modes", arguments.modes, "names none, and there are no caps", "Leave it out for all modes.")
    benchmark = ModesBenchmark(
        arguments.generation, arguments.recipe, sizes_of(arguments), modes, caps, arguments.precision
    )
    benchmark.check()
    return benchmark.run


def _load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, required=True, metavar="F", help="a new file: 38 GB are written, and stay")


def _load(arguments: argparse.Namespace) -> Work:
    from . import load

    check_file("file", arguments.file)
    if arguments.file.exists():
        raise SettingError("file", arguments.file, "is there already, and is never replaced", "Name a new file.")
    load.check_room(arguments.generation, arguments.file)
    return lambda save: save(load.run(arguments.generation, arguments.file))


def _ceilings_options(_parser: argparse.ArgumentParser) -> None: ...


def _ceilings(_arguments: argparse.Namespace) -> Work:
    from . import ceilings

    return ceilings.run


def _dit_options(parser: argparse.ArgumentParser) -> None:
    add_shapes(parser)
    parser.add_argument("--sweep", action="store_true", help="also one pass at 8 sizes and 7 lengths")
    parser.add_argument(
        "--precision", default="bf16", metavar="P,P", help="bf16 (default), fp8 or both, of the linears"
    )
    parser.add_argument(
        "--kernels", default="auto,eager", metavar="K,K", help="auto, eager or both (default), in turns"
    )
    add_repeat(parser, 5)


def _dit(arguments: argparse.Namespace) -> Work:
    from .dit import DitBenchmark
    from .shapes import sweep
    from .synthetic_models import SyntheticModels

    check_repeat(arguments)
    precisions = chosen("precision", arguments.precision, PRECISIONS)
    kernels = chosen("kernels", arguments.kernels, _KERNELS)
    # With a sweep no other shape is needed
    shapes = () if arguments.sweep and arguments.shapes == "" else shapes_of(arguments.shapes)
    shapes += sweep() if arguments.sweep else ()
    models = partial(SyntheticModels, arguments.generation, 0)
    return DitBenchmark(models, shapes, precisions, kernels, arguments.repeat, arguments.limit_s).run


def _decode_options(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "parts", PARTS)
    add_clips(parser, _DECODED)
    add_repeat(parser, 5)


def _decode(arguments: argparse.Namespace) -> Work:
    from .decode import DecodeBenchmark
    from .synthetic_models import SyntheticModels

    check_repeat(arguments)
    parts = chosen("parts", arguments.parts, PARTS)
    models = SyntheticModels(arguments.generation)
    benchmark = DecodeBenchmark(models, sizes_of(arguments), parts, arguments.repeat, arguments.limit_s)
    benchmark.check()
    return benchmark.run


def _e2e_options(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_clips(parser)
    parser.add_argument("--steps", type=int, metavar="N", help="of stage 1 (default: the recipe's)")
    parser.add_argument("--mode", choices=mode_names(), default=MODES[0].name, help="device mode (default %(default)s)")
    add_precision(parser)
    parser.add_argument("--compare", choices=PRECISIONS, help="then runs in this precision, and how the results differ")
    add_repeat(parser, 3)


def _e2e(arguments: argparse.Namespace) -> Work:
    from .e2e import E2EBenchmark
    from .synthetic_models import SyntheticModels

    check_repeat(arguments)
    if arguments.compare == arguments.precision:
        raise SettingError("compare", arguments.compare, "is the precision that it is compared with", "Name the other.")
    if arguments.steps is not None and arguments.steps < 1:
        raise SettingError("steps", arguments.steps, "must be 1 or more", "Leave it out for the recipe's.")
    benchmark = E2EBenchmark(
        partial(SyntheticModels, arguments.generation, 0),
        arguments.recipe,
        sizes_of(arguments),
        arguments.mode,
        tuple(filter(None, (arguments.precision, arguments.compare))),
        arguments.repeat,
        arguments.steps,
        arguments.limit_s,
    )
    benchmark.check()
    return benchmark.run


def _peers_options(parser: argparse.ArgumentParser) -> None:
    add_shapes(parser)
    add_names(parser, "contestants", CONTESTANTS)
    parser.add_argument("--no-video", action="store_true", help="leave the video decoders out")
    add_repeat(parser, 5)


def _peers(arguments: argparse.Namespace) -> Work:
    from .peers import DECODED, PeersBenchmark
    from .synthetic_models import SyntheticModels

    check_repeat(arguments)
    contestants = chosen("contestants", arguments.contestants, CONTESTANTS)
    benchmark = PeersBenchmark(
        SyntheticModels(arguments.generation),
        shapes_of(arguments.shapes),
        contestants,
        None if arguments.no_video else DECODED,
        arguments.repeat,
        arguments.limit_s,
    )
    return benchmark.run


BENCHMARKS: dict[str, Benchmark] = {
    "modes": Benchmark("a run in every device mode, side by side", _modes_options, _modes),
    "load": Benchmark("how fast a checkpoint comes into a host snapshot", _load_options, _load),
    "ceilings": Benchmark("matrix products, attention and copies alone", _ceilings_options, _ceilings),
    "dit": Benchmark("steps of the transformer, shape by shape", _dit_options, _dit),
    "decode": Benchmark("everything around the transformer, part by part", _decode_options, _decode),
    "e2e": Benchmark("whole runs, without writing files", _e2e_options, _e2e),
    "peers": Benchmark(
        "beside diffusers and ltx-core, with our weights",
        _peers_options,
        _peers,
        "Needs diffusers and ltx-core beside the pack: what is not installed is left out, and named.",
    ),
}
