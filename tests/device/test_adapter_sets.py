"""Stacks of adapters that change from use to use: the weights stay, and only missing adapters are read."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from ltx2_two_stage.device_manager.base_weights import SwitchableSpec
from ltx2_two_stage.device_manager.host_memory import PinnedBudget
from ltx2_two_stage.device_manager.layout import unique_tensors
from ltx2_two_stage.device_manager.modes import MODES, RESIDENT
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.streams import Streams
from ltx2_two_stage.device_manager.switchable import SwitchableModule
from switching import CPU, WIDTH, Apart, Model, Source, assert_clean
from torch import Tensor, nn

# Added to the output or to the weight: rounding of float32 sums through four layers
ROUNDING = 2e-5
NAMES = ("distilled", "one", "two", "three")


class Stacked(nn.Module):
    """A linear layer with the matrices of several adapters beside it."""

    def __init__(self, base: nn.Linear, names: Iterable[str], index: int) -> None:
        super().__init__()
        self.base, self.strengths = base, dict.fromkeys(sorted(names), 0.0)
        self.matrices = nn.ParameterDict({name: delta(name, index) for name in self.strengths})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        for name, strength in self.strengths.items():
            y = y + strength * (x @ self.matrices[name].T)
        return y


def delta(name: str, index: int) -> nn.Parameter:
    generator = torch.Generator().manual_seed(NAMES.index(name) * 10 + index)
    return nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) * 0.3, requires_grad=False)


class Sets(Source):
    """A source that knows several adapters, and counts what is read of them."""

    def __init__(self) -> None:
        super().__init__()
        self.adapted: list[frozenset[str]] = []

    def merge(self, adapted: nn.Module, weights: Mapping[str, Tensor], strengths: Mapping[str, float]) -> None:
        for index, layer in enumerate(adapted.layers):
            weight = weights.get(f"layers.{index}.linear.weight")
            for name, strength in strengths.items() if weight is not None else ():
                weight.add_(layer.linear.matrices[name], alpha=strength)

    def switchable(self, mode: Mode, streams: Streams | None = None) -> SwitchableModule:
        def adapt(module: nn.Module, names: Collection[str]) -> None:
            self.adapted.append(frozenset(names))
            for index, layer in enumerate(module.layers):
                layer.linear = Stacked(layer.linear, names, index)

        def set_adapters(module: nn.Module, strengths: Mapping[str, float]) -> None:
            for layer in module.layers:
                layer.linear.strengths.update(strengths)

        def skeleton() -> nn.Module:
            with torch.device("meta"):
                return Model()

        spec = SwitchableSpec(skeleton, self.fill, "layers", adapt, set_adapters, self.merge)
        return SwitchableModule(spec, mode, streams or Streams(CPU), PinnedBudget(), lambda _h2d, _d2h: None)


def expected(source: Sets, strengths: Mapping[str, float]) -> Tensor:
    model = Model()
    with torch.no_grad():
        for name, tensor in unique_tensors(model):
            tensor.copy_(source.weights[name])
        for index, layer in enumerate(model.layers):
            for name, strength in strengths.items():
                layer.linear.weight.add_(delta(name, index), alpha=strength)
        return model(torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH))


def check(
    switchable: SwitchableModule, source: Sets, strengths: Mapping[str, float], then: Mapping[str, float]
) -> None:
    """One use, right before and after another one was announced."""
    x, right = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH), expected(source, strengths)
    with torch.inference_mode(), switchable.use(strengths) as module:
        assert (module(x) - right).abs().max() < ROUNDING
        switchable.prefetch(then)
        assert (module(x) - right).abs().max() < ROUNDING


@pytest.mark.parametrize("streams", [Streams(CPU), Apart()], ids=["one memory", "apart"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_only_a_missing_adapter_makes_the_wrapped_module_anew(mode: Mode, streams: Streams) -> None:
    source = Sets()
    switchable = source.switchable(mode, streams)
    off, on = {"distilled": 0.0}, {"distilled": 1.0}
    check(switchable, source, off, on)
    check(switchable, source, on, {})
    style = {"distilled": 0.0, "one": 0.5}
    check(switchable, source, style, {"distilled": 1.0, "one": 0.0})
    check(switchable, source, {"distilled": 1.0, "one": 0.0}, {})
    # Fewer than it has: "one" is there, and silent
    check(switchable, source, {"distilled": 0.5}, {})
    check(switchable, source, {"distilled": 0.0, "one": -1.0}, {})
    assert source.adapted == [frozenset({"distilled"}), frozenset({"distilled", "one"})]
    check(switchable, source, {"distilled": 0.0, "two": 0.5}, {"distilled": 1.0, "three": 1.0})
    check(switchable, source, {"distilled": 1.0, "three": 1.0}, {})
    assert source.adapted[2:] == [frozenset({"distilled", "two"}), frozenset({"distilled", "three"})]
    assert source.reads == 1
    assert_clean(switchable, source)


@pytest.mark.parametrize("mode", [RESIDENT], ids=str)
def test_merged_weights_survive_a_stack_that_does_not_change_them(mode: Mode) -> None:
    source = Sets()
    switchable = source.switchable(mode)
    merges: list[Mapping[str, float]] = []

    def merge(adapted: nn.Module, weights: Mapping[str, Tensor], strengths: Mapping[str, float]) -> None:
        merges.append(dict(strengths))
        source.merge(adapted, weights, strengths)

    switchable.base.spec = replace(switchable.base.spec, merge=merge)
    check(switchable, source, {"distilled": 1.0}, {})
    before = len(merges)
    check(switchable, source, {"distilled": 1.0, "one": 0.0}, {})
    assert len(merges) == before, "the same set of active adapters"


@pytest.mark.parametrize("apart", [False, True], ids=["one memory", "apart"])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_stacks_give_the_right_results_and_leave_the_weights(mode: Mode, seed: int, apart: bool) -> None:
    rng, source = random.Random(seed), Sets()
    switchable = source.switchable(mode, Apart() if apart else None)

    def stack() -> dict[str, float]:
        names = ["distilled", *rng.sample(NAMES[1:], rng.randint(0, 2))]
        return {name: rng.choice([0.0, 0.5, 1.0, -0.3]) for name in sorted(names)}

    for _ in range(25):
        check(switchable, source, stack(), stack())
        match rng.randint(0, 4):
            case 0:
                with suppress(KeyboardInterrupt), switchable.use(stack()):
                    switchable.prefetch(stack())
                    raise KeyboardInterrupt
            case 1:
                switchable.release()
    assert_clean(switchable, source)
