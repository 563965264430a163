"""Reads pieces of a file into memory that is given, by several threads. Nothing is mapped.

A mapped file that shrinks ends the process; here it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from .regular import FileChanged, open_unchanged, require_stamp
from .stamp import Stamp

# Reads of several threads keep a fast disk, and the copy out of the page cache, busy
_THREADS = 4
_CHUNK = 64 * 2**20
_STAGED_CHUNK = 16 * 2**20  # for a device: host memory that is pinned, one of these a thread
_ALONE = 4 * 2**20  # bytes that one thread reads sooner than four would have begun

Piece = tuple[int, Tensor]
"""Where bytes are in the file, and where they go: a contiguous uint8 tensor."""


class ByteReader:
    """An open file that is, and stays, the one with a stamp.

    Use as a context manager; leaving it checks the stamp once more.

    Raises:
        FileChanged: the file is another one, or was written to before everything was read.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, stamp: Stamp) -> None:
        self._path, self._stamp = path, stamp
        self._file = open_unchanged(path, stamp)
        self._pool = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> ByteReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        with self._file:
            if kind is None:
                require_stamp(self._file, self._stamp)

    def read(self, pieces: Iterable[Piece]) -> None:
        """Fills tensors; large ones in shares, one a thread."""
        chunks = sorted((chunk for piece in pieces for chunk in _chunks(*piece)), key=lambda chunk: chunk[0])
        if sum(len(target) for _, target in chunks) <= _ALONE:
            _read(self._file, chunks)
            return
        # A thread's own current stream is the default one; the memory belongs to the caller's
        stream = _stream(chunks[0][1].device)
        shares = [chunks[i::_THREADS] for i in range(_THREADS)]
        for _ in self._pool.map(lambda share: self._read_share(share, stream), shares):
            pass

    def _read_share(self, chunks: Sequence[Piece], stream: torch.cuda.Stream | None) -> None:
        if chunks:
            with open_unchanged(self._path, self._stamp) as file, torch.cuda.stream(stream):
                _read(file, chunks)


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def _chunks(offset: int, target: Tensor) -> Iterator[Piece]:
    size = _CHUNK if target.device.type == "cpu" else _STAGED_CHUNK
    return ((offset + at, target[at : at + size]) for at in range(0, len(target), size))


def _read(file: BinaryIO, chunks: Sequence[Piece]) -> None:
    staging = _Staging()
    for offset, target in chunks:
        file.seek(offset)
        if target.device.type == "cpu":
            _read_exactly(file, target)
        else:
            target.copy_(staging.read(file, target))


class _Staging:
    """Host memory through which bytes go to a device, allocated once."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def read(self, file: BinaryIO, target: Tensor) -> Tensor:
        if self._memory is None or len(self._memory) < len(target):
            self._memory = torch.empty(len(target), dtype=torch.uint8, pin_memory=target.device.type == "cuda")
        memory = self._memory[: len(target)]
        _read_exactly(file, memory)
        return memory


def _read_exactly(file: BinaryIO, target: Tensor) -> None:
    memory = memoryview(target.numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(memory):
        got = file.readinto(memory[done:])  # type: ignore[attr-defined]
        if not got:
            raise FileChanged("the file ends early")
        done += got
