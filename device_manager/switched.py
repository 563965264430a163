"""A large module that runs with its base weights, or with adapters on top of them.

Four ways to have both, see :class:`Mode`. The base weights are never written where no host copy can bring them back,
and a host copy is made while the weights are read, never from the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import Adapters, LayerwiseMerge, Merge, Strengths
from .host_memory import PinnedBudget
from .layout import Layout, members, unique_tensors
from .modes import Mode, needs_snapshot
from .streams import Event, Streams
from .weights import WeightSet, assign, bind, plain_tensors, share

logger = logging.getLogger("ltx2.device")


def _torch_says_so(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


@dataclass(frozen=True)
class SwitchedSpec:
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
        self._layout: Layout | None = None
        self._host: WeightSet | None = None
        self._base: WeightSet | None = None
        self._dirty = False  # the base holds something else than the clean weights, or may
        self._arrived: list[Event] = []  # of every group that is on its way to the base
        self._adapters: Adapters | None = None
        self._names: frozenset[str] = frozenset()  # of the adapters that the wrapped module has, or will have
        self._applied: Hashable = None  # strengths that the wrapped module's adapters have
        self._keep_adapters = False  # the next use wants them where they are
        self._second: WeightSet | None = None  # merged weights beside the base
        self._second_module: nn.Module | None = None
        self._second_key: Hashable = None  # what they hold, or are being made to hold
        self._second_ready: list[Event] = []  # of every group of them
        self._second_in_use = False
        self._merge: LayerwiseMerge | None = None  # one that is under way, into the second set or the base
        self._prepared: LayerwiseMerge | None = None  # one into the base, for the next use

    # What is where

    @property
    def device_bytes(self) -> dict[str, int]:
        adapters = self._adapters.device if self._adapters is not None else None
        sets = {"base": self._base, "merged": self._second, "adapters": adapters}
        return {name: weights.nbytes for name, weights in sets.items() if weights is not None and weights.nbytes}

    @property
    def host_bytes(self) -> dict[str, int]:
        sets = {"base": self._host, "adapters": self._adapters.host if self._adapters is not None else None}
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
            self._fill(first)
            assign(plain, first.views)
            self._tensors = [tensor for _, tensor in unique_tensors(plain.eval())]
            if self._keeps_host_copy:
                self._host = first
            else:
                self._base = first
                self._moved(first.nbytes if self._streams.cuda else 0, 0)
            self._arrived = [None] * len(layout.group_bytes)
            self._hook(plain, self._before_base_layer)
            self._layout, self._plain = layout, plain
        return self._plain

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

    @property
    def _keeps_host_copy(self) -> bool:
        return needs_snapshot(self.mode)

    @property
    def _home(self) -> torch.device:
        return torch.device("cpu") if self._keeps_host_copy else self._streams.device

    def _load_adapters(self) -> Adapters:
        """Wraps a module that shares the weights, once; in merging modes it never runs, it holds the matrices."""
        if self._adapters is None:
            plain = self.load()
            with plain_tensors():
                wrapped = self.spec.skeleton()
                share(plain, wrapped)
                self.spec.adapt(wrapped.eval(), self._names)
                base = {id(tensor) for tensor in self._tensors}
                self._hook(wrapped, self._wait_group)
                self._adapters = Adapters(wrapped, base, self.spec.layers, self._streams, self._budget, self._moved)
        return self._adapters

    def _want(self, names: Collection[str]) -> None:
        """Adapters that the wrapped module lacks: it is made anew, with the wanted ones. The weights stay."""
        if self._names.issuperset(names):
            return
        self._abandon()
        if self._adapters is not None:
            self._streams.settle()
        self._adapters, self._applied, self._names = None, None, frozenset(names)

    def _hook(self, module: nn.Module, before: Callable[[int], None]) -> None:
        """Calls ``before(group)`` before every layer, so that it waits for its own weights only."""

        def hook(group: int) -> Callable[[nn.Module, Any], None]:
            return lambda _layer, _inputs: before(group)

        for index, layer in enumerate(members(module, self.spec.layers)):
            layer.register_forward_pre_hook(hook(index + 1))

    def _before_base_layer(self, group: int) -> None:
        self._wait_group(group)
        merge = self._merge
        if merge is None:
            return
        with plain_tensors():
            if self.mode is Mode.SNAPSHOT_LOW:
                self._merge_into_base(merge, group)
            else:
                self._prefetch_group(merge, group)

    def _wait_group(self, group: int) -> None:
        if self._arrived[group] is not None:
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
        if self._host is not None and (self._base is None or self._dirty):
            self._restore()
        assert self._base is not None
        return self._base

    def _restore(self) -> None:
        """Brings every group over from the host copy, on the copy stream, after what the current stream does now."""
        assert self._host is not None and self._layout is not None
        start = self._streams.mark()
        self._dirty = True  # until all of it is on its way
        if self._base is None:
            self._base = WeightSet(self._layout, self._streams.device)
            bind(self._tensors, self._base.views)
        with self._streams.copying(after=start):
            for group in range(len(self._base.memory)):
                copied = self._base.copy_group(self._host, group)
                self._moved(copied if self._streams.cuda else 0, 0)
                self._arrived[group] = self._streams.mark()
        self._dirty = False

    # Merging into the base, for its next use alone

    def _begin_merge(self, strengths: Strengths) -> LayerwiseMerge:
        return LayerwiseMerge(self._load_adapters(), self.spec.merge, strengths, self._streams, self._moved)

    def _merge_in_place(self, strengths: Strengths) -> nn.Module:
        self._ensure_base()
        merge, self._prepared = self._prepared, None
        if merge is not None and _key(merge.strengths) != _key(strengths):
            merge.end()
            merge = None
        self._merge = merge or self._begin_merge(strengths)
        self._dirty = True
        self._merge_into_base(self._merge, 0)
        assert self._plain is not None
        return self._plain

    def _merge_into_base(self, merge: LayerwiseMerge, group: int) -> None:
        assert self._base is not None
        merge.run_to(group, self._base, before=self._wait_group, after=lambda _: None)

    # Merged weights beside the base

    def _begin_second(self, strengths: Strengths) -> None:
        """Starts to make the second set; what it held is lost."""
        self._abandon_second()
        base = self._ensure_base()
        self._merge = self._begin_merge(strengths)
        if self._second is None:
            with self._streams.working():
                self._second = WeightSet(base.layout, self._streams.device, claimed=False)
            module = self.spec.skeleton()
            assign(module, self._second.views)
            self._hook(module.eval(), self._wait_second)
            self._second_module = module
        self._second_ready = [None] * len(base.memory)
        self._second_key = _key(strengths)

    def _make_second(self, merge: LayerwiseMerge, group: int) -> None:
        """Copies and merges every group up to this one, beside the current stream."""
        base, second = self._base, self._second
        assert base is not None and second is not None

        def copy(group: int) -> None:
            second.claim(group)
            second.copy_group(base, group)

        def mark(group: int) -> None:
            self._second_ready[group] = self._streams.mark()

        with self._streams.working(after=self._streams.mark()):
            self._wait_all()
            merge.run_to(group, second, before=copy, after=mark)
        if merge.finished:
            self._merge = None

    def _prefetch_group(self, merge: LayerwiseMerge, group: int) -> None:
        """While a layer is computed on the base, its part of the second set is made: the host's work is spread."""
        try:
            self._make_second(merge, group)
        except Exception as error:
            if not self.spec.ran_out(error):
                raise
            logger.debug("no room yet to prepare the merged weights, at group %d", group)
            self._abandon_second()
            self._drop_second()

    def _wait_second(self, group: int) -> None:
        if self._second_ready and self._second_ready[group] is not None:
            self._streams.wait(self._second_ready[group])
            self._second_ready[group] = None

    def _abandon_second(self) -> None:
        """Ends a merge into the second set that is under way; what the set holds is of no use then."""
        if self._merge is not None and self.mode is not Mode.SNAPSHOT_LOW:
            self._merge.end()
            self._merge, self._second_key = None, None

    def _drop_second(self) -> None:
        """Gives the merged weights' memory back; their module and its tensors stay, since making them takes long."""
        if self._second is not None and self._second.nbytes:
            for memory in self._second.memory:
                self._streams.keep_until_now(memory)
            self._second.give_up()
        self._second_key = None

    # Use

    def prefetch(self, strengths: Strengths) -> None:
        """Begins what :meth:`use` will need, beside the current stream; returns at once.

        A second set is made layer by layer while the module computes; what is missing of it then, :meth:`use` makes.
        """
        active = _active(strengths)
        if self._plain is None or not active:
            return
        if self._adapters is not None and not self._names.issuperset(strengths):
            return  # the wrapped module may be in use
        with plain_tensors():
            self._want(strengths)
            if self.mode is Mode.ORIGINAL:
                self._load_adapters().fetch()
                self._keep_adapters = True
            elif self.mode is Mode.SNAPSHOT_LOW:
                if self._prepared is None and self._merge is None:
                    self._prepared = self._begin_merge(active)
            elif not self._second_in_use and self._second_key != _key(active):
                self._begin_second(active)

    @contextmanager
    def use(self, strengths: Strengths) -> Iterator[nn.Module]:
        """The module whose forward has these adapter strengths."""
        active = _active(strengths)
        self._keep_adapters = False
        try:
            with plain_tensors():
                self._want(strengths)
                module = self._ready(active, strengths)
            yield module
        except BaseException:
            with plain_tensors():
                self._abandon()
            raise
        finally:
            with plain_tensors():
                self._finish(bool(active))

    def _ready(self, active: Strengths, strengths: Strengths) -> nn.Module:
        if active and self.mode is Mode.ORIGINAL:
            return self._with_adapters(strengths)
        if active and self.mode is Mode.SNAPSHOT_LOW:
            return self._merge_in_place(active)
        if active:
            return self._merged(active)
        self._ensure_base()
        self._wait_group(0)
        assert self._plain is not None
        return self._plain

    def _with_adapters(self, strengths: Strengths) -> nn.Module:
        self._ensure_base()
        self._wait_group(0)
        adapters = self._load_adapters()
        adapters.fetch()
        adapters.wait()
        if self._applied != _key(strengths):
            self.spec.set_adapters(adapters.module, {**dict.fromkeys(self._names, 0.0), **strengths})
            self._applied = _key(strengths)
        return adapters.module

    def _merged(self, active: Strengths) -> nn.Module:
        if self._second_key != _key(active):
            self._begin_second(active)
        if self._merge is not None:
            self._make_second(self._merge, len(self._second_ready) - 1)
        self._second_in_use = True
        self._wait_second(0)
        assert self._second_module is not None
        return self._second_module

    def _abandon(self) -> None:
        """After a failure: nothing that was begun for later goes on."""
        self._keep_adapters = False
        if self._adapters is not None:
            self._adapters.drop()
        if self._prepared is not None:
            self._prepared.end()
            self._prepared = None
        self._abandon_second()
        if self.mode is Mode.SNAPSHOT:
            self._drop_second()

    def _finish(self, active: bool) -> None:
        if self._merge is not None and self.mode is Mode.SNAPSHOT_LOW:
            self._merge.end()
            self._merge = None
        if self._dirty and self._base is not None:
            self._restore()
        if self._second_in_use:
            self._second_in_use = False
            if self.mode is Mode.SNAPSHOT:
                self._drop_second()
        if active and self._adapters is not None and not self._keep_adapters:
            self._adapters.drop()

    def release(self) -> int:
        """Gives all device memory back; returns the bytes. Without a host copy the next use reads the files again."""
        freed = sum(self.device_bytes.values())
        with plain_tensors():
            self._abandon()
            self._drop_second()
            if self._host is None:
                self._forget()
            else:
                self._wait_all()
                self._arrived = [None] * len(self._arrived)
                bind(self._tensors, self._host.views)
                if self._base is not None:
                    with self._streams.working(after=self._streams.mark()):  # it may be copying from them
                        for memory in self._base.memory:
                            self._streams.keep_until_now(memory)
                self._base, self._dirty = None, False
        return freed

    def restore(self) -> None:
        """Brings the base weights to the device, as the next use would."""
        with plain_tensors():
            self._ensure_base()

    def drop(self) -> None:
        """Forgets everything, the host copy too."""
        self.release()
        self._streams.settle()
        self._forget()


def _active(strengths: Strengths) -> Strengths:
    return {name: strength for name, strength in strengths.items() if strength}


def _key(strengths: Strengths) -> Hashable:
    return tuple(sorted(strengths.items()))
