"""The simplest residency: every component is loaded once, onto one device, and stays there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from .telemetry import Telemetry


class OneDeviceResidency:
    """Keeps all components on one device.

    Args:
        build: loads a component's module onto a device; called once per component, at its first use.
        device: the compute device.
        set_adapters: applies LoRA strengths by adapter name to a module; called when a use asks for strengths.
        reason: why this mode was chosen, in words, for the report.
        reads_from_host: whether ``build`` brings weights from host memory, to be counted as moved, or makes them on the
            device itself, as benchmarks do.
    """

    mode = "one-device"

    def __init__(
        self,
        build: Callable[[Any, torch.device], nn.Module],
        device: torch.device,
        set_adapters: Callable[[nn.Module, Mapping[str, float]], None],
        reason: str = "every component fits on the device",
        reads_from_host: bool = True,
    ) -> None:
        self.device, self.mode_reason = device, reason
        self._build, self._set_adapters = build, set_adapters
        self._reads_from_host = reads_from_host
        self._modules: dict[Hashable, nn.Module] = {}
        # One run at a time: adapter strengths are state of the one DiT
        self._lock = threading.RLock()
        self._telemetry = Telemetry(device)

    @contextmanager
    def use(
        self, component: Hashable, phase: Hashable, adapters: Mapping[str, float] | None = None
    ) -> Iterator[nn.Module]:
        """The component's module on the device; loads it at the first use."""
        with self._lock:
            module = self._modules.get(component)
            if module is None:
                module = self._load(component)
            if adapters is not None:
                self._set_adapters(module, adapters)
            yield module

    def prefetch(self, component: Hashable, phase: Hashable, adapters: Mapping[str, float] | None = None) -> None:
        """Nothing to do: what was used once is already in place."""

    def fall_back(self, problem: str) -> bool:
        """There is no other placement."""
        return False

    def release(self) -> None:
        """Drops every module, so that its memory can be taken back. The next use loads again."""
        with self._lock:
            self._modules.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def measure(self, stage: str) -> AbstractContextManager[None]:
        return self._telemetry.measure(stage)

    def moved(self, h2d_bytes: int = 0, d2h_bytes: int = 0) -> None:
        self._telemetry.moved(h2d_bytes, d2h_bytes)

    def take_records(self) -> list[dict[str, Any]]:
        return self._telemetry.take_records()

    def _load(self, component: Hashable) -> nn.Module:
        # A caller may be in inference mode; weights made there could never be written to outside of it again
        with torch.inference_mode(False), torch.no_grad():
            module = self._build(component, self.device)
        if self._reads_from_host and self.device.type != "cpu":
            self.moved(h2d_bytes=sum(t.nbytes for t in (*module.parameters(), *module.buffers())))
        self._modules[component] = module
        return module
