"""Latents to frames and sound; frames leave for the sink while later ones are still being decoded.

Decoding, the copy to the host and encoding overlap without a thread here: the device is always given the next piece
before the last one is waited for, the copy runs on a stream of its own, and the sink that is slow, the MP4 writer, has
a thread.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing

import torch
from torch import Tensor
from torch.func import functional_call

from ..errors import NotFiniteError
from ..finite import Suspect, check_finite
from ..media.audio import for_clip, with_clipping_said
from ..media.sink import FrameSink
from ..models.repeatable import RepeatableConvolutions
from ..models.video_vae.decoder import NotFinitePixels
from ..protocols import Models, Progress, Residency
from ..recipes import AudioSource
from ..request import GenerationRequest
from ..types import AudioClip, Component, LatentPair
from .causes import of_files, of_input


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
        check_finite(
            "decoding", Suspect("the latent that was given", of_input("LATENT"), (latents.video, latents.audio))
        )
        with residency.recorder.measure("decode"):
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
    with residency.use(Component.VIDEO_DECODER) as decoder:
        pieces = decoder.decode_frames(latent.to(device=residency.device, dtype=models.dtype))
        # Closed also where the sink or the progress raises: until the traceback is gone, it would keep the activations
        with closing(pieces), closing(_on_host(pieces, residency.device)) as arriving:
            for frames in _finite(arriving, models):
                residency.recorder.moved(d2h_bytes=frames.numel() if residency.device.type != "cpu" else 0)
                sink.frames(frames)
                done += frames.shape[0]
                progress.step("decode", done)


def _finite(frames: Iterator[Tensor], models: Models) -> Iterator[Tensor]:
    """The same; pixels that were no numbers, which bytes do not show, are an error after the last of them.

    Raises:
        NotFiniteError: the decoder watches what it makes.
    """
    try:
        yield from frames
    except NotFinitePixels as error:
        cause = of_files(models, "video_vae", "checkpoint")
        raise NotFiniteError("decoding", "the picture that the video decoder makes", cause) from error


def _on_host(pieces: Iterator[Tensor], device: torch.device) -> Generator[Tensor, None, None]:
    """The same on the host, in order. On CUDA each is waited for when the device has the work of the next one.

    The copies go to pageable memory, because a sink may keep what it gets: at 9 GB/s they take a tenth of the time of
    the decoding behind which they hide.
    """
    if device.type != "cuda":
        for piece in pieces:
            yield piece.cpu()
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    for piece in pieces:
        begun = piece, torch.cuda.current_stream(device).record_event()
        if waiting is not None:
            yield _copied(*waiting, stream)
        waiting = begun
    if waiting is not None:
        yield _copied(*waiting, stream)


def _copied(piece: Tensor, made: torch.cuda.Event, stream: torch.cuda.Stream) -> Tensor:
    with torch.cuda.stream(stream):
        stream.wait_event(made)
        return piece.cpu()


def decode_audio(models: Models, residency: Residency, request: GenerationRequest, latent: Tensor) -> AudioClip:
    """The clip's sound: the given one where that is asked for, else that of a normalised latent (1, C, T, mel bins).

    The vocoder runs in float32 by default.
    """
    if request.audio is not None and request.effective_audio_source is AudioSource.INPUT:
        clip = for_clip(request.audio, request.seconds)
        check_finite("decoding", Suspect("the given sound", of_input("sound"), (clip.waveform,)))
        return clip
    with residency.use(Component.AUDIO_DECODER) as decoder:
        mel = decoder.decode(latent.to(device=residency.device, dtype=models.dtype))
    with residency.use(Component.VOCODER) as vocoder:
        # Some of cuDNN's transposed convolutions add in random order: the same latent gave other samples (by 0.2%)
        with RepeatableConvolutions():
            if request.revision.fp32_vocoder:
                waveform = vocoder(mel.float())
            else:
                # Revisions before March 2026 ran it in the model's dtype; the loaded float32 weights stay as they are
                weights = {name: value.to(models.dtype) for name, value in vocoder.state_dict().items()}
                waveform = functional_call(vocoder, weights, (mel.to(models.dtype),), strict=False)
        rate: int = vocoder.sampling_rate
    cause = of_files(models, "audio_vae", "checkpoint")
    check_finite(
        "decoding",
        Suspect("the sound that the vocoder makes", cause, (waveform,)),
        Suspect("the latent that was given", of_input("LATENT"), (latent,)),
        Suspect("the spectrogram that the audio decoder makes", cause, (mel,)),
    )
    return with_clipping_said(AudioClip(waveform.to(device="cpu", dtype=torch.float32), rate))
