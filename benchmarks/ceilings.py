"""What the machine itself can do: matrix products, attention and copies, in about ten seconds."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..ltx2_core.kernels.availability import has_fp8_matmul
from ..ltx2_core.kernels.quantise import quantise_rows
from .flops import Flops
from .measure import JSON, Save, machine

logger = logging.getLogger("ltx2.benchmarks")

SQUARE = 8192
# So long, a card that is limited by its power has settled
SUSTAINED_S = 1.5
SHORT_CALLS = 20  # 30 ms on an H200: before it has
# Rows of shapes A, B and D, and the three kinds of large layers: (out, in)
GEMM_ROWS = (1536, 6144, 32640)
GEMM_LAYERS = ((4096, 4096), (16384, 4096), (4096, 16384))
ATTENTION_TOKENS = (1536, 6144, 8160, 24576, 32640)
HEADS, HEAD_DIM = 32, 128
BACKENDS: dict[str, list[SDPBackend]] = {
    "default": [],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
}
CALLS = 10
# Several weights in turns, together larger than any cache
ROTATED_BYTES = 2**28
COPY_BYTES, HOST_BYTES = 2**32, 2**30


@dataclass(frozen=True)
class Rates:
    """TFLOP/s of square matrix products, under lasting load; fp8 is None where there is none."""

    bf16: float
    bf16_short: float
    fp8: float | None

    def summary(self) -> JSON:
        return {
            "bf16": round(self.bf16, 1),
            "bf16_short": round(self.bf16_short, 1),
            "fp8": self.fp8 and round(self.fp8, 1),
        }

    def floor_ms(self, flops: Flops, precision: str) -> float:
        """The least time: attention always at the bf16 rate, the linears at that of their precision."""
        linear = self.fp8 if precision == "fp8" and self.fp8 else self.bf16
        return (flops.linear / linear + flops.attention / self.bf16) / 1e9


def run(save: Save) -> JSON:
    """Everything that there is to measure."""
    device = torch.device("cuda")
    figures: JSON = {"benchmark": "ceilings", "machine": machine(device)}
    for name, part in _PARTS.items():
        begin = time.perf_counter()
        figures[name] = part(device)
        logger.info("%s, in %.1f s: %s", name, time.perf_counter() - begin, figures[name])
        torch.cuda.empty_cache()
        save(figures)
    return figures


def matmul_rates(device: torch.device) -> Rates:
    """The rates that floors are counted with, under load that lasts."""
    if device.type != "cuda":  # a stand-in, for runs that only try the code
        return Rates(1.0, 1.0, 1.0)
    a, b = (torch.randn(SQUARE, SQUARE, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * SQUARE**3
    short = flops / statistics.median(_times([lambda: a @ b], SHORT_CALLS)) / 1e9
    fp8 = None
    if has_fp8_matmul(device):
        fp8 = flops / _sustained(_scaled_mm(a, b), SUSTAINED_S) / 1e9
    return Rates(flops / _sustained(lambda: a @ b, SUSTAINED_S) / 1e9, short, fp8)


def _gemms(device: torch.device) -> list[JSON]:
    rows = []
    for m in GEMM_ROWS:
        for n, k in GEMM_LAYERS:
            x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
            count = max(1, ROTATED_BYTES // (2 * n * k))
            weights = [torch.randn(n, k, device=device, dtype=torch.bfloat16) for _ in range(count)]
            row: JSON = {"m": m, "n": n, "k": k}
            row["bf16"] = _rate(2 * m * n * k, [_linear(x, weight) for weight in weights])
            if has_fp8_matmul(device):
                row["fp8"] = _rate(2 * m * n * k, [_scaled_mm(x, weight.t()) for weight in weights])
            rows.append(row)
    return rows


def _attention(device: torch.device) -> list[JSON]:
    rows = []
    for tokens in ATTENTION_TOKENS:
        # As the engine has them: heads of a (B, T, width) tensor, not contiguous ones
        q, k, v = (
            torch.randn(1, tokens, HEADS, HEAD_DIM, device=device, dtype=torch.bfloat16).transpose(1, 2)
            for _ in range(3)
        )
        flops = 4 * tokens * tokens * HEADS * HEAD_DIM
        row: JSON = {"tokens": tokens}
        for name, backends in BACKENDS.items():
            row[name] = _attention_rate(flops, q, k, v, backends)
        rows.append(row)
    return rows


def _attention_rate(flops: int, q: Tensor, k: Tensor, v: Tensor, backends: list[SDPBackend]) -> float | None:
    def attend() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    try:
        if not backends:
            return _rate(flops, [attend])
        with sdpa_kernel(backends):
            return _rate(flops, [attend])
    except RuntimeError as error:
        logger.info("%s: %s", backends, error)
        return None


def _copies(device: torch.device) -> JSON:
    """GB/s; a copy on the device counts what it reads and what it writes."""
    source, target = (torch.empty(COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    source.random_()
    host = torch.empty(HOST_BYTES, dtype=torch.uint8, pin_memory=True).fill_(7)
    part = target[:HOST_BYTES]

    def rate(nbytes: int, action: Callable[[], object]) -> float:
        return round(nbytes / statistics.median(_times([action], CALLS)) / 1e6, 1)

    return {
        "device": rate(2 * COPY_BYTES, lambda: target.copy_(source)),
        "pinned_h2d": rate(HOST_BYTES, lambda: part.copy_(host, non_blocking=True)),
        "pinned_d2h": rate(HOST_BYTES, lambda: host.copy_(part, non_blocking=True)),
    }


_PARTS: dict[str, Callable[[torch.device], Any]] = {
    "matmul": lambda device: matmul_rates(device).summary(),
    "gemms": _gemms,
    "attention": _attention,
    "copies": _copies,
}


def _linear(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: F.linear(x, weight)


def _scaled_mm(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """a @ b in fp8 with a scale for each row of ``a`` and each column of ``b``; quantising is not part of the call."""
    left, right = quantise_rows(a), quantise_rows(b.t().contiguous())
    return lambda: torch._scaled_mm(
        left.values,
        right.values.t(),
        scale_a=left.scales,
        scale_b=right.scales.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _rate(flops: int, actions: Sequence[Callable[[], object]]) -> float:
    """TFLOP/s."""
    return round(flops / statistics.median(_times(actions, max(CALLS, len(actions)))) / 1e9, 1)


def _times(actions: Sequence[Callable[[], object]], calls: int) -> list[float]:
    """Milliseconds of each of so many calls in a row, the actions in turns, after one of each."""
    for action in actions:
        action()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    events[0].record()
    for call in range(calls):
        actions[call % len(actions)]()
        events[call + 1].record()
    events[-1].synchronize()
    return [begin.elapsed_time(end) for begin, end in pairwise(events)]


def _sustained(action: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of a call in the second half of so many seconds."""
    calls = max(2, int(seconds * 1000 / statistics.median(_times([action], 3))))
    return statistics.median(_times([action], calls)[calls // 2 :])
