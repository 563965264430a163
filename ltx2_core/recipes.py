"""The official recipes as data (docs/model.md 5 and 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from .errors import SettingError
from .types import CrossTimestepRule, Guidance, StreamGuidance


class AudioSource(str, Enum):
    """Where the clip's sound comes from."""

    STAGE_1 = "stage1"  # that stage's latent, decoded
    STAGE_2 = "stage2"
    INPUT = "input"  # the sound that the clip is made for, as it was given


@dataclass(frozen=True)
class Revision:
    """One dated set of official numerical rules (docs/model.md 0).

    Attributes:
        cross_timestep: what drives the audio-video cross attention's modulation.
        bf16_video_positions: round video RoPE positions to bfloat16.
        fp32_guidance: combine guidance passes in float32, not in the model's dtype.
        blend_keeps_upscaled: partial image strength in stage 2 keeps part of the upscaled latent.
        single_frame_keyframes: a one-frame keyframe spans one pixel frame, not eight.
        fp32_vocoder: run the vocoder in float32, not in the model's dtype.
        audio_source: stage whose audio the two-stage recipe decodes.
        frozen_sigma_zero: a frozen stream reports noise level 0.
        images_as_shown: follow an image's EXIF orientation and colour profile.
        replaces_latent_frames: an image at frame n > 0 replaces LATENT frame n; later ones append keyframe tokens.
        image_crf: H.264 quality of the conditioning image's round trip.
    """

    name: str
    cross_timestep: CrossTimestepRule
    bf16_video_positions: bool
    fp32_guidance: bool
    blend_keeps_upscaled: bool
    single_frame_keyframes: bool
    fp32_vocoder: bool
    audio_source: AudioSource
    frozen_sigma_zero: bool
    images_as_shown: bool
    replaces_latent_frames: bool = False
    image_crf: int = 33


REVISIONS: Mapping[str, Revision] = {
    r.name: r
    for r in (
        Revision("newest", CrossTimestepRule.SPLIT, False, True, True, True, True, AudioSource.STAGE_1, True, True),
        Revision("1.0.0", CrossTimestepRule.OTHER, True, False, False, False, False, AudioSource.STAGE_2, False, False),
        Revision(
            "2026-01", CrossTimestepRule.OWN, True, False, False, False, False, AudioSource.STAGE_2, False, False, True
        ),
    )
}

# Variants of a checkpoint
DEV, DISTILLED, UNKNOWN = "dev", "distilled", "unknown"

STAGE_2_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
OFFICIAL_SCHEDULE_TOKENS = 4096
SAMPLERS = ("euler", "gradient_estimation", "res_2s")


@dataclass(frozen=True)
class Recipe:
    """How a run is sampled.

    Attributes:
        stages: 1 denoises at full size; 2 denoises at half size, upsamples and refines.
        steps: intervals of the stage-1 schedule; ignored when ``sigmas`` is given.
        sigmas: fixed stage-1 sigmas, from 1 to 0.
        refine_sigmas: stage-2 sigmas, ending in 0.
        schedule_tokens: token count that shifts the schedule; None takes the stage's own video tokens.
        sampler: one of :data:`SAMPLERS`, for both stages.
        distilled_strength: strength of the distilled LoRA in stage 1 and in stage 2.
        audio_source: None leaves it to the revision.
        separate_passes: guidance passes run one after the other, in less memory, not as one batch.
        allows_stg: False: the recipe is made without STG.
        appends_images: every image becomes keyframe tokens; else one at frame 0 replaces the clip's own.
    """

    name: str
    stages: int
    steps: int
    guidance: Guidance
    sigmas: tuple[float, ...] | None = None
    refine_sigmas: tuple[float, ...] = STAGE_2_SIGMAS
    schedule_tokens: int | None = OFFICIAL_SCHEDULE_TOKENS
    sampler: str = "euler"
    distilled_strength: tuple[float, float] = (0.0, 1.0)
    audio_source: AudioSource | None = None
    separate_passes: bool = False
    allows_stg: bool = True
    appends_images: bool = False

    def inside(self, num_layers: int) -> Recipe:
        """The recipe for a model of fewer blocks than the released ones: its STG blocks at the same relative depth."""

        def moved(stream: StreamGuidance) -> StreamGuidance:
            blocks = tuple(b if b < num_layers else b * num_layers // _RELEASED_LAYERS for b in stream.blocks)
            return replace(stream, blocks=blocks)

        return replace(self, guidance=Guidance(moved(self.guidance.video), moved(self.guidance.audio)))


_RELEASED_LAYERS = 48


def _guided(block: int) -> Guidance:
    return Guidance(
        video=StreamGuidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7, blocks=(block,)),
        audio=StreamGuidance(cfg=7.0, stg=1.0, modality=3.0, rescale=0.7, blocks=(block,)),
    )


DISTILLED_RECIPE = "distilled"
_TWO_STAGE = Recipe("two-stage", stages=2, steps=30, guidance=_guided(28))
_HQ = Recipe(
    "hq",
    stages=2,
    steps=15,
    guidance=Guidance(
        video=StreamGuidance(cfg=3.0, modality=3.0, rescale=0.45),
        audio=StreamGuidance(cfg=7.0, modality=3.0, rescale=1.0),
    ),
    schedule_tokens=None,
    sampler="res_2s",
    distilled_strength=(0.25, 0.5),
    allows_stg=False,
)
_DISTILLED = Recipe(
    DISTILLED_RECIPE,
    stages=2,
    steps=len(DISTILLED_SIGMAS) - 1,
    guidance=Guidance(),
    sigmas=DISTILLED_SIGMAS,
    distilled_strength=(0.0, 0.0),
    audio_source=AudioSource.STAGE_2,
)
_ONE_STAGE = replace(
    _TWO_STAGE, name="one-stage", stages=1, distilled_strength=(0.0, 0.0), audio_source=AudioSource.STAGE_1
)
# Interpolates between images: the two-stage recipe's numbers, and the sound of stage 2 in every revision
_KEYFRAMES = replace(_TWO_STAGE, name="keyframes", audio_source=AudioSource.STAGE_2, appends_images=True)


def _of_2_0(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=40, guidance=_guided(29))


# The official recipes by generation of the checkpoint (docs/model.md 6 and 8)
RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    generation: {recipe.name: recipe for recipe in recipes}
    for generation, recipes in {
        "2.3": (_TWO_STAGE, _HQ, _DISTILLED, _ONE_STAGE, _KEYFRAMES),
        "2.0": (_of_2_0(_TWO_STAGE), _HQ, _DISTILLED, _of_2_0(_ONE_STAGE), _of_2_0(_KEYFRAMES)),
    }.items()
}
RECIPE_NAMES = tuple(RECIPES["2.3"])
# Width and height where nobody gives any. The official two-stage and distilled pipelines default to 1536x1024, four
# times the work of this size; that of the others is official.
DEFAULT_SIZES: Mapping[str, tuple[int, int]] = {
    "two-stage": (768, 512),
    "hq": (1920, 1088),
    "distilled": (768, 512),
    "one-stage": (768, 512),
    "keyframes": (768, 512),
}
DEFAULT_SIZE = DEFAULT_SIZES["two-stage"]
# What the official pipelines default to, beyond the recipe
DEFAULT_FRAMES = 121
DEFAULT_FPS = 24.0
DEFAULT_SEED = 10


def official_recipe(name: str, generation: str, num_layers: int | None = None) -> Recipe:
    """The official settings of a recipe for a checkpoint generation ("2.0" or "2.3").

    ``num_layers`` fits the STG blocks into a model that has fewer blocks than the released ones, see
    :meth:`Recipe.inside`; released models are unaffected.
    """
    if name not in RECIPE_NAMES:
        raise SettingError("recipe", name, "is not a known recipe", f"Choose one of: {', '.join(RECIPE_NAMES)}.")
    if generation not in RECIPES:
        raise SettingError("generation", generation, "has no official recipe", "Choose 2.0 or 2.3.")
    recipe = RECIPES[generation][name]
    return recipe if num_layers is None else recipe.inside(num_layers)
