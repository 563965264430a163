"""What ComfyUI's memory manager and ours promise each other, as functions that raise.

The tests run every function whose name begins with "check" against a double in this process, and in ComfyUI's own
Python against its ``comfy.model_management``. Each gets an :class:`Agreement`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from ltx2_two_stage.device_manager.base_weights import SwitchableSpec
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.device_manager.modes import MODES, RESIDENT, SNAPSHOT_LOW
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.placed import ComponentSpec
from ltx2_two_stage.nodes.residency import HostEntry, HostMemory
from torch import Tensor, nn

CPU = torch.device("cpu")
WEIGHTS = torch.arange(16.0).view(4, 4)
PLANNED = 1_000_000


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class Adapted(nn.Module):
    """At strength 1 twice what it wraps."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.one, self.strength = base, nn.Parameter(torch.ones(1), requires_grad=False), 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * (1 + self.strength * self.one)


@dataclass
class Agreement:
    """A host's memory manager, and what it takes to play with it.

    Attributes:
        management: the module, or its double; nothing is loaded.
        other: makes another pack's model.
        set_free: says how many bytes are free from now on.
    """

    management: Any
    other: Callable[[], Any]
    set_free: Callable[[int], None]
    reads: list[str] = field(default_factory=list)

    def open(self, mode: Mode = RESIDENT) -> tuple[DeviceManager, HostEntry]:
        def skeleton() -> nn.Module:
            with torch.device("meta"):
                return Model()

        def fill(tensors: Mapping[str, Tensor]) -> None:
            if "layers.0.weight" in tensors:  # one of the parts that are read one after the other
                self.reads.append("dit")
            for tensor in tensors.values():
                tensor.copy_(WEIGHTS)

        def build(_device: torch.device) -> nn.Module:
            self.reads.append("vae")
            return nn.Linear(4, 4)

        def merge(_module: nn.Module, weights: Mapping[str, Tensor], _strengths: Mapping[str, float]) -> None:
            for tensor in weights.values():
                tensor.mul_(2)

        def set_adapters(module: nn.Module, strengths: Mapping[str, float]) -> None:
            module.layers[0].strength = strengths["lora"]

        def adapt(module: nn.Module, _names: Collection[str]) -> None:
            module.layers[0] = Adapted(module.layers[0])

        spec = SwitchableSpec(skeleton, fill, "layers", adapt, set_adapters, merge)
        manager = DeviceManager(
            CPU, mode, "for a test", ("dit", spec), {"vae": ComponentSpec(build)}, planned_bytes=PLANNED
        )
        entry = HostEntry(manager, HostMemory(self.management), torch.float32, 2 * PLANNED)
        manager.before_use = entry.before_use
        return manager, entry

    @property
    def books(self) -> list[Any]:
        return [item.model for item in self.management.current_loaded_models]


def run(manager: DeviceManager) -> list[Tensor]:
    """Both stages and a component that stays."""
    with torch.inference_mode():
        results = []
        for strengths in ({}, {"lora": 1.0}):
            with manager.use("dit", strengths) as module:
                results.append(module(torch.eye(4)).clone())
        with manager.use("vae") as module:
            module(torch.eye(4))
    assert torch.equal(results[0], WEIGHTS.T) and torch.equal(results[1], 2 * WEIGHTS.T)
    return results


def given_back(manager: DeviceManager) -> bool:
    """Nothing is on the device. On the CPU the adapters' host copy counts as there, since both are one."""
    return set(manager.status()["device"]) <= {"adapters"}


def check_a_use_registers_once(host: Agreement) -> None:
    manager, entry = host.open()
    assert host.books == [], "nothing is on the device yet"
    run(manager)
    run(manager)
    assert host.books == [entry]
    assert entry.model_size() == entry.loaded_size() == manager.device_bytes > 0
    assert entry.current_loaded_device() == CPU


def check_a_repeated_load_moves_nothing(host: Agreement) -> None:
    manager, entry = host.open()
    run(manager)
    with manager.use("dit") as module:
        weight = next(module.parameters())
        before = weight.data_ptr()
    held, reads = manager.device_bytes, list(host.reads)
    for _ in range(3):
        host.management.load_models_gpu([entry])
    assert host.books == [entry]
    assert manager.device_bytes == held and weight.data_ptr() == before
    run(manager)
    assert host.reads == reads


def check_unloading_everything_gives_all_memory_back_and_the_next_run_restores_it(host: Agreement) -> None:
    for mode in MODES:
        for inference in (True, False):
            manager, entry = host.open(mode)
            run(manager)
            with torch.inference_mode(inference):
                host.management.unload_all_models()
            assert given_back(manager) and entry not in host.books, mode
            run(manager)
            assert manager.device_bytes > 0 and host.books == [entry], mode
            host.management.unload_all_models()


def check_another_models_load_gets_our_memory(host: Agreement) -> None:
    manager, entry = host.open()
    run(manager)
    host.set_free(1000)
    host.management.free_memory(1000 + manager.device_bytes, CPU)
    assert manager.device_bytes == 0
    run(manager)
    host.set_free(1000)
    host.management.free_memory(1001, CPU)
    assert manager.device_bytes == 0, "part of it is not on offer: all of it goes"
    assert entry in host.books, "who gave enough stays in the books"
    run(manager)


def check_enough_free_memory_takes_nothing(host: Agreement) -> None:
    manager, entry = host.open()
    run(manager)
    held = manager.device_bytes
    host.set_free(PLANNED)
    host.management.free_memory(1000, CPU)
    assert manager.device_bytes == held and host.books == [entry]


def check_a_run_keeps_its_memory_whoever_asks(host: Agreement) -> None:
    manager, entry = host.open()
    run(manager)
    with torch.inference_mode(), manager.use("dit") as module:
        held = manager.device_bytes
        host.management.unload_all_models()
        assert manager.device_bytes == held
        host.management.load_models_gpu([entry])
        thread = threading.Thread(target=host.management.unload_all_models)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "the host waits for the run"
        assert manager.device_bytes == held
        assert entry.partially_unload(CPU, 1) == 0
        assert torch.equal(module(torch.eye(4)), WEIGHTS.T)
    run(manager)
    assert host.books == [entry], "the next use is in the books again"
    host.management.unload_all_models()
    assert manager.device_bytes == 0


def check_an_interrupted_run_can_be_unloaded(host: Agreement) -> None:
    class Interrupt(BaseException):
        pass

    manager, entry = host.open(SNAPSHOT_LOW)
    try:
        with manager.use("dit", {"lora": 1.0}):
            raise Interrupt
    except Interrupt:
        pass
    assert host.books == [entry]
    host.management.unload_all_models()
    assert given_back(manager)
    run(manager)


def check_our_load_makes_room(host: Agreement) -> None:
    manager, entry = host.open()
    other = host.other()
    host.management.load_models_gpu([other])
    host.set_free(PLANNED - 1)
    run(manager)
    assert host.books == [entry], "the other had to go"


def check_our_load_leaves_others_alone_where_there_is_room(host: Agreement) -> None:
    manager, entry = host.open()
    other = host.other()
    host.management.load_models_gpu([other])
    host.set_free(10 * PLANNED + 10**10)
    run(manager)
    assert set(map(id, host.books)) == {id(entry), id(other)}


def check_we_never_ask_ourselves(host: Agreement) -> None:
    manager, entry = host.open()
    run(manager)
    held, reads = manager.device_bytes, list(host.reads)
    host.set_free(0)
    run(manager)
    assert manager.device_bytes == held and host.reads == reads and host.books == [entry]
    # And with another one to ask, whose memory is not enough
    host.management.load_models_gpu([other := host.other()])
    run(manager)
    assert manager.device_bytes == held and host.reads == reads and host.books == [entry], other


def check_of_two_sets_of_models_the_one_at_work_gets_the_memory(host: Agreement) -> None:
    (first, _), (second, entry) = host.open(), host.open()
    run(first)
    host.set_free(0)
    run(second)
    assert first.device_bytes == 0 and second.device_bytes > 0
    assert entry in host.books


def check_the_host_keeps_nothing_alive(host: Agreement) -> None:
    manager, entry = host.open()
    run(manager)
    manager.drop()
    del manager, entry
    gc.collect()
    assert host.books == []
    host.management.unload_all_models()
    run(host.open()[0])


def check_our_registry_is_enough_to_keep_an_entry(host: Agreement) -> None:
    manager, _ = host.open()
    run(manager)
    del _
    gc.collect()
    assert len(host.books) == 1 and host.books[0] is not None
    host.management.unload_all_models()
    assert manager.device_bytes == 0


def check_errors_of_other_models_do_not_stop_a_run(host: Agreement) -> None:
    manager, _ = host.open()
    free = host.management.free_memory
    load = host.management.load_models_gpu

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("another pack's model cannot be unloaded")

    host.management.load_models_gpu([other := host.other()])
    host.set_free(0)
    host.management.free_memory = host.management.load_models_gpu = fail
    try:
        run(manager)
    finally:
        host.management.free_memory, host.management.load_models_gpu = free, load
    run(manager)
    assert other not in host.books


def check_page_locked_memory_stays_within_the_hosts_budget_and_in_its_books(host: Agreement) -> None:
    management, memory = host.management, HostMemory(host.management)
    before = management.MAX_PINNED_MEMORY, management.TOTAL_PINNED_MEMORY
    try:
        management.MAX_PINNED_MEMORY, management.TOTAL_PINNED_MEMORY = 1000, 300
        assert memory.pinning_room() == 700
        assert memory.allow_pinning(700) and not memory.allow_pinning(701)
        memory.pinning_changed(600)
        assert memory.pinning_room() == 100 and management.TOTAL_PINNED_MEMORY == 900
        memory.pinning_changed(-600)
        assert management.TOTAL_PINNED_MEMORY == 300
        management.MAX_PINNED_MEMORY = -1  # as with --disable-pinned-memory
        assert memory.pinning_room() == 0 and not memory.allow_pinning(1)
    finally:
        management.MAX_PINNED_MEMORY, management.TOTAL_PINNED_MEMORY = before


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}
