"""The stage that decodes: what overlaps, what frames are worth to a sink, and what an interrupt leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.media.mp4 import Mp4Writer
from ltx2_two_stage.ltx2_core.media.sink import NullSink
from ltx2_two_stage.ltx2_core.protocols import NoProgress
from ltx2_two_stage.ltx2_core.stages.decode import decode_video
from torch import Tensor

HEIGHT, WIDTH, PIECES, FRAMES = 32, 64, 6, 2
WAIT_S = 60  # for what comes at once where it comes at all


class Decoder:
    """Makes pieces of one gray each; ``made`` is told of every piece before it is there."""

    def __init__(self, made: Callable[[int], None] = lambda _: None) -> None:
        self.made, self.closed = made, False

    def decode_frames(self, _latent: Tensor) -> Generator[Tensor, None, None]:
        try:
            for piece in range(PIECES):
                self.made(piece)
                yield torch.full((FRAMES, HEIGHT, WIDTH, 3), 40 * piece, dtype=torch.uint8)
        finally:
            self.closed = True


class World:
    """Models and residency around one decoder."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.given_back, self.recorder = decoder, False, self

    @contextmanager
    def use(self, _component: object) -> Iterator[Decoder]:
        try:
            yield self.decoder
        finally:
            self.given_back = True

    def moved(self, **moved: int) -> None: ...


def decode(decoder: Decoder, sink: Any, progress: Any = None) -> World:
    world: Any = World(decoder)
    decode_video(world, world, torch.zeros(1, 4, 1, 1, 1), sink, progress or NoProgress())
    return world  # type: ignore[no-any-return]


@contextmanager
def writer(folder: Path, encode: Callable[[], None]) -> Iterator[Mp4Writer]:
    """A file writer that calls ``encode`` on its thread at every piece."""
    with Mp4Writer(folder / "clip.mp4") as sink, pytest.MonkeyPatch.context() as patch:
        sink.open(WIDTH, HEIGHT, 24, None)
        assert sink._encoder is not None
        before = sink._encoder.frames

        def frames(*arguments: Any) -> None:
            encode()
            before(*arguments)

        patch.setattr(sink._encoder, "frames", frames)
        yield sink


def test_later_pieces_are_decoded_while_the_first_is_encoded(tmp_path: Path) -> None:
    third, waited = threading.Event(), []
    decoder = Decoder(lambda piece: third.set() if piece == 2 else None)
    with writer(tmp_path, lambda: waited.append(third.wait(WAIT_S))) as sink:
        decode(decoder, sink)
        sink.close()
    assert waited == [True] * PIECES


def test_every_piece_is_encoded_while_the_next_one_is_decoded(tmp_path: Path) -> None:
    """Neither ends before the other one has begun: so the slower of both sets the time, not their sum."""
    decoding, encoding = ([threading.Event() for _ in range(PIECES)] for _ in range(2))
    met: list[bool] = []

    def decoded(piece: int) -> None:
        decoding[piece].set()
        met.append(piece == 0 or encoding[piece - 1].wait(WAIT_S))

    def encoded(numbers: Iterator[int]) -> None:
        piece = next(numbers)
        encoding[piece].set()
        met.append(piece == PIECES - 1 or decoding[piece + 1].wait(WAIT_S))

    numbers = iter(range(PIECES))
    with writer(tmp_path, lambda: encoded(numbers)) as sink:
        decode(Decoder(decoded), sink)
        sink.close()
    assert met == [True] * 2 * PIECES


def test_frames_stay_as_they_came() -> None:
    class Keeping(NullSink):
        def __init__(self) -> None:
            self.kept: list[Tensor] = []

        def frames(self, frames: Tensor) -> None:
            self.kept.append(frames)

    sink = Keeping()
    decode(Decoder(), sink)
    assert [frames.unique().tolist() for frames in sink.kept] == [[40 * piece] for piece in range(PIECES)]


@pytest.mark.parametrize("where", ["sink", "progress"])
def test_an_interrupt_leaves_nothing_running(where: str) -> None:
    class Interrupt(BaseException): ...

    class Stopping(NullSink, NoProgress):
        def frames(self, _frames: Tensor) -> None:
            if where == "sink":
                raise Interrupt

        def step(self, _stage: str, _done: int) -> None:
            raise Interrupt

    decoder, stopping = Decoder(), Stopping()
    world: Any = World(decoder)
    with pytest.raises(Interrupt) as caught:
        decode_video(world, world, torch.zeros(1, 4, 1, 1, 1), stopping, stopping)
    # Though the traceback, which holds the stage's variables, is still there
    assert caught.tb is not None and decoder.closed and world.given_back
