"""Launching Triton's kernels, a thousand times in each call of the DiT.

Triton finds out at every launch which of a kernel's compiled forms serves: for 40 parameters that takes Python longer
than a small kernel takes the GPU. Here a form that has served once is launched again by what tells it from the others.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from .compiled import OPTIONS, launch_compiled

logger = logging.getLogger("ltx2.kernels")

# Triton compiles a form of its own for pointers that are no multiple of this
ALIGNMENT = 16


class Launched:
    """A kernel whose parameters are pointers, then numbers, then constants of the compilation.

    Args:
        kernel: what ``triton.jit`` makes of a function.
        specialised: of the numbers, the positions of those on whose value the compiled form may depend.
    """

    def __init__(self, kernel: Any, specialised: Sequence[int]) -> None:
        self.kernel = kernel
        self._specialised = tuple(specialised)
        self._compiles = isinstance(kernel, triton.JITFunction)  # and is not interpreted
        self._compiled: dict[Hashable, Any] = {}

    def __call__(
        self,
        grid: tuple[int, ...],
        pointers: Sequence[Tensor | None],
        numbers: Sequence[float],
        constants: tuple[Hashable, ...],
        num_warps: int,
    ) -> None:
        """Launches a grid of one or two dimensions on the current stream."""
        if not self._compiles:
            self.kernel[grid](*pointers, *numbers, *constants, num_warps=num_warps)
            return
        device = driver.active.get_current_device()
        dtypes = tuple([None if pointer is None else pointer.dtype for pointer in pointers])
        form = (device, num_warps, constants, dtypes, tuple([numbers[position] for position in self._specialised]))
        addresses = [None if pointer is None else pointer.data_ptr() for pointer in pointers]
        aligned = not any([address and address % ALIGNMENT for address in addresses])
        compiled = self._compiled.get(form) if aligned else None
        if compiled is not None:
            launch_compiled(compiled, grid, device, *addresses, *numbers, *constants)
            return
        compiled = self.kernel[grid](*pointers, *numbers, *constants, num_warps=num_warps, **OPTIONS)
        if aligned and launches_again(device):
            self._compiled[form] = compiled


def launched(pointers: int, any_number: Sequence[str] = ()) -> Callable[[Callable[..., None]], Launched]:
    """Decorates a kernel, see :class:`Launched`.

    Args:
        pointers: how many of its parameters are.
        any_number: the numbers that would each compile a form of their own where they are 1 or a multiple of 16 by
            chance; for these one form serves all.
    """

    def decorate(function: Callable[..., None]) -> Launched:
        parameters = list(inspect.signature(function).parameters.values())
        # Annotations are text here
        numbers = [p.name for p in parameters[pointers:] if "constexpr" not in str(p.annotation)]
        specialised = [position for position, name in enumerate(numbers) if name not in any_number]
        return Launched(triton.jit(do_not_specialize=list(any_number))(function), specialised)

    return decorate


def power_of_2_from(number: int) -> int:
    """The least power of two that is not less. Triton's own way to it, like its division, takes Python 5 us."""
    return 1 << (number - 1).bit_length()


@lru_cache(maxsize=8)
def launches_again(device: int) -> bool:
    """Whether this Triton launches a compiled kernel by addresses, tried out once."""
    try:
        from .trial import trial_again

        return trial_again(torch.device("cuda", device))
    except Exception as error:
        # Releases differ in what a compiled kernel takes; Triton's own way to it is there, and slower
        logger.debug("kernels are launched as Triton does: %s", error)
        return False
