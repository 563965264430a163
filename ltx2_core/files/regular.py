"""Opens model files, and nothing that only looks like one: a pipe or a device would be read for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import CheckpointError, is_out_of_memory
from .stamp import Stamp

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_GIVE_FILE = "Give the .safetensors file itself."


class NotRegular(OSError):
    """The path leads to something else than a file.

    Args:
        kind: what it is, with its article.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"is {kind}, not a file")
        self.kind = kind


class FileChanged(OSError):
    """The file is not the one that was looked at before."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, without a buffer; never waits for another process.

    Raises:
        NotRegular: it is a folder, a pipe, a socket or a device.
        OSError: it is missing or cannot be read, or its name can be no file's.
    """
    try:
        _require_file(path.stat().st_mode)  # opening some devices does something already
        opened = cast(BinaryIO, open(path, "rb", buffering=0, opener=_without_waiting))  # noqa: SIM115
    except ValueError as error:  # a zero byte in the name
        raise OSError(str(error)) from error
    try:
        _require_file(os.fstat(opened.fileno()).st_mode)
    except OSError:
        opened.close()
        raise
    return opened


def open_unchanged(path: Path, stamp: Stamp) -> BinaryIO:
    """:func:`open_regular` for a file that was looked at before.

    Raises:
        FileChanged: it is another one now, or was written to.
        OSError: it cannot be read.
    """
    opened = open_regular(path)
    try:
        require_stamp(opened, stamp)
    except FileChanged:
        opened.close()
        raise
    return opened


def require_stamp(opened: BinaryIO, stamp: Stamp) -> None:
    """Raises :class:`FileChanged` unless the open file has this stamp."""
    if Stamp.of(os.fstat(opened.fileno())) != stamp:
        raise FileChanged("changed on disk since it was opened")


def read_small(path: Path, setting: str, most: int) -> tuple[bytes, Stamp]:
    """The whole of a file that is small when it is what its name says, and the stamp of what was read.

    Args:
        most: bytes that such a file has at most.

    Raises:
        CheckpointError: it is missing, no file, larger or cannot be read.
    """
    try:
        with open_regular(path) as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
            if stamp.size > most:
                problem = f"has {stamp.size:,} bytes, more than the {most:,} that such a file can have"
                raise CheckpointError(setting, path, problem, "Download the file again.")
            content = _read_up_to(file, stamp.size)
            require_stamp(file, stamp)
    except OSError as error:
        raise unreadable(setting, path, error) from error
    return content, stamp


def unreadable(setting: str, path: Path, error: OSError, missing_fix: str = "Check the path.") -> CheckpointError:
    """What a user reads where a file could not be opened or read; memory that is out is not the file's fault.

    Raises:
        OSError: ``error`` itself, where it says that memory is out.
    """
    if is_out_of_memory(error):
        raise error
    if isinstance(error, FileNotFoundError):
        return CheckpointError(setting, path, "does not exist", missing_fix)
    if isinstance(error, FileChanged):
        problem = "cannot be read as it was checked, it changed on disk since it was opened"
        return CheckpointError(setting, path, problem, "Load the models again.")
    if isinstance(error, NotRegular):
        problem = "is a folder" if error.kind == "a folder" else str(error)
        return CheckpointError(setting, path, problem, _GIVE_FILE)
    reason = error.strerror or str(error) or type(error).__name__
    return CheckpointError(setting, path, f"cannot be read ({reason})", "Check the file's permissions.")


def _without_waiting(path: str, flags: int) -> int:
    # Between the look at the path and this call a pipe can have taken the file's place
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_file(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegular(next((kind for matches, kind in _KINDS if matches(mode)), "something else"))


def _read_up_to(file: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
