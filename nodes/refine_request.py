"""What stage 2 has to know: from the latent where our stage 1 made it, from the node where another one did."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..ltx2_core.errors import SettingError
from ..ltx2_core.recipes import RECIPE_NAMES
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import ImageCondition, LatentPair
from .conversions import Conditioning, foreign_request, own_request, prompt_text
from .handle import PipelineHandle

log = logging.getLogger("ltx2.nodes")

FROM_LATENT = "from latent"
TWO_STAGE_PRESETS = tuple(name for name in RECIPE_NAMES if name != "one-stage")
_NO_MASK = "LTX-2 Refine does not follow the latent's noise mask; connect images to keep their frames."
_RATE_KEY = "frame_rate"  # in a CONDITIONING: what ComfyUI's LTXVConditioning writes


def refine_request(
    latent: Mapping[str, Any],
    handle: PipelineHandle,
    upsampled: LatentPair,
    positive: Conditioning,
    preset: str,
    fps: float,
    seed: int,
    images: tuple[ImageCondition, ...] | None,
) -> GenerationRequest:
    """The request of stage 1 with what the node sets itself, checked.

    Args:
        preset, fps, seed: ``FROM_LATENT``, 0 and -1 leave them to the latent.

    Raises:
        SettingError: before any weight is read.
    """
    own = own_request(latent)
    recipe = handle.recipe(_preset(handle, preset)) if own is None or preset != FROM_LATENT else own.recipe
    if own is None:
        request = foreign_request(upsampled.video, handle, recipe, fps or float(positive[0][1].get(_RATE_KEY, 0.0)))
        request = replace(request, prompt=prompt_text(positive), seed=0)
        if _masks_anything(latent.get("noise_mask")):
            log.warning("%s", _NO_MASK)
            request = replace(request, notices=(*request.notices, _NO_MASK))
    else:
        request = replace(own, recipe=handle.adjusted(recipe), fps=fps or own.fps)
    request = replace(
        request,
        seed=request.seed if seed < 0 else seed,
        images=request.images if images is None else images,
    )
    # Stage 1 is over: what it alone would need (an upsampler, a size that can be halved) does not matter any more
    handle.pipeline.validate(replace(request, recipe=replace(request.recipe, stages=1)))
    return request


def check_upsampled(handle: PipelineHandle, latents: LatentPair, request: GenerationRequest) -> None:
    """Raises :class:`SettingError` unless the latents are those that stage 2 of this request works on."""
    if request.recipe.stages != 2:
        fix = "Connect LTX-2 Denoise to LTX-2 Decode, or choose another preset."
        raise SettingError("preset", request.recipe.name, "has no second stage", fix)
    models = handle.pipeline.models
    width, height = latents.video.shape[-1] * models.scale.width, latents.video.shape[-2] * models.scale.height
    if (width, height) != (request.width, request.height):
        problem = f"must be the {request.width}x{request.height} that stage 1 was asked for"
        fix = "Connect LTX-2 Upsample between LTX-2 Denoise and LTX-2 Refine."
        raise SettingError("latent", f"{width}x{height}", problem, fix)
    for what, found, wanted in (
        ("video", latents.video.shape[2], request.size.latent(models.latent_channels, models.scale).frames),
        ("audio", latents.audio.shape[2], models.audio_geometry.latent(request.frames / request.fps).frames),
    ):
        if found != wanted:
            problem = f"must be {wanted} for {request.frames} frames at {request.fps:g} frames per second"
            fix = "Connect latents of the same length, or set fps to the rate that they were made for."
            raise SettingError(f"{what} latent frames", found, problem, fix)


def _preset(handle: PipelineHandle, preset: str) -> str:
    if preset != FROM_LATENT:
        return preset
    return "two-stage" if handle.pipeline.models.has_distilled_lora else "distilled"


def _masks_anything(mask: Any) -> bool:
    if mask is None:
        return False
    parts: list[Tensor] = mask.unbind() if getattr(mask, "is_nested", False) else [mask]
    return any(bool((part < 1).any()) for part in parts if torch.is_tensor(part))
