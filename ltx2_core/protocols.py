"""What the engine asks of its surroundings. The composition roots (nodes, command line) inject the implementations."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from .types import Component, Phase


class Residency(Protocol):
    """Decides where modules live. The stages never call ``.to()``."""

    @property
    def device(self) -> torch.device:
        """The compute device."""
        ...

    def use(self, component: Component, phase: Phase) -> AbstractContextManager[Any]:
        """The component's module, ready on the compute device while the context is open."""
        ...

    def prefetch(self, component: Component, phase: Phase) -> None:
        """A hint that ``use`` will follow; returns at once."""
        ...


class Progress(Protocol):
    """Told about stages and steps; may raise to interrupt (the exception passes through untouched)."""

    def start(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps begins."""
        ...

    def step(self, stage: str, done: int) -> None:
        """``done`` of the stage's steps are finished."""
        ...

    def finish(self, stage: str) -> None: ...


class Attention(Protocol):
    """Scaled dot-product attention, (B, heads, T, head_dim) in and out; ``bias`` is additive and broadcastable."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor: ...


class NoProgress:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int) -> None: ...

    def step(self, stage: str, done: int) -> None: ...

    def finish(self, stage: str) -> None: ...
