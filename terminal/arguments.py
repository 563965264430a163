"""The arguments of ``ltx2``, one function per subcommand. They are read here; the engine checks what they mean."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from ..device_manager.modes import mode_names
from ..ltx2_core.errors import LTX2Error, SettingError
from ..ltx2_core.recipe_choice import GuidanceChoice
from ..ltx2_core.recipes import (
    DEFAULT_FPS,
    DEFAULT_FRAMES,
    DEFAULT_SEED,
    DEFAULT_SIZES,
    RECIPE_NAMES,
    REVISIONS,
    SAMPLERS,
    AudioSource,
)
from ..ltx2_core.types import DTYPES, PRECISIONS
from . import values


class UsageError(LTX2Error):
    """The command line itself is wrong: an unknown option, a missing one, or a value outside its choices."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.endswith("=--"):  # argparse would take it for no value at all
                self.error(f"argument {word[:-3]}: '--' is no value")
        found, rest = super().parse_known_args(args, namespace)
        if "width" in found:
            _fill_size(found)
        return found, rest


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ltx2", description="Video with sound from LTX-2 and LTX-2.3.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"ltx2 {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = functools.partial(commands.add_parser, allow_abbrev=False)
    _generate(
        add("generate", help="make a clip from a prompt, and images if given", usage=_USAGE, description=_GENERATE)
    )
    _make_tiny(add("make-tiny", help="write small model files with random weights", description=_MAKE_TINY))
    _demo(add("demo", help="make-tiny, then a clip from it, into output/", description=_DEMO))
    _inspect(add("inspect", help="show what a model file holds", description=_INSPECT))
    _licences(add("accept-licences", help="accept the licences of the model files", description=_LICENCES))
    _bench(add)
    return parser


# Written out: argparse cannot wrap a usage whose placeholders hold brackets.
_USAGE = "ltx2 generate --checkpoint F --gemma DIR --prompt T --output F.mp4 [OPTION]..."
_GENERATE = "Makes an MP4 with picture and sound. Everything is checked before any weight is read."
_MAKE_TINY = "Writes files in the official format, a few MB in all, with random weights: for trying and testing."
_DEMO = "Writes tiny model files with random weights and makes a clip from them: the whole path without any download."
_INSPECT = "Shows kind, version, config, dtype and bytes of a safetensors file. Never reads weights."


_LICENCES = (
    "Accepts the licences of the model files, for this user on this machine. LTX-2 Download fetches none before."
)


def _generate(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("model files")
    files.add_argument(
        "--checkpoint", type=Path, required=True, metavar="F", help="official file, or a folder: the newest set is used"
    )
    files.add_argument(
        "--download",
        action="store_true",
        help="take --checkpoint OWNER/NAME from the Hugging Face Hub; you accept the licences of its page, and Gemma's",
    )
    files.add_argument("--gemma", type=Path, metavar="DIR", help="Gemma 3 12B: Hugging Face folder, or one file")
    files.add_argument("--upsampler", type=Path, metavar="F", help="latent upsampler, for recipes of two stages")
    files.add_argument("--distilled-lora", type=Path, metavar="F", help="distilled LoRA, for two-stage and hq")
    files.add_argument(
        "--lora", **_packed(values.lora), metavar=values.LORA_FORM, help="another LoRA; STAGE is 1, 2 or both"
    )
    files.add_argument("--video-vae", type=Path, metavar="F", help="where the checkpoint has no video VAE")
    files.add_argument("--audio-vae", type=Path, metavar="F", help="where the checkpoint has no audio VAE and vocoder")
    files.add_argument("--text-projection", type=Path, metavar="F", help="where the checkpoint has no text projection")

    clip = parser.add_argument_group("clip")
    clip.add_argument("--prompt", required=True, metavar="T")
    clip.add_argument("--negative-prompt", default="", metavar="T")
    clip.add_argument(
        "--image",
        **_packed(values.image_condition),
        metavar=values.IMAGE_FORM,
        help="image that a frame must show: 0 is the first, last the last, -9 the ninth from the end",
    )
    clip.add_argument(
        "--audio", type=Path, metavar="F", help="sound that the picture is made for; the clip has it as it is"
    )
    clip.add_argument("--image-crf", type=_whole, metavar="N", help="H.264 round trip of images; 0 skips it")
    for axis, letter in enumerate("WH"):
        sizes = ", ".join(f"{recipe} {size[axis]}" for recipe, size in DEFAULT_SIZES.items())
        clip.add_argument(f"--{_AXES[axis]}", type=_whole, metavar=letter, help=f"default: {sizes}")
    clip.add_argument("--frames", type=_whole, default=DEFAULT_FRAMES, metavar="N", help=f"8 n + 1; {_SHOW}")
    clip.add_argument("--fps", type=_number, default=DEFAULT_FPS, metavar="R", help=_SHOW)
    clip.add_argument("--seed", type=_whole, default=DEFAULT_SEED, metavar="S", help=_SHOW)

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--recipe", choices=RECIPE_NAMES, default="two-stage", help=_SHOW)
    sampling.add_argument("--steps", type=_whole, metavar="N", help="steps of stage 1, in place of the recipe's")
    for stream in ("video", "audio"):
        setting = f"{stream}-guidance"
        sampling.add_argument(
            f"--{setting}",
            type=_reads(functools.partial(values.guidance, setting=setting)),
            default=GuidanceChoice(),
            metavar=values.GUIDANCE_FORM,
            help="parts of cfg=3,stg=1,rescale=0.7,modality=3,blocks=28/29,skip=0 in place of the recipe's",
        )
    sampling.add_argument(
        "--distilled-strength",
        type=_reads(values.strength_pair),
        metavar="S1,S2",
        help="the distilled LoRA's strength in stage 1 and 2, in place of the recipe's",
    )
    sampling.add_argument("--sampler", choices=SAMPLERS, help="of both stages, in place of the recipe's")
    for stage, setting in (("1", "sigmas"), ("2", "refine-sigmas")):
        sampling.add_argument(
            f"--{setting}",
            type=_reads(functools.partial(values.sigmas, setting)),
            metavar="S,S,...,0",
            help=f"noise levels of stage {stage}, in place of the recipe's",
        )
    sampling.add_argument(
        "--schedule-tokens",
        type=_whole,
        metavar="N",
        help="tokens that shift the schedule of stage 1, in place of the recipe's; 0 takes the clip's own",
    )
    sampling.add_argument(
        "--guidance-passes",
        choices=("together", "separate"),
        help="evaluated as one batch, or one after the other in less memory, in place of the recipe's choice",
    )
    sampling.add_argument(
        "--audio-source",
        choices=[source.value for source in AudioSource],
        help="whose sound the clip has; default: the given one, else that of the recipe's stage",
    )
    sampling.add_argument("--revision", choices=tuple(REVISIONS), default="newest", help=f"official rules; {_SHOW}")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    machine.add_argument("--dtype", choices=tuple(DTYPES), help="default: bfloat16 on cuda, float32 on the CPU")
    machine.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the transformer: as its file is (auto), large layers in fp8, or all weights in --dtype (full)",
    )
    machine.add_argument("--device-mode", choices=mode_names(), default="auto", help="where the models live")

    results = parser.add_argument_group("results")
    results.add_argument("--output", type=Path, required=True, metavar="F.mp4")
    results.add_argument("--report", type=Path, metavar="F.json", help="time, memory and traffic of each stage")
    results.add_argument("--save-latents", type=Path, metavar="F.safetensors", help="every intermediate tensor")
    _talk(results)


def _make_tiny(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--variant", choices=("2.3", "2.0"), default="2.3", help=_SHOW)
    parser.add_argument("--fp8", action="store_true", help="the checkpoint in the layout of the official fp8 files")
    parser.add_argument(
        "--comfyui", action="store_true", help="DIR is ComfyUI's models folder: each file goes to its place in it"
    )
    _talk(parser)


def _demo(parser: argparse.ArgumentParser) -> None:
    _talk(parser)


def _licences(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="only show them, and where they are to be read")
    _talk(parser)


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="F")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    _talk(parser)


def _bench(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Benchmarks have their arguments beside them. They are in the repository, not in what is published."""
    benchmarks = _benchmarks()
    if benchmarks is None:
        # Whatever is asked of it, help included, has one answer: no word is an option where options begin with "+"
        parser = add("bench", help="measure on a GPU (in the repository only)", prefix_chars="+", add_help=False)
        parser.add_argument("words", nargs="*")
        parser.set_defaults(measure=_without_benchmarks, verbose=False, quiet=False)
        return
    parser = add("bench", help="measure on a GPU", description=benchmarks.DESCRIPTION)
    benchmarks.add_arguments(parser)
    parser.set_defaults(measure=benchmarks.run)


def _benchmarks() -> Any:
    """What has the benchmarks' command line, or None in an installation without them."""
    package = f"{__package__.rpartition('.')[0]}.benchmarks"
    try:
        return importlib.import_module(f"{package}.command")
    except ModuleNotFoundError as error:
        if error.name in (package, f"{package}.command"):
            return None
        raise


def _without_benchmarks(_arguments: argparse.Namespace) -> NoReturn:
    raise LTX2Error(
        "ltx2 bench is not part of this installation: benchmarks are in the repository alone. Clone the repository, "
        "run pip install -e . in it, and call ltx2 bench again."
    )


def _talk(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress; warnings and errors only")
    parser.add_argument("-v", "--verbose", action="store_true", help="detailed messages, and tracebacks of errors")


def _fill_size(arguments: argparse.Namespace) -> None:
    """Gives a clip whose width or height was left out that of its recipe."""
    for axis, size in zip(_AXES, DEFAULT_SIZES[arguments.recipe], strict=True):
        if getattr(arguments, axis) is None:
            setattr(arguments, axis, size)


_AXES = ("width", "height")
_SHOW = "default: %(default)s"


def _reads(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows the text of this one exception type only; it names the option itself."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except SettingError as error:
            raise argparse.ArgumentTypeError(f"{error.value!r}: {error.problem}. {error.fix}") from error

    return convert


_whole = _reads(functools.partial(values.whole, ""))
_number = _reads(functools.partial(values.number, ""))


def _packed(read: Callable[[str], Any]) -> dict[str, Any]:
    return {"action": "append", "default": [], "type": _reads(read)}


def _version() -> str:
    try:
        return version("ltx2-two-stage")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"
