"""Components that stay, visit or stream, and the host memory that is pinned for them, without a device.

Where host and device are one every component stays; visits and streams are run here all the same, memory to memory.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ltx2_two_stage.device_manager import host_memory
from ltx2_two_stage.device_manager.host_memory import PinnedBudget
from ltx2_two_stage.device_manager.layout import Layout, unique_tensors
from ltx2_two_stage.device_manager.placed import ComponentSpec, LayerStream, Placed, Placement
from ltx2_two_stage.device_manager.ring import RING_DEPTH
from ltx2_two_stage.device_manager.streams import Streams
from ltx2_two_stage.device_manager.weights import WeightSet, bind
from torch import Tensor, nn

CPU = torch.device("cpu")
PLACEMENTS: tuple[Placement, ...] = ("stay", "visit", "stream")
X = torch.linspace(-1, 1, 24).view(3, 8)


class Layer(nn.Module):
    """Layers of different sizes; ``fail`` is raised in the middle of a forward."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, hidden), nn.Linear(hidden, 8)
        self.register_buffer("offset", torch.full((8,), 0.1))
        self.fail: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.up(x))
        if self.fail is not None:
            raise self.fail
        return self.down(x) + self.offset


class Model(nn.Module):
    """Weights outside the layers before and after them, tied; the order in which the layers compute can be changed."""

    def __init__(self, count: int = 7) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, bias=False)
        self.layers = nn.ModuleList(Layer(4 + 40 * (index % 3)) for index in range(count))
        self.last = nn.Linear(8, 8)
        self.last.weight = self.first.weight
        self.order = list(range(count))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for index in self.order:
            self.seen.append(self.layers[index].up.weight.data_ptr())
            x = self.layers[index](x)
        return self.last(x)


def made(count: int = 7) -> Model:
    torch.manual_seed(0)
    return Model(count).requires_grad_(False)


class Built:
    """A builder that counts, and fails when told to."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []
        self.fail = False

    def __call__(self, device: torch.device) -> nn.Module:
        self.devices.append(device)
        if self.fail:
            raise OSError("the file went away")
        return made()


class Moved:
    def __init__(self) -> None:
        self.h2d = self.d2h = 0

    def __call__(self, h2d: int, d2h: int) -> None:
        self.h2d, self.d2h = self.h2d + h2d, self.d2h + d2h


def placed(build: Callable[[torch.device], nn.Module], placement: Placement, moved: Moved | None = None) -> Placed:
    spec = ComponentSpec(build, placement, "layers")
    return Placed(spec, Streams(CPU), PinnedBudget(), moved or Moved())


def as_on_a_device(
    build: Callable[[torch.device], nn.Module], placement: Placement, moved: Moved | None = None
) -> Placed:
    """One that visits or streams although host and device are one."""
    component = placed(build, placement, moved)
    component.placement = placement
    return component


def pointers(module: nn.Module) -> list[int]:
    return [tensor.data_ptr() for _, tensor in unique_tensors(module)]


# On the CPU


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_on_the_cpu_everything_is_built_once_and_stays(placement: Placement) -> None:
    build, moved = Built(), Moved()
    component = placed(build, placement, moved)
    assert component.placement == "stay" and component.device_bytes == 0
    with component.use() as module:
        assert torch.equal(module(X), made()(X))
    component.fetch()
    component.release()
    with component.use() as again:
        assert again is module
    assert component.load() is module
    assert build.devices == [CPU]
    assert component.device_bytes == sum(tensor.nbytes for _, tensor in unique_tensors(module))
    assert component.host_bytes == 0 and (moved.h2d, moved.d2h) == (0, 0)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_was_dropped_is_freed_and_built_again(placement: Placement) -> None:
    build = Built()
    component = placed(build, placement)
    with component.use() as module:
        gone = weakref.ref(module)
    del module
    component.drop()
    assert gone() is None and component.device_bytes == component.host_bytes == 0
    with component.use() as module:
        assert torch.equal(module(X), made()(X))
    assert len(build.devices) == 2


@pytest.mark.parametrize("on_a_device", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_failed_build_leaves_nothing_behind(placement: Placement, on_a_device: bool) -> None:
    build = Built()
    component = (as_on_a_device if on_a_device else placed)(build, placement)
    build.fail = True
    with pytest.raises(OSError, match="went away"), component.use():
        pytest.fail("there is nothing to use")
    assert component.device_bytes == component.host_bytes == 0
    build.fail = False
    with component.use() as module:
        assert torch.equal(module(X), made()(X))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_modules_made_in_inference_mode_are_ordinary(placement: Placement) -> None:
    component = as_on_a_device(Built(), placement)
    expected = made()(X)
    with torch.inference_mode():
        for _ in range(2):
            with component.use() as module:
                assert torch.equal(module(X), expected)
            assert not any(tensor.is_inference() for _, tensor in unique_tensors(module))
    component.drop()


# Visits


def test_a_visit_shows_device_memory_and_ends_with_the_host_copy() -> None:
    moved = Moved()
    component = as_on_a_device(Built(), "visit", moved)
    module = component.load()
    home = pointers(module)
    assert component.device_bytes == 0 and component.host_bytes > 0 and moved.h2d == 0
    for visit in (1, 2):
        with component.use() as visiting:
            assert visiting is module and not set(pointers(module)) & set(home)
            assert component.device_bytes == component.host_bytes
            assert torch.equal(module(X), made()(X))
        assert pointers(module) == home and component.device_bytes == 0
        assert (moved.h2d, moved.d2h) == (visit * component.host_bytes, 0)
    assert module.last.weight is module.first.weight


def test_fetching_ahead_copies_once() -> None:
    moved = Moved()
    component = as_on_a_device(Built(), "visit", moved)
    component.fetch()
    component.fetch()
    assert component.device_bytes == component.host_bytes == moved.h2d
    with component.use() as module:
        assert torch.equal(module(X), made()(X))
    assert moved.h2d == component.host_bytes


def test_a_visitor_that_was_only_fetched_can_be_released() -> None:
    build = Built()
    component = as_on_a_device(build, "visit")
    component.fetch()
    component.release()
    assert component.device_bytes == 0 and component.host_bytes > 0
    with component.use() as module:
        assert torch.equal(module(X), made()(X))
    assert len(build.devices) == 1


def test_what_a_visitor_writes_into_its_weights_does_not_come_back() -> None:
    component = as_on_a_device(Built(), "visit")
    with component.use() as module, torch.no_grad():
        module.first.weight.zero_()
    with component.use() as module:
        assert torch.equal(module(X), made()(X))


def test_an_exception_ends_a_visit_too() -> None:
    component = as_on_a_device(Built(), "visit")
    home = pointers(component.load())
    with pytest.raises(KeyboardInterrupt), component.use():
        raise KeyboardInterrupt
    assert pointers(component.load()) == home and component.device_bytes == 0


# Streams


def streamed(module: Model, moved: Moved | None = None) -> WeightSet:
    """Puts the module's weights into a host copy and streams its layers from there."""
    layout = Layout.of(module, "layers")
    host = WeightSet(layout, CPU)
    tensors = [tensor for _, tensor in unique_tensors(module)]
    for view, tensor in zip(host.views, tensors, strict=True):
        view.copy_(tensor)
    bind(tensors, host.views)
    LayerStream(module, "layers", layout, host, Streams(CPU), moved or Moved())
    return host


def assert_home(module: nn.Module, host: WeightSet) -> None:
    for (name, tensor), view in zip(unique_tensors(module), host.views, strict=True):
        assert tensor.data_ptr() == view.data_ptr() and torch.equal(tensor, view), name


@pytest.mark.parametrize("count", [1, 2, RING_DEPTH, RING_DEPTH + 1, 7])
def test_a_stream_computes_what_the_module_computes(count: int) -> None:
    plain, module, moved = made(count), made(count), Moved()
    host = streamed(module, moved)
    for call in (1, 2):
        assert torch.equal(module(X), plain(X))
        assert_home(module, host)
        assert (moved.h2d, moved.d2h) == (call * host.nbytes, 0)


def test_layers_compute_in_the_ring() -> None:
    module = made()
    host = streamed(module)
    home = {layer.up.weight.data_ptr() for layer in module.layers}
    inside: list[int] = []
    for layer in module.layers:
        layer.up.register_forward_pre_hook(lambda up, _inputs: inside.append(up.weight.data_ptr()))
    module(X)
    assert len(inside) == 7 and not set(inside) & home
    assert len(set(inside)) == RING_DEPTH and inside[:3] == inside[3:6]
    assert set(module.seen) == home  # before its turn a layer shows the host copy
    assert_home(module, host)


@pytest.mark.parametrize("index", [0, 3, 6])
def test_a_stream_whose_layer_raises_shows_the_host_copy_and_computes_again(index: int) -> None:
    plain, module = made(), made()
    host = streamed(module)
    module.layers[index].fail = ValueError("in a layer")
    for _ in range(2):
        with pytest.raises(ValueError, match="in a layer"):
            module(X)
        assert_home(module, host)
    module.layers[index].fail = None
    assert torch.equal(module(X), plain(X))
    assert_home(module, host)


def test_a_stream_that_is_interrupted_computes_again() -> None:
    plain, module = made(), made()
    host = streamed(module)
    module.layers[3].fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        module(X)
    module.layers[3].fail = None
    assert torch.equal(module(X), plain(X))
    assert_home(module, host)


def test_a_stream_that_is_interrupted_shows_the_host_copy() -> None:
    component = as_on_a_device(Built(), "stream")
    home = pointers(component.load())
    with pytest.raises(KeyboardInterrupt), component.use() as module:
        module.layers[3].fail = KeyboardInterrupt()
        module(X)
    assert pointers(component.load()) == home


@pytest.mark.parametrize(
    "order",
    [
        pytest.param([0, 0, 1, 1, 2, 3, 3, 4, 5, 6], id="twice"),
        pytest.param([0, 2, 3, 5, 6], id="skipped"),
        pytest.param(
            [6, 5, 4, 3, 2, 1, 0],
            id="backwards",
        ),
    ],
)
def test_layers_may_compute_in_another_order(order: list[int]) -> None:
    plain, module = made(), made()
    streamed(module)
    plain.order = module.order = order
    assert torch.equal(module(X), plain(X))


def test_a_component_that_streams() -> None:
    build, moved = Built(), Moved()
    component = as_on_a_device(build, "stream", moved)
    for call in (1, 2):
        with component.use() as module:
            assert torch.equal(module(X), made()(X))
        assert component.device_bytes == 0 and component.host_bytes * call == moved.h2d
    assert build.devices == [CPU]
    component.drop()
    assert component.host_bytes == 0


# Pinned memory


class Driver:
    """Registers what it is given; refuses when told to."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.code = 0

    def register(self, address: int, nbytes: int) -> int:
        if self.code == 0:
            self.registered[address] = nbytes
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if self.registered.pop(address, None) is not None else 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Tensor, "is_pinned", lambda memory: memory.data_ptr() in driver.registered)
    monkeypatch.setattr(host_memory, "_register", driver.register)
    monkeypatch.setattr(host_memory, "_cudart", lambda: driver)
    return driver


class Owner:
    pass


def memory(nbytes: int) -> Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "ltx2.device")
    return lambda: [record.getMessage() for record in caplog.records]


def test_without_cuda_nothing_is_pinned_and_nobody_is_warned(
    monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(host_memory, "_register", lambda *given: pytest.fail("there is no driver to ask"))
    budget = PinnedBudget(limit=0)
    assert not budget.pin(memory(8), Owner())
    assert budget.pinned == 0 and warnings() == []


def test_empty_memory_needs_no_pinning(driver: Driver, warnings: Callable[[], list[str]]) -> None:
    budget = PinnedBudget(limit=0)
    assert not budget.pin(memory(0), Owner())
    assert driver.registered == {} and warnings() == []


def test_pinned_until_its_owner_is_gone(driver: Driver) -> None:
    budget, one, two = PinnedBudget(), Owner(), Owner()
    first, second, third = memory(100), memory(20), memory(3)
    assert budget.pin(first, one) and budget.pin(second, one) and budget.pin(third, two)
    assert budget.pinned == 123
    assert driver.registered == {first.data_ptr(): 100, second.data_ptr(): 20, third.data_ptr(): 3}
    del one
    assert budget.pinned == 3 and driver.registered == {third.data_ptr(): 3}
    del two
    assert budget.pinned == 0 and driver.registered == {}


def test_what_is_pinned_already_counts_once(driver: Driver) -> None:
    budget, owner, given = PinnedBudget(limit=100), Owner(), memory(100)
    assert budget.pin(given, owner) and budget.pin(given, Owner())
    assert budget.pinned == 100 and driver.registered == {given.data_ptr(): 100}


def test_the_limit_is_kept_and_room_that_is_given_back_is_used(
    driver: Driver, warnings: Callable[[], list[str]]
) -> None:
    budget, one, two = PinnedBudget(limit=100), Owner(), Owner()
    first, second = memory(60), memory(41)
    assert budget.pin(first, one)
    assert not budget.pin(second, two)
    assert budget.pinned == 60 and second.data_ptr() not in driver.registered
    assert budget.pin(memory(40), one)
    del one
    assert budget.pin(second, two) and budget.pinned == 41
    assert len(warnings()) == 1 and "the budget for pinned memory does not allow it" in warnings()[0]


class PinningHost:
    def __init__(self, allow: Callable[[int], bool]) -> None:
        self.allow_pinning, self.counted = allow, list[int]()

    def pinning_room(self) -> int | None:
        return None

    def pinning_changed(self, nbytes: int) -> None:
        self.counted.append(nbytes)


def test_the_host_application_is_asked_and_told(driver: Driver, warnings: Callable[[], list[str]]) -> None:
    asked: list[int] = []
    host = PinningHost(lambda nbytes: asked.append(nbytes) is None and nbytes < 50)
    budget, owner = PinnedBudget(host=host), Owner()
    assert not budget.pin(memory(50), owner) and budget.pin(memory(49), owner)
    assert asked == [50, 49] and budget.pinned == 49 and len(warnings()) == 1
    driver.code = 2
    assert not budget.pin(memory(30), owner)
    assert host.counted == [49], "only what was pinned"
    del owner
    assert host.counted == [49, -49] and budget.pinned == 0


def test_a_refusal_of_the_driver_is_survived(driver: Driver, warnings: Callable[[], list[str]]) -> None:
    budget, owner = PinnedBudget(), Owner()
    driver.code = 2
    assert not budget.pin(memory(10), owner)
    assert budget.pinned == 0 and "the driver refused it (error 2)" in warnings()[0]
    driver.code = 0
    assert budget.pin(memory(10), owner) and budget.pinned == 10
    del owner
    assert budget.pinned == 0


def test_one_warning_only(driver: Driver, warnings: Callable[[], list[str]]) -> None:
    budget = PinnedBudget(limit=5)
    for _ in range(3):
        assert not budget.pin(memory(20), Owner())
    driver.code = 1
    assert not budget.pin(memory(5), Owner())
    assert len(warnings()) == 1 and budget.warned


@pytest.mark.parametrize("result", [2, RuntimeError("no driver")])
def test_a_failed_registration_clears_the_drivers_last_error(
    monkeypatch: pytest.MonkeyPatch, result: int | RuntimeError
) -> None:
    class Cudart:
        def cudaHostRegister(self, _address: int, _nbytes: int, _flags: int) -> int:
            if isinstance(result, RuntimeError):
                raise result
            return result

    cleared: list[bool] = []
    monkeypatch.setattr(host_memory, "_cudart", Cudart)
    monkeypatch.setattr(host_memory, "_drop_last_error", lambda: cleared.append(True))
    assert host_memory._register(0, 1) != 0 and cleared == [True]


def test_two_threads_never_pin_more_than_the_limit(driver: Driver) -> None:
    budget, owner, given = PinnedBudget(limit=50), Owner(), [memory(10) for _ in range(16)]
    done: list[bool] = []
    start = threading.Barrier(4)

    def work(part: list[Tensor]) -> None:
        start.wait()
        done.extend([budget.pin(each, owner) for each in part])

    threads = [threading.Thread(target=work, args=(given[index::4],)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count(True) == 5 and budget.pinned == 50 == sum(driver.registered.values())


@pytest.mark.usefixtures("driver")
def test_an_owner_may_go_while_other_memory_is_pinned() -> None:
    """The garbage collector may end an owner at any allocation, also at one inside of ``pin``."""
    owners: list[Any] = [Owner()]
    budget = PinnedBudget(host=PinningHost(lambda nbytes: nbytes < 100 or owners.clear() is None))
    assert budget.pin(memory(10), owners[0])
    keeper = Owner()
    thread = threading.Thread(target=budget.pin, args=(memory(100), keeper), daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive() and budget.pinned == 100


def test_a_component_pins_its_host_copy_for_as_long_as_it_has_it(driver: Driver) -> None:
    budget = PinnedBudget()
    component = Placed(ComponentSpec(Built(), "stream", "layers"), Streams(CPU), budget, Moved())
    component.placement = "stream"
    with component.use() as module:
        assert torch.equal(module(X), made()(X))
    assert budget.pinned == component.host_bytes > 0
    del module
    component.drop()
    assert budget.pinned == 0 and driver.registered == {}
