"""The device manager: all components of a model under one plan, for as long as the process lives."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .host_memory import PinnedBudget
from .modes import Mode
from .placed import ComponentSpec, Placed
from .policy import SMALL_MODES, next_lower
from .streams import Streams
from .switched import Switched, SwitchedSpec
from .telemetry import Telemetry

logger = logging.getLogger("ltx2.device")

NO_ADAPTERS: Mapping[str, float] = {}


class DeviceManager:
    """Decides where modules live, and hands them out ready for the compute device.

    One run at a time: a second thread waits for the module that it asks for.

    Args:
        device: the compute device.
        mode: how the switched component keeps its two sets of weights.
        reason: why, in words, for the report.
        switched: name and description of the component whose weights change between phases.
        components: the others.
        budget: for pinned host memory.
        planned_bytes: what a run takes of the device at its worst moment; 0 where nobody planned.

    Attributes:
        before_use: called before a component may be loaded, while no component is in use. A host application makes
            room there.
        current_run: names what the host application is running now. Stages of one run are reported together.
        on_change: called after memory was given back or another mode was taken, by whichever thread did that.
    """

    def __init__(
        self,
        device: torch.device,
        mode: Mode,
        reason: str,
        switched: tuple[Hashable, SwitchedSpec],
        components: Mapping[Hashable, ComponentSpec],
        budget: PinnedBudget | None = None,
        planned_bytes: int = 0,
    ) -> None:
        self.device, self.mode_reason, self._mode = device, reason, mode
        self._streams = Streams(device)
        self.current_run: Callable[[], Hashable] = lambda: None
        self._telemetry = Telemetry(device, lambda: self.current_run())
        self._budget = budget or PinnedBudget()
        self._name, spec = switched
        self._switched = Switched(spec, mode, self._streams, self._budget, self._moved)
        self._placed = {n: Placed(c, self._streams, self._budget, self._moved) for n, c in components.items()}
        self._lock = threading.RLock()
        self._in_use = 0  # components that are handed out now
        self.planned_bytes = planned_bytes
        self._notes: dict[str, str] = {}  # by what they are about
        self.before_use: Callable[[], None] | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._released: set[Hashable] = set()  # components that the last release took off the device

    @property
    def mode(self) -> str:
        return self._mode.value

    @property
    def notices(self) -> list[str]:
        """Sentences that the user should read, for as long as they are true."""
        return [*self._notes.values(), *([self._budget.problem] if self._budget.problem else [])]

    def note_mode(self, sentence: str) -> None:
        """Something to be said of the mode, until another one is taken."""
        self._notes["mode"] = sentence

    @contextmanager
    def use(
        self,
        component: Hashable,
        phase: Hashable,  # noqa: ARG002 - of the protocol Residency
        adapters: Mapping[str, float] | None = None,
    ) -> Iterator[nn.Module]:
        """The component's module, ready on the device while the context is open; loads it at its first use.

        Raises:
            KeyError: there is no such component.
        """
        with self._using():
            if component == self._name:
                with self._switched.use(adapters or NO_ADAPTERS) as module:
                    yield module
            else:
                with self._placed[component].use() as module:
                    yield module

    def prefetch(
        self,
        component: Hashable,
        phase: Hashable,  # noqa: ARG002 - of the protocol Residency
        adapters: Mapping[str, float] | None = None,
    ) -> None:
        """A hint that :meth:`use` will follow; returns at once."""
        with self._using():
            if component == self._name:
                self._switched.prefetch(adapters or NO_ADAPTERS)
            elif component in self._placed:
                self._placed[component].fetch()

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            self._in_use += 1
            try:
                if self._in_use == 1 and self.before_use is not None:
                    self.before_use()
                yield
            finally:
                self._in_use -= 1

    @property
    def pinned_limit(self) -> int | None:
        """Bytes of host memory that may be page-locked; None without a limit."""
        return self._budget.limit

    @property
    def device_bytes(self) -> int:
        """What all components hold of the device now."""
        return sum(self.status()["device"].values())

    def release_if_idle(self) -> int:
        """As :meth:`release`, and 0 at once where a component is in use, by this thread or another."""
        if not self._lock.acquire(blocking=False):
            return 0
        try:
            return 0 if self._in_use else self.release()
        finally:
            self._lock.release()

    def release(self) -> int:
        """Gives the device's memory back; returns the bytes. Host copies stay, and the next use restores from them."""
        with self._lock:
            held = {name for name, placed in self._placed.items() if placed.placement == "stay" and placed.device_bytes}
            if self._switched.device_bytes:
                held.add(self._name)
            if held:
                self._released = held
            freed = self._switched.release()
            for placed in self._placed.values():
                freed += placed.device_bytes
                placed.drop() if placed.placement == "stay" else placed.release()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.on_change()
        return freed

    @property
    def restorable(self) -> bool:
        """Whether a release took something off the device, and nothing has come back since."""
        return bool(self._released) and not self.device_bytes

    def restore(self) -> int:
        """Brings back what the last release took off the device; returns the bytes that the device holds more then.

        The merged weights and the adapters come with their next use.
        """
        with self._using():
            before, released = self.device_bytes, self._released
            self._released = set()
            if self._name in released:
                self._switched.restore()
            for name in released - {self._name}:
                self._placed[name].load()
            restored = self.device_bytes - before
        self.on_change()
        return restored

    def drop(self) -> None:
        """Forgets every weight, host copies too."""
        with self._lock:
            self._switched.drop()
            for placed in self._placed.values():
                placed.drop()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.on_change()

    def replan(self, mode: Mode, reason: str, components: Mapping[Hashable, ComponentSpec], planned_bytes: int) -> None:
        """Takes another plan for the same components; weights that it keeps elsewhere are loaded again."""
        with self._lock:
            self._take(mode)
            for name, spec in components.items():
                if spec.placement != self._placed[name].spec.placement:
                    self._placed[name].drop()
                    self._placed[name] = Placed(spec, self._streams, self._budget, self._moved)
            self.mode_reason, self.planned_bytes = reason, planned_bytes
            self._notes.pop("mode", None)
        self.on_change()

    def change_mode(self, mode: Mode, reason: str) -> None:
        """Takes another mode; weights that it keeps elsewhere are loaded again at the next use."""
        with self._lock:
            if mode is not self._mode:
                self._take(mode)
                if mode in SMALL_MODES:
                    self._let_components_visit()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            self.mode_reason = reason
            self._notes.pop("mode", None)
        self.on_change()

    def _take(self, mode: Mode) -> None:
        if mode is not self._mode:
            self._switched.drop()
            self._switched = Switched(self._switched.spec, mode, self._streams, self._budget, self._moved)
            self._mode = mode

    def _let_components_visit(self) -> None:
        """As these modes plan: nothing but the switched module stays on the device."""
        for name, placed in self._placed.items():
            if placed.spec.placement == "stay":
                placed.drop()
                spec = replace(placed.spec, placement="stream" if placed.spec.layers else "visit")
                self._placed[name] = Placed(spec, self._streams, self._budget, self._moved)

    def fall_back(self, problem: str) -> bool:
        """Takes the next lower mode after the device ran out of memory; False when there is none."""
        lower = next_lower(self._mode)
        if lower is None:
            return False
        reason = f"fell back from {self._mode} to {lower}: {problem}"
        logger.warning("The device manager %s", reason)
        self.change_mode(lower, reason)
        self.note_mode(f"Memory ran out, the device mode {reason}")
        return True

    def status(self) -> dict[str, dict[str, int]]:
        """Bytes by place ("device", "host") and what they hold."""
        places: dict[str, dict[str, int]] = {
            "device": dict(self._switched.device_bytes),
            "host": dict(self._switched.host_bytes),
        }
        for name, placed in self._placed.items():
            for place, nbytes in (("device", placed.device_bytes), ("host", placed.host_bytes)):
                if nbytes:
                    places[place][str(getattr(name, "value", name))] = nbytes
        places["pinned"] = {"all": self._budget.pinned}
        return places

    def measure(self, stage: str) -> AbstractContextManager[None]:
        return self._telemetry.measure(stage)

    def moved(self, h2d_bytes: int = 0, d2h_bytes: int = 0) -> None:
        self._telemetry.moved(h2d_bytes, d2h_bytes)

    def take_records(self) -> list[dict[str, Any]]:
        return self._telemetry.take_records()

    def last_records(self) -> list[dict[str, Any]]:
        return self._telemetry.last_records()

    def _moved(self, h2d_bytes: int, d2h_bytes: int) -> None:
        self._telemetry.moved(h2d_bytes, d2h_bytes)
