"""A denoising stage: stage 1 from noise, stage 2 from the upsampled latent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..finite import Suspect, check_finite
from ..models.transformer.graphs import GraphedCalls
from ..models.transformer.positions import audio_positions, video_positions
from ..protocols import Models, Progress, Residency, Watching
from ..recipes import AudioSource
from ..request import GenerationRequest
from ..sampling.evaluate import GuidedModel
from ..sampling.gradient_estimation import gradient_estimation_loop
from ..sampling.loop import Evaluate, euler_loop
from ..sampling.noise import add_noise
from ..sampling.res_2s import res_2s_loop
from ..sampling.state import StreamState, audio_tokens, from_tokens, video_tokens
from ..types import Component, LatentPair, Phase, PromptContext
from .causes import of_denoising, of_files, of_input
from .condition import EncodedImage, apply_images, encode_images, encode_sound, round_positions
from .plan import StagePlan, plan_stages, stage_generator

LOOPS = {"euler": euler_loop, "gradient_estimation": gradient_estimation_loop, "res_2s": res_2s_loop}


def denoise_stage(
    models: Models,
    residency: Residency,
    request: GenerationRequest,
    plan: StagePlan,
    positive: PromptContext,
    negative: PromptContext | None,
    initial: LatentPair | None,
    progress: Progress,
) -> LatentPair:
    """Runs one stage and returns both latents without conditioning tokens.

    While the last step of a stage is computed, the residency hears of the next one.

    Args:
        initial: latents to start from (stage 2), or None for noise alone.
    """
    stage, revision = plan.phase.value, request.revision
    progress.start(stage, plan.steps)
    with residency.recorder.measure(stage):
        images = encode_images(models, residency, request, plan.size)
        video, audio = _initial_states(models, residency, request, plan, initial)
        start = audio.latent
        video = apply_images(models, request, plan, video, images)
        generator = stage_generator(plan_stages(models, request), plan.phase, request.seed, residency.device)
        video = add_noise(video, generator, plan.noise_scale, revision)
        audio = add_noise(audio, generator, plan.noise_scale, revision)
        adapters = models.adapter_strengths(plan.phase, request.recipe.distilled_strength)

        seen: _Seen | None = None

        def on_step(done: int) -> None:
            progress.step(stage, done)
            if seen is not None:
                seen.show(done)
            if done == plan.steps - 1:
                _prefetch_following(models, residency, request, plan)

        with residency.use(Component.TRANSFORMER, adapters) as transformer:
            model: Evaluate = GuidedModel(
                GraphedCalls(transformer, plan.steps),
                positive,
                _compared_with(request, positive, negative),
                plan.guidance,
                transformer.stream_rope(video.positions, "video", models.dtype),
                transformer.stream_rope(audio.positions, "audio", models.dtype),
                revision.cross_timestep,
                revision.fp32_guidance,
                revision.frozen_sigma_zero,
                request.recipe.separate_passes,
            )
            if isinstance(progress, Watching):
                model = seen = _Seen(model, plan, partial(progress.preview, stage))
            loop = LOOPS[request.recipe.sampler]
            video, audio = loop(model, video, audio, plan.sigmas, on_step)
        result = LatentPair(from_tokens(video.latent, plan.video), from_tokens(audio.latent, plan.audio))
        _check(models, request, plan, result, [*_given(positive, negative, initial), *_encoded(models, images, start)])
    progress.finish(stage)
    return result


def _check(
    models: Models, request: GenerationRequest, plan: StagePlan, result: LatentPair, before: Sequence[Suspect]
) -> None:
    """Raises :class:`NotFiniteError`; asks the device once, behind the last step."""
    cause, stage = of_denoising(models, request, plan), plan.phase.value.replace("_", " ")
    check_finite(stage, Suspect("the latent of video and sound", cause, (result.video, result.audio)), *before)


def _given(positive: PromptContext, negative: PromptContext | None, initial: LatentPair | None) -> Iterator[Suspect]:
    for name, context in (("positive", positive), ("negative", negative)):
        if context is not None:
            yield Suspect(f"the {name} prompt's embedding", of_input("CONDITIONING"), (context.video, context.audio))
    if initial is not None:
        yield Suspect("the latent that was given", of_input("LATENT"), (initial.video, initial.audio))


def _encoded(models: Models, images: Sequence[EncodedImage], sound: Tensor) -> Iterator[Suspect]:
    cause = of_files(models, "video_vae", "checkpoint")
    yield Suspect("an image's latent", cause, tuple(image.tokens for image in images))
    yield Suspect("the given sound's latent", of_files(models, "audio_vae", "checkpoint"), (sound,))


def _compared_with(
    request: GenerationRequest, positive: PromptContext, negative: PromptContext | None
) -> PromptContext | None:
    """The text of the unconditional pass: a given sound keeps the positive one, whatever the picture reads."""
    if negative is None or request.audio is None:
        return negative
    return replace(negative, audio=positive.audio)


class _Seen:
    """A model whose last estimate of the video can be looked at between the steps."""

    def __init__(self, model: Evaluate, plan: StagePlan, preview: Callable[[int, Callable[[], Tensor]], None]) -> None:
        self._model, self._plan, self._preview = model, plan, preview
        self._tokens: Tensor | None = None

    def __call__(self, video: StreamState, audio: StreamState, sigma: float, step: int) -> tuple[Tensor, Tensor]:
        x0_video, x0_audio = self._model(video, audio, sigma, step)
        self._tokens = x0_video
        return x0_video, x0_audio

    def show(self, done: int) -> None:
        tokens, self._tokens = self._tokens, None
        if tokens is not None:
            self._preview(done, lambda: from_tokens(tokens, self._plan.video))


def _prefetch_following(models: Models, residency: Residency, request: GenerationRequest, plan: StagePlan) -> None:
    """Says what comes after this stage, while its last step is still to be computed."""
    if plan.phase is Phase.STAGE_1 and request.recipe.stages == 2:
        strengths = models.adapter_strengths(Phase.STAGE_2, request.recipe.distilled_strength)
        residency.prefetch(Component.TRANSFORMER, strengths)
    else:
        given = request.effective_audio_source is AudioSource.INPUT
        sound = () if given else (Component.AUDIO_DECODER, Component.VOCODER)
        for component in (*sound, Component.VIDEO_DECODER):
            residency.prefetch(component)


def _initial_states(
    models: Models, residency: Residency, request: GenerationRequest, plan: StagePlan, initial: LatentPair | None
) -> tuple[StreamState, StreamState]:
    device, dtype = residency.device, models.dtype
    if initial is not None:
        video_start = video_tokens(initial.video.to(device=device, dtype=dtype))
        audio_start = audio_tokens(initial.audio.to(device=device, dtype=dtype))
    else:
        video_start = torch.zeros(1, plan.video.token_count, plan.video.channels, device=device, dtype=dtype)
        if request.audio is None:
            audio_start = torch.zeros(1, plan.audio.frames, plan.audio.token_channels, device=device, dtype=dtype)
        else:
            given = encode_sound(models, residency, request.audio, plan.audio, request.seconds)
            audio_start = audio_tokens(given)
    video = StreamState.start(video_start, video_positions(plan.video, request.fps, models.scale, device))
    if request.revision.bf16_video_positions:
        video = round_positions(video)
    audio = StreamState.start if request.audio is None else StreamState.given
    return video, audio(audio_start, audio_positions(plan.audio, models.audio_geometry, device))
