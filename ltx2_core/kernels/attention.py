"""Which kernel computes an attention: PyTorch's own choice, or FlashAttention where it is installed and faster."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional as F

from ..errors import SettingError
from .availability import chosen, fused

logger = logging.getLogger("ltx2.kernels")

VARIABLE = "LTX2_ATTENTION"
"""``auto`` measures what is installed; ``sdpa`` leaves the choice to PyTorch; ``flash`` insists on FlashAttention."""

SETTINGS = ("auto", "sdpa", "flash")

# Few queries on many keys leave cuDNN's kernel without work to share out. One H200, 32 heads of 64, 126 queries:
# 6,144 keys 0.036 ms instead of 0.059, 32,640 keys 0.136 instead of 0.285; with 1,536 keys cuDNN is ahead.
FEW_QUERIES, MANY_KEYS = 256, 4096

# Below this length every kernel takes about as long, and the choice is not worth its measurement
WORTH_MEASURING = 1024
# What another kernel must gain before it is taken: less is noise, and results should not change with it
LEAST_GAIN = 0.97
_WARM_UP, _REPEATS = 3, 7

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention without a mask, (B, heads, T, head_dim) in and out.

    The first call of a size may measure which kernel is fastest, where there is more than one to choose from.
    """
    if fused(q) and q.is_cuda:
        queries, keys = q.shape[2], k.shape[2]
        if min(queries, keys) >= WORTH_MEASURING:
            flash = _faster_flash(q.device, q.dtype, tuple(q.shape), keys)
            if flash is not None:
                return flash(q, k, v)
        elif queries <= FEW_QUERIES and keys >= MANY_KEYS and _torchs_flash_takes(q, k, v):
            # By name: torch.nn.attention.sdpa_kernel switches the other kernels off for every thread in the process
            out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
            return out
    return F.scaled_dot_product_attention(q, k, v)


def _torchs_flash_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return torch.version.hip is None and can_use_flash_attention(SDPAParams(q, k, v, None, 0.0, False, False))


def check_setting() -> None:
    """Raises :class:`SettingError` where :data:`VARIABLE` is no choice, or asks for what is not installed."""
    if chosen(VARIABLE, SETTINGS, "attention") == "flash":
        installed_flash()


@lru_cache(maxsize=1)
def installed_flash() -> tuple[str, Kernel] | None:
    """The newest FlashAttention that can be imported, by name, taking and giving (B, heads, T, head_dim)."""
    setting = chosen(VARIABLE, SETTINGS, "attention")
    if setting == "sdpa":
        return None
    for module in ("flash_attn.cute", "flash_attn_interface", "flash_attn"):
        try:
            function = importlib.import_module(module).flash_attn_func
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            logger.debug("no %s: %s", module, error)
            continue
        return module, _by_heads(function)
    if setting == "flash":
        fix = "Install flash-attn, or choose auto."
        raise SettingError(VARIABLE, setting, "needs FlashAttention, which cannot be imported", fix)
    return None


def _by_heads(function: Callable[..., Tensor | tuple[Tensor, ...]]) -> Kernel:
    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return kernel


@lru_cache(maxsize=64)
def _faster_flash(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], keys: int) -> Kernel | None:
    """FlashAttention where it beats PyTorch's choice at this size; one measurement per size and process."""
    found = installed_flash()
    if found is None or dtype not in (torch.bfloat16, torch.float16):
        return None
    name, flash = found
    if os.environ.get(VARIABLE) == "flash":
        return flash
    batch, heads, queries, head_dim = shape
    q, k, v = (
        torch.randn(batch, length, heads, head_dim, dtype=dtype, device=device).transpose(1, 2)
        for length in (queries, keys, keys)
    )
    try:
        theirs = _median_ms(lambda: flash(q, k, v))
    except Exception as error:
        # Whatever a package of another's breaks with: PyTorch's kernel is there
        logger.warning("%s does not run here and is left out: %s", name, error)
        return None
    ours = _median_ms(lambda: F.scaled_dot_product_attention(q, k, v))
    logger.info("attention %s on %d keys: %s %.3f ms, PyTorch %.3f ms", shape, keys, name, theirs, ours)
    return flash if theirs < LEAST_GAIN * ours else None


def _median_ms(run: Callable[[], Tensor]) -> float:
    for _ in range(_WARM_UP):
        run()
    events = [_timing_event() for _ in range(_REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    times: list[float] = sorted(begin.elapsed_time(end) for begin, end in pairwise(events))
    return times[_REPEATS // 2]


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
