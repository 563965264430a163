"""Gemma from folders and single files: layouts, settings, and errors before any weight is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import CheckpointError, ConfigError
from ltx2_two_stage.ltx2_core.loading.synthetic_gemma import write_single_file, write_tiny_gemma
from ltx2_two_stage.ltx2_core.models.text.gemma import GemmaSource, gemma_hidden_states, gemma_states
from ltx2_two_stage.ltx2_core.models.text.gemma_config import GemmaConfig, GemmaSizes
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH, LAYERS = 48, 3
IDS = torch.tensor([2, 260, 270, 280, 17, 301])
OFFICIAL = "language_model.model."
Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    write_tiny_gemma(folder, WIDTH, LAYERS, torch.Generator().manual_seed(0))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "gemma"))


def weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of a folder, named as in Gemma3TextModel."""
    shards = (load_file(file) for file in sorted(folder.glob("*.safetensors")))
    return {key.removeprefix(OFFICIAL): tensor for shard in shards for key, tensor in shard.items()}


def replace_weights(folder: Path, tensors: dict[str, Tensor], prefix: str = OFFICIAL) -> None:
    """Writes one file instead of the shards."""
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, folder / "model.safetensors")


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def states(source: GemmaSource) -> Tensor:
    return gemma_hidden_states(source.load_model(torch.float32, "cpu"), IDS)


def test_folder_facts_come_from_the_headers(original: Path) -> None:
    source = GemmaSource.open(original)
    assert (source.layout, source.hidden_size, source.num_layers) == ("folder", WIDTH, LAYERS)
    assert source.dtype == torch.bfloat16
    assert source.bytes == sum(tensor.nbytes for tensor in weights(original).values())
    assert source.load_tokenizer().encode("the cat").ids[0] == 2


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.", "model.", ""])
def test_key_layouts_load_the_same(original: Path, folder: Path, prefix: str) -> None:
    tensors = weights(folder)
    extra = {"lm_head.weight": torch.zeros(3, 4), "vision_tower.x": torch.zeros(2), "multi_modal_projector.y": IDS}
    replace_weights(folder, {})
    save_file({prefix + key: tensor for key, tensor in tensors.items()} | extra, folder / "model.safetensors")
    assert torch.equal(states(GemmaSource.open(folder)), states(GemmaSource.open(original)))


def test_settings_load_the_same_however_they_are_written(original: Path, folder: Path) -> None:
    """transformers 5 names the rotary settings otherwise; a text-only model has no text_config."""
    config = json.loads((folder / "config.json").read_text())["text_config"]
    for key in ("rope_theta", "rope_local_base_freq", "rope_scaling", "vocab_size"):
        del config[key]
    config["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    del config["layer_types"]
    config["sliding_window_pattern"] = 2
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma3ForCausalLM"]}))
    expected = GemmaSource.open(original)
    assert GemmaSource.open(folder).config == expected.config
    assert torch.equal(states(GemmaSource.open(folder)), states(expected))


def test_config_as_the_installed_transformers_writes_it(original: Path, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    expected = GemmaSource.open(original).config
    config = transformers.Gemma3TextConfig(**expected.arguments())
    config.save_pretrained(folder)
    assert GemmaSource.open(folder).config == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_local_base_freq", 3e4),
        ("rope_theta", 1e5),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rope_scaling", None),
        ("query_pre_attn_scalar", 24),
        ("sliding_window", 2),
        ("rms_norm_eps", 1e-2),
        ("layer_types", ["full_attention", "full_attention", "sliding_attention"]),
    ],
)
def test_every_setting_reaches_the_model(original: Path, folder: Path, key: str, value: Any) -> None:
    edit_json(folder / "config.json", lambda config: config["text_config"].update({key: value}))
    changed = GemmaSource.open(folder)
    assert (states(changed) - states(GemmaSource.open(original))).abs().max() > 1e-4


def test_model_is_ready_for_inference(original: Path) -> None:
    model = GemmaSource.open(original).load_model(torch.bfloat16, "cpu")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    assert frequencies and all(buffer.dtype == torch.float32 for buffer in frequencies)
    assert not hasattr(model, "lm_head")
    result = gemma_hidden_states(model, IDS)
    assert result.shape == (len(IDS), WIDTH, LAYERS + 1)
    assert result.dtype == torch.bfloat16


def test_prompts_of_any_lengths_at_once(original: Path) -> None:
    """What fills a shorter prompt up changes nothing in it. float32: other sums in products of other sizes."""
    model = GemmaSource.open(original).load_model(torch.float32, "cpu")
    prompts = [IDS, IDS[:1], torch.cat([IDS.flip(0), IDS])]
    for together, ids in zip(gemma_states(model, prompts), prompts, strict=True):
        torch.testing.assert_close(together, gemma_hidden_states(model, ids), rtol=1e-5, atol=1e-5)


def test_pipeline_folder_with_text_encoder_and_tokenizer(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "text_encoder" / "tokenizer.json").rename(tmp_path / "tokenizer" / "tokenizer.json")
    for path in (tmp_path, tmp_path / "text_encoder"):
        assert GemmaSource.open(path).load_tokenizer().encode("the cat").ids[0] == 2


def single_file(folder: Path, path: Path, **extra: Tensor) -> Path:
    """ComfyUI's layout: the text model under ``model.``, the vision parts beside it, the tokenizer as bytes."""
    tensors = {f"model.{key}": tensor for key, tensor in weights(folder).items()}
    vision = {"vision_model.embeddings.x": torch.zeros(2), "multi_modal_projector.y": torch.zeros(2)}
    save_file(tensors | vision | extra, path)
    return path


def test_single_file_loads_with_its_tokenizer(original: Path, tmp_path: Path, spiece_model: bytes) -> None:
    spiece = torch.frombuffer(bytearray(spiece_model), dtype=torch.uint8)
    source = GemmaSource.open(single_file(original, tmp_path / "gemma.safetensors", spiece_model=spiece))
    assert (source.layout, source.hidden_size, source.num_layers) == ("single file", WIDTH, LAYERS)
    assert source.bytes == sum(tensor.nbytes for tensor in weights(original).values())
    tokens = source.load_tokenizer().encode("the cat walks, 世界")
    assert tokens.ids[0] == 2
    assert max(tokens.ids) < source.config.sizes.vocab_size
    model = source.load_model(torch.float32, "cpu")
    # Sizes are the file's, the rest is Gemma 3 12B's: only the embeddings do not depend on them
    expected = GemmaSource.open(original).load_model(torch.float32, "cpu")
    embeddings = gemma_hidden_states(expected, IDS)[..., 0]
    assert torch.equal(gemma_hidden_states(model, IDS)[..., 0], embeddings)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.state_dict().items())


def test_the_tiny_single_file_holds_the_folders_weights_and_tokenizer(original: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    write_single_file(original, tmp_path / "gemma.safetensors")
    single, folder = GemmaSource.open(tmp_path / "gemma.safetensors"), GemmaSource.open(original)
    assert single.layout == "single file"
    held = single.load_model(torch.float32, "cpu").state_dict()
    expected = folder.load_model(torch.float32, "cpu").state_dict()
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[key], value) for key, value in expected.items())
    ours, theirs = single.load_tokenizer(), folder.load_tokenizer()
    for text in ("", "the weather of a sand  island", 'She says: "On and on."', "other\tüber\n世界"):
        assert ours.encode(text).ids == theirs.encode(text).ids


def test_single_file_has_the_settings_of_gemma_3_12b() -> None:
    """docs/model.md 3.1 and 10."""
    sizes = GemmaSizes(262208, 3840, 15360, 48, heads=16, key_value_heads=8, head_dim=256)
    assert GemmaSizes.from_shapes(sizes.shapes()) == sizes
    assert sum(torch.Size(shape).numel() for shape in sizes.shapes().values()) == 11_766_034_176
    config = GemmaConfig.released(sizes)
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == [
        5,
        11,
        17,
        23,
        29,
        35,
        41,
        47,
    ]
    assert (config.sliding_window, config.query_scalar, config.norm_eps) == (1024, 256, 1e-6)
    assert (config.rope_theta, config.rope_factor, config.local_rope_theta) == (1e6, 8.0, 1e4)
    # The released config.json states no more than this; the rest are transformers' defaults
    stated = {
        "model_type": "gemma3_text",
        "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    assert GemmaConfig.from_json(sizes, stated) == config


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def config_change(change: Callable[[dict[str, Any]], object]) -> Edit:
    return lambda folder: edit_json(folder / "config.json", change)


def weight_change(change: Callable[[dict[str, Tensor]], object]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = weights(folder)
        change(tensors)
        replace_weights(folder, tensors)

    return edit


def to_int8(tensors: dict[str, Tensor]) -> None:
    name = "layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)


def scaled_without_a_scale(tensors: dict[str, Tensor]) -> None:
    name = "layers.0.self_attn.q_proj"
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{name}.input_scale"] = torch.ones(1)


def scaled(end: str) -> Callable[[dict[str, Tensor]], object]:
    """Projections in fp8 with one scale each."""

    def change(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.endswith("_proj.weight")]:
            scale = tensors[key].float().abs().max() / 448
            tensors[key] = (tensors[key].float() / scale).to(torch.float8_e4m3fn)
            tensors[key.removesuffix(".weight") + end] = scale
        if end == ".scale_weight":
            tensors["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)

    return change


def cast(tensors: dict[str, Tensor]) -> None:
    """Projections in fp8 as they are."""
    tensors.update({k: t.to(torch.float8_e4m3fn) for k, t in tensors.items() if k.endswith("_proj.weight")})


@pytest.mark.parametrize(
    ("change", "end"),
    [(scaled(".weight_scale"), ".weight_scale"), (scaled(".scale_weight"), ".scale_weight"), (cast, "none")],
    ids=["newer", "older", "cast"],
)
def test_weights_in_fp8_are_dequantised(folder: Path, change: Callable[[dict[str, Tensor]], object], end: str) -> None:
    stored = weights(folder)
    change(stored)
    replace_weights(folder, stored)
    source = GemmaSource.open(folder)
    model = dict(source.load_model(torch.float32, "cpu").named_parameters())
    for name, parameter in model.items():
        scale = stored.get(name.removesuffix(".weight") + end, torch.ones(()))
        assert torch.equal(parameter, stored[name].float() * scale), name
    assert source.parameters == sum(parameter.numel() for parameter in model.values())
    assert source.bytes == sum(stored[name].nbytes for name in model)


def smaller_vocabulary(tensors: dict[str, Tensor]) -> None:
    tensors["embed_tokens.weight"] = tensors["embed_tokens.weight"][:300].clone()


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (remove("config.json"), "no config.json"),
        (remove("tokenizer.json"), "no tokenizer"),
        (remove("model-00001-of-00002.safetensors"), r"lacks 1 of 2 weight files \(model-00001"),
        (truncate, "truncated"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").write_text("[" * 200_000), "not JSON"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "lists no weight files"),
        (config_change(lambda config: config.update(model_type="llama")), "type 'llama'"),
        (config_change(lambda config: config.update(quantization_config={"bits": 4})), "quantised"),
        (config_change(lambda config: config["text_config"].update(hidden_size=64)), "hidden_size = 64"),
        (config_change(lambda config: config["text_config"].update(attention_bias=True)), "attention_bias"),
        (config_change(lambda config: config["text_config"].update(rope_scaling={"type": "yarn"})), "yarn"),
        (config_change(lambda config: config["text_config"].update(layer_types=["full_attention"])), "layer_types"),
        (weight_change(lambda tensors: tensors.clear()), "no token embeddings"),
        (
            weight_change(lambda tensors: tensors.pop("layers.1.mlp.up_proj.weight")),
            "up_proj.weight is missing",
        ),
        (weight_change(lambda tensors: tensors.pop("layers.0.self_attn.q_norm.weight")), "q_norm.weight is missing"),
        (
            weight_change(lambda tensors: tensors.update({"layers.0.extra.weight": IDS.float()})),
            "not a tensor of",
        ),
        (weight_change(lambda tensors: tensors.update({"norm.weight": torch.zeros(5)})), "another shape"),
        (weight_change(to_int8), r"int8 weights \(.*layers\.0\.self_attn\.q_proj\.weight\)"),
        (weight_change(scaled_without_a_scale), r"no scale for .*layers\.0\.self_attn\.q_proj\.weight"),
    ],
)
def test_folders_that_cannot_work(folder: Path, edit: Edit, problem: str) -> None:
    edit(folder)
    with pytest.raises(CheckpointError, match=problem) as caught:
        GemmaSource.open(folder, "--gemma")
    assert caught.value.setting == "--gemma"
    assert str(folder) in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "sub/../../evil.safetensors",
        "/etc/evil.safetensors",
        "..\\evil.safetensors",
        "C:\\evil.safetensors",
        "C:evil.safetensors",
        "\\\\host\\share\\evil.safetensors",
        "//host/share/evil.safetensors",
        "a\0.safetensors",
        "config.json",
        "/dev/zero",
        "",
        "a" * 1000 + ".safetensors",
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_an_index_names_files_of_its_folder_only(folder: Path, name: str) -> None:
    (folder.parent / "evil.safetensors").touch()
    edit_json(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update(x=name))
    with pytest.raises(CheckpointError, match="names a weight file that is none of its folder") as caught:
        GemmaSource.open(folder)
    assert caught.value.path == folder / "model.safetensors.index.json"


def test_an_index_may_name_files_below_its_folder_and_links(original: Path, folder: Path) -> None:
    shard = "model-00002-of-00002.safetensors"
    (folder / "sub").mkdir()
    (folder / shard).rename(folder / "sub" / shard)
    (folder / "model-00001-of-00002.safetensors").unlink()
    (folder / "model-00001-of-00002.safetensors").symlink_to(original / "model-00001-of-00002.safetensors")

    def below(index: dict[str, Any]) -> None:
        index["weight_map"] = {key: name.replace(shard, f"sub/{shard}") for key, name in index["weight_map"].items()}

    edit_json(folder / "model.safetensors.index.json", below)
    assert GemmaSource.open(folder).bytes == GemmaSource.open(original).bytes


def test_an_index_of_many_files_is_refused(folder: Path) -> None:
    many = {str(n): f"{n}.safetensors" for n in range(1001)}
    edit_json(folder / "model.safetensors.index.json", lambda index: index.update(weight_map=many))
    with pytest.raises(CheckpointError, match="lists 1,001 weight files"):
        GemmaSource.open(folder)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_tensor_in_two_files_is_refused(folder: Path, indexed: bool) -> None:
    first, second = (folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    key, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {key: tensor}, second)
    if not indexed:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=rf"holds {key}, which {first.name} holds too") as caught:
        GemmaSource.open(folder)
    assert caught.value.path == second


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors", "tokenizer.json"],
)
def test_what_stands_for_a_file_of_the_folder_is_named(folder: Path, name: str) -> None:
    for content, words in ((POINTER, "is a Git LFS pointer"), (b"<!DOCTYPE html><html></html>", "is a web page")):
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=words) as caught:
            GemmaSource.open(folder)
        assert caught.value.path == folder / name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes among its files")
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_a_pipe_in_the_folder_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="is a pipe, not a file") as caught:
        GemmaSource.open(folder)
    assert caught.value.path == folder / name


def test_weights_in_either_ending_and_any_case(original: Path, folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    for file, suffix in zip(sorted(folder.glob("*.safetensors")), (".SFT", ".Safetensors"), strict=True):
        file.rename(file.with_suffix(suffix))
    assert GemmaSource.open(folder).bytes == GemmaSource.open(original).bytes


def test_a_folder_of_gguf_files_is_named(folder: Path) -> None:
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    (folder / "gemma-3-12b-it-Q4_K_M.GGUF").touch()
    with pytest.raises(CheckpointError, match=r"no safetensors file; gemma-3-12b-it-Q4_K_M\.GGUF is a GGUF file"):
        GemmaSource.open(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json; gemma-3-12b-it-Q4_K_M\.GGUF is a GGUF file"):
        GemmaSource.open(folder)


def test_folder_without_weights(folder: Path) -> None:
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no safetensors"):
        GemmaSource.open(folder)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        GemmaSource.open(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"GGUF" + b"\x00" * 64], ids=["empty", "gguf"])
def test_file_of_another_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gemma.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        GemmaSource.open(tmp_path / "gemma.gguf")


def test_single_file_without_tokenizer(original: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="spiece_model"):
        GemmaSource.open(single_file(original, tmp_path / "gemma.safetensors"))


@pytest.mark.parametrize(
    ("mark", "problem"), [("comfy_quant", "damaged marker"), ("weight_scale", "not a tensor of Gemma 3")]
)
def test_single_file_with_marks_of_weights_that_it_lacks(
    original: Path, tmp_path: Path, mark: str, problem: str
) -> None:
    extra = {f"model.layers.0.mlp.up_proj.{mark}": torch.ones(1)}
    path = single_file(original, tmp_path / "gemma_fp8.safetensors", **extra)
    with pytest.raises(CheckpointError, match=problem):
        GemmaSource.open(path)


def test_single_file_of_another_model(tmp_path: Path) -> None:
    save_file({"model.diffusion_model.x": torch.zeros(3)}, tmp_path / "dit.safetensors")
    with pytest.raises(CheckpointError, match="no token embeddings"):
        GemmaSource.open(tmp_path / "dit.safetensors")


def test_spoilt_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        GemmaSource.open(folder).load_tokenizer()


def test_tokenizer_of_another_model(folder: Path) -> None:
    weight_change(smaller_vocabulary)(folder)
    config_change(lambda config: config["text_config"].pop("vocab_size"))(folder)
    with pytest.raises(CheckpointError, match="300 embeddings"):
        GemmaSource.open(folder).load_tokenizer()


def test_shapes_that_are_no_matrix() -> None:
    with pytest.raises(ConfigError, match="embed_tokens"):
        GemmaSizes.from_shapes({"embed_tokens.weight": (5,)})


def test_a_file_that_was_cut_after_it_was_opened(folder: Path) -> None:
    source = GemmaSource.open(folder)
    truncate(folder)
    with pytest.raises(CheckpointError, match=r"gemma = .*cannot be read"):
        source.load_model(torch.float32, "cpu")
