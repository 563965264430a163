"""The module with two sets of weights: same results in every mode, base weights that survive anything."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress

import pytest
import torch
from ltx2_two_stage.device_manager.host_memory import PinnedBudget
from ltx2_two_stage.device_manager.layout import unique_tensors
from ltx2_two_stage.device_manager.modes import Mode
from ltx2_two_stage.device_manager.streams import Streams
from ltx2_two_stage.device_manager.switched import Switched, SwitchedSpec
from torch import Tensor, nn

CPU = torch.device("cpu")
WIDTH = 8
MERGED = [Mode.RESIDENT, Mode.SNAPSHOT, Mode.SNAPSHOT_LOW]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("offset", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) + self.offset


class Model(nn.Module):
    """Layers, a tied weight, a buffer, and a parameter outside the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


class Adapted(nn.Module):
    """A linear layer with low-rank matrices beside it, as peft wraps one."""

    def __init__(self, base: nn.Linear, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base = base
        self.down = nn.Parameter(torch.randn(2, WIDTH, generator=generator), requires_grad=False)
        self.up = nn.Parameter(torch.randn(WIDTH, 2, generator=generator), requires_grad=False)
        self.strength = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.strength * (x @ self.down.T @ self.up.T)


class Apart(Streams):
    """Host and device apart, both in the CPU's memory; what is copied has arrived when the call returns."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.cuda = True

    def mark(self) -> object:
        return object()

    def wait(self, event: object) -> None: ...

    def keep_until_now(self, tensor: Tensor) -> None: ...


class Source:
    """Weights "on disk", and how often they were read; merges and reads can be told to fail."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = {n: torch.randn(t.shape, generator=generator) for n, t in unique_tensors(Model())}
        self.reads = 0
        self.fail: str | None = None

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        self.reads += 1
        if self.fail == "fill":
            raise OSError("the file went away")
        assert tensors.keys() == self.weights.keys()
        for name, tensor in tensors.items():
            tensor.copy_(self.weights[name])

    def merge(self, adapted: nn.Module, weights: Mapping[str, Tensor], strengths: Mapping[str, float]) -> None:
        for index, layer in enumerate(adapted.layers):
            weight = weights.get(f"layers.{index}.linear.weight")
            if weight is None:
                continue
            if self.fail == "merge" and index == 2:
                raise RuntimeError("in the middle of a merge")
            if self.fail == "memory" and index == 2:
                raise torch.OutOfMemoryError("no room for a merge")
            weight.addmm_(layer.linear.up, layer.linear.down, alpha=strengths["distilled"])

    def switched(self, mode: Mode, streams: Streams | None = None) -> Switched:
        def adapt(module: nn.Module) -> None:
            for index, layer in enumerate(module.layers):
                layer.linear = Adapted(layer.linear, index)

        def set_adapters(module: nn.Module, strengths: Mapping[str, float]) -> None:
            for layer in module.layers:
                layer.linear.strength = strengths["distilled"]

        def skeleton() -> nn.Module:
            with torch.device("meta"):
                return Model()

        spec = SwitchedSpec(skeleton, self.fill, "layers", adapt, set_adapters, self.merge)
        return Switched(spec, mode, streams or Streams(CPU), PinnedBudget(), lambda h2d, d2h: None)


def run(switched: Switched, strength: float, then: float | None = None) -> Tensor:
    """One use; ``then`` is prefetched before its last of two evaluations."""
    x = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)
    with torch.inference_mode(), switched.use({"distilled": strength}) as module:
        first = module(x)
        if then is not None:
            switched.prefetch({"distilled": then})
        result = module(x)
        assert torch.equal(first, result)
        return result.clone()


def oracle(source: Source, strength: float) -> Tensor:
    model = Model()
    with torch.no_grad():
        for name, tensor in unique_tensors(model):
            tensor.copy_(source.weights[name])
        for index, layer in enumerate(model.layers):
            adapted = Adapted(layer.linear, index)
            layer.linear.weight.addmm_(adapted.up, adapted.down, alpha=strength)
        return model(torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH))


def assert_clean(switched: Switched, source: Source) -> None:
    with switched.use({"distilled": 0.0}) as module:
        for name, tensor in unique_tensors(module):
            assert torch.equal(tensor, source.weights[name]), name


STREAMS = {"on one device": lambda: Streams(CPU), "host and device apart": Apart}


@pytest.fixture(params=STREAMS.values(), ids=STREAMS.keys())
def streams(request: pytest.FixtureRequest) -> Streams:
    return request.param()  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", MERGED)
def test_merging_modes_run_on_merged_weights_bit_for_bit(mode: Mode, streams: Streams) -> None:
    source = Source()
    switched = source.switched(mode, streams)
    for strength in (1.0, 0.5, 0.0, 1.0, 1.0, 0.0):
        assert torch.equal(run(switched, strength), oracle(source, strength))
    assert_clean(switched, source)
    assert source.reads == 1


def test_original_applies_adapters_on_the_fly(streams: Streams) -> None:
    source = Source()
    switched = source.switched(Mode.ORIGINAL, streams)
    assert torch.equal(run(switched, 0.0), oracle(source, 0.0))
    for strength in (1.0, 0.25):
        # float32 rounding of another order of products
        assert (run(switched, strength) - oracle(source, strength)).abs().max() < 1e-5
    assert_clean(switched, source)


@pytest.mark.parametrize("before", [0.0, 0.25])
@pytest.mark.parametrize("mode", list(Mode))
def test_prefetch_changes_no_result(mode: Mode, before: float, streams: Streams) -> None:
    source = Source()
    switched = source.switched(mode, streams)
    for strength in (1.0, 0.5, 0.5):
        assert (run(switched, before, then=strength) - oracle(source, before)).abs().max() < 1e-5
        result = run(switched, strength)
        assert (result - oracle(source, strength)).abs().max() < 1e-5
        assert mode is Mode.ORIGINAL or torch.equal(result, oracle(source, strength))
    assert_clean(switched, source)


@pytest.mark.parametrize("mode", [Mode.RESIDENT, Mode.SNAPSHOT])
def test_a_prefetched_set_is_made_layer_by_layer_while_the_base_computes(mode: Mode, streams: Streams) -> None:
    source = Source()
    switched = source.switched(mode, streams)
    run(switched, 0.0)
    with switched.use({}) as module:
        switched.prefetch({"distilled": 1.0})
        assert "merged" not in switched.device_bytes  # nothing yet: the host has work of its own to do
        held = []
        for layer in module.layers:
            layer(torch.zeros(1, WIDTH))
            held.append(switched.device_bytes["merged"])
        assert held == sorted(set(held))
    source.fail = "merge"  # which would be noticed
    assert torch.equal(run(switched, 1.0), oracle(source, 1.0))


@pytest.mark.parametrize("mode", [Mode.RESIDENT, Mode.SNAPSHOT])
def test_no_room_for_a_prefetch_costs_the_prefetch_alone(mode: Mode, streams: Streams) -> None:
    source = Source()
    switched = source.switched(mode, streams)
    run(switched, 0.0)
    source.fail = "memory"
    assert torch.equal(run(switched, 0.0, then=1.0), oracle(source, 0.0))
    assert "merged" not in switched.device_bytes
    source.fail = None
    assert torch.equal(run(switched, 1.0), oracle(source, 1.0))


@pytest.mark.parametrize("mode", list(Mode))
def test_adapters_are_never_on_the_device_as_a_whole_where_they_are_merged(mode: Mode) -> None:
    source = Source()
    switched = source.switched(mode, Apart())
    run(switched, 0.0)
    with switched.use({"distilled": 1.0}) as module:
        module(torch.zeros(1, WIDTH))
        assert ("adapters" in switched.device_bytes) == (mode is Mode.ORIGINAL)
    assert "adapters" not in switched.device_bytes and switched.host_bytes["adapters"] > 0


@pytest.mark.parametrize("mode", list(Mode))
def test_a_failed_read_leaves_nothing_behind(mode: Mode) -> None:
    source = Source()
    switched = source.switched(mode)
    source.fail = "fill"
    with pytest.raises(OSError, match="went away"):
        run(switched, 0.0)
    source.fail = None
    assert torch.equal(run(switched, 0.0), oracle(source, 0.0))


@pytest.mark.parametrize("mode", MERGED)
def test_a_merge_that_fails_midway_is_undone(mode: Mode, streams: Streams) -> None:
    source = Source()
    switched = source.switched(mode, streams)
    run(switched, 0.0)
    source.fail = "merge"
    with pytest.raises(RuntimeError, match="middle of a merge"):
        run(switched, 1.0)
    assert_clean(switched, source)
    source.fail = None
    assert torch.equal(run(switched, 1.0), oracle(source, 1.0))


@pytest.mark.parametrize("mode", list(Mode))
def test_release_gives_memory_back_and_the_next_use_restores(mode: Mode, streams: Streams) -> None:
    source = Source()
    switched = source.switched(mode, streams)
    run(switched, 1.0)
    held = sum(switched.device_bytes.values())
    assert held > 0 and switched.release() == held
    assert not switched.device_bytes
    assert torch.equal(run(switched, 0.0), oracle(source, 0.0))
    # a host copy makes a second read unnecessary
    assert source.reads == (1 if mode in (Mode.SNAPSHOT, Mode.SNAPSHOT_LOW) else 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", list(Mode))
def test_base_weights_survive_random_sequences(mode: Mode, seed: int, streams: Streams) -> None:
    """Runs, strengths, prefetches, failures, interrupts and releases in random order."""
    rng, source = random.Random(seed), Source()
    switched = source.switched(mode, streams)
    actions = ["run", "run", "run", "ahead", "fail", "fail ahead", "memory", "interrupt", "interrupt early", "release"]
    for _ in range(20):
        action, strength = rng.choice(actions), rng.choice([0.0, 0.25, 0.5, 1.0])
        if action == "release":
            switched.release()
        elif action == "ahead":
            switched.prefetch({"distilled": strength})
        elif action in ("fail", "fail ahead", "memory"):
            source.fail = "merge" if action.startswith("fail") else "memory"
            with suppress(RuntimeError):  # weights merged before at this strength are not merged again
                run(switched, strength if action == "fail" else 0.0, then=rng.choice([0.3, 0.7]))
            source.fail = None
        elif action == "interrupt":
            with pytest.raises(KeyboardInterrupt), switched.use({"distilled": strength}) as module:
                module.layers[0](torch.zeros(1, WIDTH))
                switched.prefetch({"distilled": rng.choice([0.5, 1.0])})
                module.layers[1](torch.zeros(1, WIDTH))
                raise KeyboardInterrupt
        elif action == "interrupt early":
            with pytest.raises(KeyboardInterrupt), switched.use({"distilled": strength}):
                raise KeyboardInterrupt
        else:
            result = run(switched, strength, then=rng.choice([None, 0.5, 1.0]))
            expected = oracle(source, strength)
            assert (result - expected).abs().max() < 1e-5
            assert mode is Mode.ORIGINAL or torch.equal(result, expected)
        if rng.random() < 0.5:
            assert_clean(switched, source)
    assert_clean(switched, source)
