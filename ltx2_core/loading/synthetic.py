"""Files in the official format with random weights: tiny ones for tests and demos, full-size models for benchmarks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..components import COMPONENTS, DIT, PARTS
from ..files.saving import save_tensors
from ..kernels.quantise import FP8, FP8_MAX
from ..models.audio_vae.decoder import AudioDecoder
from ..models.audio_vae.encoder import AudioEncoder
from ..models.meta_device import OnMeta
from ..models.upsampler import UpsamplerConfig, UpsamplerKind
from ..models.video_vae.config import ResampleStage
from ..models.video_vae.decoder import VideoDecoder
from ..models.video_vae.encoder import VideoEncoder
from ..models.vocoder import BandwidthExtendedVocoder
from ..types import DTYPES, Component
from ..whole_file import staged
from .keymaps import stored_name
from .synthetic_configs import (
    JSON,
    MODEL_VERSION,
    Variant,
    full_size_config,
    full_size_upsampler_config,
    tiny_config,
    tiny_upsampler_config,
)
from .synthetic_gemma import TINY_HEADS, GemmaHeads, write_tiny_gemma
from .synthetic_weights import LINEAR_GAIN, fill_random_

__all__ = [
    "GemmaHeads",
    "TinyFiles",
    "Variant",
    "fill_random_",
    "full_size_config",
    "full_size_upsampler_config",
    "tiny_config",
    "tiny_upsampler_config",
    "upsampler_of",
    "write_tiny",
]


GEMMA_LAYERS = 4
LORA_RANK = 16  # capped per layer at min(in, out), as in the official file
DISTILLED_EFFECT, USER_EFFECT = 0.15, 0.3  # size of a LoRA's change relative to the weights that it changes

# Loudness and contrast of what the random decoders make: visible and audible, far from clipping.
PICTURE_STD = 0.4  # of pixels in [-1, 1]
LOG_MEL_MEAN, LOG_MEL_STD = -4.0, 1.5  # of speech at a normal level
SOUND_STD = 0.15
BWE_STD = 0.03  # what the bandwidth extension adds
OFFSET = 0.1  # of the sound's own bias: not zero, not heard
INPUT_SCALE = 0.01  # that no reader of ours uses
SKIP_OUTWEIGHED = 3.0
SMOOTHNESS = 0.97  # share of a pixel that it has in common with the others of its patch


@dataclass(frozen=True)
class TinyFiles:
    """Where :func:`write_tiny` put things; names are those of the official release."""

    folder: Path
    checkpoint: Path
    upsampler: Path
    distilled_lora: Path
    lora: Path  # a user LoRA of the same generation, in the same key format
    gemma: Path  # a folder as transformers writes it, with its tokenizer


_NAMES: Mapping[Variant, tuple[str, str, str]] = {
    "2.3": (
        "ltx-2.3-22b-dev.safetensors",
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
    ),
    "2.0": (
        "ltx-2-19b-dev.safetensors",
        "ltx-2-spatial-upscaler-x2-1.0.safetensors",
        "ltx-2-19b-distilled-lora-384.safetensors",
    ),
}


def write_tiny(
    folder: Path,
    variant: Variant = "2.3",
    seed: int = 0,
    dtype: str = "bfloat16",
    config: JSON | None = None,
    upsampler_config: JSON | None = None,
    gemma_layers: int = GEMMA_LAYERS,
    gemma_heads: GemmaHeads = TINY_HEADS,
    fp8: bool = False,
) -> TinyFiles:
    """Writes a complete set of official-format files of a few MB with random weights: all of them, or none.

    Every feature and block type of the released models is there, only the sizes are smaller. Names and shapes come
    from the models' own modules, so that the files load strictly. As in the official files, modulation tables are
    float32 and the rest is ``dtype``.

    Args:
        folder: created when missing; files of the same names are replaced.
        variant: model generation.
        seed: of the weights; the same seed gives the same tensors.
        dtype: ``bfloat16`` or ``float32``.
        config: what the checkpoint describes; None: :func:`tiny_config`.
        upsampler_config: what the upsampler describes; None: :func:`tiny_upsampler_config`.
        gemma_layers, gemma_heads: of the text encoder; it is as wide as the checkpoint's ``caption_channels``.
        fp8: the checkpoint is in the layout of the official fp8 files (docs/model.md 1.4), under their name.
    """
    config, upsampler_config = config or tiny_config(variant), upsampler_config or tiny_upsampler_config(variant)
    with staged(Path(folder)) as stage:
        _write(
            _tiny_files(stage, variant, fp8),
            variant,
            seed,
            dtype,
            config,
            upsampler_config,
            gemma_layers,
            gemma_heads,
            fp8,
        )
    return _tiny_files(Path(folder), variant, fp8)


def _tiny_files(folder: Path, variant: Variant, fp8: bool) -> TinyFiles:
    checkpoint, upscaler, distilled_lora = (folder / name for name in _NAMES[variant])
    if fp8:
        checkpoint = checkpoint.with_stem(f"{checkpoint.stem}-fp8")
    return TinyFiles(
        folder, checkpoint, upscaler, distilled_lora, lora=folder / "user-lora.safetensors", gemma=folder / "gemma"
    )


def _write(
    files: TinyFiles,
    variant: Variant,
    seed: int,
    dtype: str,
    config: JSON,
    upsampler_config: JSON,
    gemma_layers: int,
    gemma_heads: GemmaHeads,
    fp8: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    version, text_width = MODEL_VERSION[variant], config["transformer"]["caption_channels"]
    parts = _build_parts(config, text_width * (gemma_layers + 1), generator)
    tensors = _official_state_dict(parts)
    if fp8:
        tensors = _with_fp8(tensors, config["transformer"]["num_layers"])
    _save(files.checkpoint, tensors, DTYPES[dtype], version, config)
    with OnMeta():
        upsampler = upsampler_of(upsampler_config)
    fill_random_(upsampler, generator)
    _save(files.upsampler, upsampler.state_dict(), DTYPES[dtype], version, upsampler_config)
    _save(files.distilled_lora, _lora(parts.transformer, DISTILLED_EFFECT, generator), DTYPES[dtype], version)
    _save(files.lora, _lora(parts.transformer, USER_EFFECT, generator), DTYPES[dtype], version)
    write_tiny_gemma(files.gemma, text_width, gemma_layers, generator, gemma_heads)


@dataclass(frozen=True)
class _Parts:
    """The modules whose tensors make up the single file."""

    transformer: nn.Module
    text_connector: nn.Module
    video_encoder: VideoEncoder
    video_decoder: VideoDecoder
    audio_encoder: AudioEncoder
    audio_decoder: AudioDecoder
    vocoder: nn.Module


def _build_parts(config: JSON, projection_inputs: int, generator: torch.Generator) -> _Parts:
    with OnMeta():
        parts = _Parts(**{component.value: _make(component, config, projection_inputs) for component in PARTS})
    for part in vars(parts).values():
        fill_random_(part, generator)
    # The file holds one set of statistics per autoencoder.
    for encoder, decoder in ((parts.video_encoder, parts.video_decoder), (parts.audio_encoder, parts.audio_decoder)):
        decoder.per_channel_statistics.load_state_dict(encoder.per_channel_statistics.state_dict())
    _make_visible(parts, generator)
    _make_audible(parts, generator)
    return parts


def _make(component: Component, config: JSON, projection_inputs: int) -> Any:
    row = COMPONENTS[component]
    return row.make(row.read(config, {"aggregate_embed.weight": (0, projection_inputs)}))


def upsampler_of(config: JSON) -> nn.Module:
    """The x2 upsampler that a description asks for, on the default device. A file tells its sizes by its tensors."""
    kind = UpsamplerKind.X2_RATIONAL if config["rational_resampler"] else UpsamplerKind.X2
    sizes = (config[key] for key in ("in_channels", "mid_channels", "num_blocks_per_stage"))
    return COMPONENTS[Component.UPSAMPLER].make(UpsamplerConfig(kind, *sizes))


@torch.no_grad()
def _make_visible(parts: _Parts, generator: torch.Generator) -> None:
    """Gives random latents a picture with shapes in it: without this every pixel would be noise of its own."""
    decoder = parts.video_decoder
    stages = enumerate(decoder.config.decoder_stages)
    layers = [(f"up_blocks.{i}.conv.conv", stage) for i, stage in stages if isinstance(stage, ResampleStage)]
    for name, stage in layers:
        if stage.residual:  # the skip unfolds unrelated channels into neighbours: noise, unless it is outweighed
            decoder.get_parameter(f"{name}.weight").mul_(SKIP_OUTWEIGHED)
    unfolded = [(name, stage.cells) for name, stage in layers]
    for name, cells in [*unfolded, ("conv_out.conv", decoder.config.patch_size**2)]:
        convolution = decoder.get_submodule(name)
        for tensor in convolution.parameters():
            # The outputs of one input cell are neighbours in the picture, adjacent in the channel order.
            own = tensor.view(-1, cells, *tensor.shape[1:])
            shared = own.mean(1, keepdim=True) * math.sqrt(cells)  # as large as one of them
            own.mul_(math.sqrt(1 - SMOOTHNESS)).add_(shared, alpha=math.sqrt(SMOOTHNESS))
    latent = torch.randn(1, decoder.config.latent_channels, 3, 4, 6, generator=generator)
    _rescale_output(decoder.get_submodule("conv_out.conv"), decoder.decode(latent), 0.0, PICTURE_STD)


@torch.no_grad()
def _make_audible(parts: _Parts, generator: torch.Generator) -> None:
    """Sets the levels of the spectrogram and of the waveform."""
    geometry = parts.audio_decoder.config.geometry
    latent = torch.randn(1, geometry.channels, 25, geometry.mel_bins, generator=generator)
    output = parts.audio_decoder.get_submodule("conv_out.conv")
    _rescale_output(output, parts.audio_decoder.decode(latent), LOG_MEL_MEAN, LOG_MEL_STD)
    mel = parts.audio_decoder.decode(latent)
    if isinstance(parts.vocoder, BandwidthExtendedVocoder):
        _set_level(parts.vocoder.vocoder, mel, SOUND_STD)
        extension = parts.vocoder.bwe_generator
        _set_level(extension, parts.vocoder.mel_stft(parts.vocoder.vocoder(mel)), BWE_STD)
    else:
        _set_level(parts.vocoder, mel, SOUND_STD)


def _rescale_output(layer: nn.Module, output: Tensor, mean: float, std: float) -> None:
    """Changes a last layer so that each channel of what came out as ``output`` has this mean and deviation."""
    channels = output.transpose(0, 1).flatten(1)
    gain = (std / channels.std(1)).unsqueeze(1)
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    weight.view(len(gain), -1).mul_(gain)  # a pixel's patch lies side by side in the layer's outputs
    bias.view(len(gain), -1).sub_(channels.mean(1, keepdim=True)).mul_(gain).add_(mean)


def _set_level(vocoder: nn.Module, mel: Tensor, std: float) -> None:
    layer = vocoder.get_submodule("conv_post")
    weight, bias = layer.get_parameter("weight"), dict(layer.named_parameters()).get("bias")
    # The activations before it are positive on average: filters that add up to zero keep that out of the sound.
    weight.sub_(weight.mean(-1, keepdim=True))
    if bias is not None:
        bias.mul_(OFFSET)
    quiet = 1e-3  # far from the bounds, where the output is proportional to the weights
    for parameter in layer.parameters():
        parameter.mul_(quiet)
    gain = std / float(vocoder(mel).std())
    for parameter in layer.parameters():
        parameter.mul_(gain)


def _lora(transformer: nn.Module, effect: float, generator: torch.Generator) -> dict[str, Tensor]:
    """A LoRA on every linear layer; its change of a weight is ``effect`` times as large as the weight."""
    tensors = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear):
            rank = min(LORA_RANK, layer.in_features, layer.out_features)
            down = torch.randn(rank, layer.in_features, generator=generator) / math.sqrt(layer.in_features)
            up = torch.randn(layer.out_features, rank, generator=generator) * (effect * LINEAR_GAIN / math.sqrt(rank))
            tensors[f"diffusion_model.{name}.lora_A.weight"] = down
            tensors[f"diffusion_model.{name}.lora_B.weight"] = up
    return tensors


def _official_state_dict(parts: _Parts) -> dict[str, Tensor]:
    """All tensors under the names of the single file (docs/model.md 1.2)."""
    tensors = {
        stored_name(Component(part), key, ()): tensor
        for part, module in vars(parts).items()
        for key, tensor in module.state_dict().items()
    }
    # Official files carry more statistics, which nobody reads.
    std = tensors["vae.per_channel_statistics.std-of-means"]
    tensors["vae.per_channel_statistics.channel"] = torch.arange(len(std), dtype=torch.float32)
    tensors["vae.per_channel_statistics.mean-of-stds"] = std * 0.1
    return tensors


def _with_fp8(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """All linear layers of the blocks in fp8 with one scale each, but those of the first and the last block."""
    blocks = tuple(f"{DIT.roots[0]}transformer_blocks.{block}." for block in range(1, num_layers - 1))
    stored = dict(tensors)
    for key, weight in tensors.items():
        if key.startswith(blocks) and key.endswith(".weight") and weight.ndim == 2:
            layer = key.removesuffix(".weight")
            scale = weight.abs().max().float() / FP8_MAX
            stored[key] = (weight.float() / scale).to(FP8)
            stored[f"{layer}.weight_scale"] = scale
            stored[f"{layer}.input_scale"] = torch.tensor(INPUT_SCALE)
    return stored


def _save(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, version: str, config: JSON | None = None
) -> None:
    stored = {
        key: tensor.detach().to(_stored_dtype(key, tensor, dtype)).contiguous() for key, tensor in tensors.items()
    }
    metadata = {"format": "pt", "model_version": version}
    if config is not None:
        metadata["config"] = json.dumps(config)
    save_tensors(path, stored, metadata)


def _stored_dtype(key: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """As in the official files: modulation tables and the scales of fp8 weights are float32."""
    if tensor.dtype is FP8:
        return FP8
    name = key.rpartition(".")[2]
    return torch.float32 if "scale_shift_table" in name or name in ("weight_scale", "input_scale") else dtype
