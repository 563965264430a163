"""Products in fp8 on a GPU that has them, and fp8 weights in every device mode."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from device_waits import switch_without_waiting
from fp8_switching import Source, run
from lora_stacks import MODES as NAMES
from lora_stacks import Latents, request_for
from lora_stacks import differences as differences_of
from lora_stacks import run as run_stages
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.device_manager.modes import MODES
from ltx2_two_stage.device_manager.modes.mode import Mode
from ltx2_two_stage.device_manager.streams import Streams
from ltx2_two_stage.ltx2_core.kernels import scaled_merge
from ltx2_two_stage.ltx2_core.kernels.availability import has_fp8_matmul
from ltx2_two_stage.ltx2_core.kernels.quantise import quantise_into, quantise_rows
from ltx2_two_stage.ltx2_core.loading.lora import linear_layers
from ltx2_two_stage.ltx2_core.loading.model_set import ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.precision import quantisable
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, full_size_config, write_tiny
from ltx2_two_stage.ltx2_core.models.scaled_linear import ScaledLinear, scale_layers
from ltx2_two_stage.ltx2_core.models.transformer.config import TransformerConfig
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.types import Component
from switching import MERGED
from tiny_stage import TinyStage, build_stage, standard_guidance
from torch import Tensor, nn

pytestmark = pytest.mark.gpu

LAYERS, SIGMA = 4, 0.7
GRID, AUDIO_FRAMES, TEXT_TOKENS = (16, 8, 12), 126, 64  # 1,536 tokens and their sound
# Relative L2 of a product: one rounding to bfloat16 is 0.0017, the GPU's fast sums of fp8 products are as good or worse
PRODUCT = 5e-3
# Of a guided step with two of four blocks in fp8, random weights. Both factors of a product are off by 0.026, guidance
# multiplies what the passes differ by
STEP = 0.1


@pytest.fixture(scope="module")
def fp8(cuda: torch.device) -> torch.device:
    if not has_fp8_matmul(cuda):
        pytest.skip("no products in fp8 with a scale for each row on this GPU")
    return cuda


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("rows", [1, 7, 126, 1536])
@pytest.mark.parametrize("sizes", [(4096, 4096), (16384, 4096), (4096, 16384), (2048, 4096), (32, 4096), (48, 80)])
def test_products(fp8: torch.device, rows: int, sizes: tuple[int, int]) -> None:
    generator = torch.Generator(fp8).manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=fp8).bfloat16()

    plain = nn.Linear(sizes[1], sizes[0], device=fp8, dtype=torch.bfloat16).requires_grad_(False)
    weight, x = numbers(*sizes) / sizes[1] ** 0.5, numbers(2, rows, sizes[1])
    layer = ScaledLinear(plain)
    quantise_into(layer.weight, layer.weight_scale, weight)
    assert layer.takes_quantised
    came = quantise_rows(x)
    exact = nn.functional.linear(came.values.float() * came.scales, layer.dequantised(torch.float32))
    exact += plain.bias.float()
    assert layer(x).shape == exact.shape
    assert relative(layer(x), exact) < PRODUCT
    assert torch.equal(layer(x), layer(came))


@pytest.mark.parametrize("sizes", [(4096, 4096), (4096, 16384), (2048, 80)])
@pytest.mark.parametrize("loras", [1, 2])
def test_merging_in_one_kernel_equals_pytorchs(
    cuda: torch.device, sizes: tuple[int, int], loras: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where a float32 sum that is off by its last bit rounds to the next fp8 number: one in a thousand at most."""
    generator = torch.Generator(cuda).manual_seed(0)
    out, width = sizes

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=cuda).bfloat16()

    stored = quantise_rows(numbers(out, width) / 50)
    changes = [(numbers(out, 32), numbers(32, width) / 500, 0.8 - index) for index in range(loras)]

    def merged() -> tuple[Tensor, Tensor]:
        weight, scale = stored.values.clone(), stored.scales[:, 0].clone()
        scaled_merge.merge_rows(weight, scale, changes)
        return weight, scale

    if not scaled_merge.can_merge(stored.values, stored.scales[:, 0]):
        pytest.skip("no fused kernels for fp8 weights on this GPU")
    fused = merged()
    monkeypatch.setattr(scaled_merge, "can_merge", lambda _weight, _scale: False)
    eager = merged()
    torch.testing.assert_close(fused[1], eager[1], rtol=1e-6, atol=0)
    assert float((fused[0].view(torch.uint8) != eager[0].view(torch.uint8)).double().mean()) < 1e-3
    assert relative(fused[0].float() * fused[1][:, None], eager[0].float() * eager[1][:, None]) < 1e-3


def quantise_layers(stage: TinyStage, full_precision: bool = False) -> int:
    """The large layers of the model's inner blocks, in place; their number."""
    model = stage.model
    paths = sorted(quantisable(linear_layers(model), model.config))
    weights = {path: model.get_submodule(path).get_parameter("weight") for path in paths}
    scale_layers(model, paths, paths if full_precision else ())
    for path, weight in weights.items():
        layer = model.get_submodule(path)
        quantise_into(layer.get_parameter("weight"), layer.get_parameter("weight_scale"), weight)
    return len(paths)


def guided_step(stage: TinyStage) -> dict[str, Tensor]:
    with torch.inference_mode():
        model = stage.guided(standard_guidance(1))
        video, audio = model(stage.video, stage.audio, SIGMA, 0)
    return {"video": video.clone(), "audio": audio.clone()}


def test_a_guided_step_is_near_that_in_bfloat16(
    fp8: torch.device, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TransformerConfig.from_metadata(full_size_config("2.3")), num_layers=LAYERS)

    def made() -> TinyStage:
        return build_stage(config, fp8, torch.bfloat16, GRID, AUDIO_FRAMES, TEXT_TOKENS)

    expected, product, weight_only = made(), made(), made()
    assert quantise_layers(product) == quantise_layers(weight_only, full_precision=True) == 14 * (LAYERS - 2)
    wanted = guided_step(expected)
    results = {"products in fp8": guided_step(product), "weights in fp8": guided_step(weight_only)}
    errors = {f"{how}, {s}": relative(found[s], wanted[s]) for how, found in results.items() for s in wanted}
    with capsys.disabled():
        sys.stdout.write(f"\n{torch.cuda.get_device_name()}, relative L2 of a guided step: {errors}\n")
    for name, value in errors.items():
        record_property(name, value)
    assert 0 < min(errors.values()) <= max(errors.values()) < STEP


@pytest.fixture(scope="module", params=[False, True], ids=["quantised while read", "official"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    tiny: TinyFiles = write_tiny(tmp_path_factory.mktemp("tiny"), fp8=request.param)
    files = ModelFiles(tiny.checkpoint, tiny.gemma, tiny.upsampler, tiny.distilled_lora)
    return ModelSet.open(files, torch.bfloat16, "fp8")


def test_merging_modes_give_the_same_latents(cuda: torch.device, models: ModelSet) -> None:
    """One fills the GPU's memory, the others host memory: what is quantised there is the same."""
    pipelines = {mode: Pipeline(models, open_manager(models, cuda, mode)) for mode in NAMES}
    texts = pipelines["original"].encode_prompt(request_for("two-stage"))
    results: dict[str, Latents] = {mode: run_stages(pipeline, texts) for mode, pipeline in pipelines.items()}
    for mode in ("snapshot", "snapshot-low"):
        assert not any(differences_of(results["resident"], results[mode]).values()), mode
    assert torch.equal(results["resident"]["stage1_video"], results["original"]["stage1_video"])
    # One rounding of the merged weights to fp8 more, against bfloat16's of every layer's sum
    assert 0 < relative(results["original"]["stage2_video"], results["resident"]["stage2_video"]) < STEP


def test_weights_are_the_same_wherever_they_are_quantised(cuda: torch.device, models: ModelSet) -> None:
    found = [models.skeleton(Component.TRANSFORMER).to_empty(device=device) for device in (cuda, torch.device("cpu"))]
    for module in found:
        models.fill(Component.TRANSFORMER, module.state_dict())
    for name, tensor in found[0].state_dict().items():
        assert torch.equal(tensor.cpu().float(), found[1].state_dict()[name].float()), name


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path, torch.bfloat16)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_mode_runs_on_its_weights_bit_for_bit(cuda: torch.device, mode: Mode, source: Source) -> None:
    switchable = source.switchable(mode, Streams(cuda))
    expected: Any = source.merged if mode in MERGED else source.dynamic
    for strength in (1.0, 0.5, 0.0, 1.0, 1.0, 0.0):
        assert torch.equal(run(switchable, source, strength, then=0.5), expected(strength, cuda))
    source.assert_clean(switchable)
    switchable.release()
    source.assert_clean(switchable)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_switching_never_waits_for_the_device(cuda: torch.device, mode: Mode, source: Source) -> None:
    switch_without_waiting(source.switchable(mode, Streams(cuda)), source.inputs(cuda), "style")
