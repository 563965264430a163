"""Latents to frames and sound; frames leave for the sink while later ones are still being decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from ..media.audio import for_clip
from ..media.frames import to_uint8
from ..media.sink import FrameSink
from ..protocols import Models, Progress, Residency
from ..recipes import AudioSource
from ..request import GenerationRequest
from ..types import AudioClip, Component, LatentPair, Phase


def decode(
    models: Models,
    residency: Residency,
    request: GenerationRequest,
    latents: LatentPair,
    sink: FrameSink,
    progress: Progress,
) -> AudioClip:
    """Decodes sound, then pictures, into ``sink`` and closes it; on any exception the sink is aborted.

    The sound comes first because a container wants to know both streams before the first packet.
    """
    size = request.size
    progress.start("decode", size.frames)
    try:
        with residency.measure("decode"):
            audio = decode_audio(models, residency, request, latents.audio)
            sink.open(size.width, size.height, request.fps, audio.sampling_rate)
            sink.audio(audio)
            decode_video(models, residency, latents.video, sink, progress)
            sink.close()
    except BaseException:
        # An interrupt (of ComfyUI, or Ctrl-C) is no Exception, and must not leave half a file either
        sink.abort()
        raise
    progress.finish("decode")
    return audio


def decode_video(models: Models, residency: Residency, latent: Tensor, sink: FrameSink, progress: Progress) -> None:
    """Streams uint8 frames (f, H, W, 3) of a normalised latent (1, C, F, H, W) into the sink."""
    done = 0
    with residency.use(Component.VIDEO_DECODER, Phase.DECODE) as decoder:
        for pixels in decoder.decode_streamed(latent.to(device=residency.device, dtype=models.dtype), tiling=None):
            frames = to_uint8(pixels).cpu()
            residency.moved(d2h_bytes=frames.numel() if residency.device.type != "cpu" else 0)
            sink.frames(frames)
            done += frames.shape[0]
            progress.step("decode", done)


def decode_audio(models: Models, residency: Residency, request: GenerationRequest, latent: Tensor) -> AudioClip:
    """The clip's sound: the given one where that is asked for, else that of a normalised latent (1, C, T, mel bins).

    The vocoder runs in float32 by default.
    """
    if request.audio is not None and request.effective_audio_source is AudioSource.INPUT:
        return for_clip(request.audio, request.seconds)
    with residency.use(Component.AUDIO_DECODER, Phase.DECODE) as decoder:
        mel = decoder.decode(latent.to(device=residency.device, dtype=models.dtype))
    with residency.use(Component.VOCODER, Phase.DECODE) as vocoder:
        # Some of cuDNN's transposed convolutions add in random order: the same latent gave other samples (by 0.2%)
        with _deterministic_convolutions():
            if request.revision.fp32_vocoder:
                waveform = vocoder(mel.float())
            else:
                # Revisions before March 2026 ran it in the model's dtype; the loaded float32 weights stay as they are
                weights = {name: value.to(models.dtype) for name, value in vocoder.state_dict().items()}
                waveform = functional_call(vocoder, weights, (mel.to(models.dtype),), strict=False)
        rate: int = vocoder.sampling_rate
    return AudioClip(waveform.to(device="cpu", dtype=torch.float32), rate)


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
