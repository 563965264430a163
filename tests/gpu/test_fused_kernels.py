"""Triton's kernels on a GPU, in the released model's sizes: against their eager versions, and float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels import availability, gelu, heads, modulation
from ltx2_two_stage.ltx2_core.kernels.activation import Activation, Needs
from ltx2_two_stage.ltx2_core.kernels.quantise import Quantised, quantise_rows
from ltx2_two_stage.ltx2_core.kernels.rows import Affine, Row
from ltx2_two_stage.ltx2_core.types import Rope
from torch import Tensor

pytestmark = pytest.mark.gpu

B, D, HEADS = 2, 4096, 32
BOTH = Needs(True, True)
# What fused kernels may lose against float32, as a share of what eager bfloat16 loses: they round less often
SHARE = 1.05


@contextmanager
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv(availability.VARIABLE, "eager")
        availability._wanted.cache_clear()
        yield
    availability._wanted.cache_clear()


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture
def numbers(cuda: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator(cuda).manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device=cuda).to(torch.bfloat16)


def wide(value: Any) -> Any:
    """The same in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        parts = [wide(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def compare(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[Tensor, ...]], *arguments: Any, share: float = SHARE
) -> None:
    fused = run(*arguments)
    with eager(monkeypatch):
        plain, exact = run(*arguments), run(*wide(arguments))
    for one, other, true in zip(fused, plain, exact, strict=True):
        assert one.shape == other.shape
        assert error(one, true) <= share * error(other, true)


@pytest.mark.parametrize("tokens", [126, 1536, 4097])
@pytest.mark.parametrize("levels", ["one", "few", "each"])
def test_residual_norm(
    numbers: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, tokens: int, levels: str
) -> None:
    count = {"one": 1, "few": 3, "each": tokens}[levels]
    index = torch.arange(tokens, device="cuda") % count if levels == "few" else None
    row = Row(numbers(9, D), 2, numbers(1, count, 9, D), 2, index)

    def run(x: Tensor, update: Tensor, row: Row) -> tuple[Tensor, ...]:
        affines = [Affine(row._replace(row=1, at=1), row._replace(row=0, at=0)), Affine(row, row._replace(row=3, at=3))]
        new, results = modulation.residual_norm(x, update, row, affines, 1e-6, [Needs()] * 2, slice(0, 1))
        return new, *(result.plain for result in results if result.plain is not None)

    compare(monkeypatch, run, numbers(B, tokens, D), numbers(1, tokens, D), row)


def test_a_form_that_has_served_is_launched_again_by_addresses(numbers: Callable[..., Tensor]) -> None:
    from ltx2_two_stage.ltx2_core.kernels.triton import launch
    from ltx2_two_stage.ltx2_core.kernels.triton.modulation import _residual_norm as kernel

    row = Row(numbers(9, D), 2, numbers(1, 1, 9, D), 2, None)
    x, update = numbers(B, 300, D), numbers(B, 300, D)

    def run() -> tuple[Tensor, Tensor]:
        new, (result,) = modulation.residual_norm(x, update, row, [Affine(row, row)], 1e-6, [Needs()])
        assert result.plain is not None
        return new, result.plain

    kernel._compiled.clear()
    by_triton = run()
    assert launch.launches_again(x.device.index)
    assert len(kernel._compiled) == 1
    again = run()
    assert len(kernel._compiled) == 1
    assert all(torch.equal(one, other) for one, other in zip(by_triton, again, strict=True))


@pytest.mark.parametrize("tokens", [126, 6144])
def test_norm_and_rope(numbers: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    angles = numbers(1, HEADS, tokens, D // HEADS // 2)
    rope = Rope(angles.cos(), angles.sin())
    weight = 1 + 0.1 * numbers(D)

    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        table = Rope(cos, sin)
        return heads.norm_rope((q.clone(), k.clone()), (weight, weight), 1e-6, (table, table), HEADS)

    compare(monkeypatch, run, numbers(B, tokens, D), numbers(B, tokens, D), rope.cos, rope.sin, weight)


def test_gates_of_heads(numbers: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(x: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        plain = heads.gate_heads(x.clone(), logits, HEADS, Needs()).plain
        assert plain is not None
        return (plain,)

    compare(monkeypatch, run, numbers(B, 126, D), numbers(B, 126, HEADS))


def test_gelu_in_the_product(numbers: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = 0.02 * numbers(2 * D, D), numbers(2 * D)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        layer = torch.nn.Linear(1, 1)
        layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        plain = gelu.linear_gelu(Activation(x), layer, torch.nn.Identity()).plain
        assert plain is not None
        return (plain.detach(),)

    compare(monkeypatch, run, numbers(B, 126, D), weight, bias)


def test_results_in_fp8(numbers: Callable[..., Tensor]) -> None:
    """Both forms of a result: the fp8 one is what the plain one quantises to, but for what rounds apart."""
    x = numbers(B, 4100, D)
    row = Row(numbers(9, D), 1, numbers(1, 1, 9, D), 1, None)
    affine = Affine(row, row._replace(row=0, at=0))
    normed = modulation.residual_norm(x, x, row, [affine, affine], 1e-6, [BOTH, BOTH])[1]
    gated = heads.gate_heads(x.clone(), numbers(B, 4100, HEADS), HEADS, BOTH)
    hidden = gelu.gelu(x, Needs(False, True))
    expanded = Activation(torch.nn.functional.gelu(x, approximate="tanh"), hidden.quantised)
    for result in (*normed, gated, expanded):
        assert result.plain is not None
        assert result.quantised is not None
        expected = quantise_rows(result.plain)
        torch.testing.assert_close(result.quantised.scales, expected.scales, rtol=2**-7, atol=0)
        found, wanted = (part.values.float() * part.scales for part in (result.quantised, expected))
        # A step of fp8 at the row's largest number is 32 of 448; most numbers are the same
        assert float(((found - wanted).abs() / (448 * expected.scales)).max()) < 0.08
        assert error(found, wanted) < 0.02


def test_gates_of_fp8_tokens(numbers: Callable[..., Tensor]) -> None:
    layer = torch.nn.Linear(D, HEADS, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    for tokens in (3, 126, 6144):
        x: Quantised = quantise_rows(numbers(1, tokens, D))
        found = heads.gate_logits(Activation(None, x), layer)
        exact = torch.nn.functional.linear(x.values.float() * x.scales, layer.weight.float(), layer.bias.float())
        assert error(found, exact) < 4e-3  # the result is rounded to bfloat16
