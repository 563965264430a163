"""A download that can be stopped at any moment, and leaves a file under its name only when all of it is there.

The Hub's transfer library runs threads of its own that no exception reaches. So each file is fetched by a process
that does nothing else (:func:`main` is its whole program) into a folder beside the file's place, on the same disk:
it is moved into place when it is complete, and the folder goes whatever happens.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, LTX2Error, OutputError
from .download import SETTING, download_files

__all__ = ["check_space", "fetch"]

logger = logging.getLogger("ltx2.loading")

POLL_SECONDS = 0.25
_END_SECONDS = 5.0  # that the process has to end by itself
_SPARE_BYTES = 1_000_000_000  # that a download leaves free on the disk
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


def fetch(repository: str, path: str, nbytes: int, target: Path, report: Callable[[int], None]) -> None:
    """Downloads one file of a repository into place.

    Args:
        path: inside the repository.
        nbytes: that it has.
        target: where it goes; nothing may be there.
        report: called a few times a second with the bytes so far; what it raises stops the download.

    Raises:
        CheckpointError: the repository is gated, unknown or unreachable, or sent something else.
        OutputError: the disk is full or not writable.
    """
    target = target.absolute()
    staging = target.with_name(f".{target.name}.download")
    process: subprocess.Popen[str] | None = None
    try:
        _start_anew(staging)
        process = _start(repository, path, staging)
        while process.poll() is None:
            report(min(_bytes_in(staging), nbytes))
            time.sleep(POLL_SECONDS)
        said = process.stdout.read() if process.stdout is not None else ""
        if process.returncode:
            raise _failure(said, repository, path, process.returncode)
        found = staging / path
        size = found.stat().st_size
        if size != nbytes:
            problem = f"sent {size:,} bytes of {path}, which has {nbytes:,}"
            raise CheckpointError(SETTING, repository, problem, "Try again later.")
        found.replace(target)
        report(nbytes)
    finally:
        if process is not None:
            _end(process)
        shutil.rmtree(staging, ignore_errors=True)


def main(arguments: Sequence[str]) -> None:
    """The process: downloads one file, or prints why not and ends with 1. Ends when its standard input does."""
    repository, path, folder = arguments
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        download_files(repository, [path], Path(folder))
    except (CheckpointError, OutputError) as error:
        facts = {"kind": type(error).__name__, **{name: str(value) for name, value in vars(error).items()}}
        sys.stdout.write(json.dumps(facts))
        sys.stdout.flush()
        os._exit(1)  # at once: threads of the transfer library may still wait for the network
    os._exit(0)


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _start_anew(staging: Path) -> None:
    """Makes the folder, without what a process that was killed may have left in it."""
    try:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fix = "Choose a folder that you may write to."
        raise OutputError("folder", staging.parent, f"cannot be written ({reason})", fix) from error


def _start(repository: str, path: str, staging: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PROGRAM, str(_ROOT), repository, path, str(staging)]
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


def _bytes_in(folder: Path) -> int:
    """What is written in a folder so far. A file may be as long as it will be before it is filled."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = (Path(parent) / name).stat()
            except OSError:  # renamed meanwhile
                continue
            total += min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)
    return total


def _failure(said: str, repository: str, path: str, code: int) -> LTX2Error:
    try:
        facts: dict[str, Any] = json.loads(said)
        kind = _KINDS[facts["kind"]]
        return kind(facts["setting"], facts["path"], facts["problem"], facts["fix"])
    except (ValueError, KeyError):
        problem = f"could not be read: the download of {path} ended with code {code}"
        return CheckpointError(SETTING, repository, problem, "The log says more; try again later.")
