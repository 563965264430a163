"""Which of a kernel's compiled forms is launched again, and when Triton is asked instead."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from ltx2_two_stage.ltx2_core.kernels.triton import compiled, launch
from ltx2_two_stage.ltx2_core.kernels.triton.launch import Launched, launched, power_of_2_from

# Parameters: two pointers, three numbers of which any may be the second, one constant
SPECIALISED = (0, 2)
STREAM = 7


class Kernel(triton.JITFunction):  # type: ignore[misc]
    """Says how it was launched, and so do the forms that it compiles."""

    def __init__(self) -> None:
        self.launches: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, num_warps: int, **options: Any) -> Any:
            self.launches.append(("Triton", grid, arguments, num_warps))
            return SimpleNamespace(run=self._again, function="function", packed_metadata="metadata")

        return run

    def _again(self, *arguments: Any) -> None:
        self.launches.append(("again", arguments))

    @property
    def ways(self) -> list[str]:
        return [launch[0] for launch in self.launches]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    current = SimpleNamespace(number=0)
    active = SimpleNamespace(get_current_device=lambda: current.number, get_current_stream=lambda _: STREAM)
    for module in (launch, compiled):
        monkeypatch.setattr(module, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(launch, "launches_again", lambda _: True)
    return current


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.zeros(32, dtype=dtype), torch.zeros(32, dtype=dtype)


def call(kernel: Launched, **changes: Any) -> None:
    usual = {"grid": (5,), "pointers": tensors(), "numbers": (3, 4, 0.5), "constants": (True, 64), "num_warps": 4}
    kernel(**{**usual, **changes})


@pytest.mark.usefixtures("device")
def test_a_form_that_has_served_is_launched_by_addresses() -> None:
    kernel = Kernel()
    ours = Launched(kernel, SPECIALISED)
    first, second = tensors(), tensors()
    call(ours, pointers=first)
    # Another number of programs, and another number where any may be: the same form
    call(ours, pointers=second, grid=(6, 2), numbers=(3, 16, 0.5))
    assert kernel.launches[0] == ("Triton", (5,), (*first, 3, 4, 0.5, True, 64), 4)
    addresses = [tensor.data_ptr() for tensor in second]
    head = (6, 2, 1, STREAM, "function", "metadata", None, None, None)
    assert kernel.launches[1:] == [("again", (*head, *addresses, 3, 16, 0.5, True, 64))]


@pytest.mark.parametrize(
    "changes",
    [
        {"pointers": tensors(torch.bfloat16)},
        {"pointers": (tensors()[0], None)},
        {"numbers": (1, 4, 0.5)},
        {"numbers": (3, 4, 0.25)},
        {"constants": (False, 64)},
        {"num_warps": 8},
    ],
    ids=["dtype", "no pointer", "first number", "last number", "constant", "warps"],
)
@pytest.mark.usefixtures("device")
def test_what_another_form_may_serve_goes_through_triton_once(changes: Any) -> None:
    kernel = Kernel()
    ours = Launched(kernel, SPECIALISED)
    for given in ({}, changes, {}, changes):
        call(ours, **given)
    assert kernel.ways == ["Triton", "Triton", "again", "again"]


def test_every_device_has_its_own_forms(device: SimpleNamespace) -> None:
    kernel = Kernel()
    ours = Launched(kernel, SPECIALISED)
    for device.number in (0, 1, 0, 1):
        call(ours)
    assert kernel.ways == ["Triton", "Triton", "again", "again"]


@pytest.mark.usefixtures("device")
def test_pointers_that_are_not_aligned_always_go_through_triton() -> None:
    kernel = Kernel()
    ours = Launched(kernel, SPECIALISED)
    whole, other = tensors()
    for _ in range(2):
        call(ours, pointers=(whole, other[1:]))
    call(ours, pointers=(whole, other))
    call(ours, pointers=(whole, other[4:]))
    assert kernel.ways == ["Triton", "Triton", "Triton", "again"]


@pytest.mark.usefixtures("device")
def test_a_triton_of_another_kind_launches_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launches_again", lambda _: False)
    kernel = Kernel()
    ours = Launched(kernel, SPECIALISED)
    for _ in range(3):
        call(ours)
    assert kernel.ways == ["Triton"] * 3


def test_a_trial_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if torch.cuda.is_available():
        pytest.skip("the trial works on a GPU, see tests/gpu")
    launch.launches_again.cache_clear()
    assert not launch.launches_again(0)
    launch.launches_again.cache_clear()


def test_positions_of_numbers_are_counted_behind_the_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    @launched(pointers=2, any_number=["rows"])
    def kernel(x, y, width, rows, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        pass

    assert kernel._specialised == (0, 2)


@pytest.mark.parametrize(
    ("module", "name", "first", "specialised"),
    [
        ("modulation", "_residual_norm", "gate_row", "gate_batch gate_level batch_stride level_stride D eps"),
        ("heads", "_norm_rope", "table_batch", "table_batch D eps"),
        ("heads", "_gate_heads", "D", "D"),
        ("heads", "_gate_logits", "rows", "D"),
        ("gelu", "_gelu_quantised", "D", "D"),
        ("scaled_merge", "_add_rows", "factor", "D"),
        ("frames", "_window", "rows", "eps"),
        ("frames", "_add", "rows", ""),
        ("layout", "_unfold", "rows", ""),
        ("layout", "_to_bytes", "height", ""),
        ("groups", "_moments", "rows", ""),
        ("groups", "_apply", "rows", "eps"),
        ("snake", "_snake", "length", "C eps"),
    ],
    ids=lambda value: value if value.startswith("_") else "",
)
def test_no_kernel_has_a_form_for_each_size_of_a_clip(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, first: str, specialised: str
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # other tests of this process interpret these kernels
    kernel = getattr(importlib.import_module(f"{launch.__package__}.{module}"), name)
    names = list(kernel.kernel.arg_names)
    start = names.index(first)
    assert [names[start + position] for position in kernel._specialised] == specialised.split()


def test_powers_of_two() -> None:
    for number in range(1, 5000):
        assert power_of_2_from(number) == triton.next_power_of_2(number)
