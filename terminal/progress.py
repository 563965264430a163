"""Progress and messages of a run in a terminal, or in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

_BAR = "{desc:<9} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt} {elapsed}<{remaining}"


class TerminalProgress:
    """A bar with the time that remains for each stage; one line per stage where nobody can see a bar move.

    Args:
        stream: where to write; it is asked whether it is a terminal.
        quiet: write nothing.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet, self._bars = quiet, not quiet and self._stream.isatty()
        self._bar: tqdm[None] | None = None
        self._begin = 0.0

    def start(self, stage: str, total: int) -> None:
        self.close()
        self._begin = time.monotonic()
        if self._bars:
            self._bar = tqdm(total=total, desc=stage, bar_format=_BAR, file=self._stream, dynamic_ncols=True)

    def step(self, stage: str, done: int) -> None:  # noqa: ARG002 - of the protocol Progress
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def finish(self, stage: str) -> None:
        self.close()
        if not self._quiet and not self._bars:
            self._stream.write(f"{stage}: {time.monotonic() - self._begin:.1f} s\n")
            self._stream.flush()

    def close(self) -> None:
        """Leaves the cursor on a line of its own; for the end of a run that was interrupted."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _BesideBars(logging.Handler):
    """Writes messages above a moving bar, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def messages(verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """Shows the package's log on standard error: what was picked and why; warnings only when ``quiet``."""
    logger = logging.getLogger("ltx2")
    handler = _BesideBars()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if verbose else "%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
