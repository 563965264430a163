"""Values that nobody means, for every option of ``ltx2 generate``: each ends in one clear line, or the run begins.

The suite takes a few of every option; all of them: ``python tests/fuzz/options.py [values per option [option]...]``.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

MANY = 1000
LONGEST_SECONDS = 2.0
LONGEST_LINE = 6000

NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "64",
        "768",
        "768.5",
        "1e3",
        "1e308",
        "1e-320",
        "-0.0",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "1_000",
    ),
    *("9" * 30, "-" + "9" * 30, "9" * 400, "9" * 5000, str(2**31), str(2**63), str(2**64), "1e400", "0.1", " 7 ", "٣"),
)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "None",
        "true",
        "[]",
        "{}",
        "\0",
        "a\0b",
        "\ud83d",
        "half \udcff",
        "\x1b[31mred\x1b[0m",
        "\u202eevil",
    ),
    *("<img src=x onerror=alert(1)>", "a\nb", "%s%n", "é" * 300, "x" * 70_000, "../../etc/passwd", "-", "--", "/", "."),
    *("/dev/null", "/proc/self/mem", "/dev/full", "C:\\a.mp4", "a" * 251 + ".mp4", "no/folder/a.mp4", "a.json", "😀"),
)
# Their values are looked at after the modules of the other files were built: half a second for each
SLOW = ("gemma", "upsampler", "distilled-lora", "lora")
SIGNS = ",:;@=/.-+eE0123456789 \t\nabcSTGcfgn\0\x1b\u202e\ud800🙂"
PARTS = {
    "image": ("i.png@{}", "i.png@0:{}", "i.png@last:{}", "{}@0"),
    "lora": ("{}:1", "f.safetensors:{}", "f.safetensors:1:{}"),
    "video-guidance": ("cfg={}", "stg={}", "rescale={}", "modality={}", "blocks={}", "skip={}", "{}=1", "cfg=1,cfg={}"),
    "distilled-strength": ("{},1", "0,{}", "{}"),
    "sigmas": ("1,{},0", "1,0.5,{}", "{},0", ",".join(["1"] * 3000) + "{}"),
}
PARTS |= {"audio-guidance": PARTS["video-guidance"], "refine-sigmas": PARTS["sigmas"]}
OPTIONS = (
    *("checkpoint", "gemma", "upsampler", "distilled-lora", "lora", "video-vae", "audio-vae", "text-projection"),
    *("prompt", "negative-prompt", "image", "audio", "image-crf", "width", "height", "frames", "fps", "seed"),
    *("recipe", "steps", "video-guidance", "audio-guidance", "distilled-strength", "sampler", "sigmas"),
    *("refine-sigmas", "schedule-tokens", "guidance-passes", "audio-source", "revision", "device", "dtype"),
    *("precision", "device-mode", "output", "report", "save-latents"),
)


def values(option: str, count: int) -> Iterator[str]:
    """So many values of an option, always the same ones: whole, as a part of its form, and with signs exchanged."""
    draw = random.Random(option)
    known = [part.format(value) for part in PARTS.get(option, ()) for value in NUMBERS + TEXTS]
    known += [*NUMBERS, *TEXTS]
    draw.shuffle(known)
    yield from known[:count]
    for _ in range(count - len(known)):
        text = list(draw.choice(known)[:80])
        for _ in range(draw.randint(1, 4)):
            text.insert(draw.randint(0, len(text)), draw.choice(SIGNS))
        yield "".join(text)


class Bench:
    """A command line that works, on tiny files, whose run ends where it would begin."""

    def __init__(self, cli: Any, files: Any, folder: Path, seconds: float) -> None:
        self._cli, self._seconds = cli, seconds
        self._base = {
            "checkpoint": str(files.checkpoint),
            "gemma": str(files.gemma),
            "upsampler": str(files.upsampler),
            "distilled-lora": str(files.distilled_lora),
            "prompt": "waves",
            "width": "128",
            "height": "128",
            "frames": "9",
            "device": "cpu",
            "output": str(folder / "clip.mp4"),
        }

    def problem(self, option: str, value: str) -> str | None:
        """What is wrong with how the command takes this value; None where all is well."""
        argv = ["generate", *(f"--{name}={text}" for name, text in {**self._base, option: value}.items()), "--quiet"]
        out, err, begun = io.StringIO(), io.StringIO(), time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = self._cli.main(argv)
            except BaseException as error:
                return f"{type(error).__name__} left the command: {error}"
        seconds, said = time.process_time() - begun, err.getvalue()
        if seconds > self._seconds:
            return f"it took {seconds:.1f} s"
        if status == self._cli.INTERRUPTED:
            return None
        if status != self._cli.BAD_INPUT or "Traceback" in said:
            return f"status {status}: {said[-600:]}"
        hidden = [c for c in said[:-1] if c != "\n" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
        if hidden or len(said) > LONGEST_LINE or "\u202e" in said or "ltx2: error: " not in said:
            return f"the error is not one clear text: {said[:600]!r}"
        return None


@contextlib.contextmanager
def bench(package: str, folder: Path, files: Any, seconds: float = LONGEST_SECONDS) -> Iterator[Bench]:
    """Models are opened once for the same files, and no run begins."""
    import importlib

    cli = importlib.import_module(f"{package}.cli")
    importlib.import_module(f"{package}.terminal.model_files")
    pipeline = importlib.import_module(f"{package}.ltx2_core.pipeline")
    model_set = importlib.import_module(f"{package}.ltx2_core.loading.model_set")
    opened: dict[Any, Any] = {}
    open_files = model_set.ModelSet.open

    def once(files: Any, dtype: Any, precision: str = "auto") -> Any:
        key = (files, dtype, precision)
        if key not in opened:
            opened[key] = open_files(files, dtype, precision)
        return opened[key]

    stop = mock.Mock(side_effect=KeyboardInterrupt)
    with mock.patch.object(model_set.ModelSet, "open", once), mock.patch.object(pipeline.Pipeline, "run", stop):
        yield Bench(cli, files, folder, seconds)


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Relative names of results lie in the folder meanwhile."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main(count: int, options: Sequence[str]) -> int:
    import importlib
    import importlib.util

    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("ltx2", root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    sys.modules["ltx2"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    write_tiny = importlib.import_module("ltx2.ltx2_core.loading.synthetic").write_tiny
    found = 0
    with tempfile.TemporaryDirectory() as folder, _inside(folder):
        files = write_tiny(Path(folder) / "tiny")
        with bench("ltx2", Path(folder), files) as each:
            for option in options or OPTIONS:
                begun, slowest = time.monotonic(), 0.0
                for value in values(option, count):
                    single = time.process_time()
                    problem = each.problem(option, value)
                    slowest = max(slowest, time.process_time() - single)
                    if problem is not None:
                        found += 1
                        sys.stdout.write(f"--{option}={value[:200]!r}: {problem}\n")
                passed = time.monotonic() - begun
                sys.stdout.write(f"{option}: {count} values, {passed:.1f} s, slowest {slowest:.2f} s\n")
                sys.stdout.flush()
        left = [path.name for path in Path(folder).rglob("*.part")]
    sys.stdout.write(f"{found} problems; left behind: {left}\n")
    return int(bool(found or left))


if __name__ == "__main__":
    raise SystemExit(main(int((sys.argv[1:] or [str(MANY)])[0]), sys.argv[2:]))
