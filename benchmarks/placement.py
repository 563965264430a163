"""Components that stay on the device: what the stages ask of a residency, without a device manager."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..ltx2_core.types import Component, Phase
from .synthetic_models import SyntheticModels


class OnDevice:
    """A :class:`Residency` that builds each component at its first use, and keeps it until :meth:`drop`."""

    mode, mode_reason = "on-device", "a benchmark keeps what it measures on the device"
    notices = ()

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
    def use(
        self, component: Component, phase: Phase, adapters: Mapping[str, float] | None = None
    ) -> Iterator[nn.Module]:
        yield self.module(component)

    def prefetch(self, component: Component, phase: Phase, adapters: Mapping[str, float] | None = None) -> None:
        self.module(component)

    def fall_back(self, problem: str) -> bool:
        return False

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        yield

    def moved(self, h2d_bytes: int = 0, d2h_bytes: int = 0) -> None: ...

    def take_records(self) -> Sequence[Mapping[str, Any]]:
        return ()

    def last_records(self) -> Sequence[Mapping[str, Any]]:
        return ()

    def status(self) -> Mapping[str, Mapping[str, int]]:
        return {"device": {}, "host": {}, "pinned": {}}
