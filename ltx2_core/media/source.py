"""The door for files that a user names: only what a player or a viewer could open goes further."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import SettingError
from ..plain_text import LONGEST_LINE, plain

__all__ = ["open_media", "shown_name"]


def open_media(path: Path, setting: str, what: str) -> BinaryIO:
    """The file, open for reading. A pipe or a device is refused without being opened: reading it might never end.

    Args:
        setting: name of the setting that errors show.
        what: "sound" or "picture", for the error's text.

    Raises:
        SettingError: there is no such file, it is none, or it may not be read.
    """
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise SettingError(setting, path, "is a folder", f"Give the {what} itself.")
        if not stat.S_ISREG(mode):
            fix = f"Save the {what} to a file, and give that file."
            raise SettingError(setting, path, "is a pipe or a device, not a file", fix)
        return Path(path).open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SettingError(setting, path, "there is no such file", "Check the path and its spelling.") from error
    except PermissionError as error:
        raise SettingError(setting, path, "may not be read", "Change the file's permissions.") from error
    except OSError as error:
        fix = "Check the path and its spelling, and the disk."
        raise SettingError(setting, path, f"cannot be opened ({error.strerror})", fix) from error
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(setting, path, f"is no file name ({error})", "Check the path and its spelling.") from error


def shown_name(path: Path) -> str:
    """The file's name, for a notice."""
    return plain(Path(path).name, LONGEST_LINE)
