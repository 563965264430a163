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
from ..ltx2_core.finite import finite
from ..ltx2_core.media.image import given_picture
from ..ltx2_core.media.mp4 import frame_rate
from ..ltx2_core.recipes import Recipe, official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import AudioClip, ImageCondition, LatentPair, PromptContext
from . import host
from .handle import PipelineHandle

Conditioning = list[list[Any]]
Latent = dict[str, Any]

REQUEST_KEY = "ltx2_two_stage"  # in a LATENT: the request that it was made for
PROMPT_KEY = "ltx2_prompt"  # in a CONDITIONING: the text
NOTICES_KEY = "ltx2_notices"  # in a CONDITIONING: what the user should know of how the text was encoded
FOREIGN_PROMPT = "(conditioning of another node)"
_NOT_FINITE = "holds values that are not finite (NaN or infinity)"
RAW_KEY = "unprocessed_ltxav_embeds"  # set by the host's text encoder: the connectors have still to run


def to_conditioning(context: PromptContext, prompt: str) -> Conditioning:
    """CONDITIONING of one prompt."""
    return [
        [
            host.outgoing(torch.cat([context.video, context.audio], dim=-1)),
            {PROMPT_KEY: prompt, NOTICES_KEY: context.notices},
        ]
    ]


def to_context(conditioning: Conditioning, handle: PipelineHandle, setting: str) -> PromptContext:
    """The embeddings in a CONDITIONING, on the compute device.

    The host's own LTX-AV text encoder leaves the connectors to the diffusion model, and says so in its CONDITIONING:
    those run here. What is processed is taken as it is.

    Raises:
        SettingError: it is not one prompt, of another model, or not of finite numbers.
    """
    fix = "Connect LTX-2 Text Encode with the same pipeline, or ComfyUI's text encoder for this checkpoint."
    if len(conditioning) != 1:
        raise SettingError(setting, f"{len(conditioning)} prompts", "must be one prompt", fix)
    tensor, extra = conditioning[0]
    video, audio = handle.context_widths
    raw = bool(extra.get(RAW_KEY))
    shared = raw and video == audio == tensor.shape[-1]  # LTX-2's features serve both streams
    if tensor.ndim != 3 or tensor.shape[0] != 1 or not (shared or tensor.shape[-1] == video + audio):
        problem = f"is not made for these models, whose text embeddings are {video} + {audio} wide"
        raise SettingError(setting, tuple(tensor.shape), problem, fix)
    if not finite(tensor):
        raise SettingError(setting, tuple(tensor.shape), _NOT_FINITE, "Look at the node that made this conditioning.")
    models, residency = handle.pipeline.models, handle.pipeline.residency
    placed = tensor.to(device=residency.device, dtype=models.dtype)
    streams = (placed, placed) if shared else placed.split((video, audio), dim=-1)
    if raw:
        return handle.pipeline.connect_text(streams[0][0], streams[1][0])
    notices = tuple(str(notice) for notice in extra.get(NOTICES_KEY, ()))
    return PromptContext(streams[0].contiguous(), streams[1].contiguous(), notices)


def prompt_text(conditioning: Conditioning) -> str:
    """The text that a CONDITIONING was made from, or a stand-in that says that it is not known."""
    text = conditioning[0][1].get(PROMPT_KEY)
    return text if isinstance(text, str) else FOREIGN_PROMPT


def to_latent(pair: LatentPair, request: GenerationRequest, base: Mapping[str, Any] | None = None) -> Latent:
    """LATENT with both streams, and with the request that the next stage needs.

    Args:
        base: the LATENT that this one was made from; its other keys are kept, but not a mask of another size.
    """
    latent = {key: value for key, value in (base or {}).items() if key != "noise_mask"}
    streams = (host.outgoing(pair.video), host.outgoing(pair.audio))
    return {**latent, "samples": host.nested(streams), REQUEST_KEY: request}


def with_video(latent: Mapping[str, Any], video: Tensor) -> Latent:
    """The LATENT with another video stream, its sound and all else as they were, but not a mask of another size."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    kept = {key: value for key, value in latent.items() if key != "noise_mask" or _fits(mask, video)}
    if getattr(samples, "is_nested", False):
        return {**kept, "samples": host.nested((host.outgoing(video), *samples.unbind()[1:]))}
    return {**kept, "samples": host.outgoing(video)}


def _fits(mask: Any, video: Tensor) -> bool:
    """Whether a noise mask's picture part is of the video's height and width, or holds for whole frames."""
    if mask is None:
        return False
    picture = mask.unbind()[0] if getattr(mask, "is_nested", False) else mask
    size = tuple(picture.shape[-2:])
    return size in ((1, 1), tuple(video.shape[-2:]))


def to_streams(latent: Mapping[str, Any], handle: PipelineHandle) -> tuple[Tensor, Tensor | None]:
    """The video and, where there is one, the audio stream of a LATENT, whoever made it.

    ComfyUI's own nodes keep both normalised, as ours do: its LTX-AV latent format has no scale, and its VAEs norm.

    Raises:
        SettingError: it holds something else, a batch, latents of other models, or numbers that are not finite.
    """
    samples = latent["samples"]
    streams = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    shapes = ", ".join(str(tuple(stream.shape)) for stream in streams)
    if len(streams) > 2 or streams[0].ndim != 5 or streams[-1].ndim != (5 if len(streams) == 1 else 4):
        fix = "Connect an LTX-2 node, or ComfyUI's own latent nodes for LTXV."
        raise SettingError("latent", shapes, "must hold a video latent, alone or with an audio latent", fix)
    if any(stream.shape[0] != 1 for stream in streams):
        raise SettingError("latent", f"batch of {streams[0].shape[0]}", "must be one clip", "Choose one of the batch.")
    models = handle.pipeline.models
    geometry = models.audio_geometry
    fitting = [(models.latent_channels,), (geometry.channels, geometry.mel_bins)]
    found = [(streams[0].shape[1],), *((stream.shape[1], stream.shape[3]) for stream in streams[1:])]
    if found != fitting[: len(found)]:
        problem = f"is of other models: these have {fitting[0][0]} video channels and {fitting[1]} of sound"
        raise SettingError("latent", shapes, problem, "Connect the latent of a node with the same pipeline.")
    if not finite(*streams):
        raise SettingError("latent", shapes, _NOT_FINITE, "Look at the node that made this latent: its clip is lost.")
    return streams[0], streams[1] if len(streams) == 2 else None


def to_pair(latent: Mapping[str, Any], handle: PipelineHandle) -> LatentPair:
    """Both streams of a LATENT.

    Raises:
        SettingError: it holds only one, or is not for these models.
    """
    video, audio = to_streams(latent, handle)
    if audio is None:
        problem = "must hold a video and an audio latent"
        fix = "Join them with Concat AV Latent, or connect an LTX-2 node."
        raise SettingError("latent", str(tuple(video.shape)), problem, fix)
    return LatentPair(video, audio)


def own_request(latent: Mapping[str, Any]) -> GenerationRequest | None:
    """The settings with which our stage 1 ran; None for a LATENT of other nodes."""
    request = latent.get(REQUEST_KEY)
    return request if isinstance(request, GenerationRequest) else None


def foreign_request(video: Tensor, handle: PipelineHandle, recipe: Recipe, fps: float) -> GenerationRequest:
    """A request for a LATENT of other nodes; its size is the latent's own.

    Args:
        fps: frames per second.

    Raises:
        SettingError: the rate is not given.
    """
    if not fps:
        fix = "Set fps, or connect the latent of an LTX-2 node."
        raise SettingError("fps", fps, "the latent does not say how many frames a second has", fix)
    return _sized(GenerationRequest(FOREIGN_PROMPT, recipe, fps=fps), video, handle)


def decode_request(latent: Mapping[str, Any], video: Tensor, handle: PipelineHandle, fps: float) -> GenerationRequest:
    """What decoding needs to know: the size is the latent's own, so that stage 1 can be looked at too.

    Args:
        fps: frames per second; 0 takes the rate that the latent was made for.

    Raises:
        SettingError: the rate is not known.
    """
    request = own_request(latent)
    if request is None:
        models = handle.pipeline.models
        return foreign_request(video, handle, official_recipe("one-stage", models.generation, models.num_layers), fps)
    return _sized(replace(request, fps=fps or request.fps), video, handle)


def _sized(request: GenerationRequest, video: Tensor, handle: PipelineHandle) -> GenerationRequest:
    """The request with the size that a video latent (1, C, F, H, W) decodes to."""
    _, _, frames, height, width = video.shape
    scale = handle.pipeline.models.scale
    return replace(
        request,
        frames=(frames - 1) * scale.time + 1,
        height=height * scale.height,
        width=width * scale.width,
    )


def silence(request: GenerationRequest, handle: PipelineHandle) -> AudioClip:
    """Sound of a clip that has none: stereo zeros, at the rate that the audio models are made for."""
    rate = handle.pipeline.models.audio_geometry.sampling_rate
    return AudioClip(torch.zeros(1, 2, round(request.frames / request.fps * rate)), rate)


def to_condition(image: Tensor, frame: int, strength: float) -> ImageCondition:
    """One IMAGE (1, H, W, C) as an image that the clip must show.

    Raises:
        SettingError: it is a batch, or no picture.
    """
    if image.ndim == 4 and image.shape[0] != 1:
        fix = "Choose one with Get Image from Batch, and chain an LTX-2 Image Condition for each."
        raise SettingError("image", f"batch of {image.shape[0]}", "must be one image", fix)
    picture = given_picture(image[0] if image.ndim == 4 else image)
    return ImageCondition(picture.pixels, frame, strength, picture.notices)


def to_video(images: Tensor, audio: Mapping[str, Any], fps: float) -> Any:
    """VIDEO of an IMAGE batch with its sound."""
    rate: Fraction = frame_rate(fps)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, audio=dict(audio), frame_rate=rate))


class ImageSink:
    """A :class:`~..ltx2_core.media.sink.FrameSink` that makes an IMAGE while the next frames are being decoded.

    Args:
        frames: of the clip.
    """

    def __init__(self, frames: int) -> None:
        self._total, self._done = frames, 0
        self._images: Tensor | None = None

    def open(self, width: int, height: int, fps: float, audio_rate: int | None) -> None:  # noqa: ARG002 - as every sink
        self.abort()

    def frames(self, frames: Tensor) -> None:
        if self._images is None:
            self._images = torch.empty(self._total, *frames.shape[1:], dtype=torch.float32)
        begin, self._done = self._done, self._done + frames.shape[0]
        torch.div(frames, 255.0, out=self._images[begin : self._done])

    def audio(self, clip: AudioClip) -> None: ...

    def close(self) -> None:
        return None

    def abort(self) -> None:
        self._images, self._done = None, 0

    def images(self) -> Tensor:
        """IMAGE (F, H, W, 3), float32 in 0..1.

        Raises:
            RuntimeError: frames are missing.
        """
        if self._images is None or self._done != self._total:
            raise RuntimeError(f"{self._done} of {self._total} frames came")
        return self._images
