"""Parts of the workflows that the host tests queue, in API format, for the tiny files of conftest."""

from __future__ import annotations

from typing import Any

Prompt = dict[str, dict[str, Any]]


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


_FILES = {
    "2.3": {
        "checkpoint": "ltx-2.3-22b-dev.safetensors",
        "text_encoder": "gemma-2.3",
        "distilled_lora": "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        "upsampler": "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
    },
    "2.0": {
        "checkpoint": "ltx-2-19b-dev.safetensors",
        "text_encoder": "gemma-2.0",
        "distilled_lora": "ltx-2-19b-distilled-lora-384.safetensors",
        "upsampler": "ltx-2-spatial-upscaler-x2-1.0.safetensors",
    },
}


def loader(generation: str = "2.3", **changes: Any) -> dict[str, Any]:
    return node("LTX2TwoStageLoader", **{**_FILES[generation], "dtype": "auto", "device_mode": "auto", **changes})


TEXTS = {"prompt": "A red kite climbs over a windy beach, waves roar.", "negative_prompt": "blurry, silent"}

# A recipe of presets alone, as a fresh node has it
RECIPE: dict[str, Any] = {
    "preset": "two-stage",
    "steps": 2,
    "sampler": "preset",
    **{f"{stream}_{scale}": -1.0 for stream in ("video", "audio") for scale in ("cfg", "stg", "modality", "rescale")},
    **{f"{stream}_blocks": "" for stream in ("video", "audio")},
    **{f"{stream}_skip": -1 for stream in ("video", "audio")},
    "distilled_strength_1": -1.0,
    "distilled_strength_2": -1.0,
    "audio_source": "preset",
    "revision": "newest",
}


def save_latent(latent: list[Any], prefix: str) -> Prompt:
    """Both streams through the host's own nodes into files."""
    return {
        f"{prefix}split": node("LTXVSeparateAVLatent", av_latent=latent),
        f"{prefix}video": node("SaveLatent", samples=[f"{prefix}split", 0], filename_prefix=f"{prefix}video"),
        f"{prefix}audio": node("SaveLatent", samples=[f"{prefix}split", 1], filename_prefix=f"{prefix}audio"),
    }
