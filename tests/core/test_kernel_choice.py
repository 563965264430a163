"""Which kernels and which attention run: settings, what is installed, and what is faster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.kernels import attention, availability, lanes, products
from torch import Tensor

CPU = torch.device("cpu")
SHAPE = (1, 2, 2048, 64)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    ours = (availability._wanted, availability._installed, availability.runs_on)
    caches = (*ours, attention.installed_flash, attention._faster_flash)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def pretend_flash(monkeypatch: pytest.MonkeyPatch, name: str, result: Any = None) -> list[tuple[int, ...]]:
    """A package that takes (B, T, heads, head_dim); returns the shapes that it was called with."""
    for module in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, module, None)
    called: list[tuple[int, ...]] = []

    def function(q: Tensor, _k: Tensor, _v: Tensor) -> Any:
        called.append(tuple(q.shape))
        if isinstance(result, Exception):
            raise result
        return (q, None)

    package = ModuleType(name)
    package.flash_attn_func = function  # type: ignore[attr-defined]
    if "." in name:
        monkeypatch.setitem(sys.modules, name.split(".")[0], ModuleType(name.split(".")[0]))
    monkeypatch.setitem(sys.modules, name, package)
    return called


def test_eager_kernels_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(availability.VARIABLE, "eager")
    assert not availability.fused(torch.zeros(1))


def test_without_triton_kernels_are_eager(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(availability.importlib.util, "find_spec", lambda _: None)
    with caplog.at_level("INFO", logger="ltx2.kernels"):
        assert not availability.fused(torch.zeros(1))
    assert "Triton is not installed" in caplog.text


def test_a_missing_triton_is_told_once_and_only_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(availability.importlib.util, "find_spec", lambda _: None)
    with caplog.at_level("INFO", logger="ltx2.kernels"):
        assert not availability.fused(torch.zeros(1))
        assert caplog.text == ""
        for _ in range(2):
            assert not availability.fused(SimpleNamespace(is_cuda=True, device=CPU))  # type: ignore[arg-type]
    assert caplog.text.count("Triton is not installed") == 1


def test_a_triton_that_does_not_work_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = ModuleType("trial")

    def trial(_device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler")

    broken.trial = trial  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"{availability.__package__}.triton.trial", broken)
    assert not availability.runs_on(CPU)
    assert not availability.runs_on(CPU)
    assert caplog.text.count("Failed to find C compiler") == 1


def test_the_trial_launches_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from ltx2_two_stage.ltx2_core.kernels.triton.trial import trial

    assert trial(CPU).tolist() == list(range(16))


@pytest.mark.parametrize(
    ("variable", "decide"),
    [(availability.VARIABLE, availability._wanted), (attention.VARIABLE, attention.installed_flash)],
    ids=["kernels", "attention"],
)
def test_unknown_settings_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, decide: Any) -> None:
    monkeypatch.setenv(variable, "fastest")
    with pytest.raises(SettingError, match=f"{variable}.*fastest.*Choose from: auto"):
        decide()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (availability.VARIABLE, attention.VARIABLE):
        monkeypatch.setenv(variable, "")
    assert availability.check_setting() == "auto"
    attention.check_setting()


@pytest.mark.parametrize("name", ["flash_attn.cute", "flash_attn_interface", "flash_attn"])
def test_flash_attention_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    called = pretend_flash(monkeypatch, name)
    found = attention.installed_flash()
    assert found is not None
    assert found[0] == name
    q = torch.zeros(1, 2, 3, 4)
    assert found[1](q, q, q).shape == q.shape
    assert called == [(1, 3, 2, 4)]


def test_flash_attention_can_be_left_out_and_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_flash(monkeypatch, "flash_attn")
    monkeypatch.setenv(attention.VARIABLE, "sdpa")
    assert attention.installed_flash() is None
    attention.installed_flash.cache_clear()
    monkeypatch.setenv(attention.VARIABLE, "flash")
    assert attention._faster_flash(CPU, torch.bfloat16, SHAPE, 2048) is not None  # whatever it takes
    attention.installed_flash.cache_clear()
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(SettingError, match="cannot be imported"):
        attention.installed_flash()


@pytest.mark.parametrize(("theirs", "taken"), [(0.5, True), (0.99, False), (2.0, False)])
def test_the_faster_attention_is_taken_by_a_margin(monkeypatch: pytest.MonkeyPatch, theirs: float, taken: bool) -> None:
    pretend_flash(monkeypatch, "flash_attn_interface")
    times = iter([theirs, 1.0])
    monkeypatch.setattr(attention, "_median_ms", lambda _: next(times))
    assert (attention._faster_flash(CPU, torch.bfloat16, SHAPE, 2048) is not None) is taken
    # Measured once
    assert (attention._faster_flash(CPU, torch.bfloat16, SHAPE, 2048) is not None) is taken
    assert attention._faster_flash(CPU, torch.float32, SHAPE, 2048) is None


def test_an_attention_that_breaks_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_flash(monkeypatch, "flash_attn", RuntimeError("no kernel for this GPU"))
    assert attention._faster_flash(CPU, torch.bfloat16, SHAPE, 2048) is None
    assert "no kernel for this GPU" in caplog.text


def test_attention_on_the_cpu_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    called = pretend_flash(monkeypatch, "flash_attn")
    q, k, v = torch.randn(3, 1, 2, 1100, 8).unbind()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attention.attention(q, k, v), expected)
    assert not called


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_a_linear_layer_are_called(register: str) -> None:
    layer, x, called = torch.nn.Linear(8, 4), torch.randn(2, 8), []
    expected = layer(x)
    assert torch.equal(products.through(layer, x), expected)
    handle = getattr(layer, register)(lambda *arguments: called.append(len(arguments)))
    assert torch.equal(products.through(layer, x), expected) and len(called) == 1
    handle.remove()
    assert torch.equal(products.through(layer, x), expected) and len(called) == 1


def test_a_stream_for_each_use_in_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: object())
    lanes._stream.cache_clear()
    mine = lanes.stream_for("sound", CPU)
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(lanes.stream_for, "sound", CPU).result()
    assert lanes.stream_for("sound", CPU) is mine
    assert lanes.stream_for("capture", CPU) is not mine and theirs is not mine
    lanes._stream.cache_clear()
