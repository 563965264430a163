"""The link types of this pack, for what ComfyUI has no type of its own, and inputs that several nodes share."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from comfy_api.latest import io

from ..ltx2_core.errors import SettingError
from ..ltx2_core.limits import LIMITS
from ..ltx2_core.recipes import DEFAULT_FPS, DEFAULT_FRAMES, DEFAULT_SEED, DEFAULT_SIZE, RECIPE_NAMES

Given = TypeVar("Given")
Unconnected = Literal["unconnected"]
UNCONNECTED: Unconnected = "unconnected"  # default of an optional input: over a link comes None where nothing is
CATEGORY = "LTX-2 Two-Stage"
PipelineSocket = io.Custom("LTX2_PIPELINE")
ImagesSocket = io.Custom("LTX2_IMAGES")
RecipeSocket = io.Custom("LTX2_RECIPE")

# What the widgets step by: two of the released video VAEs' cells, one of them in time. For one stage the page lets
# them step by one cell (web/ltx2_sizes.js).
_PIXEL_STEP, _FRAME_STEP = 64, 8


def bounds(name: str, least: int | None = None) -> dict[str, Any]:
    """``min`` and ``max`` of a widget, from the table of bounds.

    Args:
        least: in place of the table's, where the widget has a value of its own that stands for the preset's.
    """
    limit = LIMITS[name]
    kind = int if limit.whole else float
    return {"min": kind(limit.least if least is None else least), "max": kind(limit.most)}


def linked(setting: str, value: Given | Unconnected | None, holds: str) -> Given | None:
    """What an optional input brings; None where nothing is connected.

    Raises:
        SettingError: something is connected, and brings nothing, such as the sound of a video without any.
    """
    if value is None:
        fix = f"Remove the link to {setting}, or connect a node that gives one."
        raise SettingError(setting, None, f"is connected, but holds no {holds}", fix)
    return None if isinstance(value, str) else value


def pipeline_input() -> Any:
    return PipelineSocket.Input("pipeline", tooltip="Loaded models, from LTX-2 Loader.")


def pipeline_output(tooltip: str) -> Any:
    return PipelineSocket.Output("pipeline", display_name="pipeline", tooltip=tooltip)


def clip_inputs() -> list[Any]:
    """What describes one clip and how it is sampled; :func:`~.request.clip_request` reads it."""
    width, height = DEFAULT_SIZE
    return [
        io.Combo.Input(
            "preset",
            options=list(RECIPE_NAMES),
            default="two-stage",
            tooltip="Official recipe. two-stage: guided at half size, upscaled, refined with the distilled LoRA. "
            "hq: the same with a second-order sampler, made for 1920x1088. "
            "distilled: no guidance, for a distilled checkpoint, or a dev one with the distilled LoRA. "
            "one-stage: guided at full size, no upscaling. keyframes: two-stage, each image a keyframe.",
        ),
        io.Int.Input(
            "width",
            default=width,
            min=_PIXEL_STEP,
            max=int(LIMITS["width"].most),
            step=_PIXEL_STEP,
            tooltip="Width of the clip in pixels: a multiple of 64, or of 32 with the one-stage preset.",
        ),
        io.Int.Input(
            "height",
            default=height,
            min=_PIXEL_STEP,
            max=int(LIMITS["height"].most),
            step=_PIXEL_STEP,
            tooltip="Height of the clip in pixels: a multiple of 64, or of 32 with the one-stage preset.",
        ),
        io.Int.Input(
            "frames",
            default=DEFAULT_FRAMES,
            **bounds("frames"),
            step=_FRAME_STEP,
            tooltip="Number of frames, 8 n + 1: 121 at 24 frames per second are 5 seconds.",
        ),
        io.Float.Input(
            "fps",
            default=DEFAULT_FPS,
            **bounds("fps"),
            step=0.01,
            tooltip="Frames per second. The models are made for 24 or 25.",
        ),
        io.Int.Input(
            "seed",
            default=DEFAULT_SEED,
            **bounds("seed"),
            control_after_generate=True,
            tooltip="Seed of the noise. The same seed and settings give the same clip.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            **bounds("steps", least=0),
            tooltip="Steps of stage 1. 0 takes the preset's: two-stage and one-stage 30 (LTX-2.3) or 40 (LTX-2), hq "
            "15. The distilled preset has fixed steps.",
        ),
    ]


def prompt_inputs() -> list[Any]:
    """The two texts."""
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            dynamic_prompts=True,
            tooltip="Describe the clip in one flowing paragraph, in order of time: scene, action, camera, light, and "
            "what is heard. At most 1024 tokens; what is longer is cut, and the node says so.",
        ),
        io.String.Input(
            "negative_prompt",
            multiline=True,
            dynamic_prompts=True,
            default="",
            tooltip="What the guidance leads away from. May be empty. The distilled preset takes none.",
        ),
    ]


def images_input(
    tooltip: str = "Images that the clip must show, from LTX-2 Image Condition. Without any: text to video.",
) -> Any:
    return ImagesSocket.Input("images", optional=True, tooltip=tooltip)


def recipe_input() -> Any:
    return RecipeSocket.Input(
        "recipe",
        optional=True,
        tooltip="Preset, steps and every other number of the sampling, from LTX-2 Recipe. Takes the place of this "
        "node's own preset and steps.",
    )


def audio_input() -> Any:
    return io.Audio.Input(
        "audio",
        optional=True,
        tooltip="Sound that the picture is made for, mono or stereo, cut to the clip's length or followed by silence. "
        "The clip has it as it is. Without any: the sound is made with the picture.",
    )
