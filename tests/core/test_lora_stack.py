"""Stacks of user LoRAs on one loaded transformer: every device mode, every stage, and what a change reads again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_stacks import (
    MODES,
    Latents,
    Texts,
    add,
    differences,
    open_models,
    open_pipeline,
    request_for,
    run,
    stack,
    write_other,
)
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.ltx2_core.errors import CheckpointError, SettingError
from ltx2_two_stage.ltx2_core.loading import model_set
from ltx2_two_stage.ltx2_core.loading.component_source import ComponentSource
from ltx2_two_stage.ltx2_core.loading.lora_file import LoRAFile
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, write_tiny
from ltx2_two_stage.ltx2_core.models.text.gemma import GemmaSource
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.types import Component
from safetensors.torch import load_file, save_file

# Adapters on the fly add to a layer's output, merged ones to its weight: float32 rounding through both stages
ROUNDING = 5e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), dtype="float32")


@pytest.fixture(scope="module")
def other(tiny: TinyFiles) -> Path:
    return write_other(tiny)


@pytest.fixture(scope="module")
def loaded(tiny: TinyFiles) -> Callable[[str], Pipeline]:
    """A pipeline of each device mode, without LoRAs: what one test loaded serves the next one."""
    return cache(lambda mode: open_pipeline(tiny, mode))


@pytest.fixture(scope="module")
def texts(loaded: Callable[[str], Pipeline]) -> Texts:
    return loaded("original").encode_prompt(request_for("two-stage"))


@pytest.fixture(scope="module")
def fresh(tiny: TinyFiles, texts: Texts) -> Callable[..., Latents]:
    """Latents of a pipeline that is opened with these LoRAs; a stack is run once for all modes that merge."""
    return cache(lambda mode, *loras: run(open_pipeline(tiny, mode, *loras), texts))


@pytest.fixture(scope="module")
def stacked(tiny: TinyFiles, other: Path) -> Callable[[str], Pipeline]:
    """A pipeline of each device mode that is opened with the stack."""
    return cache(lambda mode: open_pipeline(tiny, mode, *stack(tiny, other)))


@pytest.mark.parametrize("preset", ["two-stage", "hq", "distilled", "one-stage"])
def test_every_device_mode_gives_the_same_latents(
    stacked: Callable[[str], Pipeline], loaded: Callable[[str], Pipeline], texts: Texts, preset: str
) -> None:
    results = {mode: run(stacked(mode), texts, preset) for mode in MODES}
    plain = run(loaded("original"), texts, preset)
    assert min(differences(results["resident"], plain).values()) > 1e-2, "the LoRAs must matter"
    for mode in ("snapshot", "snapshot-low"):
        assert not any(differences(results["resident"], results[mode]).values()), mode
    assert max(differences(results["resident"], results["original"]).values()) < ROUNDING


@pytest.mark.parametrize("mode", ["original", "resident"])  # the others give resident's latents
def test_a_lora_acts_in_its_stage_alone(
    tiny: TinyFiles, loaded: Callable[[str], Pipeline], texts: Texts, mode: str
) -> None:
    pipeline = loaded(mode)
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
def test_changed_stacks_equal_freshly_opened_ones(
    tiny: TinyFiles,
    other: Path,
    loaded: Callable[[str], Pipeline],
    fresh: Callable[..., Latents],
    texts: Texts,
    mode: str,
) -> None:
    """One loaded transformer after another stack, and after a stack that is gone: not one bit is left of those."""
    opened = "original" if mode == "original" else "resident"  # whose latents those of all other modes are
    style, extra = LoRASource(tiny.lora, 0.7), LoRASource(other, 0.3, "1")
    for loras in ((style,), (style, extra), (), (extra, replace(style, strength=-0.2))):
        changed = run(add(loaded(mode), *loras), texts)
        assert not any(differences(changed, fresh(opened, *loras)).values()), loras


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
    monkeypatch.setattr(GemmaSource, "load_model", counting(lambda _: "gemma", load))
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
def test_the_base_weights_stay_those_of_the_file(
    tiny: TinyFiles, other: Path, loaded: Callable[[str], Pipeline], texts: Texts, mode: str
) -> None:
    pipeline = loaded(mode)
    for loras in (stack(tiny, other), (LoRASource(other, 2.0),), ()):
        run(add(pipeline, *loras), texts)
    manager, models = pipeline.residency, pipeline.models
    assert isinstance(manager, DeviceManager) and isinstance(models, ModelSet)
    fresh = models.skeleton(Component.TRANSFORMER).to_empty(device="cpu")
    models.fill(Component.TRANSFORMER, fresh.state_dict())
    with manager.use(Component.TRANSFORMER) as module:
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


def test_a_file_that_changed_is_another_lora(
    tiny: TinyFiles, loaded: Callable[[str], Pipeline], texts: Texts, tmp_path: Path
) -> None:
    path = tmp_path / "style.safetensors"
    tensors = load_file(tiny.lora)
    save_file(tensors, path)
    before = run(add(loaded("resident"), LoRASource(path)), texts)
    save_file({key: -tensor if ".lora_A." in key else tensor for key, tensor in tensors.items()}, path, {"again": "1"})
    after = run(add(loaded("resident"), LoRASource(path)), texts)
    assert not torch.equal(before["stage1_video"], after["stage1_video"])
    assert not any(differences(after, run(open_pipeline(tiny, "resident", LoRASource(path)), texts)).values())


def test_the_report_names_the_loras(tiny: TinyFiles) -> None:
    models = open_models(tiny).with_lora(LoRASource(tiny.lora, 0.5, "1"))
    assert models.file_names["lora_1"] == str(tiny.lora)
    assert model_set.DISTILLED in models.loras
    assert models.adapter_bytes() == sum(lora.parameters for lora in models.loras.values()) * 4
