"""The device manager on the CPU: one module that is switchable, others beside it, and the calls a run makes."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

import pytest
import torch
from ltx2_two_stage.device_manager.base_weights import SwitchableSpec
from ltx2_two_stage.device_manager.layout import unique_tensors
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.device_manager.modes import MODES, ORIGINAL, RESIDENT, SNAPSHOT, SNAPSHOT_LOW
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.placed import ComponentSpec
from torch import Tensor, nn

CPU = torch.device("cpu")
X = torch.arange(1.0, 13.0).view(3, 4)  # small integers and quarters: every result is exact
WEIGHT_BYTES = 512  # of Model: two layers of 4 * 4 float32, each on its own 256 bytes
ADAPTER_BYTES = 512


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Adapted(nn.Module):
    """Adds a multiple of its input, as a LoRA of the identity would."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.matrix = base, nn.Parameter(torch.eye(4), requires_grad=False)
        self.strength = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.strength * (x @ self.matrix)


class World:
    """Weights that are multiples of the identity, so that results can be told at a glance, and a count of reads."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.fail = False

    def manager(self, mode: Mode = RESIDENT) -> DeviceManager:
        components = {
            "vae": ComponentSpec(lambda _: self.linear("vae", 3.0), "visit"),
            "text": ComponentSpec(lambda _: self.linear("text", 5.0), "stream", "layers"),
        }
        return DeviceManager(CPU, mode, "for a test", ("dit", self.spec()), components)

    def linear(self, name: str, factor: float) -> nn.Module:
        self.reads.append(name)
        module = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            module.weight.copy_(factor * torch.eye(4))
        return module

    def spec(self) -> SwitchableSpec:
        def skeleton() -> nn.Module:
            with torch.device("meta"):
                return Model()

        def fill(tensors: Mapping[str, Tensor]) -> None:
            if "layers.0.weight" in tensors:  # one of the parts that are read one after the other
                self.reads.append("dit")
            if self.fail:
                raise OSError("the file went away")
            for tensor in tensors.values():
                tensor.copy_(2 * torch.eye(4))

        def adapt(module: nn.Module, _names: Collection[str]) -> None:
            for index, layer in enumerate(module.layers):
                module.layers[index] = Adapted(layer)

        def set_adapters(module: nn.Module, strengths: Mapping[str, float]) -> None:
            for layer in module.layers:
                layer.strength = strengths["lora"]

        def merge(adapted: nn.Module, weights: Mapping[str, Tensor], strengths: Mapping[str, float]) -> None:
            for index, layer in enumerate(adapted.layers):
                if (weight := weights.get(f"layers.{index}.weight")) is not None:
                    weight.add_(layer.matrix, alpha=strengths["lora"])

        return SwitchableSpec(skeleton, fill, "layers", adapt, set_adapters, merge)


def factor(manager: DeviceManager, component: str, lora: float = 0.0) -> float:
    """What the component multiplies its input by."""
    with torch.inference_mode(), manager.use(component, {"lora": lora}) as module:
        result = module(X)
    assert torch.equal(result, result[0, 0] * X)
    return float(result[0, 0])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_use_hands_out_what_was_asked_for(mode: Mode) -> None:
    world = World()
    manager = world.manager(mode)
    assert (manager.mode, manager.mode_reason) == (str(mode), "for a test")
    assert world.reads == []
    for _ in range(2):
        assert factor(manager, "text") == 5.0
        assert factor(manager, "dit") == 4.0  # 2 twice
        assert factor(manager, "dit", lora=1.0) == 9.0  # 2 + 1 twice
        assert factor(manager, "dit", lora=0.5) == 6.25  # on the fly
        assert factor(manager, "vae") == 3.0
    assert world.reads == ["text", "dit", "vae"]


def test_adapters_may_be_left_out() -> None:
    manager = World().manager()
    with manager.use("dit") as module:
        assert torch.equal(module(X), 4 * X)
    manager.prefetch("dit")


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_prefetch_changes_no_result(mode: Mode) -> None:
    world = World()
    manager = world.manager(mode)
    manager.prefetch("dit", {"lora": 1.0})
    manager.prefetch("vae")
    assert world.reads == ["vae"]  # the switchable component is read at its first use
    with manager.use("dit", {"lora": 0.5}) as module:
        manager.prefetch("dit", {"lora": 1.0})
        assert torch.equal(module(X), 6.25 * X)
    assert factor(manager, "dit", lora=1.0) == 9.0
    assert factor(manager, "vae") == 3.0 and factor(manager, "dit") == 4.0
    assert world.reads == ["vae", "dit"]


def test_an_unknown_component() -> None:
    manager = World().manager()
    with pytest.raises(KeyError, match="upscaler"), manager.use("upscaler"):
        pytest.fail("there is nothing to use")
    manager.prefetch("upscaler")  # a hint only
    assert factor(manager, "vae") == 3.0


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_release_gives_every_byte_back_and_the_next_use_restores(mode: Mode) -> None:
    world = World()
    manager = world.manager(mode)
    factor(manager, "vae")
    factor(manager, "dit", lora=1.0)
    held = sum(manager.status()["device"].values())
    assert manager.release() == held >= WEIGHT_BYTES
    status = manager.status()
    assert {"base", "merged", "vae"}.isdisjoint(status["device"])
    keeps = mode.keeps_host_copy
    assert ("base" in status["host"]) == keeps
    assert factor(manager, "dit") == 4.0 and factor(manager, "vae") == 3.0
    assert world.reads == (["vae", "dit", "vae"] if keeps else ["vae", "dit", "dit", "vae"])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_drop_forgets_host_copies_too(mode: Mode) -> None:
    world = World()
    manager = world.manager(mode)
    factor(manager, "vae")
    factor(manager, "dit", lora=1.0)
    manager.drop()
    manager.drop()
    assert manager.status() == {"device": {}, "host": {}, "pinned": {"all": 0}}
    assert factor(manager, "dit", lora=1.0) == 9.0 and factor(manager, "vae") == 3.0
    assert world.reads == ["vae", "dit", "dit", "vae"]


def test_nothing_is_held_before_the_first_use() -> None:
    manager = World().manager()
    assert manager.release() == 0
    manager.drop()
    assert manager.status() == {"device": {}, "host": {}, "pinned": {"all": 0}}


def test_status_says_what_is_where() -> None:
    manager = World().manager(SNAPSHOT)
    factor(manager, "text")
    assert manager.status() == {"device": {"text": 64}, "host": {}, "pinned": {"all": 0}}
    factor(manager, "dit")
    assert manager.status()["device"] == {"text": 64, "base": WEIGHT_BYTES}
    assert manager.status()["host"] == {"base": WEIGHT_BYTES}
    with manager.use("dit", {"lora": 1.0}):
        status = manager.status()
        assert status["device"]["merged"] == WEIGHT_BYTES and status["host"]["adapters"] == ADAPTER_BYTES
    assert "merged" not in manager.status()["device"]


@pytest.mark.parametrize("after", MODES, ids=str)
@pytest.mark.parametrize("before", MODES, ids=str)
def test_another_mode_gives_the_same_results(before: Mode, after: Mode) -> None:
    world = World()
    manager = world.manager(before)
    assert factor(manager, "vae") == 3.0 and factor(manager, "dit", lora=1.0) == 9.0
    manager.change_mode(after, "memory ran out")
    assert (manager.mode, manager.mode_reason) == (str(after), "memory ran out")
    assert factor(manager, "dit") == 4.0 and factor(manager, "dit", lora=1.0) == 9.0
    assert factor(manager, "vae") == 3.0
    # other components, and the same mode, are not read again
    assert world.reads == ["vae", "dit"] + ["dit"] * (before is not after)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_use_leaves_everything_usable(mode: Mode, raised: type[BaseException]) -> None:
    world = World()
    manager = world.manager(mode)
    for component in ("dit", "dit", "vae"):
        with pytest.raises(raised), manager.use(component, {"lora": 1.0}):
            raise raised
    found: list[float] = []
    # from another thread, as a lock that is still held would let its own thread in
    thread = threading.Thread(target=lambda: found.append(factor(manager, "dit")), daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert found == [4.0]
    assert factor(manager, "dit", lora=1.0) == 9.0 and factor(manager, "vae") == 3.0
    assert world.reads == ["dit", "vae"]


def test_a_failed_read_can_be_tried_again() -> None:
    world = World()
    manager = world.manager()
    world.fail = True
    with pytest.raises(OSError, match="went away"), manager.use("dit"):
        pytest.fail("there is nothing to use")
    assert manager.status()["device"] == {}
    world.fail = False
    assert factor(manager, "dit") == 4.0


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_two_threads_take_turns(mode: Mode) -> None:
    world = World()
    manager = world.manager(mode)
    start, inside, most = threading.Barrier(2), 0, 0
    problems: list[BaseException] = []

    def work(lora: float, expected: float) -> None:
        nonlocal inside, most
        try:
            start.wait(timeout=60)
            for _ in range(20):
                with torch.inference_mode(), manager.use("dit", {"lora": lora}) as module:
                    inside += 1
                    most = max(most, inside)
                    manager.prefetch("dit", {"lora": 1.0})
                    result = module(X)
                    inside -= 1
                assert torch.equal(result, expected * X)
                with manager.use("vae") as module:
                    assert torch.equal(module(X), 3 * X)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=given, daemon=True) for given in ((0.0, 4.0), (1.0, 9.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert problems == [] and most == 1
    assert sorted(world.reads) == ["dit", "vae"]


def test_a_second_thread_waits_for_the_first() -> None:
    manager = World().manager()
    entered, leave, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with manager.use("dit"):
            entered.set()
            leave.wait(timeout=60)
            order.append("first")

    def second() -> None:
        with manager.use("vae"):
            order.append("second")

    one = threading.Thread(target=first, daemon=True)
    one.start()
    assert entered.wait(timeout=60)
    two = threading.Thread(target=second, daemon=True)
    two.start()
    two.join(timeout=0.1)
    assert two.is_alive() and order == []
    leave.set()
    for thread in (one, two):
        thread.join(timeout=60)
    assert order == ["first", "second"]


def test_one_thread_may_use_two_components_at_once() -> None:
    manager = World().manager()
    with manager.use("dit") as dit, manager.use("vae") as vae:
        assert torch.equal(vae(dit(X)), 12 * X)


def test_measure_counts_what_was_moved_inside() -> None:
    manager = World().manager()
    manager.recorder.moved(7, 7)  # outside of any stage
    with manager.recorder.measure("encode"):
        factor(manager, "text")
        manager.recorder.moved(h2d_bytes=10)
        manager.recorder.moved(d2h_bytes=3)
    with pytest.raises(RuntimeError), manager.recorder.measure("denoise"):
        raise RuntimeError
    records = manager.recorder.take_records()
    assert [record["name"] for record in records] == ["encode", "denoise"]
    assert [(record["h2d_bytes"], record["d2h_bytes"]) for record in records] == [(10, 3), (0, 0)]
    assert records[0]["ms"] > 0 and manager.recorder.take_records() == []


def test_weights_that_are_handed_out_are_the_ones_of_the_files() -> None:
    manager = World().manager(SNAPSHOT_LOW)
    factor(manager, "dit", lora=1.0)
    with manager.use("dit") as module:
        for name, tensor in unique_tensors(module):
            assert torch.equal(tensor, 2 * torch.eye(4)), name


def test_an_idle_release_gives_everything_back_and_a_busy_one_nothing() -> None:
    world = World()
    manager = world.manager(RESIDENT)
    assert manager.device_bytes == manager.release_if_idle() == 0
    factor(manager, "dit")
    assert manager.device_bytes == WEIGHT_BYTES
    with manager.use("dit") as module:
        assert manager.release_if_idle() == 0
        freed: list[int] = []
        other = threading.Thread(target=lambda: freed.append(manager.release_if_idle()))
        other.start()
        other.join(60)
        assert freed == [0]
        assert torch.equal(module(X), 4 * X)
    assert manager.release_if_idle() == WEIGHT_BYTES
    assert manager.device_bytes == 0
    assert factor(manager, "dit") == 4.0


def test_room_is_made_before_anything_is_loaded_and_never_while_a_component_is_in_use() -> None:
    world = World()
    manager = world.manager(RESIDENT)
    asked: list[tuple[int, int]] = []
    manager.before_use = lambda: asked.append((manager.device_bytes, manager.release_if_idle()))
    with manager.use("dit"), manager.use("vae"):
        manager.prefetch("dit", {"lora": 1.0})
    assert asked == [(0, 0)]
    manager.prefetch("vae")
    assert len(asked) == 2 and asked[1][0] > 0 and asked[1][1] == 0


def test_a_failure_to_make_room_leaves_the_manager_usable() -> None:
    manager = World().manager()

    def fail() -> None:
        raise KeyboardInterrupt

    manager.before_use = fail
    with pytest.raises(KeyboardInterrupt), manager.use("dit"):
        pass
    manager.before_use = None
    assert factor(manager, "dit") == 4.0
    assert manager.release_if_idle() == WEIGHT_BYTES


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_restore_brings_back_what_a_release_took(mode: Mode) -> None:
    world = World()
    manager = world.manager(mode)
    assert manager.restore() == 0 and not manager.restorable, "nothing was ever loaded"
    with manager.use("dit"), manager.use("vae"):
        held = manager.device_bytes
    assert not manager.restorable
    manager.release()
    assert manager.device_bytes == 0 and manager.restorable
    manager.release()
    assert manager.restorable, "a second release takes nothing, and forgets nothing"
    assert manager.restore() == manager.device_bytes == held
    assert not manager.restorable and manager.restore() == 0
    assert factor(manager, "dit") == 4.0 and factor(manager, "vae") == 3.0


def test_changes_of_what_is_held_are_told() -> None:
    manager, told = World().manager(SNAPSHOT), list[str]()
    manager.on_change = lambda: told.append(manager.mode)
    with manager.use("dit"):
        pass
    assert told == []
    manager.release()
    manager.restore()
    manager.change_mode(ORIGINAL, "for a test")
    manager.drop()
    assert told == ["snapshot", "snapshot", "original", "original"]


def test_another_plan_loads_anew_only_what_it_keeps_elsewhere() -> None:
    world = World()
    manager = world.manager(RESIDENT)
    for name in ("dit", "vae", "text"):
        with manager.use(name):
            pass
    world.reads.clear()
    components = {
        "vae": ComponentSpec(lambda _: world.linear("vae", 3.0), "stay"),
        "text": ComponentSpec(lambda _: world.linear("text", 5.0), "stream", "layers"),
    }
    manager.replan(SNAPSHOT_LOW, "for another test", components, 77)
    assert (manager.mode, manager.mode_reason, manager.planned_bytes) == ("snapshot-low", "for another test", 77)
    assert [factor(manager, name) for name in ("dit", "vae", "text")] == [4.0, 3.0, 5.0]
    assert "vae" in world.reads and "text" not in world.reads
