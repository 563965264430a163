"""Text of files and users on its way to a page, a terminal, a log and metadata."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage import cli
from ltx2_two_stage.ltx2_core.errors import CheckpointError, SettingError
from ltx2_two_stage.ltx2_core.media.mp4 import SETTINGS_KEY, container_metadata
from ltx2_two_stage.ltx2_core.plain_text import AREAS, LONGEST_TEXT, json_text, plain
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = {
    "markup": "<img src=x onerror=alert(1)>",
    "escape sequence": "\x1b[31mred\x1b]0;title\x07",
    "one byte escape": "\x9b31m",
    "bidirectional": "\u202egnp.exe\u2066",
    "NUL": "a\0b",
    "half an emoji": "\ud83d",
    "bytes of a name": "\udcff.mp4",
    "tags": "a\U000e0041",
    "line separators": "a\u2028b\u2029c\x85d",
    "carriage return": "good\rbad",
    "megabytes": "x" * 1_000_000,
}
WORDS = (
    *("a quiet beach", "naïve café", "日本語", "😀 👩\u200d👩\u200d👧", "a\u200cb", "tab\tline\nend"),
    "a & b \"c\" 'd'",
)
LOGGER = re.compile(r"getLogger\(\"([^\"]+)\"\)")


def is_harmless(text: str) -> bool:
    shown = text.replace("\n", "").replace("\t", "").replace("\u200d", "").replace("\u200c", "")
    hidden = any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in set(shown))
    return not hidden and "<" not in text and ">" not in text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_acts_on_it(text: str) -> None:
    shown = plain(text)
    assert is_harmless(shown) and len(shown) <= LONGEST_TEXT
    shown.encode("utf-8")


@pytest.mark.parametrize("text", WORDS)
def test_what_people_write_stays(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_errors_are_clean_whoever_made_them(text: str) -> None:
    for error in (SettingError("lora", text, text, text), CheckpointError("gemma", text, text, text)):
        assert is_harmless(str(error)) and len(str(error)) <= LONGEST_TEXT


@pytest.mark.parametrize("text", [*HOSTILE.values(), *WORDS], ids=[*HOSTILE, *WORDS])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_is_exact_and_has_nothing_to_act_on(text: str, ascii_only: bool) -> None:
    written = json_text({text: [text, 1, None]}, indent=1, ascii_only=ascii_only)
    assert json.loads(written) == {text: [text, 1, None]}
    written.encode("ascii" if ascii_only else "utf-8")
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in set(written) - {"\n"})


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_metadata_of_a_clip_can_be_written(text: str) -> None:
    tag = container_metadata({"image": [{"image": text}], text: "é"})[SETTINGS_KEY]
    assert len(tag.encode("utf-8")) < 100_000 and "é" in tag
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in tag)


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_any_handler_gets_clean_lines(text: str) -> None:
    kept = Kept()
    logging.getLogger().addHandler(kept)
    try:
        for area in AREAS:
            logging.getLogger(f"ltx2.{area}").error("wrote %s", Path(f"/a/{text}\nltx2: all is well"))
        try:
            raise ValueError(text)
        except ValueError:
            logging.getLogger("ltx2.nodes").exception("with 100%% of %r", text[:20])
    finally:
        logging.getLogger().removeHandler(kept)
    assert len(kept.lines) == len(AREAS) + 1
    assert all(is_harmless(line) for line in kept.lines)
    assert all("\n" not in line and len(line) <= LONGEST_TEXT for line in kept.lines[:-1])


def test_a_message_that_does_not_fit_its_values_is_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("ltx2.nodes").warning("%d of %d", "\x1b[1mmany")
    assert "%d of %d" in caplog.text and is_harmless(caplog.records[0].getMessage())


def test_every_logger_of_the_package_is_cleaned() -> None:
    folders = ("nodes", "terminal", "ltx2_core", "device_manager", "benchmarks")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    names = {name for path in files for name in LOGGER.findall(path.read_text(encoding="utf-8"))}
    assert names - {"ltx2"} <= {f"ltx2.{area}" for area in AREAS}
    assert len(names) > 5


@pytest.fixture(scope="module")
def hostile_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "\x1b[31m<b>\u202e.safetensors"
    texts = {name: text for name, text in HOSTILE.items() if not re.search("[\ud800-\udfff]", text)}
    tensors = {f"diffusion_model.{text[:300]}.lora_{side}.weight": torch.ones(2, 2)
               for text in texts.values() for side in "AB"}  # fmt: skip
    save_file(tensors, path, {**texts, **{text[:300]: "x" for text in texts.values()}, "model_version": "\x1b[2J<b>"})
    return path


@pytest.mark.parametrize("options", [[], ["--json"], ["--verbose"]], ids=["text", "json", "verbose"])
def test_inspect_shows_a_hostile_file(
    hostile_lora: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(hostile_lora), *options]) in (0, 2)
    written: Any = capsys.readouterr()
    if options == ["--json"]:
        assert written.out.isascii() and (not written.out or json.loads(written.out)["path"] == str(hostile_lora))
        assert "\x1b" not in written.out and "\x7f" not in written.out
    else:
        assert is_harmless(written.out) and len(written.out) < 100_000
    assert is_harmless(written.err)


def test_a_fault_of_the_program_is_shown_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_arguments: object) -> None:
        raise RuntimeError(HOSTILE["escape sequence"] + HOSTILE["markup"])

    monkeypatch.setitem(cli.COMMANDS, "demo", fail)
    assert cli.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert is_harmless(said) and "in fail" in said and "fault of the program" in said
