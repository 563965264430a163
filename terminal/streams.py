"""Standard output and standard error that never fail a run, and signals that end one cleanly."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from ..ltx2_core.plain_text import LONGEST_REPORT, plain

__all__ = ["Terminated", "say", "signals_end_runs", "streams_never_fail", "write"]

# Each ends a run as Ctrl-C does. Windows has no SIGHUP, and others have no SIGBREAK
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """A signal ended the run; whatever cleans up after Ctrl-C cleans up after it too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@contextlib.contextmanager
def signals_end_runs() -> Iterator[None]:
    """Inside, a signal that ends processes raises :class:`Terminated`; further ones do not disturb the cleaning up.

    A signal that is ignored, as ``nohup`` has it, stays ignored. Outside of the main thread nothing changes.
    """

    def end(number: int, _frame: object) -> None:
        for other in taken:
            signal.signal(other, signal.SIG_IGN)
        raise Terminated(number)

    taken: dict[signal.Signals, Any] = {}
    try:
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                taken[number] = signal.signal(number, end)
    except ValueError:  # only the main thread may
        pass
    try:
        yield
    finally:
        for number, before in taken.items():
            signal.signal(number, before)


class _Unfailing(io.TextIOBase):
    """A stream that writes what it can: other signs where the console lacks some, nothing where nobody reads it.

    Attributes:
        failure: why writing ended, None while it works.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: Exception | None = None if stream is not None else OSError("it is closed")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        with contextlib.suppress(ValueError, OSError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._stream is not None and self.failure is None:
            try:
                self._stream.write(self._known(text))
            except (OSError, ValueError) as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and self.failure is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def _known(self, text: str) -> str:
        """The text with escapes for what the stream's encoding lacks."""
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        # What is still in the stream's buffer would fail once more when Python ends, and change the exit status
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def streams_never_fail() -> Iterator[None]:
    """Inside, whatever writes to standard output or standard error never raises for it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Unfailing(stream)) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def say(text: str) -> Exception | None:
    """Writes lines to standard output, cleaned; returns why they did not get there."""
    return write(plain(text, LONGEST_REPORT))


def write(text: str) -> Exception | None:
    """As :func:`say`, for text that must stay as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return getattr(sys.stdout, "failure", None)
