"""Sets of model files: what loads, and what is refused before a weight is read."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import CheckpointError, ConfigError, LTX2Error, SettingError
from ltx2_two_stage.ltx2_core.files.safetensors_file import SafetensorsFile
from ltx2_two_stage.ltx2_core.loading.keymaps import component_keys
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, full_size_config, write_tiny
from ltx2_two_stage.ltx2_core.models.text.config import TextConfig
from ltx2_two_stage.ltx2_core.models.text.connector import TextConnector
from ltx2_two_stage.ltx2_core.recipe_choice import RecipeChoice
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.stages import belonging
from ltx2_two_stage.ltx2_core.types import Component, Phase
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = tuple(component for component in Component if component is not Component.TEXT_ENCODER)
DIT = "model.diffusion_model."
Keep = Callable[[str], bool]
Change = Callable[[dict[str, Tensor], dict[str, str]], None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny23"), "2.3")


@pytest.fixture(scope="module")
def tiny20(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny20"), "2.0")


def all_files(tiny: TinyFiles, **changes: Any) -> ModelFiles:
    loras = (LoRASource(tiny.lora, 0.5, "2"),)
    return replace(ModelFiles(tiny.checkpoint, tiny.gemma, tiny.upsampler, tiny.distilled_lora, loras), **changes)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return load_file(path), dict(file.metadata())


def rewrite(source: Path, target: Path, change: Change) -> Path:
    """A copy of a file with something changed in it."""
    tensors, metadata = read(source)
    change(tensors, metadata)
    save_file(tensors, target, metadata)
    return target


def changed_config(**sections: Mapping[str, Any]) -> Change:
    def change(_tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["config"])
        for section, values in sections.items():
            config[section].update(values)
        metadata["config"] = json.dumps(config)

    return change


@pytest.mark.parametrize(
    ("generation", "dtype"), [("2.3", torch.float32), ("2.3", torch.bfloat16), ("2.0", torch.float32)]
)
def test_every_component_holds_the_files_weights(
    generation: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    tiny: TinyFiles = request.getfixturevalue("tiny" if generation == "2.3" else "tiny20")
    models = ModelSet.open(all_files(tiny, loras=(), distilled_lora=None), dtype)
    assert models.generation == generation
    stored = load_file(tiny.checkpoint)
    unread = {key for key in stored if not key.endswith((".channel", ".mean-of-stds"))}
    for component in WEIGHTS:
        module = models.build(component, torch.device("cpu"))
        expected_dtype = torch.float32 if component is Component.VOCODER else dtype
        if component is Component.UPSAMPLER:
            origin = {name: (name, value) for name, value in load_file(tiny.upsampler).items()}
        else:
            origin = {name: (key, stored[key]) for name, key in component_keys(component, stored).items()}
        state = module.state_dict()
        assert state.keys() == origin.keys()
        for name, (key, value) in origin.items():
            assert torch.equal(state[name], value.to(expected_dtype)), key
            assert state[name].dtype == expected_dtype and not state[name].requires_grad
            unread.discard(key)
        assert not module.training
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        assert models.component_bytes(component) == sum(tensor.nbytes for tensor in state.values())
    assert not unread  # nothing in the official file is left over


def test_the_facts_come_from_the_files(tiny: TinyFiles) -> None:
    models = ModelSet.open(all_files(tiny), torch.float32)
    assert (models.num_layers, models.latent_channels, tuple(models.scale)) == (3, 16, (8, 32, 32))
    assert models.audio_geometry.latent(1.0).token_channels == 32
    assert models.has_upsampler and models.has_distilled_lora
    assert models.text.num_states == models.gemma.num_layers + 1
    assert set(models.file_names) == {"checkpoint", "gemma", "upsampler", "distilled_lora", "lora_1"}
    assert models.tokenizer().encode("a dog barks").ids
    assert (
        models.text_states_bytes() == 2 * 1024 * models.text.text_width * models.text.num_states * models.dtype.itemsize
    )
    assert models.component_bytes(Component.TEXT_ENCODER) == sum(
        parameter.nbytes for parameter in models.build(Component.TEXT_ENCODER, "cpu").parameters()
    )


def test_opening_reads_no_weight_and_building_reads_each_tensor_once(
    tiny: TinyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_names: list[str] = []

    each = SafetensorsFile.each

    def counting(self: SafetensorsFile, names: Iterable[str], *more: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in each(self, names, *more):
            read_names.append(name)
            yield name, tensor

    monkeypatch.setattr(SafetensorsFile, "each", counting)
    models = ModelSet.open(all_files(tiny), torch.float32)
    assert read_names == []
    models.build(Component.TRANSFORMER, "cpu")
    assert len(read_names) == len(set(read_names)) + 260  # both LoRAs have the same 260 names
    assert not any("connector" in name or name.startswith("vae.") for name in read_names)


@pytest.fixture
def split(tiny: TinyFiles, tmp_path: Path) -> Callable[..., ModelFiles]:
    """Makes split files as community packages have them."""
    tensors, metadata = read(tiny.checkpoint)
    config = json.loads(metadata["config"])

    def part(name: str, starts: tuple[str, ...], strip: str, sections: tuple[str, ...] | None) -> Path:
        kept = {key.removeprefix(strip): value for key, value in tensors.items() if key.startswith(starts)}
        found = {} if sections is None else {"config": json.dumps({s: config[s] for s in sections})}
        save_file(kept, tmp_path / name, found)
        return tmp_path / name

    def make(bare: bool, describe: str) -> ModelFiles:
        own = describe == "each"
        everything = ("transformer", "vae", "audio_vae", "vocoder")
        main = None if describe == "none" else ("transformer",) if own else everything
        return ModelFiles(
            part("dit.safetensors", (DIT,), DIT if bare else "", main),
            tiny.gemma,
            video_vae=part("vae.safetensors", ("vae.",), "vae." if bare else "", ("vae",) if own else None),
            audio_vae=part(
                "audio.safetensors",
                ("audio_vae.", "vocoder."),
                "audio_vae." if bare else "",
                ("audio_vae", "vocoder") if own else None,
            ),
            text_projection=part(
                "text.safetensors",
                ("text_embedding_projection.",),
                "text_embedding_projection." if bare else "",
                None,
            ),
        )

    return make


@pytest.mark.parametrize(
    ("bare", "describe"),
    [(False, "each"), (True, "main")],
    ids=["official prefixes, each describes itself", "no prefixes, one describes all"],
)
def test_split_files_hold_the_same_weights(
    tiny: TinyFiles, split: Callable[..., ModelFiles], bare: bool, describe: str
) -> None:
    whole = ModelSet.open(ModelFiles(tiny.checkpoint, tiny.gemma), torch.float32)
    parts = ModelSet.open(split(bare, describe), torch.float32)
    for component in WEIGHTS:
        if component is Component.UPSAMPLER:
            continue
        one, other = (models.build(component, "cpu").state_dict() for models in (whole, parts))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_split_files_without_any_description_are_refused(split: Callable[..., ModelFiles]) -> None:
    with pytest.raises(CheckpointError, match=r"dit\.safetensors.*carries no description"):
        ModelSet.open(split(False, "none"), torch.float32)


@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        ("video_vae", "holds no video encoder.*video-vae"),
        ("audio_vae", "holds no audio encoder.*audio-vae"),
        ("text_projection", "holds no text projection.*text-projection"),
    ],
)
def test_a_part_that_no_file_holds_is_named(split: Callable[..., ModelFiles], left_out: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        ModelSet.open(replace(split(False, "main"), **{left_out: None}), torch.float32)


def test_parts_given_as_each_other_are_refused(split: Callable[..., ModelFiles]) -> None:
    files = split(True, "main")
    with pytest.raises(CheckpointError, match=r"video-vae.*is audio VAE and vocoder, not an LTX-2 video VAE"):
        ModelSet.open(replace(files, video_vae=files.audio_vae), torch.float32)
    with pytest.raises(CheckpointError, match=r"audio-vae.*is video VAE, not an LTX-2 audio VAE and vocoder"):
        ModelSet.open(replace(files, audio_vae=files.video_vae), torch.float32)


OTHER_MODELS: dict[str, tuple[str, ...]] = {
    "LTX-Video 0.9": ("model.diffusion_model.patchify_proj.weight", "vae.encoder.conv_in.conv.weight"),
    "Wan": ("model.diffusion_model.blocks.0.self_attn.q.weight",),
    "Stable Diffusion 1, 2 or XL": ("model.diffusion_model.input_blocks.0.0.weight",),
    "Flux or Hunyuan": ("double_blocks.0.img_attn.qkv.weight",),
    "LoRA": ("diffusion_model.proj_out.lora_A.weight",),
    "video VAE": ("vae.per_channel_statistics.mean-of-means", "vae.encoder.conv_in.conv.weight"),
    "latent upsampler": ("initial_conv.weight", "final_conv.weight"),
    "Gemma 3": ("model.layers.0.pre_feedforward_layernorm.weight",),
    "diffusers' layout": ("time_embed.emb.timestep_embedder.linear_1.weight",),
    "does not look like any LTX-2 file": ("weight",),
}


@pytest.mark.parametrize(("words", "keys"), OTHER_MODELS.items(), ids=OTHER_MODELS.keys())
def test_a_checkpoint_of_another_model_is_named(
    tiny: TinyFiles, tmp_path: Path, words: str, keys: tuple[str, ...]
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(1, 1, 1, 1, 1) for key in keys}, path)
    with pytest.raises(CheckpointError, match=words) as caught:
        ModelSet.open(ModelFiles(path, tiny.gemma), torch.float32)
    assert caught.value.setting == "checkpoint"


def _drop(*keys: str) -> Change:
    def change(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        for key in keys:
            del tensors[key]

    return change


def _add(**more: Tensor) -> Change:
    return lambda tensors, _metadata: tensors.update(more)


def _without_config(_tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del metadata["config"]


def _int8(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
    key = f"{DIT}transformer_blocks.0.attn1.to_q.weight"
    tensors[key] = tensors[key].to(torch.int8)


BAD_CHECKPOINTS: dict[str, tuple[Change, type[LTX2Error], str]] = {
    "missing": (
        _drop(f"{DIT}proj_out.weight", f"{DIT}proj_out.bias"),
        CheckpointError,
        r"2 keys missing: model\.diffusion_model\.proj_out\.weight, model\.diffusion_model\.proj_out\.bias",
    ),
    "unexpected": (
        _add(**{f"{DIT}extra.{n}.weight": torch.zeros(1) for n in range(5)}),
        CheckpointError,
        r"5 keys unexpected: model\.diffusion_model\.extra\.0\.weight, .*\.extra\.2\.weight and 2 more",
    ),
    "shape": (
        _add(**{f"{DIT}proj_out.bias": torch.zeros(3)}),
        CheckpointError,
        r"1 keys of another shape: model\.diffusion_model\.proj_out\.bias is \[3\] instead of \[16\]",
    ),
    "missing in the vocoder": (
        _drop("vocoder.vocoder.conv_pre.weight"),
        CheckpointError,
        r"the vocoder it describes: 1 keys missing: vocoder\.vocoder\.conv_pre\.weight",
    ),
    "missing in the video VAE's statistics": (
        _drop("vae.per_channel_statistics.mean-of-means"),
        CheckpointError,
        r"the video encoder it describes: 1 keys missing: vae\.per_channel_statistics\.mean-of-means",
    ),
    "missing in the audio VAE's statistics": (
        _drop("audio_vae.per_channel_statistics.mean-of-means"),
        CheckpointError,
        r"the audio encoder it describes: 1 keys missing: audio_vae\.per_channel_statistics\.mean-of-means",
    ),
    "missing in the text projection": (
        _drop("text_embedding_projection.video_aggregate_embed.bias"),
        CheckpointError,
        r"1 keys missing: text_embedding_projection\.video_aggregate_embed\.bias",
    ),
    "missing in a connector": (
        _drop(f"{DIT}video_embeddings_connector.learnable_registers"),
        CheckpointError,
        r"1 keys missing: model\.diffusion_model\.video_embeddings_connector\.learnable_registers",
    ),
    "no config": (_without_config, CheckpointError, "carries no description of its model"),
    "int8": (_int8, CheckpointError, r"holds int8 weights \(.*attn1\.to_q\.weight\).*bf16"),
    "unsupported setting": (
        changed_config(transformer={"qk_norm": "layer_norm"}),
        ConfigError,
        r"transformer\.qk_norm = 'layer_norm'.*in the metadata of bad\.safetensors",
    ),
    "VAE of another width": (
        changed_config(vae={"latent_channels": 32}),
        ConfigError,
        r"transformer\.in_channels = 16",
    ),
}


@pytest.mark.parametrize(("change", "kind", "words"), BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS.keys())
def test_a_bad_checkpoint_is_refused(
    tiny: TinyFiles, tmp_path: Path, change: Change, kind: type[LTX2Error], words: str
) -> None:
    path = rewrite(tiny.checkpoint, tmp_path / "bad.safetensors", change)
    with pytest.raises(kind, match=words):
        ModelSet.open(ModelFiles(path, tiny.gemma), torch.float32)


def test_companions_of_another_generation_are_refused(tiny: TinyFiles, tiny20: TinyFiles) -> None:
    with pytest.raises(CheckpointError, match=r"distilled-lora.*looks like a LoRA for LTX-2\.0"):
        ModelSet.open(all_files(tiny, distilled_lora=tiny20.distilled_lora), torch.float32)
    with pytest.raises(CheckpointError, match=r"^lora.*looks like a LoRA for LTX-2\.3"):
        ModelSet.open(all_files(tiny20, loras=(LoRASource(tiny.lora),)), torch.float32)


def test_an_upsampler_of_another_generation_is_said(
    tiny: TinyFiles, tiny20: TinyFiles, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ltx2.loading"):
        ModelSet.open(all_files(tiny, upsampler=tiny20.upsampler), torch.float32)
    assert "upsampler is of LTX-2.0, the checkpoint of LTX-2.3" in caplog.text


def test_upsamplers_of_another_kind_are_refused(tiny: TinyFiles, tmp_path: Path) -> None:
    def temporal(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        width = tensors["initial_norm.weight"].shape[0]
        tensors["upsampler.0.weight"] = torch.zeros(2 * width, width, 3, 3, 3)
        tensors["upsampler.0.bias"] = torch.zeros(2 * width)
        del metadata["config"]

    path = rewrite(tiny.upsampler, tmp_path / "temporal.safetensors", temporal)
    with pytest.raises(CheckpointError, match=r"another kind \(temporal\).*spatial x2"):
        ModelSet.open(all_files(tiny, upsampler=path), torch.float32)
    with pytest.raises(CheckpointError, match=r"is no latent upsampler \(LoRA\)"):
        ModelSet.open(all_files(tiny, upsampler=tiny.lora), torch.float32)
    with pytest.raises(SettingError, match="upsampler"):
        ModelSet.open(all_files(tiny, upsampler=None), torch.float32).build(Component.UPSAMPLER, "cpu")


def test_a_text_encoder_of_another_size_is_refused(tiny: TinyFiles, tmp_path: Path) -> None:
    def wider(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        for stream in ("video", "audio"):
            key = f"text_embedding_projection.{stream}_aggregate_embed.weight"
            tensors[key] = torch.cat([tensors[key], tensors[key][:, :48]], 1)

    path = rewrite(tiny.checkpoint, tmp_path / "six.safetensors", wider)
    with pytest.raises(CheckpointError, match=r"gemma.*has a number of layers of 4.*made for 5"):
        ModelSet.open(ModelFiles(path, tiny.gemma), torch.float32)

    def narrow(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        changed_config(transformer={"caption_channels": 24})(tensors, metadata)

    path = rewrite(tiny.checkpoint, tmp_path / "narrow.safetensors", narrow)
    with pytest.raises(CheckpointError, match=r"gemma.*has a hidden size of 48.*made for 24"):
        ModelSet.open(ModelFiles(path, tiny.gemma), torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": Path("missing.safetensors")},
        {"upsampler": Path("missing.safetensors")},
        {"distilled_lora": Path("missing.safetensors")},
        {"loras": (LoRASource(Path("missing.safetensors")),)},
        {"video_vae": Path("missing.safetensors")},
        {"audio_vae": Path("missing.safetensors")},
        {"text_projection": Path("missing.safetensors")},
        {"gemma": Path("missing")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_missing_file_is_named_with_its_setting(tiny: TinyFiles, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        ModelSet.open(all_files(tiny, **changes), torch.float32)
    setting = next(iter(changes)).replace("_", "-")
    assert str(caught.value).startswith(("lora" if setting == "loras" else setting) + " = 'missing")


@pytest.mark.parametrize(("strength", "stage"), [(float("nan"), "1"), (float("inf"), "2"), (1.0, "3"), (1.0, "")])
def test_lora_settings_are_checked(tiny: TinyFiles, strength: float, stage: Any) -> None:
    with pytest.raises(SettingError, match="lora"):
        ModelSet.open(all_files(tiny, loras=(LoRASource(tiny.lora, strength, stage),)), torch.float32)


def test_phases_set_the_strengths_of_all_adapters(tiny: TinyFiles, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copy(tiny.lora, other)
    given = ((tiny.lora, 0.5, "both"), (other, 0.25, "1"), (tiny.lora, -1.0, "2"))
    models = ModelSet.open(all_files(tiny, loras=tuple(LoRASource(*lora) for lora in given)), torch.float32)  # type: ignore[arg-type]
    twice, once = (adapter.name for adapter in models.adapters[1:3])
    assert models.adapters[3].name == twice != once
    first = dict(sorted({"distilled": 0.25, twice: 0.5, once: 0.25}.items()))
    second = dict(sorted({"distilled": 0.75, twice: -0.5, once: 0.0}.items()))
    transformer = models.build(Component.TRANSFORMER, "cpu")
    layer = transformer.get_submodule("transformer_blocks.0.attn1.to_q")
    assert layer.active_adapters == []  # no strength is given yet

    def phases() -> Iterator[tuple[Phase, dict[str, float]]]:
        yield Phase.STAGE_1, first
        yield Phase.UPSAMPLE, first  # left as they were
        yield Phase.STAGE_2, second
        yield Phase.DECODE, second
        yield Phase.STAGE_1, first

    for phase, expected in phases():
        models.set_phase(transformer, phase, (0.25, 0.75))
        assert {name: layer.scaling[name] for name in expected} == expected
        assert layer.active_adapters == [name for name, strength in expected.items() if strength]
    assert models.adapter_strengths(Phase.PROMPT, (0.0, 1.0)) == {}
    matrices = [p for name, p in transformer.named_parameters() if ".lora_" in name]
    assert models.adapter_bytes() == sum(parameter.nbytes for parameter in matrices)


@pytest.mark.parametrize(
    ("given", "sums"),
    [
        pytest.param([(0.5, "both"), (0.4, "both")], "0.9 in stage 1 and 0.9 in stage 2", id="in both stages"),
        pytest.param([(0.5, "both"), (-0.25, "2")], "0.25 in stage 2", id="in one stage"),
        pytest.param([(0.5, "1"), (0.25, "2")], None, id="once in each stage"),
        pytest.param([(0.5, "both"), (0.0, "both")], None, id="once, and once off"),
        pytest.param([(0.5, "1")], None, id="once"),
    ],
)
def test_strengths_that_add_up_are_said(tiny: TinyFiles, given: list[tuple[float, Any]], sums: str | None) -> None:
    loras = tuple(LoRASource(tiny.lora, *lora) for lora in given)
    added = ModelSet.open(all_files(tiny, loras=()), torch.float32)
    for lora in loras:
        added = added.with_lora(lora)
    sentence = f"The LoRA {tiny.lora.name} is given more than once: its strengths add up to {sums}."
    for models in (ModelSet.open(all_files(tiny, loras=loras), torch.float32), added):
        assert models.notices == (() if sums is None else (sentence,))


@pytest.mark.parametrize(
    ("name", "distilled"),
    [("my style.safetensors", True), ("ltx-2.3-22b-distilled-lora.safetensors", True), ("copy.safetensors", False)],
)
def test_the_distilled_lora_is_known_as_a_users_too(
    tiny: TinyFiles, tmp_path: Path, name: str, distilled: bool
) -> None:
    """By its name, and where it is the very file that is given as such; a copy of another name is not."""
    again = tmp_path / name
    if name.startswith("my"):
        again.hardlink_to(tiny.distilled_lora)
    else:
        shutil.copy(tiny.distilled_lora, again)
    models = ModelSet.open(all_files(tiny, loras=(LoRASource(again),)), torch.float32)
    assert len(models.distilled_adapters) == (2 if distilled else 1)
    request = GenerationRequest("a", RecipeChoice().recipe_for(models))
    said = [notice for notice in belonging.notices(models, request) if "distilled LoRAs at once" in notice]
    assert said == ([f"Stage 2 runs 2 distilled LoRAs at once: {name} and the one given as such."] if distilled else [])


def test_the_official_file_may_leave_out_what_nobody_reads(tiny: TinyFiles, tmp_path: Path) -> None:
    unread = ("vae.per_channel_statistics.channel", "vae.per_channel_statistics.mean-of-stds")
    path = rewrite(tiny.checkpoint, tmp_path / "less.safetensors", _drop(*unread))
    ModelSet.open(ModelFiles(path, tiny.gemma), torch.float32)


@pytest.mark.parametrize(("generation", "tensors"), [("2.3", 258), ("2.0", 58)])
def test_connectors_leave_the_transformers_keys(generation: str, tensors: int) -> None:
    # Full-size names: the counts are those of docs/model.md 1.2
    with torch.device("meta"):
        connector = TextConnector(TextConfig.from_metadata(full_size_config(generation)))  # type: ignore[arg-type]
    names = [DIT + name for name in connector.state_dict() if "aggregate" not in name]
    assert len(names) == tensors
    keys = [*names, f"{DIT}patchify_proj.weight", "vocoder.vocoder.conv_pre.weight"]
    assert component_keys(Component.TRANSFORMER, keys) == {"patchify_proj.weight": f"{DIT}patchify_proj.weight"}
    assert set(component_keys(Component.TEXT_CONNECTOR, keys).values()) == set(names)
    # The prefix goes once (docs/model.md 1.2)
    assert set(component_keys(Component.VOCODER, keys)) == {"vocoder.conv_pre.weight"}
