"""The command line's own work: reading arguments, telling errors, showing progress, writing results whole."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import torch
from ltx2_two_stage import cli
from ltx2_two_stage.ltx2_core.errors import OutputError, SettingError
from ltx2_two_stage.ltx2_core.loading.artifacts import Role
from ltx2_two_stage.ltx2_core.recipe_choice import GuidanceChoice
from ltx2_two_stage.ltx2_core.recipes import DEFAULT_SIZES, RECIPE_NAMES, REVISIONS, official_recipe
from ltx2_two_stage.ltx2_core.stages.validate import check_size
from ltx2_two_stage.ltx2_core.types import RunReport, ScaleFactors, StageRecord, StreamGuidance
from ltx2_two_stage.terminal import model_files, results, values
from ltx2_two_stage.terminal.arguments import build_parser
from ltx2_two_stage.terminal.progress import TerminalProgress, messages
from safetensors.torch import load_file

GENERATE = ["generate", "--checkpoint", "m.safetensors", "--gemma", "g", "--prompt", "p", "--output", "o.mp4"]


@pytest.mark.parametrize(
    ("text", "path", "frame", "strength"),
    [
        ("a.png", "a.png", 0, 1.0),
        ("a.png@8", "a.png", 8, 1.0),
        ("a.png@8:0.5", "a.png", 8, 0.5),
        ("dir@home/a.png@16:1", "dir@home/a.png", 16, 1.0),
        (r"C:\pictures\a.png", r"C:\pictures\a.png", 0, 1.0),
        (r"C:\pictures\a.png@0:0.25", r"C:\pictures\a.png", 0, 0.25),
        ("a.png@-1", "a.png", -1, 1.0),
        ("a.png@last", "a.png", -1, 1.0),
        ("a.png@last:0.5", "a.png", -1, 0.5),
    ],
)
def test_image_argument(text: str, path: str, frame: int, strength: float) -> None:
    condition = values.image_condition(text)
    assert (condition.image, condition.frame, condition.strength) == (Path(path), frame, strength)


def test_an_existing_file_is_taken_as_it_stands(tmp_path: Path) -> None:
    odd = tmp_path / "a@8:0.5"
    odd.touch()
    assert values.image_condition(str(odd)).image == odd
    assert values.image_condition(f"{odd}@3").frame == 3


@pytest.mark.parametrize(
    "text", ["a.png@", "a.png@x", "a.png@1.5", "a.png@0:", "a.png@0:strong", "a.png@first", "me@home.png", "@4"]
)
def test_image_argument_refused(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        values.image_condition(text)
    assert caught.value.setting == "image" and caught.value.value == text and "FILE[@FRAME" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s.safetensors:0.8", values.LoRAArgument(Path("s.safetensors"), 0.8, "both")),
        ("s.safetensors:-1:2", values.LoRAArgument(Path("s.safetensors"), -1.0, "2")),
        ("s.safetensors:1", values.LoRAArgument(Path("s.safetensors"), 1.0, "both")),
        ("s.safetensors:1:1", values.LoRAArgument(Path("s.safetensors"), 1.0, "1")),
        ("s:1:both", values.LoRAArgument(Path("s"), 1.0, "both")),
        (r"C:\l\s.safetensors:0.5", values.LoRAArgument(Path(r"C:\l\s.safetensors"), 0.5, "both")),
        (r"C:\l\s.safetensors:0.5:1", values.LoRAArgument(Path(r"C:\l\s.safetensors"), 0.5, "1")),
    ],
)
def test_lora_argument(text: str, expected: values.LoRAArgument) -> None:
    assert values.lora(text) == expected


@pytest.mark.parametrize(
    "text", ["s.safetensors", "s:", ":1", "s:strong", r"C:\s.safetensors", "s:1:3", "s:nan", "s:x:2:"]
)
def test_lora_argument_refused(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        values.lora(text)
    assert caught.value.setting == "lora" and caught.value.value == text


def test_guidance_overrides_a_part_of_the_recipe() -> None:
    official = official_recipe("two-stage", "2.3").guidance.video
    changed = values.guidance("cfg=4.5, blocks=29/28,skip=1", "video-guidance").applied("video-guidance", official)
    assert changed == StreamGuidance(cfg=4.5, stg=1.0, modality=3.0, rescale=0.7, blocks=(28, 29), skip=1)
    assert official == official_recipe("two-stage", "2.3").guidance.video


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cgf=3", "'cgf'"),
        ("cfg", "'cfg'"),
        ("", "''"),
        ("cfg=3,cfg=4", "twice"),
        ("cfg=high", "video-guidance cfg"),
        ("cfg=inf", "video-guidance cfg"),
        ("blocks=28+29", "video-guidance blocks"),
        ("blocks=", "video-guidance blocks"),
        ("skip=0.5", "video-guidance skip"),
    ],
)
def test_guidance_refused(text: str, named: str) -> None:
    with pytest.raises(SettingError, match="video-guidance") as caught:
        values.guidance(text, "video-guidance")
    assert named in str(caught.value) and caught.value.value == text


def test_files_come_from_the_hub_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download_set(repository: str, recipe: str) -> tuple[None, dict[Role, Path]]:
        asked.append((repository, recipe))
        return None, {Role.CHECKPOINT: Path("cache/m.safetensors"), Role.UPSAMPLER: Path("cache/u.safetensors")}

    monkeypatch.setattr(model_files, "download_set", download_set)
    monkeypatch.setattr(model_files, "download_gemma", lambda: Path("cache/gemma"))
    words = ["generate", "--prompt", "p", "--output", "o.mp4", "--checkpoint", "Lightricks/LTX-2.3"]
    assert model_files.resolve(build_parser().parse_args([*words, "--gemma", "g"])).checkpoint == Path(words[-1])
    assert asked == []

    files = model_files.resolve(build_parser().parse_args([*words, "--download", "--upsampler", "mine.safetensors"]))
    assert asked == [("Lightricks/LTX-2.3", "two-stage")]
    assert (files.checkpoint, files.gemma) == (Path("cache/m.safetensors"), Path("cache/gemma"))
    assert files.upsampler == Path("mine.safetensors")  # what is named wins
    with pytest.raises(SettingError, match="checkpoint"):
        model_files.resolve(build_parser().parse_args([*words[:-1], "models/a/b.safetensors", "--download"]))


def test_strength_pair() -> None:
    assert values.strength_pair("0.25,0.5") == (0.25, 0.5)
    for text in ("1", "1,2,3", "a,b", "nan,1"):
        with pytest.raises(SettingError, match="distilled-strength"):
            values.strength_pair(text)


def test_defaults_are_the_official_ones() -> None:
    arguments = build_parser().parse_args(GENERATE)
    assert (arguments.frames, arguments.fps) == (121, 24.0)
    assert (arguments.recipe, arguments.seed, arguments.revision) == ("two-stage", 10, "newest")
    assert arguments.image == [] and arguments.lora == [] and arguments.video_guidance == GuidanceChoice()


@pytest.mark.parametrize(
    ("extra", "size"),
    [
        ([], (768, 512)),
        (["--recipe", "one-stage"], (768, 512)),
        (["--recipe", "distilled"], (768, 512)),
        (["--recipe", "hq"], (1920, 1088)),
        (["--recipe", "hq", "--width", "960"], (960, 1088)),
        (["--recipe", "hq", "--height", "0"], (1920, 0)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_size_that_is_left_out_is_the_recipes(extra: list[str], size: tuple[int, int]) -> None:
    arguments = build_parser().parse_args([*GENERATE, *extra])
    assert (arguments.width, arguments.height) == size


def test_every_recipe_has_a_size_that_it_takes() -> None:
    assert tuple(DEFAULT_SIZES) == RECIPE_NAMES
    for name, (width, height) in DEFAULT_SIZES.items():
        check_size(width, height, 121, 24.0, official_recipe(name, "2.3").stages, ScaleFactors(8, 32, 32))


def test_repeated_options_do_not_leak_into_the_next_command() -> None:
    first = build_parser().parse_args([*GENERATE, "--image", "a.png", "--image", "b.png@8"])
    assert [condition.frame for condition in first.image] == [0, 8]
    assert build_parser().parse_args(GENERATE).image == []


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--width", "wide"], ["--width", "'wide'", "whole number"]),
        (["--fps", "fast"], ["--fps", "'fast'"]),
        (["--recipe", "best"], ["--recipe", "'best'", *RECIPE_NAMES]),
        (["--revision", "old"], ["--revision", "'old'", *REVISIONS]),
        (["--device", "tpu"], ["--device", "'tpu'", "cuda"]),
        (["--precision", "fp4"], ["--precision", "'fp4'", "fp8"]),
        (["--dtype", "int8"], ["--dtype", "'int8'", "bfloat16"]),
        (["--device-mode", "fast"], ["--device-mode", "'fast'", "snapshot-low"]),
        (["--audio-source", "3"], ["--audio-source", "'3'", "stage1"]),
        (["--sampler", "heun"], ["--sampler", "'heun'", "gradient_estimation"]),
        (["--sigmas", "1,high,0"], ["--sigmas", "'1,high,0'"]),
        (["--refine-sigmas", "nan,0"], ["--refine-sigmas", "'nan,0'"]),
        (["--guidance-passes", "all"], ["--guidance-passes", "'all'", "together"]),
        (["--image", "a.png@x"], ["--image", "'a.png@x'"]),
        (["--lora", "a.safetensors"], ["--lora", "'a.safetensors'", "FILE:STRENGTH"]),
        (["--video-guidance", "foo=1"], ["--video-guidance", "'foo'", "cfg"]),
        (["--audio-guidance", "cfg=x"], ["--audio-guidance", "'x'"]),
        (["--distilled-strength", "1"], ["--distilled-strength", "'1'"]),
        (["--stepz", "3"], ["--stepz"]),
        (["--step", "3"], ["--step"]),  # no abbreviations: a later option may take the name
    ],
)
def test_usage_errors_are_one_line(extra: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*GENERATE, *extra]) == 2
    written = capsys.readouterr()
    assert written.out == "" and written.err.count("\n") == 1 and written.err.startswith("ltx2: error: ")
    for part in named:
        assert part in written.err


def test_missing_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate"]) == 2
    assert "--checkpoint" in (error := capsys.readouterr().err) and "--prompt" in error and "--output" in error
    assert cli.main([]) == 2


@pytest.mark.parametrize("command", [[], ["generate"], ["make-tiny"], ["demo"], ["inspect"]], ids=lambda c: " ".join(c))
def test_help_works(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0 and "usage: ltx2" in capsys.readouterr().out


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "generate", interrupted)
    assert cli.main(GENERATE) == 130
    assert "interrupted" in capsys.readouterr().err


def test_verbose_shows_where_an_error_was_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_arguments: object) -> None:
        raise SettingError("width", 500, "must be a multiple of 64", "Try 448 or 512.")

    monkeypatch.setitem(cli.COMMANDS, "generate", refused)
    assert cli.main(GENERATE) == 2
    assert capsys.readouterr().err == "ltx2: error: width = 500: must be a multiple of 64. Try 448 or 512.\n"
    assert cli.main([*GENERATE, "--verbose"]) == 2
    assert "in refused" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_what_remains() -> None:
    stream = Terminal()
    progress = TerminalProgress(stream)
    progress.start("stage_1", 4)
    progress.step("stage_1", 1)
    progress.step("stage_1", 4)
    progress.finish("stage_1")
    assert "stage_1" in stream.getvalue() and "100%" in stream.getvalue() and "4/4" in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_an_interrupted_bar_ends_its_line() -> None:
    stream = Terminal()
    progress = TerminalProgress(stream)
    progress.start("stage_1", 4)
    progress.close()
    assert stream.getvalue().endswith("\n")


def test_a_log_file_gets_one_line_per_stage_and_quiet_none() -> None:
    for quiet, lines in ((False, 2), (True, 0)):
        stream = io.StringIO()
        progress = TerminalProgress(stream, quiet)
        for stage in ("text", "stage_1"):
            progress.start(stage, 2)
            progress.step(stage, 1)
            progress.step(stage, 2)
            progress.finish(stage)
        assert stream.getvalue().count("\n") == lines and "\r" not in stream.getvalue()


def test_messages_follow_verbosity_and_leave_the_logger_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("ltx2.loading")
    before = list(logging.getLogger("ltx2").handlers)
    for options, shown in (({}, "IW"), ({"quiet": True}, "W"), ({"verbose": True}, "DIW")):
        with messages(**options):
            logger.debug("D")
            logger.info("I")
            logger.warning("W")
        assert "".join(line[-1] for line in capsys.readouterr().err.splitlines()) == shown
    assert logging.getLogger("ltx2").handlers == before


def test_targets_are_checked_before_anything_else(tmp_path: Path) -> None:
    good = {"output": tmp_path / "a.mp4", "report": tmp_path / "a.json", "save-latents": tmp_path / "a.safetensors"}
    results.check_targets(good)
    assert list(tmp_path.iterdir()) == []
    cases = [
        ({**good, "output": tmp_path / "a.avi"}, "output", ".mp4"),
        ({**good, "report": tmp_path / "a.txt"}, "report", ".json"),
        ({**good, "output": tmp_path / "none" / "a.mp4"}, "output", "none"),
        ({**good, "save-latents": Path("/proc/a.safetensors")}, "save-latents", "/proc/a.safetensors"),
    ]
    for targets, setting, value in cases:
        with pytest.raises((SettingError, OutputError)) as caught:
            results.check_targets(targets)
        assert caught.value.setting == setting and value in str(caught.value)
    with pytest.raises(SettingError, match="lora"):
        results.check_targets(good, [("lora", tmp_path / "." / "a.safetensors")])


def test_a_result_folder_is_made_or_refused(tmp_path: Path) -> None:
    results.check_folder("directory", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="directory"):
            results.check_folder("directory", path)


def test_report_is_the_contract(tmp_path: Path) -> None:
    report = RunReport(stages=[StageRecord("text", 1.5, 2, 3, 4)], mode="one-device", mode_reason="r", seed=7)
    results.write_report(tmp_path / "r.json", report)
    written = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert written["stages"] == [{"name": "text", "ms": 1.5, "peak_bytes": 2, "h2d_bytes": 3, "d2h_bytes": 4}]
    assert {"mode", "mode_reason", "revision", "recipe", "seed", "files", "device", "versions"} < set(written)


def test_latents_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l.safetensors"
    tensors = {"stage1_video": torch.arange(6.0).reshape(1, 6), "frames": torch.ones(1, 2, 2, 3, dtype=torch.uint8)}
    results.write_latents(path, tensors)
    read = load_file(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    before = path.read_bytes()

    def full_disk(_tensors: object, target: Path, _metadata: object) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ltx2_two_stage.ltx2_core.files.saving.save_file", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        results.write_latents(path, tensors)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
