"""A download that can be stopped at any moment, and leaves a file under its name only when all of it is there.

The Hub's transfer library runs threads of its own that no exception reaches. So each file is fetched by a process
that does nothing else (:func:`main` is its whole program) into a folder beside the file's place, on the same disk. It
is moved into place when it is complete and has the SHA-256 that the Hub states. What an interrupt, a broken connection
or a killed process leaves in the folder is gone on with by the next download of the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, LTX2Error, OutputError
from .download import SETTING, explained, find_remote, read_remote

__all__ = ["check_space", "fetch", "partial_bytes"]

logger = logging.getLogger("ltx2.loading")

POLL_SECONDS = 0.25
_END_SECONDS = 5.0  # that the process has to end by itself
_SPARE_BYTES = 1_000_000_000  # that a download leaves free on the disk
_PIECE = 2**24  # bytes: 10 ms of a SHA-256
_SHA256 = re.compile(r"[0-9a-f]{64}")
# In the folder of a download: what it is of, as far as it came, and all of it, not checked yet
FACTS, PARTIAL, COMPLETE = "facts.json", "partial", "complete"
_ROOT = Path(__file__).resolve().parents[2]
# The folder is the package, whatever its name is
_PROGRAM = """
import importlib, importlib.util, sys
root = sys.argv[1]
spec = importlib.util.spec_from_file_location("ltx2_download", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["ltx2_download"] = importlib.util.module_from_spec(spec)
importlib.import_module("ltx2_download.ltx2_core.loading.download_process").main(sys.argv[2:])
"""
_KINDS: dict[str, type[CheckpointError] | type[OutputError]] = {
    kind.__name__: kind for kind in (CheckpointError, OutputError)
}


def check_space(folder: Path, nbytes: int) -> None:
    """Whether so many bytes fit on the disk of a folder, with some to spare.

    Raises:
        OutputError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if free < nbytes + _SPARE_BYTES:
        problem = f"has {free / 1e9:.1f} GB free, the download takes {nbytes / 1e9:.1f} GB and should leave 1 GB"
        raise OutputError("folder", folder, problem, "Free some space, or choose fewer files.")


def partial_bytes(target: Path) -> int:
    """What an earlier download of this file has left, and a new one need not fetch again."""
    return _bytes_in(_staging(target))


def fetch(
    repository: str,
    path: str,
    nbytes: int,
    target: Path,
    report: Callable[[int], None],
    revision: str = "main",
    sha256: str | None = None,
) -> str:
    """Downloads one file of a repository into place, going on where an earlier download of the same bytes stopped.

    Args:
        path: inside the repository.
        nbytes: that it has.
        target: where it goes; nothing may be there.
        report: called a few times a second with the bytes so far; what it raises stops the download.
        revision: branch, tag or commit.
        sha256: of the file, in hexadecimal; None takes what the Hub says of it.

    Returns:
        The commit that it was fetched at.

    Raises:
        CheckpointError: the repository is gated, unknown or unreachable, or sent something else.
        OutputError: the disk is full or not writable.
    """
    target = target.absolute()
    staging, process = _staging(target), None
    try:
        _prepare(staging)
        process = _start(repository, path, staging, revision)
        while process.poll() is None:
            report(min(_bytes_in(staging), nbytes))
            time.sleep(POLL_SECONDS)
        said = process.stdout.read() if process.stdout is not None else ""
        if process.returncode:
            raise _failure(said, repository, path, process.returncode)
        commit = _put_in_place(staging, target, _Wanted(repository, path, nbytes, sha256), report)
        report(nbytes)
        return commit
    finally:
        if process is not None:
            _end(process)
        if not (staging / PARTIAL).exists() and not (staging / COMPLETE).exists():
            shutil.rmtree(staging, ignore_errors=True)


class _Wanted(NamedTuple):
    repository: str
    path: str
    nbytes: int
    sha256: str | None


def _put_in_place(staging: Path, target: Path, wanted: _Wanted, report: Callable[[int], None]) -> str:
    """Moves a download into place when it is what it should be; else nothing of it is kept."""
    found, facts = staging / COMPLETE, _facts(staging)
    size, commit = found.stat().st_size, str(facts.get("commit", ""))
    problem = ""
    if size != wanted.nbytes:
        problem = f"sent {size:,} bytes of {wanted.path}, which has {wanted.nbytes:,}"
    stated = wanted.sha256 or str(facts.get("etag", ""))
    if not problem and _SHA256.fullmatch(stated.lower()):
        made = _sha256_of(found, lambda: report(wanted.nbytes))
        if made != stated.lower():
            problem = f"sent a damaged {wanted.path}: its SHA-256 is {made}, and should be {stated.lower()}"
    if problem:
        shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointError(SETTING, wanted.repository, problem, "Nothing of it was kept. Try again later.")
    found.replace(target)
    logger.info("%s is revision %s of %s, SHA-256 %s", target, commit, wanted.repository, stated)
    return commit


def _sha256_of(path: Path, alive: Callable[[], None]) -> str:
    """The sum in hexadecimal; ``alive`` is called after each piece, and may stop it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            alive()
    return digest.hexdigest()


def main(arguments: Sequence[str]) -> None:
    """The process: downloads one file, or prints why not and ends with 1. Ends when its standard input does."""
    from huggingface_hub import constants

    repository, path, folder, revision = arguments
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    constants.DOWNLOAD_CHUNK_SIZE = 2**20  # of 10 MB nothing is seen on a slow line, and more is lost at an end
    try:
        _obtain(repository, path, Path(folder), revision)
    except (CheckpointError, OutputError) as error:
        facts = {"kind": type(error).__name__, **{name: str(value) for name, value in vars(error).items()}}
        sys.stdout.write(json.dumps(facts))
        sys.stdout.flush()
        os._exit(1)  # at once: threads of the transfer library may still wait for the network
    os._exit(0)


def _obtain(repository: str, path: str, staging: Path, revision: str) -> None:
    """The file's bytes as ``COMPLETE``, what they are in ``FACTS``. A part of other bytes is not gone on with.

    Over plain HTTP: what the Hub client's own downloads leave, no later one goes on with.
    """
    with explained(repository, path, staging):
        remote = find_remote(repository, path, revision)
        known = {"repository": repository, "path": path, "etag": remote.etag, "nbytes": remote.nbytes}
        if {name: value for name, value in _facts(staging).items() if name != "commit"} != known:
            for left in staging.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        (staging / FACTS).write_text(json.dumps({**known, "commit": remote.commit}), encoding="utf-8")
        if not (staging / COMPLETE).exists():
            read_remote(remote, staging / PARTIAL)
            (staging / PARTIAL).replace(staging / COMPLETE)


def _facts(staging: Path) -> dict[str, Any]:
    try:
        facts = json.loads((staging / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.download")


def _prepare(staging: Path) -> None:
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fix = "Choose a folder that you may write to."
        raise OutputError("folder", staging.parent, f"cannot be written ({reason})", fix) from error


def _start(repository: str, path: str, staging: Path, revision: str = "main") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PROGRAM, str(_ROOT), repository, path, str(staging), revision]
    logger.info("downloading %s from %s", path, repository)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=staging,  # Python would find modules in the current folder, which ComfyUI's own has some of
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONIOENCODING": "utf-8"},
    )


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _bytes_in(staging: Path) -> int:
    """What is there of the file so far."""
    for name in (COMPLETE, PARTIAL):
        try:
            return (staging / name).stat().st_size
        except OSError:  # not there yet, or renamed meanwhile
            continue
    return 0


def _failure(said: str, repository: str, path: str, code: int) -> LTX2Error:
    try:
        facts: dict[str, Any] = json.loads(said)
        kind = _KINDS[facts["kind"]]
        return kind(facts["setting"], facts["path"], facts["problem"], facts["fix"])
    except (ValueError, KeyError):
        problem = f"could not be read: the download of {path} ended with code {code}"
        return CheckpointError(SETTING, repository, problem, "The log says more; try again later.")
