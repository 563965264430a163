"""Side streams and events, and their absence on devices that have none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Event = Any  # torch.cuda.Event, or None where work is done when the call returns


class Streams:
    """Streams beside the current one of one device: for copies, for copies that must not queue behind those, for work.

    Nothing here waits on the host, but :meth:`settle`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self._copy: Any = self._stream() if self.cuda else None
        self._visit: Any = self._stream() if self.cuda else None
        self._work: Any = self._stream() if self.cuda else None

    def _stream(self) -> Any:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @contextmanager
    def copying(self, after: Event = None) -> Iterator[None]:
        """Runs what is inside on the copy stream, once ``after`` has happened."""
        with self._on(self._copy, after):
            yield

    @contextmanager
    def visiting(self, after: Event = None) -> Iterator[None]:
        """Runs what is inside on the stream for what is needed soon: a restore may fill the other for a second."""
        with self._on(self._visit, after):
            yield

    @contextmanager
    def working(self, after: Event = None) -> Iterator[None]:
        """Runs what is inside on the stream for arithmetic, once ``after`` has happened."""
        with self._on(self._work, after):
            yield

    @contextmanager
    def _on(self, stream: Any, after: Event) -> Iterator[None]:
        if stream is None:
            yield
            return
        if after is not None:
            stream.wait_event(after)
        with torch.cuda.stream(stream):
            yield

    def mark(self) -> Event:
        """An event at this point of the current stream."""
        if not self.cuda:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: Event) -> None:
        """The current stream goes on after ``event``; the host does not wait."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def keep_until_now(self, tensor: Tensor) -> None:
        """Tells the allocator that the current stream uses memory that another stream made."""
        if self.cuda:
            tensor.record_stream(torch.cuda.current_stream(self.device))

    def settle(self) -> None:
        """The host waits for all work: for before it gives up memory of its own that copies may still read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
