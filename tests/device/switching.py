"""A small module with two sets of weights, its source, and what it must compute."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from contextlib import suppress

import pytest
import torch
from ltx2_two_stage.device_manager.base_weights import SwitchableSpec
from ltx2_two_stage.device_manager.host_memory import PinnedBudget
from ltx2_two_stage.device_manager.layout import unique_tensors
from ltx2_two_stage.device_manager.modes import MODES, ORIGINAL
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.streams import Streams
from ltx2_two_stage.device_manager.switchable import SwitchableModule
from ltx2_two_stage.device_manager.weights import WeightSet
from torch import Tensor, nn

CPU = torch.device("cpu")
WIDTH = 8
BESIDE = [ORIGINAL]  # adapters are computed beside the weights: other bits than merged ones
MERGED = [mode for mode in MODES if mode not in BESIDE]
HOST_COPY = [mode for mode in MODES if mode.keeps_host_copy]


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
        self.reads, self.budget = 0, PinnedBudget()
        self.fail: str | None = None

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        self.reads += "first.weight" in tensors  # one of the parts that are read one after the other
        if self.fail == "fill":
            raise OSError("the file went away")
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

    def switchable(self, mode: Mode, streams: Streams | None = None) -> SwitchableModule:
        def adapt(module: nn.Module, _names: Collection[str]) -> None:
            for index, layer in enumerate(module.layers):
                layer.linear = Adapted(layer.linear, index)

        def set_adapters(module: nn.Module, strengths: Mapping[str, float]) -> None:
            for layer in module.layers:
                layer.linear.strength = strengths["distilled"]

        def skeleton() -> nn.Module:
            with torch.device("meta"):
                return Model()

        spec = SwitchableSpec(skeleton, self.fill, "layers", adapt, set_adapters, self.merge)
        return SwitchableModule(spec, mode, streams or Streams(CPU), self.budget, lambda _h2d, _d2h: None)


def run(switchable: SwitchableModule, strength: float, then: float | None = None) -> Tensor:
    """One use; ``then`` is prefetched before its last of two evaluations."""
    with torch.inference_mode(), switchable.use({"distilled": strength}) as module:
        x = torch.linspace(-1, 1, 3 * WIDTH, device=module.first.weight.device).view(3, WIDTH)
        first = module(x)
        if then is not None:
            switchable.prefetch({"distilled": then})
        result = module(x)
        assert torch.equal(first, result)
        return result.clone()


def oracle(source: Source, strength: float, device: torch.device = CPU) -> Tensor:
    """What a module gives that was merged in one piece."""
    model = Model().to(device)
    with torch.no_grad():
        for name, tensor in unique_tensors(model):
            tensor.copy_(source.weights[name])
        for index, layer in enumerate(model.layers):
            adapted = Adapted(layer.linear, index).to(device)
            layer.linear.weight.addmm_(adapted.up, adapted.down, alpha=strength)
        return model(torch.linspace(-1, 1, 3 * WIDTH, device=device).view(3, WIDTH))


def assert_clean(switchable: SwitchableModule, source: Source) -> None:
    with switchable.use({"distilled": 0.0}) as module:
        for name, tensor in unique_tensors(module):
            assert torch.equal(tensor.cpu(), source.weights[name]), name


def fail_copies(patched: pytest.MonkeyPatch, failing: int) -> None:
    """Every copy of group number ``failing`` raises."""
    copy_group = WeightSet.copy_group

    def broken(self: WeightSet, source: WeightSet, group: int) -> int:
        if group == failing:
            raise RuntimeError("the copy failed")
        return copy_group(self, source, group)

    patched.setattr(WeightSet, "copy_group", broken)


def random_sequence(mode: Mode, seed: int, streams: Streams) -> None:
    """Twenty runs, strengths, prefetches, failures, interrupts and releases in random order.

    Raises:
        AssertionError: a result is wrong, or the base weights are not those of the file any more.
    """
    rng, source = random.Random(seed), Source()
    switchable = source.switchable(mode, streams)
    actions = ["run", "run", "run", "ahead", "fail", "fail ahead", "memory", "interrupt", "interrupt early", "release"]
    for _ in range(20):
        action, strength = rng.choice(actions), rng.choice([0.0, 0.25, 0.5, 1.0])
        if action == "release":
            switchable.release()
        elif action == "ahead":
            switchable.prefetch({"distilled": strength})
        elif action in ("fail", "fail ahead", "memory"):
            source.fail = "merge" if action.startswith("fail") else "memory"
            with suppress(RuntimeError):  # weights merged before at this strength are not merged again
                run(switchable, strength if action == "fail" else 0.0, then=rng.choice([0.3, 0.7]))
            source.fail = None
        elif action == "interrupt":
            with pytest.raises(KeyboardInterrupt), switchable.use({"distilled": strength}) as module:
                module.layers[0](torch.zeros(1, WIDTH, device=streams.device))
                switchable.prefetch({"distilled": rng.choice([0.5, 1.0])})
                module.layers[1](torch.zeros(1, WIDTH, device=streams.device))
                raise KeyboardInterrupt
        elif action == "interrupt early":
            with pytest.raises(KeyboardInterrupt), switchable.use({"distilled": strength}):
                raise KeyboardInterrupt
        else:
            result = run(switchable, strength, then=rng.choice([None, 0.5, 1.0]))
            expected = oracle(source, strength, streams.device)
            assert (result - expected).abs().max() < 1e-5
            assert mode in BESIDE or torch.equal(result, expected)
        if rng.random() < 0.5:
            assert_clean(switchable, source)
    assert_clean(switchable, source)
