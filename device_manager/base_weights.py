"""A large module with its clean weights and its adapters: read once, kept on the device or brought back to it.

A host copy is made while the weights are read, never from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import Adapters, LayerwiseMerge, Merge, Strengths
from .host_memory import PinnedBudget
from .layout import Layout, members, unique_tensors
from .streams import Event, Streams
from .weights import WeightSet, assign, bind, plain_tensors, share


def _torch_says_so(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


@dataclass(frozen=True)
class SwitchableSpec:
    """How the module and its adapters are made. Everything is called with weights, never with files.

    Attributes:
        skeleton: the module on the meta device, in its final dtypes.
        fill: writes the tensors whose names it is given into memory, on the host or on the device.
        layers: path of the module list that is copied, merged and waited for layer by layer.
        adapt: wraps layers of a module that shares the weights with the adapters of these names; their matrices are
            read into host memory.
        set_adapters: gives adapters of a wrapped module their strengths.
        merge: adds adapters, by strength, into those weights that it is given by name; the wrapped module holds their
            matrices.
        ran_out: whether an error says that memory ran out.
    """

    skeleton: Callable[[], nn.Module]
    fill: Callable[[Mapping[str, Tensor]], None]
    layers: str
    adapt: Callable[[nn.Module, Collection[str]], None]
    set_adapters: Callable[[nn.Module, Strengths], None]
    merge: Merge
    ran_out: Callable[[BaseException], bool] = _torch_says_so


class BaseWeights:
    """The module, its base weights and its adapters, whatever a mode does with them.

    Args:
        keeps_host_copy: whether the weights are read into host memory and stay there; else they are read onto the
            device, and after :meth:`release` from the files again.
        moved: ``moved(h2d, d2h)`` hears how many bytes were copied; nothing is ever copied down.

    Attributes:
        device: the weights on the device, while they are there.
        host: the host copy, where one is kept.
        dirty: the weights on the device are not the clean ones, or may not be.
        before_layer: called before a layer of the module computes, with its group, once its weights have arrived.
    """

    def __init__(
        self,
        spec: SwitchableSpec,
        keeps_host_copy: bool,
        streams: Streams,
        budget: PinnedBudget,
        moved: Callable[[int, int], None],
    ) -> None:
        self.spec, self.streams, self.moved = spec, streams, moved
        self._keeps_host_copy, self._budget = keeps_host_copy, budget
        self.before_layer: Callable[[int], None] = lambda _: None
        self.forget()

    def forget(self) -> None:
        """Drops every weight and adapter; the next use reads them again."""
        self._module: nn.Module | None = None
        self._tensors: list[Tensor] = []  # of the module, in the layout's order
        self._layout: Layout | None = None
        self.host: WeightSet | None = None
        self.device: WeightSet | None = None
        self.dirty = False
        self._arrived: list[Event] = []  # of every group that is on its way to the device
        self._adapters: Adapters | None = None
        self._names: frozenset[str] = frozenset()  # of the adapters that the wrapped module has, or will have

    # What is where

    @property
    def loaded(self) -> bool:
        return self._module is not None

    @property
    def adapter_bytes(self) -> int:
        """What the adapters hold of the device."""
        held = self._adapters.device if self._adapters is not None else None
        return held.nbytes if held is not None else 0

    @property
    def host_bytes(self) -> dict[str, int]:
        sets = {"base": self.host, "adapters": self._adapters.host if self._adapters is not None else None}
        return {name: weights.nbytes for name, weights in sets.items() if weights is not None}

    # Loading

    def load(self) -> nn.Module:
        """The module, its weights read to where they are kept; does nothing the second time."""
        if self._module is not None:
            return self._module
        with plain_tensors():
            module = self.spec.skeleton()
            layout = Layout.of(module, self.spec.layers)
            home = torch.device("cpu") if self._keeps_host_copy else self.streams.device
            first = WeightSet(layout, home)
            self._fill(first)
            assign(module, first.views)
            self._tensors = [tensor for _, tensor in unique_tensors(module.eval())]
            if self._keeps_host_copy:
                self.host = first
            else:
                self.device = first
                self.moved(first.nbytes if self.streams.cuda else 0, 0)
            self._arrived = [None] * len(layout.group_bytes)
            self.hook(module, self._before_layer)
            self._layout, self._module = layout, module
        return self._module

    def _fill(self, weights: WeightSet) -> None:
        """Reads group after group; while one is read, the one before is page-locked."""
        with ThreadPoolExecutor(1, thread_name_prefix="ltx2-pin") as pinning:
            pins = []
            for group, memory in enumerate(weights.memory):
                self.spec.fill(weights.named(group))
                if self._keeps_host_copy:
                    pins.append(pinning.submit(self._budget.pin, memory, weights))
            for pin in pins:
                pin.result()

    def hook(self, module: nn.Module, before: Callable[[int], None]) -> None:
        """Calls ``before(group)`` before every layer, so that it waits for its own weights only."""

        def hook(group: int) -> Callable[[nn.Module, Any], None]:
            return lambda _layer, _inputs: before(group)

        for index, layer in enumerate(members(module, self.spec.layers)):
            layer.register_forward_pre_hook(hook(index + 1))

    def _before_layer(self, group: int) -> None:
        self.wait_group(group)
        self.before_layer(group)

    def wait_group(self, group: int) -> None:
        """The current stream goes on when the group's weights are on the device."""
        if self._arrived[group] is not None:
            self.streams.wait(self._arrived[group])
            self._arrived[group] = None

    def wait_all(self) -> None:
        """The current stream waits for every group; other streams, which may come later, still do so for themselves."""
        for event in self._arrived:
            self.streams.wait(event)

    # Adapters

    def has_adapters(self, names: Collection[str]) -> bool:
        """Whether the wrapped module has adapters of all these names, or will have them."""
        return self._names.issuperset(names)

    @property
    def wrapped(self) -> bool:
        """Whether the wrapped module is made."""
        return self._adapters is not None

    def want_adapters(self, names: Collection[str]) -> None:
        """The wrapped module is made anew, with these adapters, when it is needed. The weights stay."""
        if self._adapters is not None:
            self.streams.settle()
        self._adapters, self._names = None, frozenset(names)

    def adapters(self) -> Adapters:
        """A module that shares the weights, wrapped once; in merging modes it never runs, it holds the matrices."""
        if self._adapters is None:
            plain = self.load()
            with plain_tensors():
                wrapped = self.spec.skeleton()
                share(plain, wrapped)
                self.spec.adapt(wrapped.eval(), self._names)
                base = {id(tensor) for tensor in self._tensors}
                self.hook(wrapped, self.wait_group)
                self._adapters = Adapters(wrapped, base, self.spec.layers, self.streams, self._budget, self.moved)
        return self._adapters

    def set_strengths(self, strengths: Strengths) -> None:
        """Gives the wrapped module's adapters these strengths; those that are not named are silent."""
        self.spec.set_adapters(self.adapters().module, {**dict.fromkeys(self._names, 0.0), **strengths})

    def begin_merge(self, strengths: Strengths) -> LayerwiseMerge:
        return LayerwiseMerge(self.adapters(), self.spec.merge, strengths, self.streams, self.moved)

    def drop_adapters(self) -> None:
        """Gives the device memory of the adapters back."""
        if self._adapters is not None:
            self._adapters.drop()

    # The weights on the device

    def ready(self) -> nn.Module:
        """The module with its clean weights, for the current stream; each layer waits for its own."""
        self.ensure()
        self.wait_group(0)
        return self.load()

    def ensure(self) -> WeightSet:
        """The clean weights, on the device or on their way: each group has an event to wait for."""
        self.load()
        if self.host is not None and (self.device is None or self.dirty):
            self._restore(self.host)
        assert self.device is not None
        return self.device

    def clean(self) -> None:
        """Brings the clean weights back where those on the device were changed."""
        if self.dirty and self.device is not None:
            self.ensure()

    def _restore(self, host: WeightSet) -> None:
        """Brings every group over from the host copy, on the copy stream, after what the current stream does now."""
        start = self.streams.mark()
        self.dirty = True  # until all of it is on its way
        if self.device is None:
            self.device = WeightSet(host.layout, self.streams.device)
            bind(self._tensors, self.device.views)
        with self.streams.copying(after=start):
            for group in range(len(self.device.memory)):
                copied = self.device.copy_group(host, group)
                self.moved(copied if self.streams.cuda else 0, 0)
                self._arrived[group] = self.streams.mark()
        self.dirty = False

    def release(self) -> None:
        """Gives the device memory of the weights back. Without a host copy everything is dropped."""
        if self.host is None:
            self.forget()
            return
        self.wait_all()
        self._arrived = [None] * len(self._arrived)
        bind(self._tensors, self.host.views)
        if self.device is not None:
            with self.streams.working(after=self.streams.mark()):  # it may be copying from them
                for memory in self.device.memory:
                    self.streams.keep_until_now(memory)
        self.device, self.dirty = None, False
