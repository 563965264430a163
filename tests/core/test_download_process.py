"""Downloads in a process of their own, from a hub on this machine with the real client: whole files or nothing."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, file_download
from ltx2_two_stage.ltx2_core.errors import CheckpointError, LTX2Error, OutputError
from ltx2_two_stage.ltx2_core.loading import download_process
from ltx2_two_stage.ltx2_core.loading.download import remote_files, remote_sizes
from ltx2_two_stage.ltx2_core.loading.download_process import check_space, fetch, partial_bytes

REPOSITORY, PATH = "Lightricks/LTX-2.3", "sub/ltx-2.3-22b-dev.safetensors"
DATA = os.urandom(12_000_000)


class Stopped(BaseException):
    """As ComfyUI's own interrupt: no Exception."""


@pytest.fixture
def hub(fake_hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    fake_hub.files[REPOSITORY] = {PATH: DATA, "README.md": b"words"}
    yield fake_hub
    fake_hub.pause = 0.0
    fake_hub.gated.clear()
    fake_hub.wrong_size.clear()
    fake_hub.wrong_sum.clear()
    fake_hub.status = 0


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / "ltx-2.3-22b-dev.safetensors"


def nothing(nbytes: int) -> None: ...


def test_a_file_comes_whole_with_its_progress_and_nothing_else(hub: Any, target: Path) -> None:
    hub.pause = 0.1
    seen: list[int] = []
    sizes = remote_sizes(REPOSITORY, [PATH], client=HfApi(endpoint=hub.url))
    assert sizes == {PATH: len(DATA)}
    fetch(REPOSITORY, PATH, sizes[PATH], target, seen.append)
    assert target.read_bytes() == DATA
    assert list(target.parent.iterdir()) == [target]
    assert seen == sorted(seen) and seen[-1] == len(DATA) and any(0 < nbytes < len(DATA) for nbytes in seen)


def left(target: Path) -> Path:
    return target.with_name(f".{target.name}.download")


def test_a_stopped_download_ends_at_once_and_the_next_one_goes_on(hub: Any, target: Path) -> None:
    hub.pause = 1.0

    def stop(_nbytes: int) -> None:
        if (left(target) / "partial").exists():
            raise Stopped

    with pytest.raises(Stopped):
        fetch(REPOSITORY, PATH, len(DATA), target, stop)
    assert (left(target) / "partial").stat().st_size < len(DATA) / 2, "the rest was not waited for"
    assert list(target.parent.iterdir()) == [left(target)], "nothing under its name"
    hub.pause = 0.0
    fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    assert target.read_bytes() == DATA and list(target.parent.iterdir()) == [target]


class Here:
    """A download's process that runs in this one, at once."""

    def __init__(self, repository: str, path: str, staging: Path, revision: str = "main") -> None:
        self.stdin, self.stdout, self.returncode = None, io.StringIO(), 0
        try:
            download_process._obtain(repository, path, staging, revision)
        except (CheckpointError, OutputError) as error:
            facts = {"kind": type(error).__name__, **{name: str(value) for name, value in vars(error).items()}}
            self.stdout, self.returncode = io.StringIO(json.dumps(facts)), 1

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def here(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub, with downloads in this process: starting one for each takes a second."""

    def ask(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = "{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{template}")
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{template}", raising=False)

    ask(hub.url)
    hub.ask_at = ask
    monkeypatch.setattr(download_process, "_start", Here)
    return hub


def leave_part(target: Path, data: bytes, **facts: Any) -> None:
    """What a process that was killed has left."""
    left(target).mkdir()
    (left(target) / "partial").write_bytes(data)
    etag = hashlib.sha256(DATA).hexdigest()
    known = {"repository": REPOSITORY, "path": PATH, "etag": etag, "nbytes": len(DATA), "commit": "f" * 40}
    (left(target) / "facts.json").write_text(json.dumps({**known, **facts}))


@pytest.mark.parametrize("have", [1, 5_000_000, len(DATA) - 1, len(DATA)])
def test_a_part_of_the_same_bytes_is_gone_on_with(here: Any, target: Path, have: int) -> None:
    """Whatever the commit was that it came from: a repository moves on, and the file stays."""
    leave_part(target, DATA[:have])
    assert partial_bytes(target) == have
    here.ranges.clear()
    assert fetch(REPOSITORY, PATH, len(DATA), target, nothing) == here.commit
    assert target.read_bytes() == DATA and list(target.parent.iterdir()) == [target]
    assert here.ranges == ([have] if have < len(DATA) else [])


@pytest.mark.parametrize(
    "facts",
    [{"etag": "0" * 64}, {"path": "other"}, {"repository": "a/b"}, {"nbytes": 7}, {"more": 1}],
    ids=lambda facts: next(iter(facts)),
)
def test_a_part_of_other_bytes_is_not(here: Any, target: Path, facts: dict[str, Any]) -> None:
    leave_part(target, bytes(4_000_000), **facts)
    here.ranges.clear()
    fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    assert target.read_bytes() == DATA and here.ranges == []


@pytest.mark.parametrize("part", [bytes(1000), DATA + b"more"], ids=["damaged", "too long"])
@pytest.mark.usefixtures("here")
def test_a_part_that_is_damaged_never_gets_the_name(target: Path, part: bytes) -> None:
    leave_part(target, part)
    if len(part) < len(DATA):
        with pytest.raises(CheckpointError, match=r"its SHA-256 is [0-9a-f]{64}, and should be [0-9a-f]{64}"):
            fetch(REPOSITORY, PATH, len(DATA), target, nothing)
        assert list(target.parent.iterdir()) == []
    fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("stated", ["by the hub", "by the caller"])
def test_another_sum_than_stated_is_refused(here: Any, target: Path, stated: str) -> None:
    here.wrong_sum.update({PATH} if stated == "by the hub" else ())
    asked = {} if stated == "by the hub" else {"sha256": "A" * 64}
    with pytest.raises(CheckpointError, match=r"sent a damaged sub/ltx-2\.3-22b-dev\.safetensors: its SHA-256 is"):
        fetch(REPOSITORY, PATH, len(DATA), target, nothing, **asked)
    assert list(target.parent.iterdir()) == []


def test_a_download_that_was_complete_is_only_checked(here: Any, target: Path) -> None:
    leave_part(target, DATA)
    (left(target) / "partial").rename(left(target) / "complete")
    here.pause = 5.0
    fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    assert target.read_bytes() == DATA


def test_a_branch_is_resolved_once(here: Any, target: Path) -> None:
    here.asked.clear()
    fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    assert f"{REPOSITORY}/resolve/{here.commit}/{PATH}" == here.asked[-1]
    files = remote_files(REPOSITORY, [PATH, "README.md"], client=HfApi(endpoint=here.url))
    assert {file.commit for file in files.values()} == {here.commit}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not exist, or is private"),
        (404, "answered with an error .404"),
        (429, "too many requests"),
        (503, "error .503"),
        (403, "gated"),
    ],
)
def test_what_the_hub_answers_is_said(here: Any, target: Path, status: int, words: str) -> None:
    here.status = status
    with pytest.raises(CheckpointError, match=words):
        fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    assert list(target.parent.iterdir()) == []


class Page(BaseHTTPRequestHandler):
    """Answers everything with a page, as a proxy that wants people to log in does."""

    def log_message(self, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "6")
        self.end_headers()


def test_a_page_is_no_file(here: Any, target: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here.ask_at(f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(CheckpointError, match=r"is not answered by a Hugging Face Hub.*Check HF_ENDPOINT"):
            fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    finally:
        server.shutdown()
        server.server_close()
    assert list(target.parent.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_what_a_killed_download_left_is_removed(target: Path) -> None:
    left(target).mkdir()
    (left(target) / "half").write_bytes(b"x")
    fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    assert list(target.parent.iterdir()) == [target]


def _gated(hub: Any) -> None:
    hub.gated.add(REPOSITORY)


def _gone(hub: Any) -> None:
    del hub.files[REPOSITORY][PATH]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [(_gated, "accept its licence"), (_gone, "has no file")],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_failures_say_what_to_do_and_leave_nothing(hub: Any, target: Path, prepare: Any, words: str) -> None:
    prepare(hub)
    with pytest.raises(LTX2Error, match=words):
        fetch(REPOSITORY, PATH, len(DATA), target, nothing)
    assert list(target.parent.iterdir()) == []


@pytest.mark.usefixtures("hub")
def test_another_size_than_announced_is_refused(target: Path) -> None:
    with pytest.raises(CheckpointError, match="sent 12,000,000 bytes"):
        fetch(REPOSITORY, PATH, len(DATA) + 1, target, nothing)
    assert list(target.parent.iterdir()) == []


def test_a_process_that_says_nothing_is_an_error_too(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_process, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(CheckpointError, match="ended with code 3"):
        fetch(REPOSITORY, PATH, 1, target, nothing)
    assert list(target.parent.iterdir()) == []


@pytest.mark.usefixtures("target")
def test_the_process_ends_with_its_parent(hub: Any, tmp_path: Path) -> None:
    hub.pause = 1.0
    staging = tmp_path / "staging"
    staging.mkdir()
    process = download_process._start(REPOSITORY, PATH, staging)
    assert process.stdin is not None
    process.stdin.close()  # as when the parent dies
    assert process.wait(120) != 0
    download_process._end(process)


def test_a_file_that_is_not_there_is_named_before_anything_is_fetched(hub: Any) -> None:
    with pytest.raises(CheckpointError, match=r"has no file other\.safetensors"):
        remote_sizes(REPOSITORY, ["other.safetensors"], client=HfApi(endpoint=hub.url))


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000_000_000))
    check_space(tmp_path, 49_000_000_000)
    with pytest.raises(OutputError, match=r"has 50.0 GB free, the download takes 49.1 GB"):
        check_space(tmp_path, 49_100_000_000)


def test_a_folder_that_cannot_be_written_is_named(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
        fetch(REPOSITORY, PATH, 1, target, nothing)


def test_the_program_needs_no_installed_package(tmp_path: Path) -> None:
    """It runs in the host's Python, whose current folder may hold modules of any name."""
    (tmp_path / "huggingface_hub.py").write_text("raise RuntimeError('not this one')")
    code = f"{download_process._PROGRAM.replace('.main(sys.argv[2:])', '')}"
    root = str(Path(download_process.__file__).parents[2])
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([sys.executable, "-c", code, root], cwd=empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
