"""Whether fused kernels run, decided once per process."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import SettingError

logger = logging.getLogger("ltx2.kernels")

VARIABLE = "LTX2_KERNELS"
"""``auto`` takes Triton's kernels where Triton is installed; ``eager`` takes PyTorch's own everywhere."""

SETTINGS = ("auto", "eager")


def fused(tensor: Tensor) -> bool:
    """Whether Triton's kernels serve this tensor: on an NVIDIA or AMD GPU, or anywhere in Triton's interpreter."""
    if not _wanted() or not (tensor.is_cuda or _interpreted()):
        return False
    return _installed() and (not tensor.is_cuda or runs_on(tensor.device))


def _interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=8)
def runs_on(device: torch.device) -> bool:
    """Whether Triton can compile and launch a kernel on this GPU: it needs a C compiler, which not every system has."""
    try:
        from .triton.trial import trial

        trial(device)
    except Exception as error:
        # Whatever stands in the way: PyTorch's own kernels do the same work
        reason = str(error).strip() or type(error).__name__
        logger.warning("Triton does not work here; PyTorch's own kernels run, a tenth to a quarter slower: %s", reason)
        return False
    return True


@lru_cache(maxsize=1)
def _wanted() -> bool:
    return check_setting() != "eager"


def check_setting() -> str:
    """What :data:`VARIABLE` says; raises :class:`SettingError` where that is no choice."""
    return chosen(VARIABLE, SETTINGS, "kernels")


def chosen(variable: str, settings: Sequence[str], what: str) -> str:
    """The value of an environment variable, the first of its settings where it is empty or not there.

    Raises:
        SettingError: it is none of them.
    """
    setting = os.environ.get(variable) or settings[0]
    if setting not in settings:
        raise SettingError(variable, setting, f"is no choice of {what}", f"Choose from: {', '.join(settings)}.")
    return setting


@lru_cache(maxsize=1)
def _installed() -> bool:
    """Asked only where Triton's kernels would run: elsewhere nobody is to be told what is missing."""
    if importlib.util.find_spec("triton") is None:
        logger.info("Triton is not installed: PyTorch's own kernels run, a tenth to a quarter slower.")
        return False
    return True


@lru_cache(maxsize=8)
def converts_fp8(device: torch.device) -> bool:
    """Whether Triton's kernels read and write float8_e4m3fn on this GPU: NVIDIA, compute capability 8.9 or newer."""
    return _nvidia_capability(device) >= (8, 9)


@lru_cache(maxsize=8)
def has_fp8_matmul(device: torch.device) -> bool:
    """Whether the GPU multiplies fp8 matrices with a scale per row: NVIDIA, compute capability 9.0 or newer."""
    return _nvidia_capability(device) >= (9, 0)


def _nvidia_capability(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda" or torch.version.hip is not None:
        return (0, 0)
    return torch.cuda.get_device_capability(device)
