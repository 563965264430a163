"""What each stage of a run cost: time, peak memory, bytes moved."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class _Stage:
    name: str
    host_ms: float = 0.0
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
    """

    device: torch.device
    _stages: list[_Stage] = field(default_factory=list)
    _open: list[_Stage] = field(default_factory=list)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
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
            stage.host_ms = (time.perf_counter() - begin) * 1000
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
        stages, self._stages = self._stages, []
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
    if stage.events is None:
        return stage.host_ms
    begin, end = stage.events
    end.synchronize()
    return float(begin.elapsed_time(end))


def _resident_peak() -> int:
    if sys.platform == "win32":  # no getrusage there
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
