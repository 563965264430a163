"""Which file a path led to, and as it was when: so that what is read later is what was checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Stamp(NamedTuple):
    """Tells a file from another one, and from itself after a change.

    Time and size show a file that was written to; device and inode one that was put in its place, by a rename or
    because a link leads elsewhere now.
    """

    size: int  # bytes
    modified: int  # ns
    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def stamp_of(path: Path | str) -> Stamp | None:
    """The stamp of what a path leads to; None where nothing can be found out."""
    try:
        return Stamp.of(Path(path).stat())
    except (OSError, ValueError):  # the latter for a name that holds a zero byte
        return None
