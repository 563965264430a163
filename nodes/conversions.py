"""Between ComfyUI's data types and the engine's. Unknown keys of CONDITIONING and LATENT are kept.

CONDITIONING: one [tensor, dict] pair; the tensor holds the processed video and audio embeddings side by side in its
last dimension, as the host's own LTX-AV model takes them.
LATENT: "samples" is a nested tensor of the normalised latents, video (B, C, F, H, W) and audio (B, C, T, mel bins).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import InputImpl, Types
from torch import Tensor

from ..ltx2_core.errors import SettingError
from ..ltx2_core.media.mp4 import frame_rate
from ..ltx2_core.recipes import official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import AudioClip, LatentPair, PromptContext
from . import host
from .handle import PipelineHandle

Conditioning = list[list[Any]]
Latent = dict[str, Any]

REQUEST_KEY = "ltx2_two_stage"  # in a LATENT: the request that it was made for
PROMPT_KEY = "ltx2_prompt"  # in a CONDITIONING: the text
_FOREIGN_PROMPT = "(conditioning of another node)"
_RAW_KEY = "unprocessed_ltxav_embeds"  # set by the host's text encoder: the connectors have still to run


def to_conditioning(context: PromptContext, prompt: str) -> Conditioning:
    """CONDITIONING of one prompt."""
    return [[host.outgoing(torch.cat([context.video, context.audio], dim=-1)), {PROMPT_KEY: prompt}]]


def to_context(conditioning: Conditioning, handle: PipelineHandle, setting: str) -> PromptContext:
    """The embeddings in a CONDITIONING, on the compute device.

    Raises:
        SettingError: it is not one prompt, not processed, or of another model.
    """
    fix = "Connect LTX-2 Text Encode with the same pipeline."
    if len(conditioning) != 1:
        raise SettingError(setting, f"{len(conditioning)} prompts", "must be one prompt", fix)
    tensor, extra = conditioning[0]
    widths = handle.context_widths
    if extra.get(_RAW_KEY) or tensor.shape[-1] != sum(widths):
        problem = f"is not made for these models, whose text embeddings are {widths[0]} + {widths[1]} wide"
        raise SettingError(setting, tuple(tensor.shape), problem, fix)
    models, residency = handle.pipeline.models, handle.pipeline.residency
    video, audio = tensor.to(device=residency.device, dtype=models.dtype).split(widths, dim=-1)
    return PromptContext(video.contiguous(), audio.contiguous())


def prompt_text(conditioning: Conditioning) -> str:
    """The text that a CONDITIONING was made from, or a stand-in that says that it is not known."""
    text: str = conditioning[0][1].get(PROMPT_KEY, "")
    return text if text.strip() else _FOREIGN_PROMPT


def to_latent(pair: LatentPair, request: GenerationRequest, base: Mapping[str, Any] | None = None) -> Latent:
    """LATENT with both streams, and with the request that the next stage needs.

    Args:
        base: the LATENT that this one was made from; its other keys are kept, but not a mask of another size.
    """
    latent = {key: value for key, value in (base or {}).items() if key != "noise_mask"}
    streams = (host.outgoing(pair.video), host.outgoing(pair.audio))
    return {**latent, "samples": host.nested(streams), REQUEST_KEY: request}


def to_pair(latent: Mapping[str, Any]) -> LatentPair:
    """Both streams of a LATENT.

    Raises:
        SettingError: it holds only one, or a batch.
    """
    samples = latent["samples"]
    streams = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    if len(streams) != 2 or streams[0].ndim != 5 or streams[1].ndim != 4:
        shapes = ", ".join(str(tuple(stream.shape)) for stream in streams)
        problem = "must hold a video and an audio latent"
        raise SettingError("latent", shapes, problem, "Join them with Concat AV Latent, or connect an LTX-2 node.")
    if streams[0].shape[0] != 1 or streams[1].shape[0] != 1:
        raise SettingError("latent", f"batch of {streams[0].shape[0]}", "must be one clip", "Choose one of the batch.")
    return LatentPair(streams[0], streams[1])


def request_of(latent: Mapping[str, Any]) -> GenerationRequest:
    """The settings with which stage 1 ran.

    Raises:
        SettingError: the LATENT does not come from stage 1.
    """
    request = latent.get(REQUEST_KEY)
    if not isinstance(request, GenerationRequest):
        fix = "Connect the latent of LTX-2 Denoise, through LTX-2 Upsample."
        raise SettingError("latent", sorted(latent), "does not say how stage 1 was run", fix)
    return request


def decode_request(
    latent: Mapping[str, Any], pair: LatentPair, handle: PipelineHandle, fps: float
) -> GenerationRequest:
    """What decoding needs to know: the size is the latent's own, so that stage 1 can be looked at too.

    Args:
        fps: frames per second; 0 takes the rate that the latent was made for.

    Raises:
        SettingError: the rate is not known.
    """
    models = handle.pipeline.models
    request = latent.get(REQUEST_KEY)
    if not isinstance(request, GenerationRequest):
        if not fps:
            fix = "Set fps, or connect the latent of an LTX-2 node."
            raise SettingError("fps", fps, "the latent does not say how many frames a second has", fix)
        request = GenerationRequest(_FOREIGN_PROMPT, official_recipe("one-stage", models.generation, models.num_layers))
    _, _, frames, height, width = pair.video.shape
    scale = models.scale
    return replace(
        request,
        frames=(frames - 1) * scale.time + 1,
        height=height * scale.height,
        width=width * scale.width,
        fps=fps or request.fps,
    )


def to_uint8(image: Tensor) -> Tensor:
    """One IMAGE (1, H, W, C) in 0..1 as uint8 pixels (H, W, 3); alpha is dropped.

    Raises:
        SettingError: it is a batch.
    """
    if image.shape[0] != 1:
        fix = "Choose one with Get Image from Batch, and chain an LTX-2 Image Condition for each."
        raise SettingError("image", f"batch of {image.shape[0]}", "must be one image", fix)
    pixels = image[0, :, :, :3].float()
    if pixels.shape[-1] == 1:
        pixels = pixels.expand(-1, -1, 3)
    return pixels.mul(255.0).round().clamp(0, 255).to(device="cpu", dtype=torch.uint8)


def to_audio(clip: AudioClip) -> dict[str, Any]:
    """AUDIO: waveform (1, channels, N)."""
    return {"waveform": clip.waveform, "sample_rate": clip.sampling_rate}


def to_video(images: Tensor, audio: Mapping[str, Any], fps: float) -> Any:
    """VIDEO of an IMAGE batch with its sound."""
    rate: Fraction = frame_rate(fps)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, audio=dict(audio), frame_rate=rate))


class ImageSink:
    """A :class:`~..ltx2_core.media.sink.FrameSink` that keeps the clip for an IMAGE output."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []

    def open(self, width: int, height: int, fps: float, audio_rate: int | None) -> None:
        self._chunks.clear()

    def frames(self, frames: Tensor) -> None:
        self._chunks.append(frames)

    def audio(self, clip: AudioClip) -> None: ...

    def close(self) -> None:
        return None

    def abort(self) -> None:
        self._chunks.clear()

    def images(self) -> Tensor:
        """IMAGE (F, H, W, 3), float32 in 0..1."""
        return torch.cat(self._chunks).float().div_(255.0)
