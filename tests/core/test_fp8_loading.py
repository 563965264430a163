"""Checkpoints with fp8 weights, in every layout; files quantised while they are read; files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_layouts import FP8, LAYOUTS, Change, comfy_markers, dequantised, everywhere, legacy, marker, rewrite
from lora_stacks import MODES, Latents, Texts, differences, open_pipeline, request_for, run
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.ltx2_core.errors import CheckpointError, SettingError
from ltx2_two_stage.ltx2_core.kernels.quantise import quantise_rows
from ltx2_two_stage.ltx2_core.loading.inspect import inspect_file
from ltx2_two_stage.ltx2_core.loading.lora import linear_layers
from ltx2_two_stage.ltx2_core.loading.model_set import ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.precision import quantisable
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, full_size_config, write_tiny
from ltx2_two_stage.ltx2_core.models import scaled_linear
from ltx2_two_stage.ltx2_core.models.scaled_linear import ScaledLinear
from ltx2_two_stage.ltx2_core.models.transformer.config import TransformerConfig
from ltx2_two_stage.ltx2_core.models.transformer.model import LTXTransformer
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.types import Component, Phase, PromptContext
from safetensors.torch import load_file
from torch import Tensor, nn

DIT = "model.diffusion_model."
LAYER = f"{DIT}transformer_blocks.1.attn1.to_q"
CPU = torch.device("cpu")
TRANSFORMER = Component.TRANSFORMER
# float32: the same products through both stages; guidance multiplies what rounds apart
SAME = 1e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """With a checkpoint in the official fp8 layout."""
    return write_tiny(tmp_path_factory.mktemp("fp8"), dtype="float32", fp8=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("plain"), dtype="float32")


@pytest.fixture(scope="module")
def texts(plain: TinyFiles) -> Texts:
    return open_pipeline(plain, "original").encode_prompt(request_for("two-stage"))


@pytest.fixture(scope="module")
def loaded(tiny: TinyFiles) -> Callable[[str], Pipeline]:
    """A pipeline of each device mode: what one test loaded serves the next one."""

    def load(mode: str) -> Pipeline:
        models = opened(tiny)
        return Pipeline(models, open_manager(models, CPU, mode))

    return cache(load)


def opened(
    files: TinyFiles, checkpoint: Path | None = None, precision: str = "auto", dtype: torch.dtype = torch.float32
) -> ModelSet:
    path = checkpoint or files.checkpoint
    return ModelSet.open(ModelFiles(path, files.gemma, files.upsampler, files.distilled_lora), dtype, precision)


def ran(models: ModelSet, mode: str, texts: Texts, preset: str = "two-stage") -> Latents:
    return run(Pipeline(models, open_manager(models, CPU, mode)), texts, preset)


def built(models: ModelSet) -> nn.Module:
    return replace(models, adapters=()).build(TRANSFORMER, CPU)


def scaled_layers(module: nn.Module) -> dict[str, ScaledLinear]:
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, ScaledLinear)}


# Files as they are


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_stands_for_its_numbers(tiny: TinyFiles, tmp_path: Path, layout: tuple[Change, ...]) -> None:
    path = rewrite(tiny.checkpoint, tmp_path / "fp8.safetensors", *layout)
    exact = load_file(rewrite(path, tmp_path / "exact.safetensors", dequantised))
    stored, models = load_file(path), opened(tiny, path)
    for component in (TRANSFORMER, Component.TEXT_CONNECTOR):
        module = replace(models, adapters=()).build(component, CPU)
        filled = models.skeleton(component).to_empty(device="cpu")
        models.fill(component, filled.state_dict())
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor.float(), filled.state_dict()[name].float()), name
        state = {**module.state_dict()}
        for name, layer in scaled_layers(module).items():
            assert component is TRANSFORMER
            assert layer.weight.dtype is stored[f"{DIT}{name}.weight"].dtype is FP8
            state[f"{name}.weight"] = layer.dequantised(torch.float32)
            del state[f"{name}.weight_scale"]
        for name, tensor in state.items():
            key = name if name.startswith("text_embedding_projection.") else DIT + name
            assert torch.equal(tensor, exact[key].float()), name
        loaded = models.component_bytes(component)
        assert loaded == sum(tensor.nbytes for tensor in models.skeleton(component).state_dict().values())
        assert loaded == sum(tensor.nbytes for tensor in module.state_dict().values())
        if component is TRANSFORMER:
            assert len(scaled_layers(module)) == 34  # of the one block between the first and the last
    whole = opened(tiny, path, "full")
    full = built(whole)
    assert not scaled_layers(full)
    for name, tensor in full.state_dict().items():
        assert torch.equal(tensor, exact[DIT + name].float()), name
    assert models.component_bytes(TRANSFORMER) < whole.component_bytes(TRANSFORMER)


def test_layers_that_ask_for_full_precision(tiny: TinyFiles, tmp_path: Path) -> None:
    both = scaled_layers(built(opened(tiny, rewrite(tiny.checkpoint, tmp_path / "c.safetensors", comfy_markers))))
    assert sum(layer.full_precision for layer in both.values()) == 17

    def whole_file(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        tensors[f"{DIT}scaled_fp8"] = torch.zeros(2, dtype=FP8)

    found = scaled_layers(built(opened(tiny, rewrite(tiny.checkpoint, tmp_path / "l.safetensors", legacy, whole_file))))
    assert found and all(layer.full_precision for layer in found.values())
    assert not any(layer.full_precision for layer in scaled_layers(built(opened(tiny))).values())


@pytest.mark.parametrize("preset", ["two-stage", "hq", "distilled"])
def test_a_run_equals_one_with_the_dequantised_weights(
    tiny: TinyFiles, loaded: Callable[[str], Pipeline], tmp_path: Path, texts: Texts, preset: str
) -> None:
    """With the LoRA computed beside the weights: merged ones are quantised anew."""
    exact = opened(tiny, rewrite(tiny.checkpoint, tmp_path / "exact.safetensors", dequantised))
    expected = ran(exact, "original", texts, preset)
    found = run(loaded("original"), texts, preset)
    assert max(differences(found, expected).values()) < SAME


def test_merging_modes_give_the_same_latents(loaded: Callable[[str], Pipeline], texts: Texts) -> None:
    results = {mode: run(loaded(mode), texts) for mode in MODES}
    for mode in ("snapshot", "snapshot-low"):
        assert not any(differences(results["resident"], results[mode]).values()), mode
    apart = differences(results["resident"], results["original"])
    assert apart["stage1_video"] < SAME  # without a LoRA
    size = float(results["original"]["stage2_video"].std())
    assert 0 < apart["stage2_video"] < 0.1 * size  # measured: 0.03; one more rounding to fp8


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_weights_stay_those_of_the_file(
    tiny: TinyFiles, loaded: Callable[[str], Pipeline], texts: Texts, mode: str, dtype: torch.dtype
) -> None:
    models = opened(tiny, dtype=dtype)
    expected = built(models).state_dict()
    manager = loaded(mode).residency if dtype is torch.float32 else open_manager(models, CPU, mode)
    assert isinstance(manager, DeviceManager)
    if dtype is torch.float32:
        run(loaded(mode), texts)
    else:
        with manager.use(TRANSFORMER, models.adapter_strengths(Phase.STAGE_2, (0.0, 1.0))):
            pass
    with manager.use(TRANSFORMER) as module:
        found = module.state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype is expected[name].dtype
            assert torch.equal(tensor.float(), expected[name].float()), name


# Quantised while they are read


def test_a_file_quantised_while_it_is_read(plain: TinyFiles) -> None:
    models, stored = opened(plain, precision="fp8"), load_file(plain.checkpoint)
    module = built(models)
    layers = scaled_layers(module)
    assert layers.keys() == quantisable(linear_layers(module), models.transformer)
    for path, layer in layers.items():
        expected = quantise_rows(stored[f"{DIT}{path}.weight"])
        assert torch.equal(layer.weight.float(), expected.values.float())
        assert torch.equal(layer.weight_scale, expected.scales[:, 0])
        assert torch.equal(layer.bias, stored[f"{DIT}{path}.bias"])
    others = built(opened(plain)).state_dict()
    for name, tensor in module.state_dict().items():
        if name.rpartition(".")[0] not in layers:
            assert torch.equal(tensor, others[name]), name
    assert models.component_bytes(TRANSFORMER) == sum(tensor.nbytes for tensor in module.state_dict().values())


def test_weights_and_scales_may_be_filled_apart(plain: TinyFiles, tiny: TinyFiles) -> None:
    """And nothing that was not asked for is read."""
    for models in (opened(plain, precision="fp8"), opened(tiny)):
        whole = built(models).state_dict()
        for name in ("transformer_blocks.1.attn1.to_q.weight", "transformer_blocks.1.attn1.to_q.weight_scale"):
            alone = torch.empty_like(whole[name])
            models.fill(TRANSFORMER, {name: alone})
            assert torch.equal(alone.float(), whole[name].float())


def test_a_quantised_run_is_near_the_plain_one(plain: TinyFiles, texts: Texts) -> None:
    expected = ran(opened(plain), "resident", texts)
    models = opened(plain, precision="fp8")
    results = {mode: ran(models, mode, texts) for mode in MODES}
    for mode in ("snapshot", "snapshot-low"):
        assert not any(differences(results["resident"], results[mode]).values()), mode
    for name, latents in results["resident"].items():
        error = float((latents - expected[name]).norm() / expected[name].norm())
        assert 0 < error < 0.03, name  # measured: 0.011 to 0.015


@pytest.mark.parametrize("stored", [True, False], ids=["official", "quantised while read"])
def test_a_run_with_products_in_fp8(
    plain: TinyFiles, tiny: TinyFiles, texts: Texts, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU computes them too: kernels hand fp8 numbers to layers that take them, and to none with a LoRA on it."""
    models = opened(tiny if stored else plain, precision="fp8", dtype=torch.bfloat16)
    contexts: Any = [text and PromptContext(text.video.bfloat16(), text.audio.bfloat16()) for text in texts]
    expected = {mode: ran(models, mode, contexts) for mode in ("original", "resident")}
    monkeypatch.setattr(scaled_linear, "has_fp8_matmul", lambda _: True)
    results = {mode: ran(models, mode, contexts) for mode in MODES}
    for mode in ("snapshot", "snapshot-low"):
        assert not any(differences(results["resident"], results[mode]).values()), mode
    for mode, latents in expected.items():  # resident stands for all modes that merge
        for name, latent in latents.items():
            error = float((results[mode][name] - latent).float().norm() / latent.float().norm())
            assert 0 < error < 0.1, (mode, name)  # of the activations alone


def test_which_layers_are_quantised_at_full_size() -> None:
    config = TransformerConfig.from_metadata(full_size_config("2.3"))
    with torch.device("meta"):
        layers = linear_layers(LTXTransformer(config))
    found = quantisable(layers, config)
    assert {path.split(".")[1] for path in found} == {str(block) for block in range(1, 47)}
    one = {path.removeprefix("transformer_blocks.7.") for path in found if path.startswith("transformer_blocks.7.")}
    attention = {f"{name}.{layer}" for name in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    across = {"audio_to_video_attn.to_q", "audio_to_video_attn.to_out.0"}
    across |= {"video_to_audio_attn.to_k", "video_to_audio_attn.to_v"}
    assert one == attention | across | {"ff.net.0.proj", "ff.net.2"}
    assert all(max(layers[path]) >= 4096 for path in found)


def test_an_fp8_file_is_not_quantised_further(tiny: TinyFiles) -> None:
    assert scaled_layers(built(opened(tiny, precision="fp8"))).keys() == scaled_layers(built(opened(tiny))).keys()


def test_an_unknown_precision_is_refused_before_a_file_is_opened(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"precision = 'fp4'.*auto, fp8, full"):
        ModelSet.open(ModelFiles(tmp_path / "none", tmp_path / "none"), torch.float32, "fp4")


# What cannot be read


def _with(**tensors: Tensor) -> Change:
    def change(found: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        found.update({LAYER + name: tensor for name, tensor in tensors.items()})

    return change


def _without(*names: str) -> Change:
    def change(found: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        for name in names:
            del found[LAYER + name]

    return change


def _said(text: str) -> Change:
    return lambda _found, metadata: metadata.update(_quantization_metadata=text)


WEIGHT = torch.zeros(128, 128)
BAD: dict[str, tuple[tuple[Change, ...], str]] = {
    "no scale": ((_without(".weight_scale"),), rf"has no scale for {LAYER}\.weight"),
    "two scales": ((_with(**{".scale_weight": torch.ones(1)}),), rf"twice: {LAYER}\.weight_scale and .*\.scale_weight"),
    "a scale of another size": (
        (_with(**{".weight_scale": torch.ones(64)}),),
        r"fits no weight of \[128, 128\]: .*to_q\.weight_scale is F32 \[64\]",
    ),
    "a scale of blocks": ((_with(**{".weight_scale": torch.ones(128, 8)}),), r"F32 \[128, 8\]"),
    "a scale of whole numbers": ((_with(**{".weight_scale": torch.ones(1, dtype=torch.int32)}),), "I32"),
    "a scale of a plain weight": ((_with(**{".weight": WEIGHT}),), rf"unexpected: {LAYER}\.(weight|input)_scale"),
    "weights of another shape": ((_with(**{".weight": WEIGHT[:64].to(FP8)}),), r"to_q\.weight is \[64, 128\]"),
    "e5m2": ((_with(**{".weight": WEIGHT.to(torch.float8_e5m2)}),), rf"e5m2 \({LAYER}\.weight\).*e4m3fn"),
    "older e5m2": (
        (legacy, lambda found, _: found.update({f"{DIT}scaled_fp8": torch.zeros(0, dtype=torch.float8_e5m2)})),
        "e5m2 .*scaled_fp8",
    ),
    "int8": ((_with(**{".weight": WEIGHT.to(torch.int8)}),), rf"int8 weights \({LAYER}\.weight\)"),
    "nvfp4": ((_with(**{".weight": WEIGHT[:, :64].to(torch.uint8)}),), "4 bits"),
    "nvfp4, marked": (
        (_with(**{".weight": WEIGHT[:, :64].to(torch.uint8), ".comfy_quant": marker(format="nvfp4")}),),
        rf"not supported: nvfp4 \({LAYER}\.weight\)",
    ),
    "rotated int8, marked": (
        (_with(**{".weight": WEIGHT.char(), ".comfy_quant": marker(format="int8_tensorwise", convrot=True)}),),
        r"int8_tensorwise with convrot",
    ),
    "rotated fp8": ((_with(**{".comfy_quant": marker(convrot=True)}),), "float8_e4m3fn with convrot"),
    "an unknown format": ((_said(json.dumps({"layers": {LAYER: {"format": "fp3"}}})),), "not supported: fp3"),
    "a marker that is no JSON": ((_with(**{".comfy_quant": torch.zeros(3, dtype=torch.uint8)}),), "damaged marker"),
    "a marker without a weight": ((_with(**{".x.comfy_quant": marker()}),), "has no weight"),
    "a marker of a plain weight": ((_with(**{".weight": WEIGHT, ".comfy_quant": marker()}),), "it is F32"),
    "damaged metadata": ((_said("{"),), "_quantization_metadata is not a JSON object"),
    "metadata without layers": ((_said("{}"),), "lists no layers"),
}


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused(tiny: TinyFiles, tmp_path: Path, changes: tuple[Change, ...], words: str) -> None:
    path = rewrite(tiny.checkpoint, tmp_path / "bad.safetensors", *changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        opened(tiny, path)
    assert (caught.value.setting, caught.value.path) == ("checkpoint", path)
    assert "bf16" in caught.value.fix or "official" in caught.value.fix or "release" in caught.value.fix


# Other components


def test_parts_around_the_transformer_are_dequantised(tiny: TinyFiles, tmp_path: Path) -> None:
    path = rewrite(tiny.checkpoint, tmp_path / "fp8.safetensors", everywhere)
    exact = opened(tiny, rewrite(path, tmp_path / "exact.safetensors", dequantised))
    models = opened(tiny, path)
    source = models.sources[Component.TEXT_CONNECTOR]
    assert any(piece.is_fp8(name) for piece in source.pieces for name in piece.names)
    assert models.component_bytes(Component.TEXT_CONNECTOR) == exact.component_bytes(Component.TEXT_CONNECTOR)
    expected, found = (m.build(Component.TEXT_CONNECTOR, CPU).state_dict() for m in (exact, models))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# What is told


def test_inspect_tells_fp8_files(tiny: TinyFiles, plain: TinyFiles, tmp_path: Path) -> None:
    assert inspect_file(tiny.checkpoint).details == {"fp8 layout": "official", "fp8 layers": 34}
    assert inspect_file(plain.checkpoint).details == {}
    found: dict[str, Any] = {
        name: inspect_file(rewrite(tiny.checkpoint, tmp_path / "x.safetensors", *layout)).details["fp8 layout"]
        for name, layout in LAYOUTS.items()
    }
    assert found == {
        "official": "official",
        "a scale for each row": "official",
        "comfy": "ComfyUI's, with comfy_quant markers",
        "comfy with metadata": "ComfyUI's, with _quantization_metadata",
        "comfy, older": "ComfyUI's older one (scaled_fp8)",
        "cast": "no scales (cast)",
        "everywhere": "official",
    }
    bad = inspect_file(rewrite(tiny.checkpoint, tmp_path / "bad.safetensors", _without(".weight_scale")))
    assert bad.problem == f"has no scale for {LAYER}.weight"


def test_the_tiny_fp8_file_is_like_the_official_one(tiny: TinyFiles, plain: TinyFiles) -> None:
    assert tiny.checkpoint.name == "ltx-2.3-22b-dev-fp8.safetensors"
    stored, exact = load_file(tiny.checkpoint), load_file(plain.checkpoint)
    for key, tensor in exact.items():
        if stored[key].dtype is not FP8:
            assert torch.equal(stored[key], tensor), key
            continue
        layer = key.removesuffix(".weight")
        scale = stored[f"{layer}.weight_scale"]
        assert scale.dtype is stored[f"{layer}.input_scale"].dtype is torch.float32 and scale.shape == ()
        torch.testing.assert_close(stored[key].float() * scale, tensor, rtol=1 / 16, atol=float(scale) / 512)
