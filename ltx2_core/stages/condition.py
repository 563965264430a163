"""Conditioning images and sound to latent tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..media.audio import fitted, lasting, resampled
from ..media.image import condition_pixels, load_image
from ..models.audio_vae import waveform_to_mel
from ..models.transformer.positions import keyframe_positions
from ..protocols import Models, Residency
from ..request import GenerationRequest
from ..sampling.state import StreamState, video_tokens
from ..types import AudioClip, AudioLatentShape, Component, Phase, VideoLatentShape, VideoSize
from .plan import StagePlan, appends, placed_images


@dataclass(frozen=True)
class EncodedImage:
    """A conditioning image as tokens (1, H' * W', C)."""

    tokens: Tensor
    frame: int
    strength: float


def encode_images(
    models: Models, residency: Residency, request: GenerationRequest, size: VideoSize
) -> list[EncodedImage]:
    """Encodes every image at ``size``: CRF round trip, cover and centre crop, video encoder (docs/model.md 4.6)."""
    if not request.images:
        return []
    encoded = []
    with residency.use(Component.VIDEO_ENCODER, Phase.CONDITION) as encoder:
        for image in placed_images(models, request):
            source = load_image(image.image, as_shown=request.revision.images_as_shown)
            pixels = condition_pixels(source, size.height, size.width, request.effective_crf)
            latent = encoder.encode(pixels.to(device=residency.device, dtype=models.dtype))
            encoded.append(EncodedImage(video_tokens(latent), image.frame, image.strength))
    return encoded


def apply_images(
    models: Models, request: GenerationRequest, plan: StagePlan, state: StreamState, images: Sequence[EncodedImage]
) -> StreamState:
    """The video stream's state with every image in it: the first frame replaced, later ones appended as keyframes."""
    revision = request.revision
    frame_tokens = plan.video.height * plan.video.width
    grid = VideoLatentShape(1, plan.video.channels, 1, plan.video.height, plan.video.width)
    overwrite = not revision.blend_keeps_upscaled
    for image in images:
        if appends(request, image.frame):
            positions = keyframe_positions(
                grid, image.frame, request.fps, models.scale, revision.single_frame_keyframes, state.latent.device
            )
            state = state.with_appended(image.tokens, image.strength, positions, overwrite)
        else:
            start = image.frame * frame_tokens
            state = state.with_replaced(image.tokens, image.strength, start, overwrite)
    return state


def encode_sound(
    models: Models, residency: Residency, clip: AudioClip, shape: AudioLatentShape, seconds: float
) -> Tensor:
    """The sound as a normalised audio latent of ``shape`` (docs/model.md 4.7).

    It is cut at the clip's end before anything else, as in official code: the last frame's spectrum sees it mirrored
    there, and neither what follows nor silence. A shorter one is followed by silence up to the clip's end.
    """
    geometry = models.audio_geometry
    waveform = resampled(lasting(clip, seconds), geometry.sampling_rate).waveform
    with residency.use(Component.AUDIO_ENCODER, Phase.CONDITION) as encoder:
        # Below these the latent would be too short, or the spectrum could not be mirrored: very short clips and rates
        least = max((shape.frames - 1) * geometry.downsample * geometry.hop_length, encoder.config.n_fft // 2 + 1)
        waveform = fitted(waveform, max(waveform.shape[-1], least))
        channels = encoder.config.in_channels
        sound = waveform.to(device=residency.device, dtype=torch.float32).expand(-1, channels, -1)
        latent: Tensor = encoder.encode(waveform_to_mel(sound, encoder.config))
    return latent[:, :, : shape.frames].to(models.dtype)


def round_positions(state: StreamState) -> StreamState:
    """Video positions rounded to bfloat16, as the revisions before May 2026 have them."""
    return replace(state, positions=state.positions.to(torch.bfloat16))
