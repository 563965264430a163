"""Pinned host memory of exact size, registered on pages that are already in use."""

from __future__ import annotations

import logging
import threading
import weakref
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

logger = logging.getLogger("ltx2.device")

# cudaHostRegister on touched pages runs at 24 GB/s; torch's pinned allocator at 2.7 GB/s, and it rounds up to powers of
# two (measured on one H200 host)


class PinningHost(Protocol):
    """A host application that pins memory too, and keeps one budget for the whole process."""

    def pinning_room(self) -> int | None:
        """Bytes that may still be pinned; None where the host has no budget."""
        ...

    def allow_pinning(self, nbytes: int) -> bool:
        """Whether so many bytes more are fine; the host may give pins of its own up for it."""
        ...

    def pinning_changed(self, nbytes: int) -> None:
        """Hears of bytes that were pinned or, where the number is negative, given back."""
        ...


class PinnedBudget:
    """How much host memory this process may pin, and how much it has.

    Args:
        limit: bytes; None sets no limit of its own.
        host: the host application, if there is one with a budget of its own.
    """

    def __init__(self, limit: int | None = None, host: PinningHost | None = None) -> None:
        self.limit, self.pinned, self.warned = limit, 0, False
        self.problem = ""  # the sentence of the warning
        self._host, self._lock = host, threading.RLock()

    def pin(self, memory: Tensor, owner: object) -> bool:
        """Registers flat CPU memory for the copy engines, until ``owner`` is gone.

        Memory that cannot be pinned stays pageable, which copies at about a sixth of the speed; the first time a
        warning says so.

        Returns:
            Whether it is pinned now.
        """
        if memory.device.type != "cpu" or not memory.numel() or not torch.cuda.is_available():
            return False
        if memory.is_pinned():
            return True
        nbytes = memory.nbytes
        with self._lock:
            fits = self.limit is None or self.pinned + nbytes <= self.limit
            allowed = fits and (self._host is None or self._host.allow_pinning(nbytes))
            problem = "" if allowed else "the budget for pinned memory does not allow it"
            if not problem and (code := _register(memory.data_ptr(), nbytes)) != 0:
                problem = f"the driver refused it (error {code})"
            if problem:
                self._warn(nbytes, problem)
                return False
            self._count(nbytes)
        weakref.finalize(owner, self._unpin, memory)
        return True

    def _count(self, nbytes: int) -> None:
        self.pinned += nbytes
        if self._host is not None:
            self._host.pinning_changed(nbytes)

    def _warn(self, nbytes: int, problem: str) -> None:
        if not self.warned:
            self.warned = True
            self.problem = f"{nbytes / 1e9:.1f} GB of host memory stay pageable, copies will be slower: {problem}"
            logger.warning("%s", self.problem)

    def _unpin(self, memory: Tensor) -> None:
        with self._lock:
            self._count(-memory.nbytes)
        if int(_cudart().cudaHostUnregister(memory.data_ptr())) != 0:
            _drop_last_error()


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _register(address: int, nbytes: int) -> int:
    try:
        code = int(_cudart().cudaHostRegister(address, nbytes, 0))
    except RuntimeError:
        code = -1
    if code != 0:
        _drop_last_error()
    return code


def _drop_last_error() -> None:
    """A failed runtime call leaves its error behind, and the next kernel launch would be blamed for it."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda").add_(1)
