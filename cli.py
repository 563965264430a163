"""``ltx2``: the command line. Brings arguments, engine and residency together, as the nodes do inside ComfyUI."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .device_manager.modes import lightest
from .ltx2_core.errors import LTX2Error, OutputError, SettingError, is_out_of_memory, memory_error
from .ltx2_core.plain_text import is_plain, json_text, plain_trace
from .terminal.arguments import build_parser
from .terminal.progress import TerminalProgress, messages
from .terminal.streams import Terminated, say, signals_end_runs, streams_never_fail, write

if TYPE_CHECKING:
    import torch

    from .ltx2_core.loading.synthetic import Variant
    from .ltx2_core.protocols import Models
    from .ltx2_core.recipe_choice import RecipeChoice
    from .ltx2_core.request import GenerationRequest

# What a command needs is imported inside it: help and usage errors do not wait for transformers and the video library.

log = logging.getLogger("ltx2.cli")

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
NOBODY_READS = 141  # as a process that SIGPIPE ends
DEMO_FOLDER = Path("output")
DEMO_CLIP = ("--width", "256", "--height", "256", "--frames", "33", "--steps", "6", "--prompt", "waves at a beach")
DEMO_NOTE = (
    "The demo's models are tiny and their weights are random: it shows the whole path from model files to a clip\n"
    "with picture and sound, not what LTX-2 can do."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0, 1 after an unexpected error whose text had to be cleaned, 2 for input that cannot work, 130
        after Ctrl-C, 128 and the signal's number after another one that ends processes.
    """
    with streams_never_fail(), signals_end_runs():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    verbose = False
    try:
        arguments = build_parser().parse_args(argv)
        verbose = arguments.verbose
        with messages(verbose, arguments.quiet):
            COMMANDS[arguments.command](arguments)
    except LTX2Error as error:
        trace = plain_trace(error) if verbose else ""
        sys.stderr.write(f"{trace}ltx2: error: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt as error:
        sys.stderr.write("\nltx2: interrupted\n")
        return error.status if isinstance(error, Terminated) else INTERRUPTED
    except Exception as error:
        if is_out_of_memory(error):
            trace = plain_trace(error) if verbose else ""
            sys.stderr.write(f"{trace}ltx2: error: {memory_error(error, lightest=lightest())}\n")
            return BAD_INPUT
        if is_plain(error):
            raise
        sys.stderr.write(f"{plain_trace(error)}ltx2: this is a fault of the program, not of your input\n")
        return FAILED
    return 0


def generate(arguments: argparse.Namespace) -> None:
    """Makes one clip. Files and settings are checked in the order in which that costs least."""
    from .assembly import check_device_mode, open_manager
    from .ltx2_core.loading.model_set import ModelSet
    from .ltx2_core.media.mp4 import Mp4Writer, container_metadata
    from .ltx2_core.pipeline import Pipeline
    from .ltx2_core.stages.belonging import check_given
    from .ltx2_core.stages.validate import check_prompt, check_text, validate
    from .ltx2_core.types import DTYPES
    from .terminal.checks import check_options
    from .terminal.model_files import resolve
    from .terminal.results import check_targets, write_latents, write_report
    from .terminal.summary import summary

    check_options(arguments)
    check_prompt(arguments.prompt)
    check_text("negative-prompt", arguments.negative_prompt)
    check_device_mode(arguments.device_mode)
    device = _device(arguments.device)
    dtype = DTYPES[arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    targets = {"output": arguments.output, "report": arguments.report, "save-latents": arguments.save_latents}
    check_targets(targets, _read_files(arguments))

    models = ModelSet.open(resolve(arguments), dtype, arguments.precision)
    request = _request(arguments, models)
    validate(models, request)
    check_given(_choice(arguments), request, arguments.image_crf)
    pipeline = Pipeline(models, open_manager(models, device, arguments.device_mode, request.size))

    progress = TerminalProgress(quiet=arguments.quiet)
    with Mp4Writer(arguments.output, container_metadata(_settings(arguments))) as writer:
        try:
            result = pipeline.run(request, progress, writer, keep_latents=arguments.save_latents is not None)
        finally:
            progress.close()
    if arguments.report is not None:
        write_report(arguments.report, result.report)
    if arguments.save_latents is not None:
        write_latents(arguments.save_latents, result.latents)
    say(summary(arguments.output, request, result.audio, result.report))


def _request(arguments: argparse.Namespace, models: Models) -> GenerationRequest:
    from .ltx2_core.limits import LONGEST_SECONDS
    from .ltx2_core.media.audio import read_audio
    from .ltx2_core.media.image import with_pixels
    from .ltx2_core.request import GenerationRequest

    choice = _choice(arguments)
    return GenerationRequest(
        prompt=arguments.prompt,
        recipe=choice.recipe_for(models),
        negative_prompt=arguments.negative_prompt,
        width=arguments.width,
        height=arguments.height,
        frames=arguments.frames,
        fps=arguments.fps,
        seed=arguments.seed,
        images=tuple(with_pixels(image, choice.revision.images_as_shown) for image in arguments.image),
        audio=None if arguments.audio is None else read_audio(arguments.audio, LONGEST_SECONDS),
        image_crf=arguments.image_crf,
        audio_source=choice.audio_source,
        revision=choice.revision,
    )


def _choice(arguments: argparse.Namespace) -> RecipeChoice:
    from .ltx2_core.recipe_choice import RecipeChoice
    from .ltx2_core.recipes import REVISIONS, AudioSource

    return RecipeChoice(
        preset=arguments.recipe,
        steps=arguments.steps,
        sampler=arguments.sampler,
        sigmas=arguments.sigmas,
        refine_sigmas=arguments.refine_sigmas,
        schedule_tokens=arguments.schedule_tokens,
        separate_passes=arguments.guidance_passes and arguments.guidance_passes == "separate",
        video=arguments.video_guidance,
        audio=arguments.audio_guidance,
        distilled_strength=arguments.distilled_strength or (None, None),
        audio_source=arguments.audio_source and AudioSource(arguments.audio_source),
        revision=REVISIONS[arguments.revision],
    )


def _device(name: str | None) -> torch.device:
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        fix = "Use cpu, or install a torch build for this machine's GPU and driver."
        raise SettingError("device", name, "torch finds no CUDA device", fix)
    return torch.device(name or ("cuda" if available else "cpu"))


def _read_files(arguments: argparse.Namespace) -> list[tuple[str, Path]]:
    """Setting and file of everything that the run reads."""
    single = ("checkpoint", "gemma", "upsampler", "distilled_lora", "video_vae", "audio_vae", "text_projection")
    named = [(name.replace("_", "-"), getattr(arguments, name)) for name in (*single, "audio")]
    named += [("lora", lora.path) for lora in arguments.lora] + [("image", image.image) for image in arguments.image]
    return [(setting, path) for setting, path in named if path is not None]


def _settings(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """What made the clip, for the container: every setting but where results went, files without their folders."""
    left_out = {"command", "output", "report", "save_latents", "quiet", "verbose"}
    return {
        name: _plain(value) for name, value in vars(arguments).items() if name not in left_out and value is not None
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {name: item for name, item in named.items() if item is not None}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def make_tiny(arguments: argparse.Namespace) -> None:
    """Writes the tiny files and shows the command that uses them, or where in ComfyUI they are."""
    from .terminal.results import check_folder

    if arguments.comfyui:
        from .ltx2_core.whole_file import output_errors
        from .terminal.comfyui_models import place_tiny

        with output_errors("directory", arguments.directory):
            placed = place_tiny(arguments.directory, arguments.variant, arguments.fp8)
        say("\n".join(map(str, placed)))
        return
    check_folder("directory", arguments.directory)
    options = _tiny_options(arguments.directory, arguments.variant, arguments.fp8)
    say(f"ltx2 generate {shlex.join(options)} --prompt TEXT --output clip.mp4")


def demo(arguments: argparse.Namespace) -> None:
    """``generate`` with tiny files and few steps, as anybody could type it."""
    from .terminal.results import check_folder

    check_folder("folder", DEMO_FOLDER)
    options = _tiny_options(DEMO_FOLDER / "tiny", "2.3")
    options += ["--output", str(DEMO_FOLDER / "demo.mp4"), "--report", str(DEMO_FOLDER / "demo.json"), *DEMO_CLIP]
    options += ["--quiet"] * arguments.quiet + ["--verbose"] * arguments.verbose
    if not arguments.quiet:
        sys.stderr.write(f"{DEMO_NOTE}\n\nltx2 generate {shlex.join(options)}\n\n")
    generate(build_parser().parse_args(["generate", *options]))


def _tiny_options(folder: Path, variant: Variant, fp8: bool = False) -> list[str]:
    """Writes tiny files; returns the options of ``generate`` that name them."""
    from .ltx2_core.loading.synthetic import write_tiny
    from .ltx2_core.whole_file import output_errors

    with output_errors("directory", folder):
        files = write_tiny(folder, variant, fp8=fp8)
    log.info("wrote tiny LTX-%s files to %s", variant, folder)
    named = {"checkpoint": files.checkpoint, "gemma": files.gemma, "upsampler": files.upsampler}
    named["distilled-lora"] = files.distilled_lora
    return [word for name, path in named.items() for word in (f"--{name}", str(path))]


def inspect(arguments: argparse.Namespace) -> None:
    """Prints what a file holds."""
    from .ltx2_core.loading.inspect import inspect_file

    found = inspect_file(arguments.file)
    if arguments.json:
        _told(write(json_text(found.to_json(), indent=2, ascii_only=True)))
    else:
        tell(found.to_text())


def tell(text: str) -> None:
    """Writes what the command was called for.

    Raises:
        OutputError: it cannot be written.
        SystemExit: nobody reads it.
    """
    _told(say(text))


def _told(failure: Exception | None) -> None:
    if isinstance(failure, BrokenPipeError):
        raise SystemExit(NOBODY_READS)
    if failure is not None:
        raise OutputError("standard output", "-", f"writing failed ({failure})", "Check where it goes.")


def accept_licences(arguments: argparse.Namespace) -> None:
    """Notes that the user accepts the licences, and says which these are."""
    from .ltx2_core.loading.licences import LICENCES, accept, missing_consent

    kept = None if arguments.list else accept()
    missing = missing_consent(LICENCES)
    for licence, repositories in LICENCES.items():
        state = "not accepted yet" if licence in missing else "accepted"
        sys.stdout.write(f"{licence} ({state}): on the pages of {', '.join(repositories)} on Hugging Face\n")
    if kept is not None:
        sys.stdout.write(f"Noted in {kept}\n")


def bench(arguments: argparse.Namespace) -> None:
    """Measures, where benchmarks are: :mod:`.terminal.arguments` found them."""
    arguments.measure(arguments)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "generate": generate,
    "make-tiny": make_tiny,
    "demo": demo,
    "inspect": inspect,
    "accept-licences": accept_licences,
    "bench": bench,
}


if __name__ == "__main__":
    sys.exit(main())
