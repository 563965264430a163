"""What each stage of a run cost: time, peak memory, bytes moved."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class _Stage:
    name: str
    ms: float = 0.0  # by the host's clock, or the device's once its events were read
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
    peak_bytes: int = 0
    h2d_bytes: int = 0
    d2h_bytes: int = 0


@dataclass
class Telemetry:
    """Measures stages on one device.

    On CUDA the time is taken between two events, read only when the records are taken, so that measuring never waits
    for the device. ``peak_bytes`` is the allocator's high-water mark inside the stage on CUDA; on the CPU it is the
    process's resident high-water mark so far, because the system offers no per-stage one.

    The stages of one run are kept until the next one begins: with a stage of another ``current_run``, or, where nobody
    says which run it is, with the first stage after the records were taken.
    """

    device: torch.device
    current_run: Callable[[], Hashable] = lambda: None
    _run: Hashable = None
    _stages: list[_Stage] = field(default_factory=list)
    _taken: int = 0  # of these stages
    _open: list[_Stage] = field(default_factory=list)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        self._begin()
        stage = _Stage(name)
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            stage.events = (_timing_event(), _timing_event())
            stage.events[0].record(torch.cuda.current_stream(self.device))
        self._open.append(stage)
        begin = time.perf_counter()
        try:
            yield
        finally:
            stage.ms = (time.perf_counter() - begin) * 1000
            self._open.remove(stage)
            if stage.events is not None:
                stage.events[1].record(torch.cuda.current_stream(self.device))
            stage.peak_bytes = torch.cuda.max_memory_allocated(self.device) if on_cuda else _resident_peak()
            self._stages.append(stage)

    def moved(self, h2d_bytes: int = 0, d2h_bytes: int = 0) -> None:
        """Adds transfers to the innermost open stage; outside any stage they are not counted."""
        if self._open:
            self._open[-1].h2d_bytes += h2d_bytes
            self._open[-1].d2h_bytes += d2h_bytes

    def take_records(self) -> list[dict[str, Any]]:
        """The finished stages since the last call, oldest first. On CUDA this waits for their last event."""
        new, self._taken = self._stages[self._taken :], len(self._stages)
        return _records(new)

    def last_records(self) -> list[dict[str, Any]]:
        """The finished stages of the last run, oldest first, whoever took them. Waits as :meth:`take_records` does."""
        return _records(self._stages)

    def _begin(self) -> None:
        run = self.current_run()
        over = self._taken == len(self._stages) if run is None else run != self._run
        if over and not self._open:
            self._stages, self._taken = [], 0
        self._run = run


def _records(stages: Sequence[_Stage]) -> list[dict[str, Any]]:
    return [
        {
            "name": s.name,
            "ms": round(_milliseconds(s), 3),
            "peak_bytes": s.peak_bytes,
            "h2d_bytes": s.h2d_bytes,
            "d2h_bytes": s.d2h_bytes,
        }
        for s in stages
    ]


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _milliseconds(stage: _Stage) -> float:
    if stage.events is not None:
        begin, end = stage.events
        end.synchronize()
        stage.ms, stage.events = float(begin.elapsed_time(end)), None
    return stage.ms


def _resident_peak() -> int:
    if sys.platform == "win32":  # no getrusage there
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
