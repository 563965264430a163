"""What the benchmarks measure with, and the DiT's, on tiny models and a clock that is made up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from ltx2_two_stage.benchmarks import measure
from ltx2_two_stage.benchmarks.ceilings import Rates
from ltx2_two_stage.benchmarks.dit import DitBenchmark, float32_weights, follows_flops
from ltx2_two_stage.benchmarks.flops import Flops
from ltx2_two_stage.benchmarks.measure import CallTime, Deadline, in_turns, kernel_kind, kernels
from ltx2_two_stage.benchmarks.shapes import Inputs, Shape
from ltx2_two_stage.benchmarks.synthetic_models import SyntheticModels
from ltx2_two_stage.ltx2_core.kernels import availability
from ltx2_two_stage.ltx2_core.types import VideoSize

CPU = torch.device("cpu")
SMALL = VideoSize(9, 64, 96)


def tiny(precision: str = "bf16") -> SyntheticModels:
    return SyntheticModels("2.3", precision=precision, tiny=True)


def counting_timer() -> measure.Timer:
    """1 ms for the first call, 2 ms for the second one, and so on."""
    numbers: Iterator[int] = count(1)

    def timer(action: measure.Action) -> CallTime:
        action()
        number = float(next(numbers))
        return CallTime(number, number / 2)

    return timer


def test_calls_take_turns_after_warming_up() -> None:
    called: list[str] = []
    actions = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    samples = in_turns(actions, 3, counting_timer(), Deadline(), CPU)
    assert called == ["a", "a", "b", "b", *("a", "b") * 3]
    assert samples["a"].ms == [5, 7, 9] and samples["b"].ms == [6, 8, 10]
    assert samples["a"].summary() == {"min": 5, "median": 7, "max": 9, "host": 3.5, "first": 1, "repeats": 3}


def test_rounds_that_would_end_late_are_left_out_but_for_the_first() -> None:
    now = [0.0]
    deadline = Deadline(1.0, clock=lambda: now[0])

    def action() -> None:
        now[0] += 0.3

    samples = in_turns({"a": action}, 9, lambda run: (run(), CallTime(300.0, 1.0))[1], deadline, CPU)
    assert len(samples["a"].ms) == 1
    assert now[0] == pytest.approx(0.9)  # two to warm up, and one that counts
    assert deadline.allows() and not deadline.allows(300)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_128x128x128", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_bias_TNN", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matmul"),
        ("sm80_xmma_fprop_implicit_gemm_bf16", "matmul"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add>", "other"),
        ("_gate_heads", "other"),
    ],
)
def test_kernels_are_told_apart(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind


def test_kernels_are_chosen_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(availability.VARIABLE, raising=False)
    availability._wanted.cache_clear()
    before = availability._wanted()
    with kernels("eager"):
        assert not availability._wanted()
        with kernels("auto"):
            assert availability._wanted() == before
        assert not availability._wanted()
    assert availability.VARIABLE not in os.environ and availability._wanted() == before


def test_the_floor_is_counted_at_each_parts_rate() -> None:
    rates = Rates(bf16=500.0, bf16_short=800.0, fp8=1000.0)
    flops = Flops(linear=10**12, attention=10**12)
    assert rates.floor_ms(flops, "bf16") == pytest.approx(4.0)
    assert rates.floor_ms(flops, "fp8") == pytest.approx(3.0)
    assert Rates(500.0, 800.0, None).floor_ms(flops, "fp8") == pytest.approx(4.0)


def test_steps_of_a_tiny_transformer() -> None:
    shapes = (Shape("A1", SMALL, "one pass"), Shape("A4", SMALL, "guided", "two-stage"), Shape("C3", SMALL, "hq", "hq"))
    saved: list[int] = []
    benchmark = DitBenchmark(tiny, shapes, repeat=2)
    figures = benchmark.run(lambda figures: saved.append(len(figures["rows"])), CPU)
    assert saved == [2, 4, 6, 6]
    assert [(row["shape"], row["kernels"]) for row in figures["rows"]] == [
        (shape.name, setting) for shape in shapes for setting in ("auto", "eager")
    ]
    first, _, guided, _, separate, _ = figures["rows"]
    assert first["tokens"] == {"video": 12, "audio": 9, "text": 1024}
    # Of three blocks, the perturbed one is the second: 4 * 3 - 1
    assert guided["passes"] == 4 and guided["block_evaluations"] == [11, 11]
    assert separate["passes"] == 3 and separate["block_evaluations"] == [9, 9]
    assert guided["guided_ms"]["repeats"] == guided["dit_ms"]["repeats"] == 2
    assert all(row["precision"] == "bf16" for row in figures["rows"])
    # Of bfloat16 over three blocks, which rounds by 0.4% at a time: not equal, and not another function
    for row in figures["rows"][:2]:
        assert 1e-4 < row["relative_l2"]["video"] < 0.03
        assert 1e-4 < row["relative_l2"]["audio"] < 0.03


def test_fp8_against_the_weights_that_it_was_made_from() -> None:
    benchmark = DitBenchmark(tiny, [Shape("A1", SMALL, "one pass")], ("bf16", "fp8"), ("auto",), repeat=1)
    plain, quantised = benchmark.run(lambda _: None, CPU)["rows"]
    assert quantised["precision"] == "fp8"
    # Weights alone, as on any CPU: off by 2% each, in one of the tiny model's three blocks
    for stream in ("video", "audio"):
        assert plain["relative_l2"][stream] < quantised["relative_l2"][stream] < 0.1


def test_what_no_time_is_left_for_is_named() -> None:
    shapes = (Shape("X", SMALL, "one pass"), Shape("Y", SMALL, "one pass"))
    figures = DitBenchmark(tiny, shapes, limit_s=1e-9).run(lambda _: None, CPU)
    assert figures["left_out"] == ["X bf16", "Y bf16"] and figures["rows"] == []


def test_calls_of_the_transformer_are_those_of_the_step() -> None:
    """What is timed as the DiT alone gives what the guided step computes from: the same bits."""
    models = tiny()
    transformer = models.filled_transformer(CPU)
    shape = Shape("A1", SMALL, "one pass")
    step = Inputs.draw(models, shape, CPU).step(models, shape, transformer)
    ((velocity, _),) = step.call_transformer()
    assert velocity is not None and float(velocity.float().std()) > 0.1
    clean, _ = step.evaluate()
    expected = (step.states[0].latent.float() - velocity.float() * 0.7).to(clean.dtype)
    torch.testing.assert_close(clean, expected, rtol=0, atol=0)


def test_weights_are_as_before_after_float32() -> None:
    models = tiny()
    transformer = models.filled_transformer(CPU)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in transformer.state_dict().items()}
    shape = Shape("A1", SMALL, "one pass")
    inputs = Inputs.draw(models, shape, CPU)
    with float32_weights(transformer):
        step = inputs.step(models, shape, transformer, torch.float32)
        ((velocity, _),) = step.call_transformer()
        assert velocity is not None and velocity.dtype is torch.float32
    with pytest.raises(RuntimeError), float32_weights(transformer):
        inputs.step(models, shape, transformer, torch.float64).call_transformer()
    for name, tensor in transformer.state_dict().items():
        pointer, value = before[name]
        assert tensor.data_ptr() == pointer and torch.equal(tensor, value), name


@pytest.mark.parametrize("values, within", [([2.0, 2.2], 0.0476), ([1.0, 3.0], 0.5)])
def test_time_follows_operations(values: list[float], within: float) -> None:
    def row(ms: float, tokens: int, what: str) -> dict[str, Any]:
        return {
            "what": what, "tokens": {"video": tokens}, "precision": "bf16", "kernels": "auto", "ms_per_tflop": ms
        }  # fmt: skip

    rows = [row(ms, 6144, "sizes") for ms in values]
    ignored = [row(9.0, 1536, "sizes"), row(9.0, 6144, "stage 2")]
    assert follows_flops([*ignored, *rows]) == {"bf16 auto": {"ms_per_tflop": sum(values) / 2, "within": within}}
    assert follows_flops(ignored) is None
