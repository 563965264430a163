"""Pinned host memory of exact size, registered on pages that are already in use."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("ltx2.device")

# cudaHostRegister on touched pages runs at 24 GB/s; torch's pinned allocator at 2.7 GB/s, and it rounds up to powers of
# two (measured on one H200 host)


class PinnedBudget:
    """How much host memory this process may pin, and how much it has.

    Args:
        limit: bytes; None sets no limit of its own.
        allow: asks a host application, if there is one, whether so many bytes more are fine.
    """

    def __init__(self, limit: int | None = None, allow: Callable[[int], bool] = lambda nbytes: True) -> None:
        self.limit, self.pinned, self.warned = limit, 0, False
        self._allow, self._lock = allow, threading.RLock()

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
            problem = "" if fits and self._allow(nbytes) else "the budget for pinned memory does not allow it"
            if not problem and (code := _register(memory.data_ptr(), nbytes)) != 0:
                problem = f"the driver refused it (error {code})"
            if problem:
                self._warn(nbytes, problem)
                return False
            self.pinned += nbytes
        weakref.finalize(owner, self._unpin, memory)
        return True

    def _warn(self, nbytes: int, problem: str) -> None:
        if not self.warned:
            self.warned = True
            logger.warning("%.1f GB of host memory stay pageable, copies will be slower: %s", nbytes / 1e9, problem)

    def _unpin(self, memory: Tensor) -> None:
        with self._lock:
            self.pinned -= memory.nbytes
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
