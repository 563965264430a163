"""Files that are complete under their name, or not there at all: written beside it and renamed.

A link is followed: it stays, and the file that it leads to is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import LTX2Error, OutputError

__all__ = [
    "check_writable",
    "followed",
    "output_error",
    "output_errors",
    "part_of",
    "place_whole",
    "remove",
    "staged",
    "whole_file",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def followed(path: Path, setting: str = "output") -> Path:
    """The file that a path means: that at the end of its links, whether it is there yet or not.

    Raises:
        OutputError: the links lead in a circle, or to something that is no file (a folder, a device, a pipe).
    """
    end = Path(os.path.realpath(path))
    try:
        if end.is_symlink():
            raise OutputError(
                setting, path, "is a link that leads back to itself", "Remove it, or choose another name."
            )
        if end.is_dir():
            raise OutputError(setting, path, "is a folder", "Add a file name, such as clip.mp4.")
        if end.exists() and not end.is_file():
            raise OutputError(setting, path, "is no regular file", "Choose another name.")
    except OSError as error:
        raise output_error(setting, path, error) from error
    return end


def part_of(target: Path) -> Path:
    """A name that no other run uses, in the same folder, so that the final rename cannot cross file systems.

    It holds nothing of the target's name, which may be as long as a file system allows.
    """
    return target.with_name(f"ltx2-{secrets.token_hex(6)}.part")


def check_writable(path: Path, setting: str = "output") -> None:
    """Proves that ``path`` can be created, by creating a file beside it.

    Raises:
        OutputError: the folder is missing or refuses a new file, or ``path`` is no regular file.
    """
    path = Path(path)
    target = followed(path, setting)
    if not target.parent.is_dir():
        raise OutputError(setting, path, f"the folder {str(target.parent)!r} does not exist", "Create it first.")
    probe = part_of(target)
    try:
        # The name itself may be one that the file system refuses: too long, or with signs that it does not know
        os.stat(target)  # noqa: PTH116 - Path.exists hides why it cannot be asked
    except FileNotFoundError:
        pass
    except OSError as error:
        raise output_error(setting, path, error) from error
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise output_error(setting, path, error) from error


def output_error(setting: str, path: Path, error: BaseException) -> LTX2Error:
    """What the user reads when writing failed; an error of ours stays as it is."""
    if isinstance(error, LTX2Error):
        return error
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error)
    if code in _FULL:
        problem = f"the disk is full, or a limit for files is reached ({reason})"
        return OutputError(setting, path, problem, "Free some space, or write to another disk.")
    if code in _FORBIDDEN:
        return OutputError(setting, path, "the folder is not writable", "Choose a folder that you may write to.")
    if code == errno.ENAMETOOLONG:
        return OutputError(setting, path, "the name is too long for the file system", "Choose a shorter name.")
    return OutputError(setting, path, f"writing failed ({reason})", "Check the disk, or write to another place.")


@contextlib.contextmanager
def output_errors(setting: str, path: Path) -> Iterator[None]:
    """Every error inside is one of writing, as an :class:`OutputError`."""
    try:
        yield
    except Exception as error:  # safetensors raises a type of its own for a full disk
        raise output_error(setting, path, error) from error


@contextlib.contextmanager
def whole_file(path: Path, setting: str) -> Iterator[Path]:
    """A temporary name to write to, which becomes ``path`` at the end; an exception or Ctrl-C leaves nothing.

    Raises:
        OutputError: writing failed; what was there under that name still is.
    """
    target = followed(path, setting)
    part = part_of(target)
    try:
        with output_errors(setting, path):
            yield part
            part.replace(target)
    finally:
        remove(part)


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder in ``folder`` whose files move there at the end; an exception leaves ``folder`` as it was.

    ``folder`` and those above it are made where they are missing. Files of the same names are replaced.
    """
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    stage = part_of(folder / "files")
    try:
        stage.mkdir()
        yield stage
        for file in sorted(path for path in stage.rglob("*") if path.is_file()):
            target = folder / file.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for made in missing:
            with contextlib.suppress(OSError):  # there are files in it: all went well
                made.rmdir()


def place_whole(source: Path, target: Path) -> None:
    """Moves a file, also to another disk, where it is copied beside its place first."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = part_of(target)
        try:
            shutil.copyfile(source, part)
            part.replace(target)
        finally:
            remove(part)


def remove(part: Path) -> None:
    """Removes a temporary file; its folder may be gone meanwhile."""
    with contextlib.suppress(OSError):
        part.unlink()
