"""Sound beside pictures: in a CUDA graph the small work of the audio stream runs on a CUDA stream of its own.

The audio stream has a few per cent of the arithmetic, in kernels too small to fill a GPU. Both streams of the DiT meet
only where they hear each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .availability import fused

# Tokens times batch items of the video stream up to which two lanes pay. One H200, as CUDA graphs: 1,536 rows take
# 85.5 ms in two lanes and 88.9 in one; 6,144 rows 0.2 to 1.3% longer in two, since large products take the whole GPU
# and wait for what is on it. Calls that Python launches stay in one lane: the GPU waits for Python, and switching
# streams gives Python more to do. 1,536 rows take 107 ms in two lanes and 100 in one, in fp8 148 and 122
MOST_ROWS = 4096


class Lanes:
    """One lane: everything runs in order, on the current stream."""

    def begin(self) -> None:
        """Work on the audio lane waits for all that came before, such as weights that arrive."""

    def audio(self) -> AbstractContextManager[Any]:
        """Where the audio stream's work runs."""
        return nullcontext()

    def meet(self, *shared: Any) -> None:
        """Each lane waits for the other. ``shared`` is what one made and the other reads. It is kept until they meet
        again: memory that is given up serves the next work of its own lane at once, while the other may still read it.
        """

    def end(self) -> None:
        """The current stream waits for the audio lane."""


class TwoLanes(Lanes):
    """The audio stream's work on a CUDA stream of its own, beside the current one."""

    def __init__(self, device: torch.device) -> None:
        self._main, self._side = torch.cuda.current_stream(device), stream_for("sound", device)
        self._shared: tuple[Any, ...] = ()

    def begin(self) -> None:
        self._side.wait_stream(self._main)

    @contextmanager
    def audio(self) -> Iterator[None]:
        torch.cuda.set_stream(self._side)
        try:
            yield
        finally:
            torch.cuda.set_stream(self._main)

    def meet(self, *shared: Any) -> None:
        main = self._main.record_event()
        self._main.wait_stream(self._side)
        self._side.wait_event(main)
        self._shared = shared

    def end(self) -> None:
        self._main.wait_stream(self._side)
        self._shared = ()


def lanes_for(video: Tensor, items: int) -> Lanes:
    """Two lanes where a graph is captured of so few tokens (B, T, D), evaluated ``items`` times, that the GPU has room
    for more."""
    rows = video.shape[1] * max(video.shape[0], items)
    two = video.is_cuda and rows <= MOST_ROWS and fused(video) and torch.cuda.is_current_stream_capturing()
    return TwoLanes(video.device) if two else Lanes()


def stream_for(use: str, device: torch.device) -> torch.cuda.Stream:
    """A CUDA stream for one use, the same one each time in a thread: matrix products keep 32 MB of working memory for
    every stream that they were ever on."""
    return _stream(use, device, threading.get_ident())


@lru_cache(maxsize=32)
def _stream(_use: str, device: torch.device, _thread: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
