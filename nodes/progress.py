"""Progress of a node while it runs: one bar, a line of text, and pictures of what is being made."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger("ltx2.nodes")

# A picture makes the host wait for the GPU once; at this rate that is far below 1% of a run
PREVIEW_SECONDS = 2.0
# Text that changes more often cannot be read
TEXT_SECONDS = 0.25

LABELS = {
    "text": "Encoding text",
    "stage_1": "Stage 1",
    "upsample": "Upsampling",
    "stage_2": "Stage 2",
    "decode": "Decoding",
}
_UNITS = {"stage_1": "steps", "stage_2": "steps", "decode": "frames"}

# Parts of a whole run by time (one H200, 768x512x121, `two-stage`, benchmarks/LOG.md), so that the one bar of a node
# with several stages moves evenly
SHARES = {"text": 2.0, "stage_1": 70.0, "upsample": 1.0, "stage_2": 15.0, "decode": 12.0}


class Surface(Protocol):
    """The node on the page."""

    def check(self) -> None:
        """Raises where the user has interrupted the run."""
        ...

    def bar(self, value: float, total: float, picture: Any = None) -> None: ...

    def write(self, text: str) -> None: ...

    def picture(self, latent: Tensor) -> Any:
        """The picture of one latent frame (1, C, 1, H, W), None where it cannot be shown."""
        ...

    @property
    def wants_pictures(self) -> bool:
        """Whether the user's settings ask for previews."""
        ...


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is; ``seconds_left`` is None until two steps were timed."""

    stage: str
    done: int
    total: int
    seconds_left: float | None = None

    @property
    def unit(self) -> str | None:
        """What is counted: "steps", "frames", or nothing where the stage is one step."""
        return _UNITS.get(self.stage)

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        return self.ended() + left

    def ended(self) -> str:
        """The same for a stage that goes no further."""
        name = label(self.stage)
        return name if self.unit is None else f"{name}: {self.done} of {self.total} {self.unit}"


def label(stage: str) -> str:
    """A stage's name for people."""
    return LABELS.get(stage, stage.replace("_", " ").capitalize())


def duration(seconds: float) -> str:
    """Seconds in words: "8 s", "2 min 5 s", "1 h 4 min"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class NodeProgress:
    """The engine's progress on a node; every report is a chance to interrupt.

    Args:
        surface: where it is shown.
        stages: that the node will go through, for one bar over all of them; by default each stage fills the bar.
        on_change: called with every report, and with None when a stage is over.
        clock: in seconds.
    """

    def __init__(
        self,
        surface: Surface,
        stages: tuple[str, ...] = (),
        on_change: Callable[[StageProgress | None], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._surface, self._stages, self._on_change, self._clock = surface, stages, on_change, clock
        self._pace = _Pace()
        self._first: tuple[int, float] | None = None  # steps that were done when the stage was timed first, and when
        self._written = self._pictured = float("-inf")
        self._pictures = surface.wants_pictures
        self._total = 0
        self.seen: list[str] = []
        self.now: StageProgress | None = None

    def start(self, stage: str, total: int) -> None:
        self._surface.check()
        if stage not in self.seen:
            self.seen.append(stage)
        self._total, self._first = total, None
        self._pace.restart()
        self._report(stage, 0, at_once=True)

    def step(self, stage: str, done: int) -> None:
        self._pace.wait()
        self._surface.check()
        now = self._clock()
        if self._first is None:
            # The first step also loads weights and chooses kernels, and says little about the others
            self._first = (done, now)
        self._report(stage, done, at_once=done >= self._total)

    def finish(self, stage: str) -> None:  # noqa: ARG002 - of the protocol Progress
        self.now = None
        self._on_change(None)

    def preview(self, stage: str, done: int, latent: Callable[[], Tensor]) -> None:
        """A picture of the clip's middle frame, where the user wants one and the last one is old enough."""
        if not self._pictures or self._clock() - self._pictured < PREVIEW_SECONDS:
            return
        try:
            frames = latent()
            middle = frames.shape[2] // 2
            picture = self._surface.picture(frames[:1, :, middle : middle + 1])
        except Exception:
            log.warning("no preview can be made of this clip; the run goes on without", exc_info=True)
            picture = None
        self._pictures = picture is not None
        self._pictured = self._clock()
        if picture is not None:
            self._surface.bar(*self._place(stage, done), picture)

    def _report(self, stage: str, done: int, at_once: bool) -> None:
        self.now = StageProgress(stage, done, self._total, self._left(done))
        self._surface.bar(*self._place(stage, done))
        if at_once or self._clock() - self._written >= TEXT_SECONDS:
            self._written = self._clock()
            self._surface.write(str(self.now))
        self._on_change(self.now)

    def _left(self, done: int) -> float | None:
        if self._first is None or done <= self._first[0] or done >= self._total:
            return None
        begin, since = self._first
        return (self._clock() - since) / (done - begin) * (self._total - done)

    def _place(self, stage: str, done: int) -> tuple[float, float]:
        """Where the bar stands, and its end."""
        if stage not in self._stages:
            return done, max(1, self._total)
        before = sum(SHARES[name] for name in self._stages[: self._stages.index(stage)])
        share = SHARES[stage] * done / max(1, self._total)
        return before + share, sum(SHARES[name] for name in self._stages)


class _Pace:
    """Keeps the host at most one step ahead of the GPU.

    With CUDA graphs Python hands a whole stage over in a moment: progress would be untrue, and an interrupt would come
    too late. One step always stays in the GPU's queue, so that it never runs dry.
    """

    def __init__(self) -> None:
        self._marks: deque[torch.cuda.Event] = deque()

    def restart(self) -> None:
        self._marks.clear()

    def wait(self) -> None:
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return
        # "blocking" lets the thread sleep; without it waiting takes a whole CPU core
        mark = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        mark.record()
        self._marks.append(mark)
        if len(self._marks) > 1:
            self._marks.popleft().synchronize()


def stages_of(recipe_stages: int) -> tuple[str, ...]:
    """The stages of a whole run, in order."""
    return ("text", "stage_1", "upsample", "stage_2", "decode") if recipe_stages == 2 else ("text", "stage_1", "decode")


def summary(stages: Mapping[str, tuple[float, int]], mode: str, notices: Sequence[str] = ()) -> str:
    """A node's report in two short lines, below what the user should read: a node shows hardly more.

    Args:
        stages: milliseconds and peak bytes by stage, in the order of the run.
        mode: the device mode's name.
        notices: sentences for the user.
    """
    return "\n".join([*notes(notices), *([_cost(stages, mode)] if stages else [])])


def notes(notices: Sequence[str]) -> list[str]:
    """What the user should read, a line each."""
    return [f"Note: {notice}" for notice in notices]


def _cost(stages: Mapping[str, tuple[float, int]], mode: str) -> str:
    peak = size(max(peak for _, peak in stages.values()))
    if len(stages) == 1:
        ((name, (ms, _)),) = stages.items()
        return f"{label(name)}: {seconds(ms)}, peak {peak}\nDevice mode: {mode}"
    total = seconds(sum(ms for ms, _ in stages.values()))
    # The long ones alone: all of them would not fit
    longest = sorted(stages, key=lambda name: stages[name][0], reverse=True)[:3]
    parts = ", ".join(f"{label(name).lower()} {seconds(stages[name][0])}" for name in stages if name in longest)
    return f"{total}, peak {peak}, device mode {mode}\n{parts}"


def seconds(ms: float) -> str:
    """Milliseconds in a sensible unit: "85 ms", "8.2 s", "2 min 5 s"."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.1f} s" if ms < 60_000 else duration(ms / 1000)


def size(nbytes: int) -> str:
    """Bytes in GB with one decimal, in MB where that would read 0.0."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 50_000_000 else f"{nbytes / 1e6:.1f} MB"
