"""A large module that runs with its base weights in one phase and with merged adapters in another.

Four ways to have both, see :class:`Mode`. The base weights are never written where no host copy can bring them back,
and a host copy is made while the weights are read, never from the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .host_memory import PinnedBudget
from .layout import Layout, members, unique_tensors
from .modes import Mode, needs_snapshot
from .streams import Event, Streams
from .weights import WeightSet, assign, bind, plain_tensors, share

logger = logging.getLogger("ltx2.device")

Strengths = Mapping[str, float]


@dataclass(frozen=True)
class SwitchedSpec:
    """How the module and its adapters are made. Everything is called with weights, never with files.

    Attributes:
        skeleton: the module on the meta device, in its final dtypes.
        fill: writes every tensor, by name, into memory that is given, on the host or on the device.
        layers: path of the module list that is copied and waited for layer by layer.
        adapt: wraps layers of a module that shares the weights; the adapters' matrices are read into host memory.
        set_adapters: gives adapters of a wrapped module their strengths.
        merge: adds adapters, by strength, into weights by name; the wrapped module holds their matrices.
        merged_phases: phases whose adapters are merged, not applied on the fly.
    """

    skeleton: Callable[[], nn.Module]
    fill: Callable[[Mapping[str, Tensor]], None]
    layers: str
    adapt: Callable[[nn.Module], None]
    set_adapters: Callable[[nn.Module, Strengths], None]
    merge: Callable[[nn.Module, Mapping[str, Tensor], Strengths], None]
    merged_phases: Collection[Hashable] = ()


class Switched:
    """The module in one mode.

    ``moved(h2d, d2h)`` hears how many bytes were copied; nothing is ever copied down.
    """

    def __init__(
        self,
        spec: SwitchedSpec,
        mode: Mode,
        streams: Streams,
        budget: PinnedBudget,
        moved: Callable[[int, int], None],
    ) -> None:
        self.spec, self.mode = spec, mode
        self._streams, self._budget, self._moved = streams, budget, moved
        self._forget()

    def _forget(self) -> None:
        self._plain: nn.Module | None = None
        self._tensors: list[Tensor] = []  # of the plain module, in the layout's order
        self._dynamic: nn.Module | None = None  # the plain module's tensors behind adapters
        self._merged_module: nn.Module | None = None
        self._merged_tensors: list[Tensor] = []
        self._layout: Layout | None = None
        self._host: WeightSet | None = None
        self._base: WeightSet | None = None
        self._second: WeightSet | None = None  # merged weights beside the base
        self._second_key: Hashable = None
        self._second_ready: Event = None
        self._dirty: Hashable = None  # what was merged into the base, or that a merge was begun
        self._arrived: list[Event] = []  # of every group that is on its way to the base
        self._adapter_tensors: list[Tensor] = []
        self._adapter_host: WeightSet | None = None
        self._adapter_device: WeightSet | None = None
        self._adapters_ready: Event = None
        self._applied: Hashable = None  # strengths that the wrapped module's adapters have
        self._applying = False  # the wrapped module is in use
        self._keep_adapters = False  # the next phase wants them where they are

    # What is where

    @property
    def device_bytes(self) -> dict[str, int]:
        sets = {"base": self._base, "merged": self._second, "adapters": self._adapter_device}
        return {name: weights.nbytes for name, weights in sets.items() if weights is not None}

    @property
    def host_bytes(self) -> dict[str, int]:
        sets = {"base": self._host, "adapters": self._adapter_host}
        return {name: weights.nbytes for name, weights in sets.items() if weights is not None}

    # Loading

    def load(self) -> nn.Module:
        """Reads the weights to where the mode keeps them; does nothing the second time."""
        if self._plain is not None:
            return self._plain
        with plain_tensors():
            plain = self.spec.skeleton()
            layout = Layout.of(plain, self.spec.layers)
            first = WeightSet(layout, self._home)
            self.spec.fill(first.named())
            assign(plain, first.views)
            self._tensors = [tensor for _, tensor in unique_tensors(plain.eval())]
            if self._keeps_host_copy:
                self._host = first
                for memory in first.memory:
                    self._budget.pin(memory, first)
            else:
                self._base = first
                self._moved(first.nbytes if self._streams.cuda else 0, 0)
            self._arrived = [None] * len(layout.group_bytes)
            self._hook(plain)
            self._layout, self._plain = layout, plain
        return self._plain

    @property
    def _keeps_host_copy(self) -> bool:
        return needs_snapshot(self.mode)

    @property
    def _home(self) -> torch.device:
        return torch.device("cpu") if self._keeps_host_copy else self._streams.device

    def _load_adapters(self) -> None:
        """Wraps the module once; adapter matrices live on the host between the phases that need them."""
        if self._dynamic is not None:
            return
        plain = self.load()
        with plain_tensors():
            dynamic = self.spec.skeleton()
            share(plain, dynamic)
            base = {id(tensor) for tensor in self._tensors}
            self.spec.adapt(dynamic.eval())
            named = [(n, t) for n, t in unique_tensors(dynamic) if id(t) not in base]
            self._adapter_tensors = [tensor for _, tensor in named]
            layout = Layout.of(dynamic, None, without=base)
            weights = WeightSet(layout, torch.device("cpu") if self._streams.cuda else self._streams.device)
            for view, tensor in zip(weights.views, self._adapter_tensors, strict=True):
                view.copy_(tensor)
            bind(self._adapter_tensors, weights.views)
            for memory in weights.memory:
                self._budget.pin(memory, weights)
            self._adapter_host, self._dynamic = weights, dynamic
            self._hook(dynamic)

    def _hook(self, module: nn.Module) -> None:
        """Lets every layer wait for its own weights only, so that work begins while later ones are on their way."""
        for index, layer in enumerate(members(module, self.spec.layers)):
            layer.register_forward_pre_hook(self._wait_hook(index + 1))

    def _wait_hook(self, group: int) -> Callable[[nn.Module, Any], None]:
        def hook(layer: nn.Module, inputs: Any) -> None:
            self._wait_group(group)

        return hook

    def _wait_group(self, group: int) -> None:
        if self._arrived and self._arrived[group] is not None:
            self._streams.wait(self._arrived[group])
            self._arrived[group] = None

    def _wait_all(self) -> None:
        """The current stream waits for every group; other streams, which may come later, still do so for themselves."""
        for event in self._arrived:
            self._streams.wait(event)

    # The base weights on the device

    def _ensure_base(self) -> WeightSet:
        """The clean base weights, on the device or on their way: each group has an event to wait for."""
        self.load()
        if self._host is not None and (self._base is None or self._dirty is not None):
            self._restore()
        assert self._base is not None
        return self._base

    def _restore(self) -> None:
        """Brings every group over from the host copy, on the copy stream, after what the current stream does now."""
        assert self._host is not None and self._layout is not None
        start = self._streams.mark()
        if self._base is None:
            self._base = WeightSet(self._layout, self._streams.device)
            bind(self._tensors, self._base.views)
        with self._streams.copying(after=start):
            for group in range(len(self._base.memory)):
                copied = self._base.copy_group(self._host, group)
                self._moved(copied if self._streams.cuda else 0, 0)
                self._arrived[group] = self._streams.mark()
        self._dirty = None

    def _ensure_adapters(self) -> nn.Module:
        """The wrapped module, its adapter matrices on the device or on their way."""
        self._load_adapters()
        assert self._dynamic is not None and self._adapter_host is not None
        if self._adapter_device is None:
            if not self._streams.cuda:
                self._adapter_device = self._adapter_host
                return self._dynamic
            self._adapter_device = WeightSet(self._adapter_host.layout, self._streams.device)
            with self._streams.copying(after=self._streams.mark()):
                self._moved(self._adapter_device.copy_from(self._adapter_host), 0)
                self._adapters_ready = self._streams.mark()
            bind(self._adapter_tensors, self._adapter_device.views)
        return self._dynamic

    def _drop_adapters(self) -> None:
        """Gives the adapters' device memory back, unless they are being applied."""
        if self._applying or self._adapter_device is None or not self._streams.cuda:
            return
        assert self._adapter_host is not None
        bind(self._adapter_tensors, self._adapter_host.views)
        for memory in self._adapter_device.memory:
            self._streams.keep_until_now(memory)
        self._adapter_device, self._adapters_ready = None, None

    # Merged weights

    def _make_second(self, strengths: Strengths) -> None:
        """Copies the base and merges into the copy, on the current stream."""
        base = self._ensure_base()
        self._wait_all()
        dynamic = self._ensure_adapters()
        self._streams.wait(self._adapters_ready)
        self._second_key = None
        if self._second is None:
            self._second = WeightSet(base.layout, self._streams.device)
        for group in range(len(base.memory)):
            self._second.copy_group(base, group)
        self.spec.merge(dynamic, self._second.named(), strengths)
        self._second_key = _key(strengths)
        if self._adapter_device is not None:
            for memory in self._adapter_device.memory:
                self._streams.keep_until_now(memory)
        self._drop_adapters()
        if self._merged_module is None:
            module = self.spec.skeleton()
            assign(module, self._second.views)
            self._merged_tensors = [tensor for _, tensor in unique_tensors(module.eval())]
            self._merged_module = module
        else:
            bind(self._merged_tensors, self._second.views)

    def _merge_in_place(self, strengths: Strengths) -> None:
        base = self._ensure_base()
        self._wait_all()
        dynamic = self._ensure_adapters()
        self._streams.wait(self._adapters_ready)
        self._dirty = "a merge that did not end"
        self.spec.merge(dynamic, base.named(), strengths)
        self._dirty = _key(strengths)
        self._drop_adapters()

    def _drop_second(self) -> None:
        """Gives the merged weights' memory back; their module stays, showing the base, since making one takes long."""
        if self._second is not None:
            for memory in self._second.memory:
                self._streams.keep_until_now(memory)
            shown = self._base or self._host
            if self._merged_module is not None and shown is not None:
                bind(self._merged_tensors, shown.views)
        self._second, self._second_key, self._second_ready = None, None, None

    # Use

    def prefetch(self, phase: Hashable, strengths: Strengths) -> None:
        """Begins what :meth:`use` will need, beside the current stream; returns at once."""
        active = _active(strengths)
        if self._plain is None or not active:
            return
        merges = phase in self.spec.merged_phases and self.mode in (Mode.RESIDENT, Mode.SNAPSHOT)
        with plain_tensors():
            if not merges:
                if self._dirty is None:
                    self._ensure_adapters()
                    self._keep_adapters = True
            elif self._second_key != _key(active):
                with self._streams.working(after=self._streams.mark()):
                    self._streams.wait(self._second_ready)
                    self._make_second(active)
                    self._second_ready = self._streams.mark()

    @contextmanager
    def use(self, phase: Hashable, strengths: Strengths) -> Iterator[nn.Module]:
        """The module whose forward has these adapter strengths."""
        active = _active(strengths)
        merged = bool(active) and phase in self.spec.merged_phases and self.mode is not Mode.ORIGINAL
        self._keep_adapters = False
        with plain_tensors():
            module = self._merged(active) if merged else self._unmerged(strengths)
        try:
            yield module
        finally:
            with plain_tensors():
                self._finish(merged)

    def _unmerged(self, strengths: Strengths) -> nn.Module:
        self._ensure_base()
        self._wait_group(0)
        if not _active(strengths):
            assert self._plain is not None
            return self._plain
        dynamic = self._ensure_adapters()
        self._streams.wait(self._adapters_ready)
        if self._applied != _key(strengths):
            self.spec.set_adapters(dynamic, strengths)
            self._applied = _key(strengths)
        self._applying = True
        return dynamic

    def _merged(self, active: Strengths) -> nn.Module:
        if self.mode is Mode.SNAPSHOT_LOW:
            if self._dirty != _key(active):
                self._merge_in_place(active)
            assert self._plain is not None
            return self._plain
        self._streams.wait(self._second_ready)
        self._second_ready = None
        if self._second_key != _key(active):
            self._make_second(active)
        assert self._merged_module is not None
        return self._merged_module

    def _finish(self, merged: bool) -> None:
        applied, self._applying = self._applying, False
        if merged and self.mode is Mode.SNAPSHOT:
            self._drop_second()
        if self._dirty is not None:
            self._restore()
        if (applied or merged) and not self._keep_adapters:
            self._drop_adapters()

    def release(self) -> int:
        """Gives all device memory back; returns the bytes. Without a host copy the next use reads the files again."""
        freed = sum(self.device_bytes.values())
        with plain_tensors():
            self._streams.wait(self._second_ready)
            self._drop_second()
            if self._host is None:
                self._forget()
            else:
                self._wait_all()
                self._arrived = [None] * len(self._arrived)
                bind(self._tensors, self._host.views)
                bind(self._merged_tensors, self._host.views[: len(self._merged_tensors)])
                if self._base is not None:
                    for memory in self._base.memory:
                        self._streams.keep_until_now(memory)
                self._base, self._dirty = None, None
                self._drop_adapters()
        return freed

    def drop(self) -> None:
        """Forgets everything, the host copy too."""
        self.release()
        self._forget()


def _active(strengths: Strengths) -> Strengths:
    return {name: strength for name, strength in strengths.items() if strength}


def _key(strengths: Strengths) -> Hashable:
    return tuple(sorted(strengths.items()))
