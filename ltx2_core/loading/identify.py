"""Tells what a model file is from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from ..components import AUDIO_VAE, DIT, PROJECTION, VIDEO_VAE, VOCODER
from ..files.header import TensorInfo
from ..files.safetensors_file import SafetensorsFile


class FileKind(str, Enum):
    """What a file holds; the values are shown to people."""

    FULL_MODEL = "full model"
    TRANSFORMER = "transformer only"
    VIDEO_VAE = "video VAE"
    AUDIO_VAE = "audio VAE and vocoder"
    TEXT_PROJECTION = "text projection"
    UPSAMPLER = "latent upsampler"
    LORA = "LoRA"
    GEMMA = "Gemma 3 text encoder"
    OTHER_MODEL = "another model"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Identity:
    """Attributes: detail: what it looks like, in words, where the kind alone does not say it."""

    kind: FileKind
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} ({self.detail})" if self.detail else self.kind.value


# Other models' checkpoints, by a pattern that only their keys match.
_OTHER_MODELS: tuple[tuple[str, str], ...] = (
    (r"blocks\.\d+\.(self_attn|cross_attn)\.q\.", "a Wan video model"),
    (r"double_blocks\.\d+\.img_attn|double_blocks\.\d+\.img_attn_qkv", "a Flux or Hunyuan Video model"),
    (r"joint_blocks\.\d+\.", "a Stable Diffusion 3 model"),
    (r"(input_blocks|output_blocks)\.\d+\.|down_blocks\.\d+\.attentions\.", "a Stable Diffusion 1, 2 or XL model"),
    (r"first_stage_model\.|quant_conv\.|decoder\.mid\.block_1\.", "an image model or its VAE"),
    (r"transformer_blocks\.\d+\.img_mod\.", "a Qwen-Image model"),
    (r"(transformer_)?blocks\.\d+\.(adaLN_modulation|norm1\.linear)", "a DiT of another family"),
    (r"encoder\.block\.\d+\.layer\.\d+\.SelfAttention", "a T5 text encoder"),
    (r"text_model\.encoder\.layers\.", "a CLIP text encoder"),
)
_GEMMA = re.compile(r"(^|\.)layers\.\d+\.(pre_feedforward_layernorm|self_attn\.q_norm)\.weight$")
_LORA = re.compile(
    r"[._]lora(_linear_layer)?\.(up|down)\.|\.lora_([ABab]|up|down)(\.|$)|(^|\.)(lora_(unet|te\d?|transformer)|lycoris)_"
    r"|\.(hada|lokr|oft|vera)_|\.(dora_scale|diff|diff_b|set_weight|[wb]_norm)$"
)


def identify(file: SafetensorsFile) -> Identity:
    """What the file is; never raises."""
    return identify_keys(file.tensors)


def identify_keys(tensors: Mapping[str, TensorInfo]) -> Identity:
    if any(_LORA.search(key) for key in tensors):
        return Identity(FileKind.LORA)
    root = DIT.root_in(tensors)
    if root is not None:
        return _identify_transformer(tensors, root)
    if {"initial_conv.weight", "final_conv.weight"} <= tensors.keys():
        return Identity(FileKind.UPSAMPLER)
    if PROJECTION.root_in(tensors) is not None:
        return Identity(FileKind.TEXT_PROJECTION)
    if vae := _identify_autoencoder(tensors):
        return vae
    if any(_GEMMA.search(key) for key in tensors):
        return Identity(FileKind.GEMMA)
    if any(".time_embed.emb." in f".{key}" or ".audio_proj_in." in f".{key}" for key in tensors):
        return Identity(FileKind.OTHER_MODEL, "LTX in diffusers' layout, with its renamed tensors")
    if name := other_model(tensors):
        return Identity(FileKind.OTHER_MODEL, name)
    return Identity(FileKind.UNKNOWN)


def other_model(keys: Iterable[str]) -> str | None:
    """Which other model has such keys, in words."""
    found = list(keys)
    for pattern, name in _OTHER_MODELS:
        if any(re.search(rf"(^|\.){pattern}", key) for key in found):
            return name
    return None


def _identify_transformer(keys: Collection[str], root: str) -> Identity:
    if f"{root}audio_patchify_proj.weight" not in keys:
        return Identity(FileKind.OTHER_MODEL, "LTX-Video 0.9 or another LTX model without sound")
    others = (key for key in keys if key.startswith(("vae.", "audio_vae.", "vocoder.")))
    return Identity(FileKind.FULL_MODEL if any(others) else FileKind.TRANSFORMER)


def _identify_autoencoder(tensors: Mapping[str, TensorInfo]) -> Identity | None:
    if any(key.startswith("audio_vae.") for key in tensors) or VOCODER.root_in(tensors) is not None:
        return Identity(FileKind.AUDIO_VAE)
    if VIDEO_VAE.root_in(tensors) is None and AUDIO_VAE.root_in(tensors) is None:
        return None
    # Convolutions are over time, height and width in the video VAE, over time and pitch in the audio VAE.
    ranks = {len(info.shape) for key, info in tensors.items() if key.endswith(".conv.weight")}
    return Identity(FileKind.VIDEO_VAE if 5 in ranks else FileKind.AUDIO_VAE)
