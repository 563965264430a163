"""Sizes, schedules and random draws of a run, worked out from host numbers before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..protocols import Models
from ..request import GenerationRequest
from ..sampling.noise import draw_noise
from ..sampling.schedules import fixed_sigmas, guided_sigmas
from ..types import AudioLatentShape, Guidance, ImageCondition, Phase, VideoLatentShape, VideoSize


@dataclass(frozen=True)
class StagePlan:
    """What one denoising stage works on.

    Attributes:
        noise_scale: noise level that the stage starts from.
        appended_tokens: keyframe tokens behind the video's own.
    """

    phase: Phase
    size: VideoSize
    video: VideoLatentShape
    audio: AudioLatentShape
    sigmas: tuple[float, ...]
    guidance: Guidance
    appended_tokens: int

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def noise_scale(self) -> float:
        return self.sigmas[0]


def plan_stages(models: Models, request: GenerationRequest) -> tuple[StagePlan, ...]:
    """One plan per denoising stage of the recipe: (stage 1,) or (stage 1, stage 2)."""
    recipe = request.recipe
    first_size = request.size.halved() if recipe.stages == 2 else request.size
    first = _plan(models, request, Phase.STAGE_1, first_size, request.effective_guidance)
    if recipe.stages == 1:
        return (first,)
    return (first, _plan(models, request, Phase.STAGE_2, request.size, Guidance()))


def _plan(models: Models, request: GenerationRequest, phase: Phase, size: VideoSize, guidance: Guidance) -> StagePlan:
    recipe = request.recipe
    video = size.latent(models.latent_channels, models.scale)
    if phase is Phase.STAGE_2:
        sigmas = fixed_sigmas(recipe.refine_sigmas)
    elif recipe.sigmas is not None:
        sigmas = fixed_sigmas(recipe.sigmas)
    else:
        sigmas = guided_sigmas(recipe.steps, recipe.schedule_tokens or video.token_count)
    keyframes = sum(1 for image in placed_images(models, request) if appends(request, image.frame))
    return StagePlan(
        phase=phase,
        size=size,
        video=video,
        audio=models.audio_geometry.latent(request.seconds),
        sigmas=sigmas,
        guidance=guidance,
        appended_tokens=keyframes * video.height * video.width,
    )


def counts_latent_frames(request: GenerationRequest) -> bool:
    """Whether the images' indices are of latent frames: in revision 2026-01, where images replace those."""
    return request.revision.replaces_latent_frames and not request.recipe.appends_images


def image_frames(models: Models, request: GenerationRequest) -> int:
    """How many frames the images' indices count: those of the clip, or of its latent (revision 2026-01)."""
    if counts_latent_frames(request):
        return request.size.latent(models.latent_channels, models.scale).frames
    return request.frames


def placed_images(models: Models, request: GenerationRequest) -> tuple[ImageCondition, ...]:
    """The images with their frames counted from the first one."""
    frames = image_frames(models, request)
    return tuple(replace(image, frame=image.frame % frames) for image in request.images)


def appends(request: GenerationRequest, frame: int) -> bool:
    """Whether an image at ``frame`` becomes keyframe tokens; else it replaces tokens of the clip."""
    return request.recipe.appends_images or (frame != 0 and not request.revision.replaces_latent_frames)


def stage_generator(plans: Sequence[StagePlan], phase: Phase, seed: int, device: torch.device) -> torch.Generator:
    """The run's one random generator, advanced to where ``phase`` starts to draw.

    The official pipelines seed once and draw video, then audio noise per stage. Earlier stages' draws are repeated
    and thrown away, so that a stage that runs alone (a Refine node) sees the numbers of a whole run.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    for plan in plans:
        if plan.phase is phase:
            return generator
        draw_noise(plan.video.token_count + plan.appended_tokens, plan.video.channels, generator)
        draw_noise(plan.audio.token_count, plan.audio.token_channels, generator)
    raise ValueError(f"the recipe has no {phase.value}")
