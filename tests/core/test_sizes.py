"""Whole runs on files of sizes that no released model and no other test has: every size comes from the file.

The expected shapes are worked out here from the metadata alone. That the numbers are right is what the parity tests
show, over random sizes as well.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.assembly import open_manager
from ltx2_two_stage.ltx2_core.errors import ConfigError, SettingError
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ltx2_two_stage.ltx2_core.loading.synthetic import (
    GemmaHeads,
    TinyFiles,
    Variant,
    tiny_config,
    tiny_upsampler_config,
    write_tiny,
)
from ltx2_two_stage.ltx2_core.loading.synthetic_gemma import TINY_HEADS
from ltx2_two_stage.ltx2_core.models.audio_vae import waveform_to_mel
from ltx2_two_stage.ltx2_core.models.video_vae import VideoEncoder, VideoVAEConfig
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.recipes import official_recipe
from ltx2_two_stage.ltx2_core.request import GenerationRequest
from ltx2_two_stage.ltx2_core.types import Component, ImageCondition
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

JSON = dict[str, Any]
SIZE, FRAMES, FPS, STEPS = 128, 9, 24.0, 2
TEXT_TOKENS = 1024


def res(count: int) -> list[Any]:
    return ["res_x", {"num_layers": count}]


def down(axes: str, multiplier: int) -> list[Any]:
    return [f"compress_{axes}_res", {"multiplier": multiplier}]


def up(axes: str, multiplier: int, **more: Any) -> list[Any]:
    return [f"compress_{axes}", {"multiplier": multiplier, **more}]


def generator(channels: int, rates: Mapping[int, int], blocks: Mapping[int, list[int]], amp: bool = True) -> JSON:
    """A vocoder's section: upsampling rate to kernel, residual kernel to dilations."""
    return {
        "upsample_initial_channel": channels,
        "upsample_rates": list(rates),
        "upsample_kernel_sizes": list(rates.values()),
        "resblock_kernel_sizes": list(blocks),
        "resblock_dilation_sizes": list(blocks.values()),
        "resblock": "AMP1" if amp else "1",
        "activation": "snakebeta" if amp else "leaky_relu",
        "use_tanh_at_final": not amp,
        "use_bias_at_final": not amp,
        "stereo": True,
    }


def audio(rate: int, hop: int, n_fft: int, bins: int, **network: Any) -> JSON:
    return {
        "model": {"params": {"sampling_rate": rate, "ddconfig": {"mel_bins": bins, **network}}},
        "preprocessing": {
            "audio": {"sampling_rate": rate},
            "stft": {"hop_length": hop, "filter_length": n_fft, "win_length": n_fft},
            "mel": {"n_mel_channels": bins, "mel_fmax": rate // 2},
        },
    }


def streams(video: tuple[int, int], audio: tuple[int, int], **more: Any) -> JSON:
    """The transformer's heads and their width, by stream, and the widths that follow."""
    return {
        "num_attention_heads": video[0],
        "attention_head_dim": video[1],
        "cross_attention_dim": math.prod(video),
        "audio_num_attention_heads": audio[0],
        "audio_attention_head_dim": audio[1],
        "audio_cross_attention_dim": math.prod(audio),
        **more,
    }


def connectors(video: tuple[int, int], audio: tuple[int, int] | None, layers: int, registers: int) -> JSON:
    own = {} if audio is None else dict(zip(("heads", "head_dim"), audio, strict=True))
    return {
        "connector_num_attention_heads": video[0],
        "connector_attention_head_dim": video[1],
        "connector_num_layers": layers,
        "connector_num_learnable_registers": registers,
        "audio_connector_num_attention_heads": own.get("heads"),
        "audio_connector_attention_head_dim": own.get("head_dim"),
    }


@dataclass(frozen=True)
class Case:
    """What one set of files has that the tiny ones do not."""

    variant: Variant = "2.3"
    transformer: JSON = field(default_factory=dict)
    vae: JSON = field(default_factory=dict)
    audio_vae: JSON = field(default_factory=dict)
    vocoder: JSON | None = None  # takes the place of the tiny one
    upsampler: JSON = field(default_factory=dict)
    gemma_layers: int = 4
    gemma_heads: GemmaHeads = TINY_HEADS

    def config(self) -> JSON:
        """The checkpoint's; the channels that the transformer takes follow from the autoencoders'."""
        config = tiny_config(self.variant)
        merge(config["vae"], self.vae)
        merge(config["audio_vae"], self.audio_vae)
        if self.vocoder is not None:
            config["vocoder"] = copy.deepcopy(self.vocoder)
        network = config["audio_vae"]["model"]["params"]["ddconfig"]
        token = network["z_channels"] * network["mel_bins"] // 2 ** (len(network["ch_mult"]) - 1)
        latent = config["vae"]["latent_channels"]
        merge(config["transformer"], {"in_channels": latent, "out_channels": latent})
        merge(config["transformer"], {"audio_in_channels": token, "audio_out_channels": token})
        merge(config["transformer"], self.transformer)
        return config

    def upsampler_config(self) -> JSON:
        config = {**tiny_upsampler_config(self.variant), **self.upsampler}
        return {**config, "in_channels": self.config()["vae"]["latent_channels"]}


def merge(target: JSON, changes: Mapping[str, Any]) -> None:
    """Changes values where they stand; None takes a key away."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            merge(target[key], value)
        elif value is None:
            target.pop(key, None)
        else:
            target[key] = copy.deepcopy(value)


VAE_4_16_16 = {
    "latent_channels": 8,
    "encoder_base_channels": 12,
    "decoder_base_channels": 8,
    "encoder_blocks": [res(2), down("all", 2), res(1), down("all", 4)],
    "decoder_blocks": [res(1), up("all", 2, residual=True), up("time", 1), up("space", 2), res(3)],
    "spatial_padding_mode": "reflect",
}
VAE_8_16_16_PATCH_2 = {
    "latent_channels": 32,
    "patch_size": 2,
    "encoder_base_channels": 16,
    "decoder_base_channels": 4,
    "encoder_blocks": [down("all", 1), res(1), down("all", 2), res(2), down("all", 8), res(1)],
    "decoder_blocks": [up("all", 4, residual=True), res(2), up("all", 1, residual=True), up("all", 2), res(1)],
    "spatial_padding_mode": None,
    "encoder_spatial_padding_mode": "reflect",
    "decoder_spatial_padding_mode": "zeros",
}
VAE_8_32_32_PATCH_2 = {
    "latent_channels": 24,
    "patch_size": 2,
    "encoder_base_channels": 8,
    "decoder_base_channels": 5,
    "encoder_blocks": [down("space", 1), down("space", 2), down("time", 1), res(1), down("all", 2), down("all", 1)],
    "decoder_blocks": [up("space", 2), up("all", 3), res(1), up("time", 1), up("all", 2), up("space", 1)],
}
VAE_2_8_8_PATCH_1 = {
    "latent_channels": 8,
    "patch_size": 1,
    "encoder_base_channels": 4,
    "decoder_base_channels": 4,
    "encoder_blocks": [res(1), down("space", 1), down("space", 4), down("all", 2)],
    "decoder_blocks": [up("all", 2), up("space", 2), up("space", 1)],
}

CASES: dict[str, Case] = {
    "streams of unequal heads": Case(
        transformer=streams((6, 16), (3, 8), num_layers=5, caption_channels=40) | connectors((2, 48), (1, 24), 1, 16),
        gemma_layers=2,
        gemma_heads=GemmaHeads(2, 1, 12),
    ),
    "2.0, more audio heads than video heads, interleaved": Case(
        "2.0",
        transformer=streams(
            (2, 10),
            (3, 22),
            num_layers=1,
            caption_channels=18,
            rope_type="interleaved",
            frequencies_precision="float32",
            positional_embedding_theta=500.0,
            positional_embedding_max_pos=[7, 300, 450],
            audio_positional_embedding_max_pos=[31],
            connector_positional_embedding_max_pos=[1000],
            timestep_scale_multiplier=500,
            av_ca_timestep_scale_multiplier=250.0,
            norm_eps=1e-5,
        )
        | connectors((3, 6), None, 3, 256),
        gemma_layers=1,
        gemma_heads=GemmaHeads(1, 1, 8),
        upsampler={"mid_channels": 32, "num_blocks_per_stage": 3},
    ),
    "one head, connectors as wide as each other": Case(
        transformer=streams((1, 36), (1, 36), num_layers=2, caption_channels=30) | connectors((6, 6), None, 2, 64),
        gemma_heads=GemmaHeads(3, 3, 6),
        upsampler={"rational_resampler": True, "mid_channels": 96, "num_blocks_per_stage": 2},
    ),
    "video cells of 4 x 16 x 16": Case(vae=VAE_4_16_16, upsampler={"mid_channels": 32}),
    "video cells of 8 x 16 x 16, patches of 2": Case(
        vae=VAE_8_16_16_PATCH_2, transformer={"connector_num_learnable_registers": 1024}
    ),
    "video cells of 8 x 32 x 32, patches of 2": Case(vae=VAE_8_32_32_PATCH_2),
    "2.0, video cells of 2 x 8 x 8, no patches": Case(
        "2.0", vae=VAE_2_8_8_PATCH_1, upsampler={"rational_resampler": False}
    ),
    "sound: 2 levels, 8 kHz, 16 kHz out": Case(
        audio_vae=audio(8000, 80, 256, 32, ch=24, ch_mult=[1, 2], z_channels=4, num_res_blocks=2),
        vocoder={
            "vocoder": generator(32, {5: 9, 4: 8, 2: 4, 1: 3} | {2: 6}, {3: [1, 2], 5: [1]}),
            "bwe": {
                **generator(24, {8: 16, 10: 12}, {7: [2]}),
                "input_sampling_rate": 4000,
                "output_sampling_rate": 16000,
                "hop_length": 20,
                "n_fft": 96,
                "win_size": 96,
                "num_mels": 10,
            },
        },
    ),
    "sound: 4 levels, 24 kHz, no extension": Case(
        audio_vae=audio(24000, 240, 512, 80, ch=10, ch_mult=[1, 2, 2, 4], z_channels=3, double_z=False),
        vocoder=generator(16, {15: 31, 16: 16}, {3: [1], 9: [1, 4], 5: [3, 1]}, amp=False),
        transformer=streams((4, 8), (2, 12)) | connectors((2, 16), (4, 6), 1, 32),
    ),
    "sound: 1 level, anti-aliased, no extension": Case(
        audio_vae=audio(16000, 320, 512, 20, ch=6, ch_mult=[2], z_channels=1, num_res_blocks=3),
        vocoder=generator(32, {10: 20, 8: 8}, {3: [1, 3]}),
    ),
    "2.0, other sound": Case(
        "2.0",
        audio_vae=audio(22050, 441, 1024, 64, ch=16, ch_mult=[3, 1], z_channels=2, num_res_blocks=1),
        vocoder=generator(64, {7: 11, 3: 5, 21: 21}, {11: [1, 3, 5]}, amp=False),
    ),
}


@dataclass(frozen=True)
class Made:
    case: Case
    files: TinyFiles
    models: ModelSet


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case = CASES[request.param]
    files = write(case, tmp_path_factory.mktemp("sizes"))
    return Made(case, files, open_models(files))


def write(case: Case, folder: Path) -> TinyFiles:
    files = write_tiny(
        folder,
        case.variant,
        dtype="float32",
        config=case.config(),
        upsampler_config=case.upsampler_config(),
        gemma_layers=case.gemma_layers,
        gemma_heads=case.gemma_heads,
    )
    mix_ranks(files.lora)
    return files


def mix_ranks(path: Path) -> None:
    """Gives every module of a LoRA another rank, every second one an alpha, and leaves some modules out."""
    tensors, mixed = load_file(path), {}
    modules = sorted({key.rpartition(".lora_")[0] for key in tensors})
    for number, module in enumerate(modules):
        a, b = (tensors[f"{module}.lora_{side}.weight"] for side in "AB")
        rank = min(1 + number % 7, len(a))
        if number % 5:
            mixed[f"{module}.lora_A.weight"] = a[:rank].contiguous()
            mixed[f"{module}.lora_B.weight"] = b[:, :rank].contiguous()
            if number % 2:
                mixed[f"{module}.alpha"] = torch.tensor(rank / 2)
    save_file(mixed, path)


def open_models(files: TinyFiles) -> ModelSet:
    loras = (LoRASource(files.lora, 0.7),)
    sources = ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora, loras)
    return ModelSet.open(sources, torch.float32)


def scale_of(vae: JSON) -> tuple[int, int]:
    """Frames and pixels per cell."""
    names = [name for name, _ in vae["encoder_blocks"]]
    time, space, both = (names.count(f"compress_{axes}_res") for axes in ("time", "space", "all"))
    return 2 ** (time + both), 2 ** (space + both) * vae["patch_size"]


def test_a_whole_run(made: Made) -> None:
    config, models = made.case.config(), made.models
    recipe = official_recipe("two-stage", made.case.variant, config["transformer"]["num_layers"])
    image = torch.arange(3 * SIZE * SIZE, dtype=torch.int64).remainder(251).to(torch.uint8).view(SIZE, SIZE, 3)
    request = GenerationRequest(
        "the cat walks on the water",
        replace(recipe, steps=STEPS),
        width=SIZE,
        height=SIZE,
        frames=FRAMES,
        fps=FPS,
        images=(ImageCondition(image), ImageCondition(image, frame=FRAMES - 1, strength=0.5)),
    )
    result = Pipeline(models, open_manager(models, torch.device("cpu"), None)).run(request, keep_latents=True)

    transformer, network = config["transformer"], config["audio_vae"]["model"]["params"]["ddconfig"]
    rate = config["audio_vae"]["model"]["params"]["sampling_rate"]
    hop = config["audio_vae"]["preprocessing"]["stft"]["hop_length"]
    shrink = 2 ** (len(network["ch_mult"]) - 1)
    tokens = round(FRAMES / FPS * rate / hop / shrink)
    spectrum = shrink * (tokens - 1) + 1
    sound = (1, network["z_channels"], tokens, network["mel_bins"] // shrink)
    time, space = scale_of(config["vae"])
    cells = (1, config["vae"]["latent_channels"], (FRAMES - 1) // time + 1)
    old = made.case.variant == "2.0"
    widths = [transformer["caption_channels" if old else f"{a}cross_attention_dim"] for a in ("", "audio_")]
    first = config["vocoder"].get("vocoder", config["vocoder"])
    extension = config["vocoder"].get("bwe")
    samples, played = spectrum * math.prod(first["upsample_rates"]), rate / hop * math.prod(first["upsample_rates"])
    factor = extension["output_sampling_rate"] // extension["input_sampling_rate"] if extension else 1

    shapes = {name: tuple(tensor.shape) for name, tensor in result.latents.items()}
    assert shapes == {
        "video_context": (1, TEXT_TOKENS, widths[0]),
        "audio_context": (1, TEXT_TOKENS, widths[1]),
        "negative_video_context": (1, TEXT_TOKENS, widths[0]),
        "negative_audio_context": (1, TEXT_TOKENS, widths[1]),
        "stage1_sigmas": (STEPS + 1,),
        "stage1_video": (*cells, SIZE // 2 // space, SIZE // 2 // space),
        "upsampled_video": (*cells, SIZE // space, SIZE // space),
        "stage2_video": (*cells, SIZE // space, SIZE // space),
        "stage1_audio": sound,
        "stage2_audio": sound,
        "audio_waveform": (1, 2, samples * factor),
        "frames": (FRAMES, SIZE, SIZE, 3),
    }
    assert result.audio.sampling_rate == played * factor
    for name, tensor in result.latents.items():
        assert tensor.isfinite().all(), name
        assert tensor.float().std() > 0, name


def test_the_audio_encoder_undoes_the_decoders_shape(made: Made) -> None:
    """No run needs it yet; its sizes come from the file all the same."""
    audio, geometry = made.models.audio_vae, made.models.audio_geometry
    clip = torch.rand(1, audio.in_channels, audio.sampling_rate // 2, generator=torch.Generator().manual_seed(1)) - 0.5
    encoder, decoder = (made.models.build(c, "cpu") for c in (Component.AUDIO_ENCODER, Component.AUDIO_DECODER))
    mel = waveform_to_mel(clip, audio)
    latent: Tensor = encoder(mel)
    assert latent.shape == (1, geometry.channels, -(-mel.shape[2] // geometry.downsample), geometry.mel_bins)
    assert latent.isfinite().all()
    decoded = decoder(latent)
    assert decoded.shape[2] == geometry.downsample * (latent.shape[2] - 1) + 1
    assert decoded.shape[3] == audio.mel_bins


# What cannot work by construction, and the key that the error has to name.
IMPOSSIBLE: dict[str, tuple[JSON, str]] = {
    "video heads that the exchange cannot share": (
        {"transformer": streams((5, 16), (2, 16))},
        "transformer.num_attention_heads",
    ),
    "odd heads": ({"transformer": streams((4, 9), (4, 4))}, "transformer.attention_head_dim"),
    "video connector of another width": (
        {"transformer": {"connector_num_attention_heads": 3}},
        "transformer.connector_num_attention_heads",
    ),
    "audio connector of another width": (
        {"transformer": {"audio_connector_num_attention_heads": None, "audio_connector_attention_head_dim": None}},
        "transformer.audio_connector_num_attention_heads",
    ),
    "registers": (
        {"transformer": {"connector_num_learnable_registers": 96}},
        "transformer.connector_num_learnable_registers",
    ),
    "text width": ({"transformer": {"caption_channels": 47}}, "transformer.caption_channels"),
    "other latents than the video autoencoder": (
        {"transformer": {"in_channels": 24, "out_channels": 24}},
        "transformer.in_channels",
    ),
    "other latents than the audio autoencoder": (
        {"transformer": {"audio_in_channels": 24, "audio_out_channels": 24}},
        "transformer.audio_in_channels",
    ),
    "patches of another scale": (
        {"vae": {"encoder_blocks": VAE_4_16_16["encoder_blocks"]}},
        "vae.decoder_blocks",
    ),
    "multiplier": (
        {"vae": {"encoder_blocks": [down("all", 3)]}},
        "vae.encoder_blocks[0].compress_all_res.multiplier",
    ),
    "mel bands": (
        {"audio_vae": audio(16000, 160, 1024, 30)},
        "audio_vae.model.params.ddconfig.mel_bins",
    ),
    "sound at another rate": (
        {"audio_vae": audio(16000, 200, 1024, 64)},
        "vocoder.bwe.input_sampling_rate",
    ),
    "extension of another rate": (
        {"vocoder": {"bwe": {"output_sampling_rate": 64000}}},
        "vocoder.bwe.upsample_rates",
    ),
    "channels that cannot be halved": (
        {"vocoder": {"vocoder": {"upsample_initial_channel": 96 + 1}}},
        "vocoder.vocoder.upsample_initial_channel",
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), "2.3")


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_work_is_refused_by_its_key(name: str, tiny: TinyFiles, tmp_path: Path) -> None:
    changes, key = IMPOSSIBLE[name]
    with safe_open(tiny.checkpoint, framework="pt") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata["config"])
    merge(config, changes)
    changed = tmp_path / tiny.checkpoint.name
    save_file(load_file(tiny.checkpoint), changed, {**metadata, "config": json.dumps(config)})
    with pytest.raises(ConfigError) as caught:
        ModelSet.open(ModelFiles(changed, tiny.gemma), torch.float32)
    assert caught.value.key == key


def test_a_reflecting_encoder_refuses_single_cells() -> None:
    """There is nothing to reflect; released encoders pad with zeros and take them."""
    config = VideoVAEConfig.from_metadata({"vae": {**tiny_config()["vae"], "spatial_padding_mode": "reflect"}})
    with torch.device("meta"):
        encoder = VideoEncoder(config)
        with pytest.raises(SettingError, match=r"width.*32.*Use 64"):
            encoder.encode(torch.zeros(1, 3, 1, 64, 32))
