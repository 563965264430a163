"""What a node shows while it runs: words, one bar, pictures, and never far ahead of the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.protocols import Watching
from ltx2_two_stage.nodes import progress
from torch import Tensor


class Interrupted(BaseException):
    pass


class Surface:
    """Keeps what it is shown, and has a clock that moves when told."""

    def __init__(self, wants_pictures: bool = True) -> None:
        self.wants_pictures = wants_pictures
        self.bars: list[tuple[float, float]] = []
        self.words: list[str] = []
        self.frames: list[Tensor] = []
        self.shown: list[Any] = []
        self.interrupted, self.now, self.can_show = False, 100.0, True

    def check(self) -> None:
        if self.interrupted:
            raise Interrupted

    def bar(self, value: float, total: float, picture: Any = None) -> None:
        self.bars.append((value, total))
        self.shown += [picture] if picture is not None else []

    def write(self, text: str) -> None:
        self.words.append(text)

    def picture(self, latent: Tensor) -> Any:
        self.frames.append(latent)
        return "picture" if self.can_show else None


def node(surface: Surface, *stages: str) -> Any:
    return progress.NodeProgress(surface, stages, clock=lambda: surface.now)


def steps(reports: Any, surface: Surface, stage: str, total: int, seconds: float, last: int | None = None) -> None:
    reports.start(stage, total)
    for done in range(1, (last or total) + 1):
        surface.now += seconds
        reports.step(stage, done)


def test_the_words_name_stage_steps_and_what_is_left() -> None:
    surface = Surface()
    reports = node(surface)
    reports.start("stage_1", 30)
    surface.now += 60  # the first step loads the weights
    reports.step("stage_1", 1)
    for done in (2, 3, 4):
        surface.now += 2
        reports.step("stage_1", done)
    assert surface.words == [
        "Stage 1: 0 of 30 steps",
        "Stage 1: 1 of 30 steps",
        "Stage 1: 2 of 30 steps, about 56 s left",
        "Stage 1: 3 of 30 steps, about 54 s left",
        "Stage 1: 4 of 30 steps, about 52 s left",
    ]
    assert surface.bars[-1] == (4, 30)


def test_words_that_nobody_could_read_are_left_out_but_not_the_last() -> None:
    surface = Surface()
    steps(node(surface), surface, "decode", 100, 0.01)
    assert len(surface.words) <= 2 + 1.0 / progress.TEXT_SECONDS
    assert surface.words[-1] == "Decoding: 100 of 100 frames"


@pytest.mark.parametrize("count", [1, 2])
def test_one_bar_for_all_stages_never_goes_back_and_ends_full(count: int) -> None:
    surface = Surface()
    names = progress.stages_of(count)
    reports = node(surface, *names)
    for name in names:
        steps(reports, surface, name, 4, 1.0)
        reports.finish(name)
    values = [value for value, _ in surface.bars]
    assert values == sorted(values) and len({total for _, total in surface.bars}) == 1
    assert surface.bars[0][0] == 0 and surface.bars[-1][0] == pytest.approx(surface.bars[-1][1])
    assert reports.seen == list(names)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (8.4, "8 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (3840, "1 h 4 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


@pytest.mark.parametrize(
    ("nbytes", "words"), [(0, "0.0 MB"), (7_100_000, "7.1 MB"), (50_000_000, "0.1 GB"), (44_600_000_000, "44.6 GB")]
)
def test_sizes(nbytes: int, words: str) -> None:
    assert progress.size(nbytes) == words


def test_the_report_of_a_node_is_two_lines() -> None:
    one = progress.summary({"stage_1": (8412.0, 44_600_000_000)}, "snapshot-low")
    assert one == "Stage 1: 8.4 s, peak 44.6 GB\nDevice mode: snapshot-low"
    stages = {"text": (61.0, 10**9), "stage_1": (8412.0, 79 * 10**9), "stage_2": (1633.0, 80 * 10**9)}
    several = progress.summary({**stages, "decode": (1204.0, 9 * 10**9)}, "snapshot")
    assert several == "11.3 s, peak 80.0 GB, device mode snapshot\nstage 1 8.4 s, stage 2 1.6 s, decoding 1.2 s"


def latent() -> Tensor:
    """(1, C, F, H, W) whose values are the frame's number."""
    return torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 16, 5, 2, 3)


def test_pictures_are_of_the_middle_frame_and_rare() -> None:
    surface = Surface()
    reports = node(surface)
    assert isinstance(reports, Watching)
    taken = []

    def look() -> Tensor:
        taken.append(surface.now)
        return latent()

    reports.start("stage_1", 100)
    for done in range(1, 101):
        surface.now += 0.1
        reports.step("stage_1", done)
        reports.preview("stage_1", done, look)
    assert len(taken) == 5, "ten seconds, one in two of them, the first at once"
    assert surface.shown == ["picture"] * 5
    assert all(frame.shape == (1, 16, 1, 2, 3) and bool((frame == 2).all()) for frame in surface.frames)


def test_no_latent_is_asked_for_where_the_user_wants_no_pictures() -> None:
    reports = node(Surface(wants_pictures=False))
    reports.start("stage_1", 2)
    reports.preview("stage_1", 1, lambda: pytest.fail("nobody wants to see it"))


@pytest.mark.parametrize("fails", [True, False], ids=["an error", "other models"])
def test_where_pictures_cannot_be_made_the_run_goes_on_without(fails: bool) -> None:
    surface = Surface()
    surface.can_show = False
    reports = node(surface)
    reports.start("stage_1", 3)
    asked = []

    def look() -> Tensor:
        asked.append(True)
        if fails:
            raise RuntimeError("no room for a small decoder")
        return latent()

    for done in (1, 2, 3):
        surface.now += 10
        reports.step("stage_1", done)
        reports.preview("stage_1", done, look)
    assert len(asked) == 1 and surface.shown == []


def test_an_interrupt_comes_with_the_next_step() -> None:
    surface = Surface()
    reports = node(surface)
    steps(reports, surface, "stage_2", 3, 1.0, last=1)
    surface.interrupted = True
    with pytest.raises(Interrupted):
        reports.step("stage_2", 2)
    assert reports.now.ended() == "Stage 2: 1 of 3 steps"


def test_the_host_is_one_step_ahead_of_the_gpu_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    waited: list[int] = []

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking, "a thread that waits must not take a core"

        def record(self) -> None:
            self.number = len(recorded)
            recorded.append(self.number)

        def synchronize(self) -> None:
            waited.append(self.number)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    surface = Surface()
    reports = node(surface)
    steps(reports, surface, "stage_1", 4, 1.0)
    assert recorded == [0, 1, 2, 3] and waited == [0, 1, 2], "the last step stays in the queue"
    steps(reports, surface, "stage_2", 2, 1.0)
    assert waited == [0, 1, 2, 4], "a new stage waits for none of the one before"
