"""Linear layers with fp8 weights: alone, quantised, with LoRAs on them, and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.kernels import quantise
from ltx2_two_stage.ltx2_core.kernels.activation import Activation, Needs
from ltx2_two_stage.ltx2_core.kernels.quantise import FP8, Quantised, quantise_into, quantise_rows
from ltx2_two_stage.ltx2_core.loading.lora import LoRAFile, inject, linear_layers, merge, set_adapters
from ltx2_two_stage.ltx2_core.models import scaled_linear
from ltx2_two_stage.ltx2_core.models.scaled_linear import ScaledLinear, scale_layers
from safetensors.torch import save_file
from torch import Tensor, nn

OUT, IN, RANK = 48, 64, 8
HALF_STEP = 1 / 16  # of fp8's three bits of mantissa, relative to a number
ROUNDING = 1e-6  # float32 sums in another order


def numbers(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def scaled(dtype: torch.dtype = torch.float32, full_precision: bool = False, sizes: tuple[int, int] = (OUT, IN)) -> Any:
    plain = nn.Linear(sizes[1], sizes[0]).to(dtype).requires_grad_(False)
    plain.weight.copy_(numbers(*sizes) / 8)
    plain.bias.copy_(numbers(sizes[0], seed=1))
    layer = ScaledLinear(plain, full_precision)
    quantise_into(layer.weight, layer.weight_scale, plain.weight)
    return layer


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with fp8 products; the CPU computes them too, slowly."""
    monkeypatch.setattr(scaled_linear, "has_fp8_matmul", lambda _: True)


def test_weight_only_equals_the_weight_that_it_stands_for() -> None:
    layer, x = scaled(), numbers(2, 5, IN, seed=2)
    weight = layer.weight.float() * layer.weight_scale[:, None]
    assert not layer.takes_quantised
    assert (layer(x) - nn.functional.linear(x, weight, layer.bias)).abs().max() < ROUNDING
    assert layer(x.bfloat16().float()).dtype is torch.float32
    came = quantise_rows(x)
    assert torch.equal(layer(came), layer(came.values.float() * came.scales))


@pytest.mark.usefixtures("product")
def test_products_in_fp8() -> None:
    layer, x = scaled(torch.bfloat16), numbers(2, 5, IN, seed=2).bfloat16()
    assert layer.takes_quantised
    came = quantise_rows(x)
    exact = nn.functional.linear(
        came.values.float() * came.scales, layer.dequantised(torch.float32), layer.bias.float()
    )
    for result in (layer(x), layer(came)):
        assert result.dtype is torch.bfloat16 and result.shape == (2, 5, OUT)
        assert (result - exact).abs().max() <= exact.abs().max() * 2**-7  # one rounding to bfloat16, at most two
    assert torch.equal(layer(x), layer(came))


@pytest.mark.parametrize(
    ("wide", "tokens", "rows"), [(IN + 1, 5, 10), (IN, 5, 16), (IN, 8, 16), (IN, 9, 18)]
)  # as they are, filled up, just enough, more
@pytest.mark.usefixtures("product")
def test_what_the_product_is_given(monkeypatch: pytest.MonkeyPatch, wide: int, tokens: int, rows: int) -> None:
    monkeypatch.setattr(scaled_linear, "WIDE", wide)
    monkeypatch.setattr(scaled_linear, "LEAST_ROWS_OF_WIDE", 16)
    calls: list[dict[str, Any]] = []

    def called(a: Tensor, b: Tensor, **given: Any) -> Tensor:
        calls.append({"a": a, "b": b, **given})
        return torch.zeros(len(a), b.shape[1], dtype=given["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", called)
    layer = scaled(torch.bfloat16)
    assert layer(numbers(2, tokens, IN).bfloat16()).shape == (2, tokens, OUT)
    (call,) = calls
    assert call["a"].shape == (rows, IN) and call["a"].is_contiguous() and call["a"].dtype is FP8
    assert call["b"].shape == (IN, OUT) and call["b"].stride() == (1, IN)  # rows of the weight lie in one piece
    assert call["scale_a"].shape == (rows, 1) and call["scale_b"].shape == (1, OUT)
    assert call["scale_a"].dtype is call["scale_b"].dtype is torch.float32
    assert call["bias"] is layer.bias and call["out_dtype"] is torch.bfloat16


@pytest.mark.parametrize(
    "layer",
    [
        scaled(torch.bfloat16, full_precision=True),
        scaled(torch.float32),
        scaled(torch.bfloat16, sizes=(OUT, 40)),
        scaled(torch.bfloat16, sizes=(40, IN)),
    ],
    ids=["full precision", "float32", "inputs", "outputs"],
)
@pytest.mark.usefixtures("product")
def test_layers_that_are_never_multiplied_in_fp8(layer: Any) -> None:
    assert not layer.takes_quantised
    x = numbers(3, layer.in_features).to(layer.dtype)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.dequantised(x.dtype), layer.bias))


def test_quantising_part_by_part_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = numbers(OUT, IN) * torch.logspace(-8, 3, OUT)[:, None]
    rows[5] = 0
    whole = scaled()
    quantise_into(whole.weight, whole.weight_scale, rows)
    monkeypatch.setattr(quantise, "_CPU_PART", 7 * IN)
    parts = scaled()
    quantise_into(None, parts.weight_scale, rows)
    quantise_into(parts.weight, None, rows)
    expected = quantise_rows(rows)
    for layer in (whole, parts):
        assert torch.equal(layer.weight.float(), expected.values.float())
        assert torch.equal(layer.weight_scale, expected.scales[:, 0])
    torch.testing.assert_close(whole.dequantised(torch.float32), rows, rtol=HALF_STEP, atol=0.01)


def test_layers_are_replaced_by_path() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(IN, OUT), nn.ModuleList([nn.Linear(OUT, IN)]), nn.SiLU()).to(torch.bfloat16)
    bias = model[0].bias
    scale_layers(model, ["0", "1.0"], full_precision=["1.0"])
    assert linear_layers(model) == {"0": (OUT, IN), "1.0": (IN, OUT)}
    assert model[0].bias is bias and model[0].dtype is torch.bfloat16 and model[0].weight.is_meta
    assert [model[0].full_precision, model[1][0].full_precision] == [False, True]
    with pytest.raises(TypeError, match="2 is no linear layer"):
        scale_layers(model, ["2"])


class Pair(nn.Module):
    """A scaled layer and a plain one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scaled = scaled(dtype)
        self.plain = nn.Linear(OUT, IN).to(dtype).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(torch.tanh(self.scaled(x)))


@pytest.fixture
def loras(tmp_path: Path) -> list[tuple[str, LoRAFile]]:
    files = []
    for number, name in enumerate(("one", "two")):
        shapes = {"scaled": (OUT, IN), "plain": (IN, OUT)}
        tensors = {
            f"diffusion_model.{path}.lora_{side}.weight": numbers(*size, seed=number) / 8
            for path, (rows, columns) in shapes.items()
            for side, size in (("A", (RANK, columns)), ("B", (rows, RANK)))
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
        files.append((name, LoRAFile.open(tmp_path / f"{name}.safetensors", "lora")))
    return files


def wide_sum(model: Pair, loras: list[tuple[str, LoRAFile]], strengths: dict[str, float]) -> Tensor:
    weight = model.scaled.dequantised(torch.float32)
    for name, lora in loras:
        down, up, _ = lora.read("cpu", torch.float32)["scaled"]
        weight = weight + strengths[name] * up @ down
    return weight


def test_a_dynamic_lora_on_fp8_weights(loras: list[tuple[str, LoRAFile]]) -> None:
    model, x = Pair(), numbers(3, IN, seed=4)
    strengths = {"one": 0.7, "two": -0.4}
    weight, before = wide_sum(model, loras, strengths), model.scaled.weight
    plain = model(x)
    expected = nn.functional.linear(x, weight, model.scaled.bias)
    inject(model, loras)
    assert torch.equal(model(x), plain)  # inactive
    set_adapters(model, strengths)
    assert (model.scaled(x) - expected).abs().max() < 1e-5
    base = model.scaled.base_layer
    assert type(base) is ScaledLinear and base.weight is before and base.weight.dtype is FP8
    assert base.weight_scale.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lora_matrices_take_the_models_dtype(loras: list[tuple[str, LoRAFile]], dtype: torch.dtype) -> None:
    model = Pair(dtype)
    inject(model, loras)
    matrices = [(name, p) for name, p in model.named_parameters() if ".lora_" in name]
    assert len(matrices) == 8
    assert all(parameter.dtype is dtype for _, parameter in matrices)


@pytest.mark.usefixtures("product")
def test_a_layer_with_a_lora_takes_its_input_as_it_is(loras: list[tuple[str, LoRAFile]]) -> None:
    """peft's wrapper reads the input too: the kernels must not hand it fp8 numbers."""
    model = Pair(torch.bfloat16)
    assert Needs.of([model.scaled]) == Needs(plain=False, quantised=True)
    x = numbers(1, 3, IN).bfloat16()
    quantised = model.scaled(x)
    inject(model, loras)
    wrapped = model.scaled
    assert Needs.of([wrapped]) == Needs(plain=True, quantised=False)
    both = Activation(x, Quantised(torch.zeros_like(x, dtype=FP8), torch.ones(1, 3, 1)))
    assert torch.equal(both.through(wrapped), quantised)  # the layer below multiplies in fp8 all the same
    set_adapters(model, {"one": 1.0})
    assert not torch.equal(both.through(wrapped), quantised)


@pytest.mark.parametrize("part", [2**23, 7 * IN], ids=["in one", "in parts"])
def test_merged_weights_are_the_float32_sum_quantised_anew(
    loras: list[tuple[str, LoRAFile]], monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(quantise, "_CPU_PART", part)
    model = Pair()
    strengths = {"one": 0.7, "two": -0.4}
    expected = wide_sum(model, loras, strengths)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    before = {name: tensor.data_ptr() for name, tensor in weights.items()}
    inject(model, loras)
    merge(model, weights, {"one": 0.0, "two": 0.0})
    assert torch.equal(weights["scaled.weight"].float(), model.scaled.base_layer.weight.float())
    merge(model, weights, strengths)
    assert before == {name: tensor.data_ptr() for name, tensor in weights.items()}
    # The largest number of a row becomes 448, the others are rounded to fp8's steps
    torch.testing.assert_close(weights["scaled.weight_scale"], expected.abs().amax(1) / 448, rtol=1e-6, atol=0)
    found = weights["scaled.weight"].float() * weights["scaled.weight_scale"][:, None]
    quantised = quantise_rows(expected)
    different = (found - quantised.values.float() * quantised.scales).abs() > 1e-6
    assert different.float().mean() < 0.001  # numbers on the edge between two steps
    torch.testing.assert_close(found, expected, rtol=HALF_STEP, atol=float(expected.abs().max()) / 448 / 512)
