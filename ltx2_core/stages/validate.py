"""Checks a request before any weight is read. Each error names the setting, its value and the fix."""

from __future__ import annotations

import math
from itertools import pairwise

from ..errors import SettingError
from ..limits import LONGEST_SECONDS, MOST_STEPS, checked, checked_clip
from ..media.audio import check_samples
from ..media.image import load_image
from ..models.kernel_settings import check_kernel_settings
from ..protocols import Models
from ..recipes import SAMPLERS, AudioSource, Recipe
from ..request import GenerationRequest
from ..sampling.res_2s import LAST_SIGMA
from ..sampling.schedules import fixed_sigmas
from ..types import AudioClip, ImageCondition, Phase, StreamGuidance
from .belonging import check_belonging
from .plan import image_frames, plan_stages


def validate(models: Models, request: GenerationRequest, refining: bool = False) -> None:
    """Raises :class:`SettingError` for the first setting that cannot work with the loaded models, or here.

    Args:
        refining: stage 1 is over: what it alone would need (an upsampler, a size that can be halved) does not matter.
    """
    check_kernel_settings()
    stages = 1 if refining else request.recipe.stages
    check_size(request.width, request.height, request.frames, request.fps, stages, models.scale)
    _check_sound(models, request)
    check_prompt(request.prompt)
    check_text("negative-prompt", request.negative_prompt)
    checked("seed", request.seed)
    check_recipe(request.recipe, models.num_layers)
    check_belonging(models, request, refining)
    _check_parts(models, request, refining)
    check_audio(request.audio, request.audio_source)
    if request.image_crf is not None:
        checked("image-crf", request.image_crf)
    check_images(models, request)


def check_size(width: int, height: int, frames: int, fps: float, stages: int, scale: tuple[int, int, int]) -> None:
    """Sizes that the latent grid can hold; two stages halve the size first."""
    time, tall, wide = scale
    for name, value in (("width", width), ("height", height), ("frames", frames), ("fps", fps)):
        checked(name, value)
    for name, value, cell in (("width", width, wide), ("height", height, tall)):
        multiple = cell * stages
        if value % multiple:
            below = max(value // multiple, 1) * multiple
            near = f"{below}" if value < multiple else f"{below} or {below + multiple}"
            what = "a two-stage" if stages == 2 else "a one-stage"
            raise SettingError(name, value, f"must be a multiple of {multiple} for {what} run", f"Try {near}.")
    if (frames - 1) % time:
        below = (frames - 1) // time * time + 1
        raise SettingError("frames", frames, f"must be {time} * n + 1", f"Try {below} or {below + time}.")
    checked_clip(width, height, frames, scale)


def _check_sound(models: Models, request: GenerationRequest) -> None:
    """The clip lasts for one frame of sound at least, and for no more than rotary positions were made for."""
    geometry = models.audio_geometry
    seconds = request.seconds
    if geometry.latent(seconds).frames < 1:
        shortest = 1 / geometry.frames_per_second
        problem = f"makes a clip of {seconds:.3g} s, too short for any sound (at least {shortest:.3g} s)"
        raise SettingError("fps", request.fps, problem, "Lower it, or give more frames.")
    if seconds > LONGEST_SECONDS:
        problem = f"makes a clip of {seconds:.0f} s from {request.frames} frames; the longest is {LONGEST_SECONDS} s"
        raise SettingError("fps", request.fps, problem, "Raise it, or give fewer frames.")


def check_prompt(prompt: str) -> None:
    """The text can be encoded; an empty one asks for nothing in particular, as in the official pipelines."""
    check_text("prompt", prompt)


def check_text(setting: str, text: object) -> None:
    """Text that can be encoded: no halves of an emoji, no bytes of another encoding, no NUL."""
    if not isinstance(text, str):
        raise SettingError(setting, text, "must be a text", "Write it in words.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SettingError(setting, text, "has bytes that are no text", "Write it in UTF-8.") from error
    if "\0" in text:
        raise SettingError(setting, text, "holds a NUL character", "Leave it out.")


def check_recipe(recipe: Recipe, num_layers: int) -> None:
    """Every number of the recipe can work, whatever the official one is."""
    if recipe.sampler not in SAMPLERS:
        fix = f"Choose one of: {', '.join(SAMPLERS)}."
        raise SettingError("sampler", recipe.sampler, "is not a known sampler", fix)
    if recipe.sigmas is None:
        checked("steps", recipe.steps)
    if recipe.schedule_tokens is not None:
        checked("schedule-tokens", recipe.schedule_tokens)
    if recipe.sigmas is not None:
        check_sigmas("sigmas", recipe.sigmas, recipe.sampler)
        if recipe.sigmas[0] != 1:
            raise SettingError("sigmas", list(recipe.sigmas), "must begin at 1: stage 1 starts from noise", "Add 1.")
    if recipe.stages == 2:
        check_sigmas("refine-sigmas", recipe.refine_sigmas, recipe.sampler)
    for name, guidance in (("video-guidance", recipe.guidance.video), ("audio-guidance", recipe.guidance.audio)):
        check_guidance(name, guidance, num_layers)
    for strength in recipe.distilled_strength:
        checked("distilled-strength", strength)


def check_sigmas(setting: str, sigmas: tuple[float, ...], sampler: str) -> None:
    """Noise levels of at least one step, falling from at most 1 to 0."""
    shown, fix = list(sigmas), "Write falling numbers from 1 to 0, such as 0.909375, 0.725, 0.421875, 0."
    if len(sigmas) < 2:
        raise SettingError(setting, shown, "must be at least two noise levels, for one step", fix)
    if len(sigmas) > MOST_STEPS + 1:
        raise SettingError(setting, f"{len(sigmas)} noise levels", f"must be {MOST_STEPS + 1} at most", fix)
    if not all(math.isfinite(sigma) for sigma in sigmas) or sigmas[0] > 1 or sigmas[-1] != 0:
        raise SettingError(setting, shown, "must begin at 1 or below and end in 0", fix)
    if any(after >= before for before, after in pairwise(fixed_sigmas(sigmas))):
        raise SettingError(setting, shown, "must fall from step to step", fix)
    if sampler == "res_2s" and sigmas[-2] <= LAST_SIGMA:
        problem = f"the res_2s sampler ends at {LAST_SIGMA}, below the last level before 0"
        raise SettingError(setting, shown, problem, "Leave the smallest levels out.")


def check_guidance(name: str, guidance: StreamGuidance, num_layers: int) -> None:
    """Numbers within their bounds, STG with blocks inside the model."""
    for key in ("cfg", "stg", "modality", "rescale", "skip"):
        checked(key, getattr(guidance, key), f"{name} {key}")
    if guidance.stg != 0 and not guidance.blocks:
        raise SettingError(f"{name} blocks", "", "STG needs at least one block", "Give blocks, or set stg to 0.")
    for block in guidance.blocks:
        if not 0 <= block < num_layers:
            problem = f"the model has blocks 0 to {num_layers - 1}"
            raise SettingError(f"{name} blocks", block, problem, "Choose a block inside the model.")


def check_images(models: Models, request: GenerationRequest) -> None:
    """Every image can be read and lies inside the clip, and its strength is a share."""
    frames = image_frames(models, request)
    for image in request.images:
        _check_image(image, request, frames)


def _check_image(image: ImageCondition, request: GenerationRequest, frames: int) -> None:
    checked("image frame", image.frame)
    checked("image strength", image.strength)
    if not -frames <= image.frame < frames:
        latent = f"revision {request.revision.name} counts latent frames, and " if frames != request.frames else ""
        problem = f"{latent}the clip has frames 0 to {frames - 1}"
        raise SettingError("image frame", image.frame, problem, "Choose a frame inside the clip; -1 is the last.")
    load_image(image.image)


def check_audio(clip: AudioClip | None, source: AudioSource | None) -> None:
    """The given sound is one clip of one or two channels, and there is one where it shall be heard."""
    if source is AudioSource.INPUT and clip is None:
        problem = "the clip is made without a given sound"
        raise SettingError("audio-source", source.value, problem, "Give the sound as audio, or choose a stage.")
    if clip is None:
        return
    shape = tuple(clip.waveform.shape)
    if len(shape) != 3 or shape[0] != 1 or shape[1] not in (1, 2) or shape[2] < 1:
        problem = "must be one clip of one or two channels, (1, channels, samples)"
        raise SettingError("audio", shape, problem, "Choose one of a batch, and mix more channels down to stereo.")
    if clip.sampling_rate < 1:
        raise SettingError("audio rate", clip.sampling_rate, "must be a positive number", "44100 and 48000 are usual.")
    check_samples(clip.waveform, "audio")


def _check_parts(models: Models, request: GenerationRequest, refining: bool) -> None:
    recipe = request.recipe
    if recipe.stages == 2 and not refining and not models.has_upsampler:
        fix = "Give the spatial x2 upscaler of the checkpoint's generation, or choose the one-stage recipe."
        raise SettingError("upsampler", None, f"the {recipe.name} recipe needs one", fix)
    if any(recipe.distilled_strength) and not models.has_distilled_lora:
        fix = "Give the distilled LoRA, or set distilled-strength to 0,0 for a checkpoint that is distilled itself."
        raise SettingError("distilled-lora", None, f"the {recipe.name} recipe needs one", fix)
    if recipe.stages == 1:
        first, second = (models.adapter_strengths(phase, (0.0, 0.0)) for phase in (Phase.STAGE_1, Phase.STAGE_2))
        for name, strength in second.items():
            if strength and not first.get(name):
                fix = "Give it to stage 1 or to both, or choose a recipe of two stages."
                raise SettingError("lora stage", 2, f"the {recipe.name} recipe has no stage 2", fix)
    if recipe.sampler == "res_2s":
        for plan in plan_stages(models, request)[-1 if refining else 0 :]:
            if not all(sigma > following for sigma, following in pairwise(plan.sigmas)):
                # Far above 30,000 tokens the first values are all 1 in float32, and further up they are no numbers
                tokens = recipe.schedule_tokens or plan.video.token_count
                problem = f"makes a schedule for {tokens} tokens, which does not fall from the first step on"
                if recipe.schedule_tokens:
                    raise SettingError("schedule-tokens", tokens, problem, "Choose 30000 at most.")
                fix = "Give fewer frames or a smaller size, or set schedule-tokens."
                raise SettingError("frames", request.frames, problem, fix)
