"""Checks a request before any weight is read. Each error names the setting, its value and the fix."""

from __future__ import annotations

import math

from ..errors import SettingError
from ..media.image import load_image
from ..protocols import Models
from ..request import GenerationRequest
from ..types import ImageCondition, StreamGuidance

_SEED_LIMIT = 2**64
_MAX_CRF = 51  # libx264's scale
# Three times the 20 s that released models' positions span: further off nothing was trained, and memory runs out
LONGEST_SECONDS = 60


def validate(models: Models, request: GenerationRequest) -> None:
    """Raises :class:`SettingError` for the first setting that cannot work with the loaded models."""
    check_size(request.width, request.height, request.frames, request.fps, request.recipe.stages, models.scale)
    _check_sound(models, request)
    check_prompt(request.prompt)
    recipe = request.recipe
    if recipe.sigmas is None and recipe.steps < 1:
        raise SettingError("steps", recipe.steps, "must be at least 1", "The official recipes take 15 to 40.")
    if not 0 <= request.seed < _SEED_LIMIT:
        raise SettingError("seed", request.seed, "must be between 0 and 2^64 - 1", "Choose another seed.")
    for name, guidance in (("video-guidance", recipe.guidance.video), ("audio-guidance", recipe.guidance.audio)):
        check_guidance(name, guidance, models.num_layers)
    for strength in recipe.distilled_strength:
        if not math.isfinite(strength):
            raise SettingError("distilled-strength", strength, "must be a finite number", "The official value is 1.")
    _check_parts(models, request)
    if request.image_crf is not None and not 0 <= request.image_crf <= _MAX_CRF:
        raise SettingError("image-crf", request.image_crf, f"must be between 0 and {_MAX_CRF}", "0 skips it.")
    for image in request.images:
        check_condition(image, request, request.size.latent(models.latent_channels, models.scale).frames)


def check_size(width: int, height: int, frames: int, fps: float, stages: int, scale: tuple[int, int, int]) -> None:
    """Sizes that the latent grid can hold; two stages halve the size first."""
    time, tall, wide = scale
    for name, value, cell in (("width", width, wide), ("height", height, tall)):
        multiple = cell * stages
        if value <= 0 or value % multiple:
            below = max(value // multiple, 1) * multiple
            near = f"{below}" if value < multiple else f"{below} or {below + multiple}"
            what = "a two-stage" if stages == 2 else "a one-stage"
            raise SettingError(name, value, f"must be a multiple of {multiple} for {what} run", f"Try {near}.")
    if frames < 1 or (frames - 1) % time:
        below = max((frames - 1) // time, 0) * time + 1
        near = f"{below}" if frames < 1 else f"{below} or {below + time}"
        raise SettingError("frames", frames, f"must be {time} * n + 1", f"Try {near}.")
    if not math.isfinite(fps) or fps <= 0:
        raise SettingError("fps", fps, "must be a positive number", "The models are made for 24 or 25.")


def _check_sound(models: Models, request: GenerationRequest) -> None:
    """The clip lasts for one frame of sound at least, and for no more than rotary positions were made for."""
    geometry = models.audio_geometry
    seconds = request.frames / request.fps
    if geometry.latent(seconds).frames < 1:
        shortest = 1 / geometry.frames_per_second
        problem = f"makes a clip of {seconds:.3g} s, too short for any sound (at least {shortest:.3g} s)"
        raise SettingError("fps", request.fps, problem, "Lower it, or give more frames.")
    if seconds > LONGEST_SECONDS:
        problem = f"makes a clip of {seconds:.0f} s from {request.frames} frames; the longest is {LONGEST_SECONDS} s"
        raise SettingError("fps", request.fps, problem, "Raise it, or give fewer frames.")


def check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise SettingError("prompt", prompt, "is empty", "Describe the clip and its sound.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise SettingError("prompt", prompt, "has bytes that are no text", "Write it in UTF-8.") from error


def check_guidance(name: str, guidance: StreamGuidance, num_layers: int) -> None:
    """Finite scales, STG with blocks inside the model, skip not negative."""
    for key in ("cfg", "stg", "modality", "rescale"):
        value = getattr(guidance, key)
        if not math.isfinite(value):
            raise SettingError(f"{name} {key}", value, "must be a finite number", "Leave it out for the default.")
    if guidance.stg != 0 and not guidance.blocks:
        raise SettingError(f"{name} blocks", "", "STG needs at least one block", "Give blocks, or set stg to 0.")
    for block in guidance.blocks:
        if not 0 <= block < num_layers:
            problem = f"the model has blocks 0 to {num_layers - 1}"
            raise SettingError(f"{name} blocks", block, problem, "Choose a block inside the model.")
    if guidance.skip < 0:
        raise SettingError(f"{name} skip", guidance.skip, "must not be negative", "0 evaluates every step.")


def check_condition(image: ImageCondition, request: GenerationRequest, latent_frames: int) -> None:
    """The image can be read, lies inside the clip, and its strength is a share."""
    if not 0 <= image.frame < request.frames:
        problem = f"the clip has frames 0 to {request.frames - 1}"
        raise SettingError("image frame", image.frame, problem, "Choose a frame inside the clip.")
    if not math.isfinite(image.strength) or not 0.0 <= image.strength <= 1.0:
        problem = "must be between 0 (ignored) and 1 (kept)"
        raise SettingError("image strength", image.strength, problem, "1 is the official value.")
    load_image(image.image)
    if request.revision.replaces_latent_frames and image.frame >= latent_frames:
        problem = f"revision {request.revision.name} counts latent frames, and the clip has 0 to {latent_frames - 1}"
        raise SettingError("image frame", image.frame, problem, "Choose a frame inside the clip.")


def _check_parts(models: Models, request: GenerationRequest) -> None:
    recipe = request.recipe
    if recipe.stages == 2 and not models.has_upsampler:
        fix = "Give the spatial x2 upscaler of the checkpoint's generation, or choose the one-stage recipe."
        raise SettingError("upsampler", None, f"the {recipe.name} recipe needs one", fix)
    if any(recipe.distilled_strength) and not models.has_distilled_lora:
        fix = "Give the distilled LoRA, or set distilled-strength to 0,0 for a checkpoint that is distilled itself."
        raise SettingError("distilled-lora", None, f"the {recipe.name} recipe needs one", fix)
