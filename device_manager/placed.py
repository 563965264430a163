"""Components whose weights never change: they stay on the device, visit it, or stream through it layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .host_memory import PinnedBudget
from .layout import Layout, members, unique_tensors
from .streams import Event, Streams
from .weights import WeightSet, bind, plain_tensors

Placement = Literal["stay", "visit", "stream"]
# Layers whose weights are on the device at once while a component streams: one computes, the others arrive
STREAM_DEPTH = 3


@dataclass(frozen=True)
class ComponentSpec:
    """How a component is made and where it lives.

    Attributes:
        build: loads the module onto a device.
        placement: "stay" keeps it on the compute device; "visit" keeps it in host memory and brings it over for each
            use; "stream" brings its layers one after the other while it computes.
        layers: path of the module list that streams.
    """

    build: Callable[[torch.device], nn.Module]
    placement: Placement = "stay"
    layers: str | None = None


class Placed:
    """One such component, loaded at its first use."""

    def __init__(
        self, spec: ComponentSpec, streams: Streams, budget: PinnedBudget, moved: Callable[[int, int], None]
    ) -> None:
        self.spec, self._streams, self._budget, self._moved = spec, streams, budget, moved
        self._module: nn.Module | None = None
        self._tensors: list[Tensor] = []
        self._host: WeightSet | None = None
        self._device: WeightSet | None = None
        self._arrived: Event = None
        self._stream: LayerStream | None = None
        # What streams and what stays in host memory make no difference where host and device are one
        self.placement: Placement = spec.placement if streams.cuda else "stay"

    @property
    def device_bytes(self) -> int:
        if self.placement == "stay" and self._module is not None:
            return sum(tensor.nbytes for _, tensor in unique_tensors(self._module))
        return self._device.nbytes if self._device is not None else 0

    @property
    def host_bytes(self) -> int:
        return self._host.nbytes if self._host is not None else 0

    def load(self) -> nn.Module:
        """The module; its weights are where its placement keeps them between uses."""
        if self._module is not None:
            return self._module
        with plain_tensors():
            if self.placement == "stay":
                self._module = self.spec.build(self._streams.device)
                if self._streams.cuda:
                    self._moved(self.device_bytes, 0)
                return self._module
            module = self.spec.build(torch.device("cpu"))
            layout = Layout.of(module, self.spec.layers if self.placement == "stream" else None)
            self._host = WeightSet(layout, torch.device("cpu"))
            self._tensors = [tensor for _, tensor in unique_tensors(module)]
            for view, tensor in zip(self._host.views, self._tensors, strict=True):
                view.copy_(tensor)
                tensor.data = view  # one by one, so that what was read is freed on the way
            for memory in self._host.memory:
                self._budget.pin(memory, self._host)
            if self.placement == "stream":
                self._stream = LayerStream(
                    module, self.spec.layers or "", layout, self._host, self._streams, self._moved
                )
            self._module = module
        return module

    def fetch(self) -> None:
        """Starts to bring a visiting component over; returns at once."""
        self.load()
        if self.placement == "visit" and self._device is None and self._host is not None:
            self._device = WeightSet(self._host.layout, self._streams.device)
            with self._streams.visiting(after=self._streams.mark()):
                self._moved(self._device.copy_from(self._host), 0)
                self._arrived = self._streams.mark()
            bind(self._tensors, self._device.views)

    @contextmanager
    def use(self) -> Iterator[nn.Module]:
        self.fetch()
        assert self._module is not None
        self._streams.wait(self._arrived)
        try:
            yield self._module
        finally:
            self.release()

    def release(self) -> None:
        """Ends a visit: the tensors show the host copy again, and nothing is copied back."""
        if self._stream is not None:
            self._stream.end()
        if self._device is not None and self._host is not None:
            bind(self._tensors, self._host.views)
            if self._streams.cuda:
                with self._streams.visiting(after=self._streams.mark()):
                    for memory in self._device.memory:
                        self._streams.keep_until_now(memory)
            self._device, self._arrived = None, None

    def drop(self) -> None:
        """Forgets the module; the next use loads it again."""
        self.release()
        self._module, self._host, self._stream, self._tensors = None, None, None, []


class LayerStream:
    """Hooks that bring each layer's weights over shortly before it computes.

    A ring of ``STREAM_DEPTH`` buffers on the device is made when the module starts and given up when it ends; what is
    outside the layers visits for the whole call.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: str,
        layout: Layout,
        host: WeightSet,
        streams: Streams,
        moved: Callable[[int, int], None],
    ) -> None:
        self._host, self._streams, self._moved, self._layout = host, streams, moved, layout
        objects: list[Tensor] = [tensor for _, tensor in unique_tensors(module)]
        self._members: list[list[int]] = [[] for _ in layout.group_bytes]
        for index, slot in enumerate(layout.slots):
            self._members[slot.group].append(index)
        self._objects = objects
        self._ring: list[Tensor] = []
        self._free: list[Event] = []
        self._arrived: dict[int, Event] = {}
        self._outside: Tensor | None = None
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end, always_call=True)
        for index, layer in enumerate(members(module, layers)):
            layer.register_forward_pre_hook(self._before(index + 1))
            layer.register_forward_hook(self._after(index + 1), always_call=True)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        groups = self._layout.group_bytes
        with plain_tensors():
            device = self._streams.device
            self._outside = torch.empty(groups[0], dtype=torch.uint8, device=device)
            self._ring = [torch.empty(max(groups[1:]), dtype=torch.uint8, device=device) for _ in range(STREAM_DEPTH)]
        start = self._streams.mark()
        self._free = [start] * STREAM_DEPTH
        with self._streams.visiting(after=start):
            self._copy(0, self._outside)
            arrived = self._streams.mark()
        for group in range(1, min(STREAM_DEPTH, len(groups))):
            self._fetch(group)
        self._streams.wait(arrived)
        self._bind(0, self._outside)

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.end()

    def end(self) -> None:
        if self._outside is None:
            return
        for group in range(len(self._members)):
            self._unbind(group)
        with self._streams.visiting(after=self._streams.mark()):
            for memory in (*self._ring, *([] if self._outside is None else [self._outside])):
                self._streams.keep_until_now(memory)
        self._ring, self._outside = [], None
        self._arrived.clear()

    def _before(self, group: int) -> Callable[[nn.Module, Any], None]:
        def hook(layer: nn.Module, inputs: Any) -> None:
            if group not in self._arrived:
                self._fetch(group)
            self._streams.wait(self._arrived.pop(group))
            self._bind(group, self._ring[group % STREAM_DEPTH])
            if group + STREAM_DEPTH - 1 < len(self._members):
                self._fetch(group + STREAM_DEPTH - 1)

        return hook

    def _after(self, group: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            self._free[group % STREAM_DEPTH] = self._streams.mark()
            self._unbind(group)

        return hook

    def _fetch(self, group: int) -> None:
        buffer = group % STREAM_DEPTH
        self._arrived = {g: event for g, event in self._arrived.items() if g % STREAM_DEPTH != buffer}
        with self._streams.visiting(after=self._free[buffer]):
            self._copy(group, self._ring[buffer])
            self._arrived[group] = self._streams.mark()

    def _copy(self, group: int, target: Tensor) -> None:
        source = self._host.memory[group]
        target[: source.numel()].copy_(source, non_blocking=True)
        self._moved(source.nbytes, 0)

    def _bind(self, group: int, memory: Tensor) -> None:
        with plain_tensors():
            for index in self._members[group]:
                self._objects[index].data = self._layout.slots[index].view(memory)

    def _unbind(self, group: int) -> None:
        for index in self._members[group]:
            self._objects[index].data = self._host.views[index]
