"""Files that are whole or not there: links, long names, full disks, signals, consoles that cannot be written to."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage import cli
from ltx2_two_stage.ltx2_core.errors import OutputError, SettingError
from ltx2_two_stage.ltx2_core.files import saving
from ltx2_two_stage.ltx2_core.files.saving import check_path, save_tensors
from ltx2_two_stage.ltx2_core.media.mp4 import Mp4Writer
from ltx2_two_stage.ltx2_core.types import RunReport, StageRecord
from ltx2_two_stage.ltx2_core.whole_file import place_whole, staged, whole_file
from ltx2_two_stage.terminal import results
from ltx2_two_stage.terminal.streams import Terminated, say, signals_end_runs, streams_never_fail
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
ODD = os.fsdecode(b"od\xff\xe9\x1b[31m")


def clip(path: Path) -> None:
    writer = Mp4Writer(path, {"ltx2_settings": "{}"})
    writer.open(64, 64, 24, None)
    writer.frames(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    writer.close()


def report(path: Path) -> None:
    results.write_report(path, RunReport(stages=[StageRecord("text", 1.0)], files={"lora": ODD}))


def latents(path: Path) -> None:
    results.write_latents(path, {"frames": torch.ones(2)})


WRITERS = {"clip": (clip, ".mp4"), "report": (report, ".json"), "latents": (latents, ".safetensors")}
ALL = pytest.mark.parametrize(("write", "ending"), WRITERS.values(), ids=WRITERS)


@ALL
@pytest.mark.parametrize("there", [True, False], ids=["its file is there", "its file is not"])
def test_a_link_stays_and_its_file_is_written(
    tmp_path: Path, write: Callable[[Path], None], ending: str, there: bool
) -> None:
    (tmp_path / "real").mkdir()
    target, link, outer = tmp_path / "real" / f"a{ending}", tmp_path / f"b{ending}", tmp_path / f"c{ending}"
    if there:
        target.write_text("old")
    link.symlink_to("real/a" + ending)
    outer.symlink_to(link)
    write(outer)
    assert outer.is_symlink() and link.is_symlink() and target.stat().st_size > 10 and not target.is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["real", target.name, link.name, outer.name])


@ALL
def test_any_name_that_the_file_system_takes(tmp_path: Path, write: Callable[[Path], None], ending: str) -> None:
    for name in ("a" * (255 - len(ending)), ODD, "é" * 100, "-", "a b;c"):
        write(tmp_path / f"{name}{ending}")
    assert len(list(tmp_path.iterdir())) == 5 and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("setting", ["output", "report", "save-latents"])
def test_what_cannot_be_replaced_is_refused_early(tmp_path: Path, setting: str) -> None:
    ending = {"output": ".mp4", "report": ".json", "save-latents": ".safetensors"}[setting]
    places = {"loop": f"loop{ending}", "null": os.devnull, "folder": str(tmp_path), "none": "no/such/place"}
    for name, target in places.items():
        (tmp_path / f"{name}{ending}").symlink_to(target)
    os.mkfifo(tmp_path / f"pipe{ending}")
    for name in (*places, "pipe", "x" * 260):
        with pytest.raises(OutputError, match=rf"^{setting} = "):
            results.check_targets({setting: tmp_path / f"{name}{ending}"})
    real = tmp_path / f"real{ending}"
    real.touch()
    (tmp_path / f"alias{ending}").symlink_to(real)
    with pytest.raises(SettingError, match="lora too"):
        results.check_targets({setting: tmp_path / f"alias{ending}"}, [("lora", real)])
    assert not list(tmp_path.glob("*.part")) and Path(os.devnull).exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), OSError(errno.EFBIG, "too large"), MemoryError()])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(OutputError, match="report = "), whole_file(tmp_path / "a", "report") as part:
        part.write_text("half")
        raise error
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_vanishes_is_an_error_of_writing(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    writer = Mp4Writer(folder / "clip.mp4")
    writer.open(64, 64, 24, None)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file now")
    writer.frames(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(OutputError, match="output = "):
        writer.close()


def test_without_a_thread_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OutputError, match="no thread can be started"), Mp4Writer(tmp_path / "clip.mp4") as writer:
        writer.open(64, 64, 24, None)
    assert list(tmp_path.iterdir()) == []


def test_make_tiny_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, save = [0], saving.save_file

    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        calls[0] += 1
        if calls[0] == 6:  # the second file of the text encoder: all else is written
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(saving, "save_file", full)
    (tmp_path / "kept.txt").write_text("mine")
    assert cli.main(["make-tiny", str(tmp_path / "new" / "tiny"), "--quiet"]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept.txt"]
    assert not list((tmp_path / "new").rglob("*.part"))


def test_staged_files_come_together_or_not_at_all(tmp_path: Path) -> None:
    with staged(tmp_path / "a" / "b") as stage:
        (stage / "c").mkdir()
        (stage / "c" / "d").write_text("new")
    assert (tmp_path / "a" / "b" / "c" / "d").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "e" / "f") as stage:
        (stage / "g").write_text("half")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c", "d"]


def test_a_file_moves_to_another_disk_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def across(self: Path, target: Path) -> Path:
        if self.suffix != ".part":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    (tmp_path / "a").write_text("whole")
    monkeypatch.setattr(Path, "replace", across)
    place_whole(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "whole" and not list(tmp_path.glob("*.part"))


def test_model_files_need_names_that_safetensors_reads(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"gemma = .*UTF-8"):
        check_path("gemma", tmp_path / ODD)
    check_path("gemma", tmp_path / "é")
    save_tensors(tmp_path / ODD, {"a": torch.ones(2)}, {"b": "c"})
    (tmp_path / ODD).rename(tmp_path / "read")
    assert torch.equal(load_file(tmp_path / "read")["a"], torch.ones(2))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_as_ctrl_c_does(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)

    def work(_arguments: object) -> None:
        with whole_file(tmp_path / "a", "output") as part:
            part.write_text("half")
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # does not disturb the cleaning up
            raise AssertionError("the signal was not noticed")

    before = signal.getsignal(number)
    monkeypatch.setitem(cli.COMMANDS, "demo", work)
    assert cli.main(["demo"]) == 128 + number
    assert "interrupted" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_end_runs():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_has_no_signals_to_take() -> None:
    seen: list[BaseException] = []

    def run() -> None:
        try:
            with signals_end_runs():
                pass
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not seen and issubclass(Terminated, KeyboardInterrupt)


class Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "stream",
    [
        None,
        Failing(BrokenPipeError(32, "Broken pipe")),
        Failing(OSError(28, "No space")),
        Failing(ValueError("closed")),
    ],
    ids=["closed at the start", "broken pipe", "full disk", "closed meanwhile"],
)
def test_writing_never_fails(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    with streams_never_fail():
        assert isinstance(say("é"), Exception)
        sys.stderr.write("more")
        sys.stderr.flush()
        assert not sys.stderr.isatty()
    assert sys.stdout is stream


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_console_that_lacks_signs_gets_others(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    with streams_never_fail():
        assert say("日本 é 😀 \udcff \x1b[31m") is None
    assert raw.getvalue().decode(encoding).endswith("[31m" + os.linesep) and b"\x1b" not in raw.getvalue()


@pytest.mark.parametrize("redirect", ["> /dev/full", ">&-", "| true", "2>&- >&- </dev/null"])
def test_a_process_ends_quietly_when_nobody_gets_its_words(redirect: str) -> None:
    code = (
        "import importlib.util as u, sys; root = sys.argv[1];"
        "s = u.spec_from_file_location('p', root + '/__init__.py', submodule_search_locations=[root]);"
        "sys.modules['p'] = m = u.module_from_spec(s); s.loader.exec_module(m); from p.terminal import streams\n"
        "with streams.streams_never_fail(): failure = streams.say('x' * 20_000) or streams.say('y' * 200_000)\n"
        "sys.exit(7 if failure is not None else 0)"
    )
    command = f'"$0" -c "$1" "$2" {redirect}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command, sys.executable, code, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 7 and done.stderr == ""


@pytest.mark.parametrize(
    ("failure", "status"), [(BrokenPipeError(32, "Broken pipe"), 141), (OSError(28, "No space"), 2), (None, 0)]
)
def test_the_status_tells_whether_the_result_was_read(
    failure: Exception | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO() if failure is None else Failing(failure))
    monkeypatch.setitem(cli.COMMANDS, "inspect", lambda _: cli.tell("what the file holds"))
    try:
        ended = cli.main(["inspect", "a"])
    except SystemExit as end:
        ended = int(end.code or 0)
    assert ended == status
