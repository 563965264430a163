"""What the benchmarks measure with: device events, turns, kernel counts, peaks of memory and a budget of time."""

from __future__ import annotations

import gc
import logging
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from ..ltx2_core.kernels import availability

logger = logging.getLogger("ltx2.benchmarks")

Action = Callable[[], object]
Save = Callable[[dict[str, Any]], None]
JSON = dict[str, Any]


def machine(device: torch.device | None = None) -> JSON:
    """What the figures were measured on; ``device`` defaults to the GPU."""
    here = {"torch": torch.__version__, "python": platform.python_version()}
    if device is not None and device.type != "cuda":
        return {"gpu": device.type, **here}
    gpu = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    return {
        "gpu": gpu.name,
        "gpu_memory_bytes": gpu.total_memory,
        "driver": driver.stdout.strip(),
        **here,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "triton": installed_version("triton"),
        "flash_attention": next(filter(None, map(installed_version, ("flash-attn-4", "flash-attn"))), None),
        "processor": _processor(),
    }


def _processor() -> str:
    """Its name and how many of it there are."""
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    return f"{os.cpu_count()} x {names[0].partition(':')[2].strip() if names else platform.machine()}"


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class CallTime(NamedTuple):
    """Milliseconds of one call, until the device is done and until Python has asked for everything.

    The second is no more than the first where the device's queue is full: it tells of the host alone only in calls of
    less than a thousand launches, or where it is the longer one.
    """

    ms: float
    host_ms: float


class Timer(Protocol):
    def __call__(self, action: Action) -> CallTime: ...


def cuda_timer(action: Action) -> CallTime:
    """Times by events, from an idle device on."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    started = time.perf_counter()
    action()
    host_ms = (time.perf_counter() - started) * 1000
    end.record()
    end.synchronize()
    return CallTime(begin.elapsed_time(end), host_ms)


def host_timer(action: Action) -> CallTime:
    """Times what waits for its own end, as everything on a CPU does."""
    started = time.perf_counter()
    action()
    ms = (time.perf_counter() - started) * 1000
    return CallTime(ms, ms)


def timer_for(device: torch.device) -> Timer:
    return cuda_timer if device.type == "cuda" else host_timer


class Deadline:
    """When a benchmark begins nothing more, so that what it has is saved before somebody ends it.

    Args:
        seconds: from now on; None is never.
    """

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, None if seconds is None else clock() + seconds

    def allows(self, ms: float = 0.0) -> bool:
        """Whether something that takes so long would still end in time."""
        return self._end is None or self._clock() + ms / 1000 < self._end


@dataclass
class Samples:
    """Repeated calls of one thing.

    Attributes:
        first_ms: the first call, with everything that only a first call does.
        peak_bytes: the most memory in use during the second call, beyond what was there before any.
        error: why there are no calls that count.
    """

    first_ms: float = 0.0
    peak_bytes: int | None = None
    ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    def summary(self) -> JSON:
        return {
            "min": round(min(self.ms), 3),
            "median": round(self.median, 3),
            "max": round(max(self.ms), 3),
            "host": round(statistics.median(self.host_ms), 3),
            "first": round(self.first_ms, 1),
            "repeats": len(self.ms),
        }


def in_turns(
    actions: Mapping[str, Action], repeat: int, timer: Timer, deadline: Deadline, device: torch.device
) -> dict[str, Samples]:
    """Times every action ``repeat`` times, one after the other in each round, so that all see the same machine.

    Two calls of each come before. Rounds that would not end in time are left out, but for the first; so is what runs
    out of memory.
    """
    held = allocated(device)
    samples = {name: _warmed_up(name, action, timer, device, held) for name, action in actions.items()}
    running = {name: of for name, of in samples.items() if of.error is None}
    for number in range(repeat):
        if number and not deadline.allows(sum(of.ms[-1] for of in running.values())):
            break
        for name, of in running.items():
            taken = timer(actions[name])
            of.ms.append(taken.ms)
            of.host_ms.append(taken.host_ms)
    return samples


def _warmed_up(name: str, action: Action, timer: Timer, device: torch.device, held: int) -> Samples:
    """The first call compiles and tunes; the second one still fills caches, and shows what memory it takes."""
    try:
        first = timer(action).ms
        with peak_beyond(held, device) as peak:
            second = timer(action).ms
    except torch.OutOfMemoryError as error:
        problem = str(error).split(". ", 1)[0]
    else:
        logger.info("%s: first call %.0f ms, then %.1f ms", name, first, second)
        return Samples(first, peak.bytes)
    # Outside of the handler: the error's traceback keeps the call's tensors alive
    release(device)
    logger.warning("%s: %s", name, problem)
    return Samples(error=problem)


def release(device: torch.device) -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Peak:
    """The most memory that was in use beyond a given amount, filled in at the end of :func:`peak_beyond`."""

    bytes: int | None = None


@contextmanager
def peak_beyond(held: int, device: torch.device) -> Iterator[Peak]:
    """Notes the peak of what happens inside, less ``held`` bytes; nothing is known of a CPU."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    yield peak
    if device.type == "cuda":
        torch.cuda.synchronize()
        peak.bytes = torch.cuda.max_memory_allocated() - held


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


# By parts of the kernels' names, in this order; what is left moves data or computes element by element
KERNEL_KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("sdpa", "flash", "fmha", "attention"),
    "matmul": ("gemm", "nvjet", "cutlass", "matmul", "splitk"),
    "convolution": ("conv", "implicit", "xmma_fprop"),
}


def kernel_kind(name: str) -> str:
    lower = name.lower()
    for kind, parts in KERNEL_KINDS.items():
        if any(part in lower for part in parts):
            return kind
    return "other"


def launches(action: Action, device: torch.device) -> JSON | None:
    """How many kernels one call launches, and how long those of each kind run; None where there is no GPU."""
    if device.type != "cuda":
        return None
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        action()
        torch.cuda.synchronize()
    count, busy = 0, dict.fromkeys((*KERNEL_KINDS, "other"), 0.0)
    for event in profiler.events() or ():
        if event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset")):
            count += 1
            busy[kernel_kind(event.name)] += event.device_time_total / 1000
    return {"kernels": count, "ms": {kind: round(ms, 2) for kind, ms in busy.items() if ms}}


@contextmanager
def kernels(setting: str) -> Iterator[None]:
    """Lets the engine take fused kernels ("auto") or PyTorch's own ("eager"), which it otherwise decides once."""
    before = os.environ.get(availability.VARIABLE)
    os.environ[availability.VARIABLE] = setting
    availability._wanted.cache_clear()
    try:
        yield
    finally:
        if before is None:
            del os.environ[availability.VARIABLE]
        else:
            os.environ[availability.VARIABLE] = before
        availability._wanted.cache_clear()


def with_kernels(setting: str, action: Action) -> Action:
    """The same call with that choice of kernels."""

    def run() -> object:
        with kernels(setting):
            return action()

    return run
