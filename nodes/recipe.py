"""Every number of the sampling, for LTX-2 Denoise and LTX-2 Generate."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.recipes import RECIPE_NAMES, REVISIONS, SAMPLERS, AudioSource
from . import host
from .recipe_values import FROM_PRESET, NO_BLOCKS, check_when_queued, guidance_choice, recipe_choice
from .sockets import CATEGORY, RecipeSocket, bounds


def _scale(name: str, row: str, tooltip: str) -> Any:
    text = f"{tooltip} -1 takes the preset's."
    return io.Float.Input(name, default=-1.0, **bounds(row, least=-1), step=0.01, tooltip=text)


def _rare(name: str, tooltip: str) -> Any:
    """Text that few people need; "advanced" goes in as an extra: hosts before it was a parameter ignore it."""
    return io.String.Input(name, default="", optional=True, tooltip=tooltip, extra_dict={"advanced": True})


def _stream_inputs(stream: str, cfg: str) -> list[Any]:
    return [
        _scale(f"{stream}_cfg", "cfg", f"Text guidance of the {stream}, 1 is off. Official: {cfg}."),
        _scale(
            f"{stream}_stg",
            "stg",
            f"Spatio-temporal guidance of the {stream}, 0 is off. Official: 1, and off in hq, which refuses it.",
        ),
        _scale(
            f"{stream}_modality",
            "modality",
            f"Guidance of the {stream} towards fitting the other stream, 1 is off. Official: 3.",
        ),
        _scale(
            f"{stream}_rescale",
            "rescale",
            f"How far the guided {stream} is scaled back to the spread of the unguided one, 0 is off. Official: 0.7, "
            "and in hq 0.45 for video and 1 for audio.",
        ),
        io.String.Input(
            f"{stream}_blocks",
            default="",
            tooltip=f"Transformer blocks that the {stream}'s STG perturbs, with commas between them. Official: 28 for "
            f"LTX-2.3, 29 for LTX-2. Empty takes the preset's, {NO_BLOCKS} leaves none.",
        ),
        io.Int.Input(
            f"{stream}_skip",
            default=-1,
            **bounds("skip", least=-1),
            tooltip=f"Steps between two evaluations of the {stream} that reuse the last one: faster and rougher. "
            "Official: 0. -1 takes the preset's.",
        ),
    ]


class Recipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageRecipe",
            hidden=[io.Hidden.unique_id],  # for host.queued_inputs
            display_name="LTX-2 Recipe",
            category=CATEGORY,
            description="A preset with numbers of your own in it. What is left alone stays the preset's, which depends "
            "on the checkpoint's generation: LTX-2 or LTX-2.3.",
            search_aliases=["LTX-2", "guidance", "cfg", "STG", "sampler", "sigmas"],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(RECIPE_NAMES),
                    default="two-stage",
                    tooltip="Official recipe that the other inputs change.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    **bounds("steps", least=0),
                    tooltip="Steps of stage 1. 0 takes the preset's: two-stage and one-stage 30 (LTX-2.3) or 40 "
                    "(LTX-2), hq 15. The distilled preset has fixed steps.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=[FROM_PRESET, *SAMPLERS],
                    default=FROM_PRESET,
                    tooltip="Of both stages. euler: one evaluation a step. gradient_estimation: the same, steered by "
                    "the step before. res_2s: second order, two evaluations a step. preset: res_2s for hq, else euler.",
                ),
                *_stream_inputs("video", "3"),
                *_stream_inputs("audio", "7"),
                _scale(
                    "distilled_strength_1",
                    "distilled-strength",
                    "Strength of the distilled LoRA in stage 1. Official: 0, in hq 0.25.",
                ),
                _scale(
                    "distilled_strength_2",
                    "distilled-strength",
                    "Strength of the distilled LoRA in stage 2. Official: 1, in hq 0.5, 0 for a distilled checkpoint.",
                ),
                io.Combo.Input(
                    "audio_source",
                    options=[FROM_PRESET, *(source.value for source in AudioSource)],
                    default=FROM_PRESET,
                    tooltip="Whose sound the clip has: that of a stage, or the sound that is given as audio. preset: "
                    "the given one where there is one, else stage 1 for two-stage and hq, stage 2 for distilled.",
                ),
                io.Combo.Input(
                    "revision",
                    options=list(REVISIONS),
                    default="newest",
                    tooltip="Whose numerical rules hold: those of Lightricks' newest code, of its package 1.0.0 "
                    "(LTX-2.3's release), or of January 2026 (LTX-2's release, which counts latent frames for images).",
                ),
                _rare(
                    "sigmas",
                    "Noise levels of stage 1 from 1 to 0, with commas between them, in place of the schedule and its "
                    "steps. Empty takes the preset's.",
                ),
                _rare(
                    "refine_sigmas",
                    "Noise levels of stage 2, ending in 0. Official: 0.909375, 0.725, 0.421875, 0. Empty takes the "
                    "preset's.",
                ),
                io.Int.Input(
                    "schedule_tokens",
                    default=-1,
                    **bounds("schedule-tokens", least=-1),
                    optional=True,
                    tooltip="Number of video tokens that shifts the schedule of stage 1 towards more noise. Official: "
                    "4096, and in hq 0, which takes the clip's own. -1 takes the preset's.",
                    extra_dict={"advanced": True},
                ),
                io.Combo.Input(
                    "guidance_passes",
                    options=[FROM_PRESET, "together", "separate"],
                    default=FROM_PRESET,
                    optional=True,
                    tooltip="Guidance passes as one batch, or one after the other, which is slower and needs less "
                    "memory. preset: together.",
                    extra_dict={"advanced": True},
                ),
            ],
            outputs=[
                RecipeSocket.Output(
                    "recipe", display_name="recipe", tooltip="The recipe, for LTX-2 Denoise or LTX-2 Generate."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str | None = None) -> bool | str:
        """Inputs that come over a link are None: not known yet."""
        values = {widget.id: widget.default for widget in cls.define_schema().inputs}
        queued = {**host.queued_inputs(cls), "preset": preset}
        values |= {name: value for name, value in queued.items() if name in values and value is not None}
        try:
            check_when_queued(cls.execute(**values).args[0])
        except LTX2Error as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        preset: str,
        steps: int,
        sampler: str,
        video_cfg: float,
        video_stg: float,
        video_modality: float,
        video_rescale: float,
        video_blocks: str,
        video_skip: int,
        audio_cfg: float,
        audio_stg: float,
        audio_modality: float,
        audio_rescale: float,
        audio_blocks: str,
        audio_skip: int,
        distilled_strength_1: float,
        distilled_strength_2: float,
        audio_source: str,
        revision: str,
        sigmas: str = "",
        refine_sigmas: str = "",
        schedule_tokens: int = -1,
        guidance_passes: str = FROM_PRESET,
    ) -> io.NodeOutput:
        video = guidance_choice("video", video_cfg, video_stg, video_modality, video_rescale, video_blocks, video_skip)
        audio = guidance_choice("audio", audio_cfg, audio_stg, audio_modality, audio_rescale, audio_blocks, audio_skip)
        schedule = (steps, sampler, sigmas, refine_sigmas, schedule_tokens, guidance_passes)
        strengths = (distilled_strength_1, distilled_strength_2)
        choice: RecipeChoice = recipe_choice(preset, schedule, video, audio, strengths, audio_source, revision)
        return io.NodeOutput(choice)
