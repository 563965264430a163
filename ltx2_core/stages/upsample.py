"""Spatial upsampling of the video latent between the stages."""

from __future__ import annotations

from ..protocols import Models, Progress, Residency
from ..types import Component, LatentPair, Phase


def upsample(models: Models, residency: Residency, latents: LatentPair, progress: Progress) -> LatentPair:
    """Doubles height and width of the video latent; the audio passes through (fact sheet 7.5).

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
            video = statistics.normalise(upsampler(statistics.denormalise(video)))
        progress.step("upsample", 1)
    progress.finish("upsample")
    return LatentPair(video, latents.audio)
