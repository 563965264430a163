"""Denoising loops over both streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from .state import StreamState
from .steps import euler_step


class Evaluate(Protocol):
    """The guided clean estimates of both streams at one noise level."""

    def __call__(self, video: StreamState, audio: StreamState, sigma: float, step: int) -> tuple[Tensor, Tensor]: ...


def euler_loop(
    evaluate: Evaluate,
    video: StreamState,
    audio: StreamState,
    sigmas: Sequence[float],
    on_step: Callable[[int], None],
) -> tuple[StreamState, StreamState]:
    """Denoises both streams along ``sigmas`` with Euler steps.

    ``sigmas`` are host numbers: no branch and no step waits for the device. ``on_step`` hears how many steps are
    done and may raise to interrupt.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0_video, x0_audio = evaluate(video, audio, sigma, step)
        video = _advance(video, x0_video, sigma, sigma_next)
        audio = _advance(audio, x0_audio, sigma, sigma_next)
        on_step(step + 1)
    return video, audio


def _advance(state: StreamState, x0: Tensor, sigma: float, sigma_next: float) -> StreamState:
    return replace(state, latent=euler_step(state.latent, state.blend(x0), sigma, sigma_next))
