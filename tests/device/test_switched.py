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
            if self.fail == "merge" and index == 2:
                raise RuntimeError("in the middle of a merge")
            weights[f"layers.{index}.linear.weight"].addmm_(
                layer.linear.up, layer.linear.down, alpha=strengths["distilled"]
            )

    def switched(self, mode: Mode) -> Switched:
        def adapt(module: nn.Module) -> None:
            for index, layer in enumerate(module.layers):
                layer.linear = Adapted(layer.linear, index)

        def set_adapters(module: nn.Module, strengths: Mapping[str, float]) -> None:
            for layer in module.layers:
                layer.linear.strength = strengths["distilled"]

        def skeleton() -> nn.Module:
            with torch.device("meta"):
                return Model()

        spec = SwitchedSpec(skeleton, self.fill, "layers", adapt, set_adapters, self.merge, ("two",))
        return Switched(spec, mode, Streams(CPU), PinnedBudget(), lambda h2d, d2h: None)


def run(switched: Switched, phase: str, strength: float) -> Tensor:
    x = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)
    with torch.inference_mode(), switched.use(phase, {"distilled": strength}) as module:
        return module(x).clone()


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
    with switched.use("one", {"distilled": 0.0}) as module:
        for name, tensor in unique_tensors(module):
            assert torch.equal(tensor, source.weights[name]), name


@pytest.mark.parametrize("mode", MERGED)
def test_merged_phases_run_on_merged_weights_bit_for_bit(mode: Mode) -> None:
    source = Source()
    switched = source.switched(mode)
    for strength in (1.0, 0.5, 1.0):
        assert torch.equal(run(switched, "one", 0.0), oracle(source, 0.0))
        assert torch.equal(run(switched, "two", strength), oracle(source, strength))
    assert_clean(switched, source)
    assert source.reads == 1


def test_original_applies_adapters_on_the_fly() -> None:
    source = Source()
    switched = source.switched(Mode.ORIGINAL)
    assert torch.equal(run(switched, "one", 0.0), oracle(source, 0.0))
    for strength in (1.0, 0.25):
        # float32 rounding of another order of products
        assert (run(switched, "two", strength) - oracle(source, strength)).abs().max() < 1e-5
    assert_clean(switched, source)


@pytest.mark.parametrize("mode", list(Mode))
def test_adapters_of_an_unmerged_phase_are_applied_on_the_fly(mode: Mode) -> None:
    source = Source()
    switched = source.switched(mode)
    assert (run(switched, "one", 0.25) - oracle(source, 0.25)).abs().max() < 1e-5
    assert torch.equal(run(switched, "one", 0.0), oracle(source, 0.0))


@pytest.mark.parametrize("mode", MERGED)
def test_prefetch_changes_no_result(mode: Mode) -> None:
    source = Source()
    switched = source.switched(mode)
    run(switched, "one", 0.0)
    for strength in (1.0, 0.5):
        x = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)
        with torch.inference_mode(), switched.use("one", {"distilled": 0.25}) as module:
            switched.prefetch("two", {"distilled": strength})
            assert (module(x) - oracle(source, 0.25)).abs().max() < 1e-5
        assert torch.equal(run(switched, "two", strength), oracle(source, strength))
    assert_clean(switched, source)


@pytest.mark.parametrize("mode", list(Mode))
def test_a_failed_read_leaves_nothing_behind(mode: Mode) -> None:
    source = Source()
    switched = source.switched(mode)
    source.fail = "fill"
    with pytest.raises(OSError, match="went away"):
        run(switched, "one", 0.0)
    source.fail = None
    assert torch.equal(run(switched, "one", 0.0), oracle(source, 0.0))


@pytest.mark.parametrize("mode", MERGED)
def test_a_merge_that_fails_midway_is_undone(mode: Mode) -> None:
    source = Source()
    switched = source.switched(mode)
    run(switched, "one", 0.0)
    source.fail = "merge"
    with pytest.raises(RuntimeError, match="middle of a merge"):
        run(switched, "two", 1.0)
    assert_clean(switched, source)
    source.fail = None
    assert torch.equal(run(switched, "two", 1.0), oracle(source, 1.0))


@pytest.mark.parametrize("mode", list(Mode))
def test_release_gives_memory_back_and_the_next_use_restores(mode: Mode) -> None:
    source = Source()
    switched = source.switched(mode)
    run(switched, "two", 1.0)
    held = sum(switched.device_bytes.values())
    assert held > 0 and switched.release() == held
    assert "base" not in switched.device_bytes and "merged" not in switched.device_bytes
    assert torch.equal(run(switched, "one", 0.0), oracle(source, 0.0))
    # a host copy makes a second read unnecessary
    assert source.reads == (1 if mode in (Mode.SNAPSHOT, Mode.SNAPSHOT_LOW) else 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", list(Mode))
def test_base_weights_survive_random_sequences(mode: Mode, seed: int) -> None:
    """Runs, strengths, prefetches, failures, interrupts and releases in random order."""
    rng, source = random.Random(seed), Source()
    switched = source.switched(mode)
    for _ in range(20):
        action = rng.choice(["one", "two", "two", "dynamic", "prefetch", "fail", "interrupt", "release"])
        if action == "release":
            switched.release()
        elif action == "prefetch":
            switched.prefetch("two", {"distilled": rng.choice([0.5, 1.0])})
        elif action == "fail":
            source.fail = "merge"
            with suppress(RuntimeError):  # weights merged before at this strength are not merged again
                run(switched, "two", rng.choice([0.3, 0.7]))
            source.fail = None
        elif action == "interrupt":
            with pytest.raises(KeyboardInterrupt), switched.use("two", {"distilled": 1.0}):
                raise KeyboardInterrupt
        else:
            strength = rng.choice([0.5, 1.0]) if action != "one" else 0.0
            phase = "two" if action == "two" else "one"
            result = run(switched, phase, strength)
            assert (result - oracle(source, strength)).abs().max() < 1e-5
        assert_clean(switched, source)
