"""What headers say of a model: counts are compared with the tensors first, and a missing description is derived."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import CheckpointError, ConfigError
from ltx2_two_stage.ltx2_core.loading.keymaps import stored_name
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import TinyFiles, Variant, full_size_config, write_tiny
from ltx2_two_stage.ltx2_core.models.audio_vae import AudioVAEConfig
from ltx2_two_stage.ltx2_core.models.audio_vae.decoder import AudioDecoder
from ltx2_two_stage.ltx2_core.models.audio_vae.encoder import AudioEncoder
from ltx2_two_stage.ltx2_core.models.meta_device import OnMeta
from ltx2_two_stage.ltx2_core.models.text.config import TextConfig
from ltx2_two_stage.ltx2_core.models.text.connector import TextConnector
from ltx2_two_stage.ltx2_core.models.text.gemma_config import GemmaSizes
from ltx2_two_stage.ltx2_core.models.transformer.config import TransformerConfig
from ltx2_two_stage.ltx2_core.models.transformer.model import LTXTransformer
from ltx2_two_stage.ltx2_core.models.video_vae.config import VideoVAEConfig
from ltx2_two_stage.ltx2_core.models.video_vae.decoder import VideoDecoder
from ltx2_two_stage.ltx2_core.models.video_vae.encoder import VideoEncoder
from ltx2_two_stage.ltx2_core.models.vocoder import VocoderConfig, build_vocoder
from ltx2_two_stage.ltx2_core.types import Component
from torch import nn

JSON = dict[str, Any]
Change = Callable[[JSON], object]
VARIANTS: tuple[Variant, ...] = ("2.3", "2.0")
DIT = "model.diffusion_model."


@pytest.fixture(scope="module", params=VARIANTS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def tiny23(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny23"), "2.3")


@pytest.fixture
def no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: nn.Module, *more: Any, **others: Any) -> None:
        raise AssertionError("a module is made")

    monkeypatch.setattr(nn.Module, "__init__", refuse)


@pytest.fixture(scope="module")
def sound(tiny23: TinyFiles) -> int:
    """How many modules are made for a sound set."""
    with pytest.MonkeyPatch.context() as patch:
        found = counted(patch)
        models = ModelSet.open(ModelFiles(tiny23.checkpoint, tiny23.gemma, tiny23.upsampler), torch.bfloat16)
    assert models.notices == ()
    return len(found)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every module that is made from now on."""
    return counted(monkeypatch)


def counted(patch: pytest.MonkeyPatch) -> list[nn.Module]:
    found: list[nn.Module] = []
    init = nn.Module.__init__

    def count(self: nn.Module, *more: Any, **others: Any) -> None:
        found.append(self)
        init(self, *more, **others)

    patch.setattr(nn.Module, "__init__", count)
    return found


def write_header(path: Path, header: Mapping[str, Any], nbytes: int) -> Path:
    """A file with this header, and holes for its weights."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + nbytes)
    return path


def read_header(path: Path) -> tuple[JSON, int]:
    """A file's header, and the bytes of its weights."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), path.stat().st_size - 8 - length


def with_config(source: Path, target: Path, change: Change) -> Path:
    header, nbytes = read_header(source)
    config = json.loads(header["__metadata__"]["config"])
    change(config)
    header["__metadata__"]["config"] = json.dumps(config)
    return write_header(target, header, nbytes)


def renamed(source: Path, target: Path, old: str, new: str) -> Path:
    """A copy in which one tensor, the first whose name holds ``old``, has ``new`` there."""
    header, nbytes = read_header(source)
    name = next(name for name in header if old in name)
    return write_header(
        target, {name.replace(old, new) if key == name else key: v for key, v in header.items()}, nbytes
    )


def put(*path: Any, values: tuple[Any, ...] = (10**9, 10**6, float("inf"), 5)) -> list[Change]:
    """One change for each value of a setting, which lies under keys and places of lists."""

    def change(value: Any) -> Change:
        def put_in(config: JSON) -> None:
            parent: Any = config
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value

        return put_in

    return [change(value) for value in values]


DDCONFIG = ("audio_vae", "model", "params", "ddconfig")
COUNTS: dict[str, list[Change]] = {
    "blocks": put("transformer", "num_layers"),
    "video connector": put("transformer", "connector_num_layers"),
    "audio connector": put("transformer", "audio_connector_num_layers"),
    "registers": put("transformer", "connector_num_learnable_registers", values=(10**9, 10**6, 2**63, 0, -1)),
    "heads": put("transformer", "num_attention_heads", values=(10**9, 2**63, 1e300, 0, -1)),
    "video encoder": put("vae", "encoder_blocks", 0, 1, "num_layers"),
    "video encoder, bare": put("vae", "encoder_blocks", 0, 1),
    "video decoder": put("vae", "decoder_blocks", 0, 1, "num_layers"),
    "video encoder's list": put("vae", "encoder_blocks", values=([["res_x", 1]] * 10**5, [["res_x", 1]] * 64, [])),
    "video decoder's list": put("vae", "decoder_blocks", values=([["res_x", 1]] * 10**5, [["res_x", 1]] * 64, [])),
    "audio autoencoder": put(*DDCONFIG, "num_res_blocks"),
    "audio autoencoder's list": put(*DDCONFIG, "ch_mult", values=([1] * 10**5, [1] * 64, [10**9], [])),
}


@pytest.mark.parametrize("changes", COUNTS.values(), ids=COUNTS.keys())
@pytest.mark.usefixtures("no_modules")
def test_counts_are_compared_before_a_module_is_made(tiny: TinyFiles, tmp_path: Path, changes: list[Change]) -> None:
    for change in changes:
        path = with_config(tiny.checkpoint, tmp_path / "counts.safetensors", change)
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            ModelSet.open(ModelFiles(path, tiny.gemma), torch.bfloat16)
        assert "counts.safetensors" in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.usefixtures("no_modules")
def test_numbers_of_any_length_are_refused(tiny: TinyFiles, tmp_path: Path) -> None:
    header, nbytes = read_header(tiny.checkpoint)
    config = json.loads(header["__metadata__"]["config"])
    for digits in (20, 400, 6000):
        config["transformer"]["num_layers"] = "@"
        header["__metadata__"]["config"] = json.dumps(config).replace('"@"', "9" * digits)
        path = write_header(tmp_path / "digits.safetensors", header, nbytes)
        with pytest.raises(ConfigError, match=r"transformer\.num_layers"):
            ModelSet.open(ModelFiles(path, tiny.gemma), torch.bfloat16)


SIZES: dict[str, list[Change]] = {
    "dilations": put("vocoder", "vocoder", "resblock_dilation_sizes", 0, values=([1] * 64, [1] * 10**5, [10**9], [])),
    "dilation lists": put("vocoder", "vocoder", "resblock_dilation_sizes", values=([[1] * 64] * 64, [[1]] * 10**5)),
    "blocks": [
        lambda config: config["vocoder"]["bwe"].update(
            resblock_kernel_sizes=[3] * 64, resblock_dilation_sizes=[[1] * 64] * 64
        )
    ],
    "stages": put("vocoder", "bwe", "upsample_rates", values=([1] * 64, [10**9] * 5, [1] * 10**5)),
    "width": put("vocoder", "vocoder", "upsample_initial_channel", values=(10**9, 64 * 10**4, 2**63)),
    "window": put("vocoder", "bwe", "n_fft", values=(10**9, 10**6, 2**63)),
    "rate": put("vocoder", "bwe", "output_sampling_rate", values=(10**9, 10**6)),
}


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES.keys())
def test_what_the_tensors_hold_bounds_the_work(
    tiny23: TinyFiles, sound: int, tmp_path: Path, made: list[nn.Module], changes: list[Change]
) -> None:
    for change in changes:
        made.clear()
        path = with_config(tiny23.checkpoint, tmp_path / "sizes.safetensors", change)
        with pytest.raises((CheckpointError, ConfigError)):
            ModelSet.open(ModelFiles(path, tiny23.gemma), torch.bfloat16)
        assert len(made) <= 2 * sound


FAR: dict[str, tuple[str, str]] = {
    "transformer": (f"{DIT}transformer_blocks.0.", f"{DIT}transformer_blocks.99999999."),
    "connector": (
        "embeddings_connector.transformer_1d_blocks.0.",
        "embeddings_connector.transformer_1d_blocks.99999999.",
    ),
    "video encoder": ("vae.encoder.down_blocks.0.res_blocks.0.", "vae.encoder.down_blocks.0.res_blocks.99999999."),
    "video encoder's stage": ("vae.encoder.down_blocks.0.", "vae.encoder.down_blocks.99999999."),
    "video decoder": ("vae.decoder.up_blocks.0.res_blocks.0.", "vae.decoder.up_blocks.0.res_blocks.99999999."),
    "audio encoder": ("audio_vae.encoder.down.0.block.0.", "audio_vae.encoder.down.0.block.99999999."),
    "audio decoder": ("audio_vae.decoder.up.0.block.0.", "audio_vae.decoder.up.0.block.99999999."),
    "vocoder": ("ups.0.", "ups.99999999."),
}


@pytest.mark.parametrize(("old", "new"), FAR.values(), ids=FAR.keys())
def test_a_far_number_in_a_name_makes_nothing(
    tiny23: TinyFiles, sound: int, tmp_path: Path, made: list[nn.Module], old: str, new: str
) -> None:
    path = renamed(tiny23.checkpoint, tmp_path / "far.safetensors", old, new)
    with pytest.raises(CheckpointError, match=r"does not hold the .* it describes: (config key|1 keys missing)"):
        ModelSet.open(ModelFiles(path, tiny23.gemma), torch.bfloat16)
    assert len(made) <= sound


def test_a_far_number_in_other_files_makes_nothing(
    tiny: TinyFiles, sound: int, tmp_path: Path, made: list[nn.Module]
) -> None:
    models = ModelSet.open(ModelFiles(tiny.checkpoint, tiny.gemma, tiny.upsampler), torch.bfloat16)
    made.clear()
    upsampler = renamed(tiny.upsampler, tmp_path / "up.safetensors", "res_blocks.0.", "res_blocks.99999999.")
    with pytest.raises((CheckpointError, ConfigError), match="res_blocks"):
        ModelSet.open(replace(models.files, upsampler=upsampler), torch.bfloat16)
    assert len(made) <= sound
    lora = renamed(tiny.lora, tmp_path / "lora.safetensors", "transformer_blocks.0.", "transformer_blocks.99999999.")
    with pytest.raises(CheckpointError):
        models.with_lora(LoRASource(lora))
    made.clear()
    gemma = write_header(tmp_path / "gemma.safetensors", *gemma_header(48, 2, "layers.99999999.x"))
    with pytest.raises(CheckpointError, match=r"layers\.99999999\.x is not a tensor of Gemma 3"):
        ModelSet.open(replace(models.files, gemma=gemma), torch.bfloat16)
    assert not made


def described(shapes: Mapping[str, tuple[int, ...]], dtype: str, nbytes: int) -> tuple[JSON, int]:
    """A header's entries for tensors of these shapes, and the bytes of them all."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return header, end


def gemma_header(hidden: int, layers: int, *more: str) -> tuple[JSON, int]:
    """Of a single file of the text encoder."""
    sizes = GemmaSizes(320, hidden, 2 * hidden, layers, 2, 1, 8)
    text = sizes.shapes() | dict.fromkeys(more, (1,))
    header, end = described({f"model.{name}": shape for name, shape in text.items()}, "BF16", 2)
    header["spiece_model"] = {"dtype": "U8", "shape": [4], "data_offsets": [end, end + 4]}
    return header, end + 4


@cache
def released_shapes(variant: Variant) -> dict[str, tuple[int, ...]]:
    """Names in the official file -> shapes, from the modules that the official description makes."""
    config = full_size_config(variant)
    creators: dict[Component, Callable[[], nn.Module]] = {
        Component.TRANSFORMER: lambda: LTXTransformer(TransformerConfig.from_metadata(config)),
        Component.TEXT_CONNECTOR: lambda: TextConnector(TextConfig.from_metadata(config)),
        Component.VIDEO_ENCODER: lambda: VideoEncoder(VideoVAEConfig.from_metadata(config)),
        Component.VIDEO_DECODER: lambda: VideoDecoder(VideoVAEConfig.from_metadata(config)),
        Component.AUDIO_ENCODER: lambda: AudioEncoder(AudioVAEConfig.from_metadata(config)),
        Component.AUDIO_DECODER: lambda: AudioDecoder(AudioVAEConfig.from_metadata(config)),
        Component.VOCODER: lambda: build_vocoder(VocoderConfig.from_metadata(config)),
    }
    with OnMeta():
        return {
            stored_name(component, name, []): tuple(tensor.shape)
            for component, create in creators.items()
            for name, tensor in create().state_dict().items()
        }


def released(folder: Path, variant: Variant, change: Change = lambda _: None, **metadata: str) -> ModelFiles:
    """The headers of released files, the checkpoint with this metadata alone."""
    shapes: JSON = dict(released_shapes(variant))
    change(shapes)
    header, nbytes = described(shapes, "BF16", 2)
    checkpoint = write_header(folder / "model.safetensors", {"__metadata__": metadata, **header}, nbytes)
    gemma = write_header(folder / "gemma.safetensors", *gemma_header(3840, 48))
    return ModelFiles(checkpoint, gemma)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_released_model_without_description_gets_its_own(
    tmp_path: Path, variant: Variant, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ltx2.loading"):
        models = ModelSet.open(released(tmp_path, variant), torch.bfloat16)
    config = full_size_config(variant)
    assert models.generation == variant
    assert models.transformer == TransformerConfig.from_metadata(config)
    assert models.text == TextConfig.from_metadata(config)
    assert models.video_vae == VideoVAEConfig.from_metadata(config)
    assert models.audio_vae == AudioVAEConfig.from_metadata(config)
    assert models.vocoder == VocoderConfig.from_metadata(config)
    assert len(models.notices) == 4 and all(notice in caplog.text for notice in models.notices)
    for section in ("transformer", "vae", "vocoder"):
        said = (
            f"model.safetensors carries no description of its {section}; its tensors are exactly those of LTX-{variant}"
        )
        assert any(notice.startswith(said) for notice in models.notices)


def drop(name: str) -> Change:
    return lambda shapes: shapes.pop(name)


def reshape(name: str, *shape: int) -> Change:
    return lambda shapes: shapes.update({name: shape})


NEARLY: dict[str, tuple[Variant, Change, str]] = {
    "a block less": (
        "2.3",
        lambda shapes: [shapes.pop(name) for name in list(shapes) if ".transformer_blocks.47." in name],
        "transformer",
    ),
    "a tensor less": ("2.3", drop(f"{DIT}proj_out.bias"), "transformer"),
    "a tensor more": ("2.0", reshape(f"{DIT}extra.weight", 3), "transformer"),
    "another shape": ("2.0", reshape(f"{DIT}proj_out.bias", 127), "transformer"),
    "another connector": (
        "2.3",
        reshape(f"{DIT}video_embeddings_connector.learnable_registers", 64, 4096),
        "transformer",
    ),
    "another video VAE": ("2.3", reshape("vae.decoder.conv_out.conv.bias", 96), "vae"),
    "another audio VAE": ("2.0", reshape("audio_vae.decoder.conv_out.conv.bias", 1), "audio_vae"),
    "another vocoder": ("2.3", reshape("vocoder.vocoder.conv_pre.bias", 1), "vocoder"),
    "a far block": ("2.3", reshape(f"{DIT}transformer_blocks.99999999.x", 1), "transformer"),
}


@pytest.mark.parametrize(("variant", "change", "section"), NEARLY.values(), ids=NEARLY.keys())
def test_nearly_a_released_model_is_not_guessed_at(
    tmp_path: Path, variant: Variant, change: Change, section: str
) -> None:
    with pytest.raises(CheckpointError, match=f"carries no description of its model.*'{section}'") as caught:
        ModelSet.open(released(tmp_path, variant, change), torch.bfloat16)
    assert (caught.value.setting, caught.value.path) == ("checkpoint", tmp_path / "model.safetensors")
    assert "metadata ('config') kept" in caught.value.fix


def test_a_tiny_file_without_description_is_refused(tiny: TinyFiles, tmp_path: Path) -> None:
    header, nbytes = read_header(tiny.checkpoint)
    del header["__metadata__"]["config"]
    path = write_header(tmp_path / "tiny.safetensors", header, nbytes)
    with pytest.raises(CheckpointError, match="carries no description of its model") as caught:
        ModelSet.open(ModelFiles(path, tiny.gemma), torch.bfloat16)
    assert "metadata ('config') kept" in caught.value.fix


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    """A release whose modules were made before they are counted."""
    released_shapes(request.param)
    found: Variant = request.param
    return found


@pytest.mark.parametrize("key", ["num_layers", "connector_num_layers"])
@pytest.mark.usefixtures("no_modules")
def test_counts_of_a_released_model_are_compared_first(variant: Variant, tmp_path: Path, key: str) -> None:
    config = full_size_config(variant)
    for value in (10**9, 47):
        config["transformer"][key] = value
        with pytest.raises((CheckpointError, ConfigError), match=key):
            ModelSet.open(released(tmp_path, variant, config=json.dumps(config)), torch.bfloat16)
