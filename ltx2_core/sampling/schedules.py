"""Noise schedules: sequences of sigma from 1 down to 0 (docs/model.md 5.1)."""

from __future__ import annotations

import math

import torch

# (tokens, shift) anchors between which the official schedule interpolates linearly, and the last non-zero sigma
_ANCHORS = ((1024, 0.95), (4096, 2.05))
_TERMINAL = 0.1


def guided_sigmas(steps: int, tokens: int) -> tuple[float, ...]:
    """The official stage-1 schedule, shifted by the token count and stretched to end in 0.1, 0.

    Computed in float32 as the official code does; the result holds those float32 values, so that every consumer
    sees the same numbers whatever its precision.

    Args:
        steps: number of intervals, at least 1.
        tokens: video tokens that set the shift; 4096 in every official recipe but HQ, which takes the real count.

    Returns:
        ``steps + 1`` values from 1.0 to 0.0. A single step is (1, 0): the official stretch divides zero by zero there.
    """
    (t0, s0), (t1, s1) = _ANCHORS
    slope = (s1 - s0) / (t1 - t0)
    shift = math.exp(tokens * slope + (s0 - slope * t0))
    u = torch.linspace(1.0, 0.0, steps + 1)[:-1]
    remaining = 1.0 - shift / (shift + (1 / u - 1))
    stretched = 1.0 - remaining / (remaining[-1] / (1.0 - _TERMINAL)) if steps > 1 else torch.tensor([1.0])
    return (*stretched.tolist(), 0.0)


def fixed_sigmas(values: tuple[float, ...]) -> tuple[float, ...]:
    """Given sigmas as the float32 numbers that the official code holds."""
    return tuple(torch.tensor(values, dtype=torch.float32).tolist())
