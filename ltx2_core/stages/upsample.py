"""Spatial upsampling of the video latent between the stages."""

from __future__ import annotations

from ..finite import Suspect, check_finite
from ..protocols import Models, Progress, Residency
from ..types import Component, LatentPair, Phase
from .causes import of_files, of_input


def upsample(models: Models, residency: Residency, latents: LatentPair, progress: Progress) -> LatentPair:
    """Doubles height and width of the video latent; the audio passes through (docs/model.md 7.5).

    The network works on un-normalised latents, with the video VAE's statistics.
    """
    progress.start("upsample", 1)
    with residency.measure("upsample"):
        video = latents.video[:1].to(device=residency.device, dtype=models.dtype)
        with (
            residency.use(Component.VIDEO_ENCODER, Phase.UPSAMPLE) as encoder,
            residency.use(Component.UPSAMPLER, Phase.UPSAMPLE) as upsampler,
        ):
            statistics = encoder.per_channel_statistics
            result = statistics.normalise(upsampler(statistics.denormalise(video)))
        check_finite(
            "upsampling",
            Suspect("the upsampled latent", of_files(models, "upsampler", "video_vae", "checkpoint"), (result,)),
            Suspect("the latent that was given", of_input("LATENT"), (video,)),
        )
        progress.step("upsample", 1)
    progress.finish("upsample")
    return LatentPair(result, latents.audio)
