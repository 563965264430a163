"""The whole recipe in one node."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.types import ImageCondition
from . import host
from .conversions import ImageSink, to_latent, to_video
from .handle import PipelineHandle
from .panel import Watched
from .progress import stages_of
from .queued import problem_when_queued
from .report import stages_text
from .request import clip_request, node_choice
from .sockets import (
    CATEGORY,
    UNCONNECTED,
    Unconnected,
    audio_input,
    clip_inputs,
    images_input,
    pipeline_input,
    prompt_inputs,
    recipe_input,
)
from .sound import to_audio


class Generate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageGenerate",
            hidden=[io.Hidden.unique_id],  # for host.queued_inputs
            display_name="LTX-2 Generate",
            category=CATEGORY,
            description="From the prompt to a video with sound: encodes the text, denoises, upsamples, refines and "
            "decodes. Gives the same result as the separate nodes.",
            search_aliases=["LTX-2", "LTX-2.3", "text to video", "image to video", "audio"],
            inputs=[
                pipeline_input(),
                *prompt_inputs(),
                *clip_inputs(),
                images_input(),
                recipe_input(),
                audio_input(),
            ],
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="Frames and sound together, for Save Video."),
                io.Image.Output("images", display_name="images", tooltip="The frames."),
                io.Audio.Output("audio", display_name="audio", tooltip="The sound, stereo."),
                io.Latent.Output("latent", display_name="latent", tooltip="The finished video and audio latent."),
                io.String.Output(
                    "report", display_name="report", tooltip="Time, memory and traffic of every stage, as JSON."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, width: int | None = None) -> bool | str:
        return problem_when_queued({**host.queued_inputs(cls), "width": width}) or True

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        prompt: str,
        negative_prompt: str,
        preset: str,
        width: int,
        height: int,
        frames: int,
        fps: float,
        seed: int,
        steps: int,
        images: tuple[ImageCondition, ...] | Unconnected | None = UNCONNECTED,
        recipe: RecipeChoice | Unconnected | None = UNCONNECTED,
        audio: Mapping[str, Any] | Unconnected | None = UNCONNECTED,
    ) -> io.NodeOutput:
        choice, notes = node_choice(preset, steps, recipe)
        request = clip_request(
            pipeline, prompt, negative_prompt, choice, width, height, frames, fps, seed, images, audio, notes
        )
        sink = ImageSink(request.frames)
        with Watched(pipeline, stages_of(request.recipe.stages)) as progress:
            result = pipeline.pipeline.run(request, progress, sink)
        pixels, sound = sink.images(), to_audio(result.audio)
        report = dataclasses.asdict(result.report)
        table = stages_text(result.report)
        latent, text = to_latent(result.final, request), json.dumps(report, indent=2)
        video = to_video(pixels, sound, fps)
        return io.NodeOutput(video, pixels, sound, latent, text, ui=ui.PreviewText(table))
