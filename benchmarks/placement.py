"""Components that stay on the device: what the stages ask of a residency, without a device manager."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..ltx2_core.protocols import NO_STRENGTHS
from ..ltx2_core.types import Component
from .synthetic_models import SyntheticModels


class NoBooks:
    """A :class:`Recorder` that keeps nothing."""

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        yield

    def moved(self, h2d_bytes: int = 0, d2h_bytes: int = 0) -> None: ...

    def take_records(self) -> Sequence[Mapping[str, Any]]:
        return ()

    def last_records(self) -> Sequence[Mapping[str, Any]]:
        return ()


class OnDevice:
    """A :class:`Residency` that builds each component at its first use, and keeps it until :meth:`drop`."""

    mode, mode_reason = "on-device", "a benchmark keeps what it measures on the device"
    notices: Sequence[str] = ()
    lightest: Mapping[str, str] = MappingProxyType({})
    recorder = NoBooks()

    def __init__(self, models: SyntheticModels, device: torch.device) -> None:
        self._models, self.device = models, device
        self._modules: dict[Component, nn.Module] = {}

    def module(self, component: Component) -> Any:
        if component not in self._modules:
            self._modules[component] = self._models.build(component, self.device)
        return self._modules[component]

    def drop(self) -> None:
        self._modules.clear()

    @contextmanager
    def use(self, component: Component, strengths: Mapping[str, float] = NO_STRENGTHS) -> Iterator[nn.Module]:
        yield self.module(component)

    def prefetch(self, component: Component, strengths: Mapping[str, float] = NO_STRENGTHS) -> None:
        self.module(component)

    def fall_back(self, problem: str) -> bool:
        return False

    def status(self) -> Mapping[str, Mapping[str, int]]:
        return {"device": {}, "host": {}, "pinned": {}}
