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
from .ring import GroupRing
from .streams import Event, Streams
from .weights import WeightSet, bind, moved_together, plain_tensors

Placement = Literal["stay", "visit", "stream"]


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
        self._module_bytes = 0
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
            return self._module_bytes
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
                module = self.spec.build(self._streams.device)
                # Counted once: who watches asks often
                self._module_bytes = sum(tensor.nbytes for _, tensor in unique_tensors(module))
                self._module = module
                if self._streams.cuda:
                    self._moved(self.device_bytes, 0)
                return self._module
            module = self.spec.build(torch.device("cpu"))
            layout = Layout.of(module, self.spec.layers if self.placement == "stream" else None)
            self._tensors = [tensor for _, tensor in unique_tensors(module)]
            self._host = moved_together(self._tensors, layout, torch.device("cpu"), self._budget)
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
        if self._host is not None:
            self._streams.settle()
        self._module, self._host, self._stream, self._tensors = None, None, None, []


class LayerStream:
    """Hooks that bring each layer's weights over shortly before it computes.

    The buffers on the device are made when the module starts and given up when it ends; what is outside the layers
    visits for the whole call.
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
        self._objects: list[Tensor] = [tensor for _, tensor in unique_tensors(module)]
        self._ring = GroupRing(host, streams, moved)
        self._outside: Tensor | None = None
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end, always_call=True)
        for index, layer in enumerate(members(module, layers)):
            layer.register_forward_pre_hook(self._before(index + 1))
            layer.register_forward_hook(self._after(index + 1), always_call=True)

    def _begin(self, _module: nn.Module, _inputs: Any) -> None:
        source = self._host.memory[0]
        with plain_tensors():
            self._outside = torch.empty(source.nbytes, dtype=torch.uint8, device=self._streams.device)
        with self._streams.visiting(after=self._streams.mark()):
            self._outside.copy_(source, non_blocking=True)
            self._moved(source.nbytes, 0)
            arrived = self._streams.mark()
        self._ring.open(first=1)
        self._streams.wait(arrived)
        self._bind(0, self._outside)

    def _end(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        self.end()

    def end(self) -> None:
        if self._outside is None:
            return
        for group in range(len(self._layout.members)):
            self._unbind(group)
        with self._streams.visiting(after=self._streams.mark()):
            self._streams.keep_until_now(self._outside)
        self._outside = None
        self._ring.close()

    def _before(self, group: int) -> Callable[[nn.Module, Any], None]:
        def hook(_layer: nn.Module, _inputs: Any) -> None:
            self._bind(group, self._ring.take(group))

        return hook

    def _after(self, group: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_layer: nn.Module, _inputs: Any, _output: Any) -> None:
            self._ring.leave(group)
            self._unbind(group)

        return hook

    def _bind(self, group: int, memory: Tensor) -> None:
        with plain_tensors():
            views = self._layout.group_views(group, memory)
        bind([self._objects[index] for index in self._layout.members[group]], views)

    def _unbind(self, group: int) -> None:
        for index in self._layout.members[group]:
            self._objects[index].data = self._host.views[index]
