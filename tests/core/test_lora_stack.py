"""Stacks of user LoRAs on one loaded transformer: every device mode, every stage, and what a change reads again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.ltx2_core.errors import CheckpointError, SettingError
from ltx2_two_stage.ltx2_core.loading import model_set
from ltx2_two_stage.ltx2_core.loading.component_source import ComponentSource
from ltx2_two_stage.ltx2_core.loading.lora_file import LoRAFile
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from ltx2_two_stage.ltx2_core.models.text.gemma import GemmaSource
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.recipe_choice import RecipeChoice
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.types import Component, Phase, PromptContext
from safetensors.torch import load_file, save_file
from torch import Tensor

CPU = torch.device("cpu")
MODES = ("original", "resident", "snapshot", "snapshot-low")
# Adapters on the fly add to a layer's output, merged ones to its weight: float32 rounding through both stages
ROUNDING = 5e-5
Latents = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), dtype="float32")


@pytest.fixture(scope="module")
def other(tiny: TinyFiles) -> Path:
    """Another LoRA on some of the layers, of other numbers."""
    path = tiny.folder / "other.safetensors"
    tensors = {key: tensor for key, tensor in load_file(tiny.lora).items() if ".attn" in key}
    assert 0 < len(tensors) < len(load_file(tiny.lora))
    save_file({key: tensor.flip(-1).contiguous() * 0.7 for key, tensor in tensors.items()}, path)
    return path


def open_models(tiny: TinyFiles, *loras: LoRASource) -> ModelSet:
    files = ModelFiles(tiny.checkpoint, tiny.gemma, tiny.upsampler, tiny.distilled_lora, loras)
    return ModelSet.open(files, torch.float32)


def open_pipeline(tiny: TinyFiles, mode: str, *loras: LoRASource) -> Pipeline:
    models = open_models(tiny, *loras)
    return Pipeline(models, open_manager(models, CPU, mode))


def add(pipeline: Pipeline, *loras: LoRASource) -> Pipeline:
    models = pipeline.models
    for lora in loras:
        assert isinstance(models, ModelSet)
        models = models.with_lora(lora)
    return pipeline.with_models(models)


Texts = tuple[PromptContext, PromptContext | None]


def request_for(preset: str) -> GenerationRequest:
    recipe = RecipeChoice(preset, steps=None if preset == "distilled" else 2).recipe("2.3", 3)
    return GenerationRequest("waves", recipe, "still", width=128, height=64, frames=9)


@pytest.fixture(scope="module")
def texts(tiny: TinyFiles) -> Texts:
    return open_pipeline(tiny, "original").encode_prompt(request_for("two-stage"))


def run(pipeline: Pipeline, texts: Texts, preset: str = "two-stage") -> Latents:
    """The denoising stages of a run."""
    request = request_for(preset)
    first = pipeline.denoise(request, *texts)
    latents = {"stage1_video": first.video, "stage1_audio": first.audio}
    if request.recipe.stages == 2:
        last = pipeline.refine(request, pipeline.upsample(first), texts[0])
        latents |= {"stage2_video": last.video, "stage2_audio": last.audio}
    return latents


def differences(one: Latents, another: Latents) -> dict[str, float]:
    assert one.keys() == another.keys()
    return {name: float((one[name] - another[name]).abs().max()) for name in one}


def stack(tiny: TinyFiles, other: Path) -> tuple[LoRASource, ...]:
    return (
        LoRASource(tiny.lora, 0.6, "1"),
        LoRASource(other, -0.5, "2"),
        LoRASource(tiny.lora, 0.4, "both"),
    )


@pytest.mark.parametrize("preset", ["two-stage", "hq", "distilled", "one-stage"])
def test_every_device_mode_gives_the_same_latents(tiny: TinyFiles, other: Path, texts: Texts, preset: str) -> None:
    results = {mode: run(open_pipeline(tiny, mode, *stack(tiny, other)), texts, preset) for mode in MODES}
    plain = run(open_pipeline(tiny, "original"), texts, preset)
    assert min(differences(results["resident"], plain).values()) > 1e-2, "the LoRAs must matter"
    for mode in ("snapshot", "snapshot-low"):
        assert not any(differences(results["resident"], results[mode]).values()), mode
    assert max(differences(results["resident"], results["original"]).values()) < ROUNDING


@pytest.mark.parametrize("mode", ["original", "resident"])  # the others give resident's latents
def test_a_lora_acts_in_its_stage_alone(tiny: TinyFiles, texts: Texts, mode: str) -> None:
    pipeline = open_pipeline(tiny, mode)
    plain, first, second, both = (
        run(add(pipeline, *loras), texts)
        for loras in (
            (),
            (LoRASource(tiny.lora, 0.8, "1"),),
            (LoRASource(tiny.lora, 0.8, "2"),),
            (LoRASource(tiny.lora, 0.8, "both"),),
        )
    )
    assert torch.equal(plain["stage1_video"], second["stage1_video"])
    assert torch.equal(first["stage1_video"], both["stage1_video"])
    for one, another in ((plain, first), (plain, second), (first, both)):
        assert not torch.equal(one["stage2_video"], another["stage2_video"])


@pytest.mark.parametrize("mode", MODES)
def test_changed_stacks_equal_freshly_opened_ones(tiny: TinyFiles, other: Path, texts: Texts, mode: str) -> None:
    """One loaded transformer after another stack, and after a stack that is gone: not one bit is left of those."""
    loaded = open_pipeline(tiny, mode)
    style, extra = LoRASource(tiny.lora, 0.7), LoRASource(other, 0.3, "1")
    for loras in ((style,), (style, extra), (), (extra, replace(style, strength=-0.2))):
        changed = run(add(loaded, *loras), texts)
        fresh = run(open_pipeline(tiny, mode, *loras), texts)
        assert not any(differences(changed, fresh).values()), loras


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What is read of the files' weights, by component and by LoRA file."""
    counted: Counter[str] = Counter()
    fill, build, read, load = ComponentSource.fill, ComponentSource.build, LoRAFile.read, GemmaSource.load_model

    def counting(name: Any, method: Any) -> Any:
        def count(self: Any, *arguments: Any) -> Any:
            counted[name(self)] += 1
            return method(self, *arguments)

        return count

    monkeypatch.setattr(ComponentSource, "fill", counting(lambda self: self.component.value, fill))
    monkeypatch.setattr(ComponentSource, "build", counting(lambda self: self.component.value, build))
    monkeypatch.setattr(LoRAFile, "read", counting(lambda self: self.path.name, read))
    monkeypatch.setattr(GemmaSource, "load_model", counting(lambda self: "gemma", load))
    yield counted


@pytest.mark.parametrize("mode", MODES)
def test_a_change_reads_neither_the_checkpoint_nor_the_prompt_again(
    tiny: TinyFiles, other: Path, mode: str, reads: Counter[str]
) -> None:
    def whole(*loras: LoRASource) -> None:
        add(pipeline, *loras).run(request_for("two-stage"))

    pipeline = open_pipeline(tiny, mode)
    whole()
    base = dict(reads)
    assert base["transformer"] > 0 and base["gemma"] == base[tiny.distilled_lora.name] == 1
    for strength in (0.5, 0.9):
        whole(LoRASource(tiny.lora, strength))
    whole(LoRASource(tiny.lora, 0.9, "2"), LoRASource(tiny.lora, 0.1, "1"))
    whole()
    # One more set of adapters, since the first had none of the style
    assert reads == Counter(base) + Counter({tiny.lora.name: 1, tiny.distilled_lora.name: 1})
    whole(LoRASource(tiny.lora, 0.9), LoRASource(other, 0.1))
    assert reads["transformer"] == base["transformer"] and reads["gemma"] == reads[other.name] == 1


@pytest.mark.parametrize("mode", MODES)
def test_the_base_weights_stay_those_of_the_file(tiny: TinyFiles, other: Path, texts: Texts, mode: str) -> None:
    pipeline = open_pipeline(tiny, mode)
    for loras in (stack(tiny, other), (LoRASource(other, 2.0),), ()):
        run(add(pipeline, *loras), texts)
    manager, models = pipeline.residency, pipeline.models
    assert isinstance(manager, DeviceManager) and isinstance(models, ModelSet)
    fresh = models.skeleton(Component.TRANSFORMER).to_empty(device="cpu")
    models.fill(Component.TRANSFORMER, fresh.state_dict())
    with manager.use(Component.TRANSFORMER, Phase.STAGE_1) as module:
        for name, tensor in fresh.state_dict().items():
            assert torch.equal(module.get_parameter(name), tensor), name


def test_a_lora_cannot_be_added_that_does_not_fit(tiny: TinyFiles, tmp_path: Path) -> None:
    models = open_models(tiny)
    before = dict(models.loras)
    strange = tmp_path / "strange.safetensors"
    save_file(
        {k.replace("diffusion_model.", "diffusion_model.unet."): v for k, v in load_file(tiny.lora).items()}, strange
    )
    with pytest.raises(CheckpointError, match="0 of its 130 targets fit"):
        models.with_lora(LoRASource(strange))
    ic_lora = tmp_path / "ic.safetensors"
    save_file(load_file(tiny.lora), ic_lora, {"reference_downscale_factor": "2"})
    with pytest.raises(CheckpointError, match="is an IC-LoRA"):
        models.with_lora(LoRASource(ic_lora))
    with pytest.raises(SettingError, match="lora strength = nan"):
        models.with_lora(LoRASource(tiny.lora, float("nan")))
    assert models.loras == before


def test_a_file_that_changed_is_another_lora(tiny: TinyFiles, texts: Texts, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    tensors = load_file(tiny.lora)
    save_file(tensors, path)
    loaded = open_pipeline(tiny, "resident")
    before = run(add(loaded, LoRASource(path)), texts)
    save_file({key: -tensor if ".lora_A." in key else tensor for key, tensor in tensors.items()}, path, {"again": "1"})
    after = run(add(loaded, LoRASource(path)), texts)
    assert not torch.equal(before["stage1_video"], after["stage1_video"])
    assert not any(differences(after, run(open_pipeline(tiny, "resident", LoRASource(path)), texts)).values())


def test_the_report_names_the_loras(tiny: TinyFiles) -> None:
    models = open_models(tiny).with_lora(LoRASource(tiny.lora, 0.5, "1"))
    assert models.file_names["lora_1"] == str(tiny.lora)
    assert model_set.DISTILLED in models.loras
    assert models.adapter_bytes() == sum(lora.parameters for lora in models.loras.values()) * 4
