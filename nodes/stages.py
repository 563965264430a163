"""The stages of a run, one node each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..ltx2_core.errors import SettingError
from ..ltx2_core.recipes import AudioSource
from ..ltx2_core.sampling.guidance import needs_negative
from ..ltx2_core.stages.decode import decode_audio
from ..ltx2_core.types import Component, ImageCondition, LatentPair, Phase
from .conversions import (
    Conditioning,
    ImageSink,
    Latent,
    decode_request,
    prompt_text,
    request_of,
    to_audio,
    to_context,
    to_latent,
    to_pair,
    to_video,
)
from .handle import PipelineHandle
from .host import NodeProgress
from .request import clip_request, problem_when_queued
from .sockets import CATEGORY, clip_inputs, images_input, pipeline_input, pipeline_output

STAGE_1, STAGE_2 = "stage 1", "stage 2"
FROM_PRESET = "preset"


class Denoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageDenoise",
            display_name="LTX-2 Denoise (stage 1)",
            category=CATEGORY,
            description="Stage 1: makes picture and sound from noise, guided by the prompts. Presets of two stages "
            "work at half the width and height here.",
            inputs=[
                pipeline_input(),
                io.Conditioning.Input(
                    "positive", tooltip="What the clip shows and sounds like, from LTX-2 Text Encode."
                ),
                *clip_inputs(),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What the guidance leads away from, from LTX-2 Text Encode. The distilled preset "
                    "needs none.",
                ),
                images_input(),
            ],
            outputs=[
                pipeline_output("The same models, for the node that runs next."),
                io.Latent.Output("latent", display_name="latent", tooltip="Video and audio latent of stage 1."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        preset: str | None = None,
        width: int | None = None,
        height: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
    ) -> bool | str:
        return problem_when_queued(preset, width, height, frames, fps) or True

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        positive: Conditioning,
        preset: str,
        width: int,
        height: int,
        frames: int,
        fps: float,
        seed: int,
        steps: int,
        negative: Conditioning | None = None,
        images: tuple[ImageCondition, ...] | None = None,
    ) -> io.NodeOutput:
        request = clip_request(
            pipeline, prompt_text(positive), "", preset, width, height, frames, fps, seed, steps, images
        )
        guided = needs_negative(request.recipe.guidance)
        if guided and negative is None:
            fix = "Connect the negative output of LTX-2 Text Encode."
            raise SettingError("negative", None, f"the {preset} preset needs it", fix)
        context = to_context(positive, pipeline, "positive")
        against = to_context(negative, pipeline, "negative") if guided and negative is not None else None
        pair = pipeline.pipeline.denoise(request, context, against, NodeProgress())
        return io.NodeOutput(pipeline, to_latent(pair, request))


class LoRASwitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageLoRASwitch",
            display_name="LTX-2 LoRA Switch",
            category=CATEGORY,
            description="Sets the strength of the distilled LoRA for a stage, in place of the preset's, and makes the "
            "transformer ready for that stage. Without this node a stage uses the preset's strength.",
            inputs=[
                pipeline_input(),
                io.Combo.Input(
                    "stage", options=[STAGE_2, STAGE_1], default=STAGE_2, tooltip="Stage whose strength is set."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the distilled LoRA. Official: two-stage 0 in stage 1 and 1 in stage 2, hq "
                    "0.25 and 0.5.",
                ),
            ],
            outputs=[pipeline_output("The models with this strength, for LTX-2 Refine or LTX-2 Denoise.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, stage: str, strength: float) -> io.NodeOutput:
        first, second = pipeline.distilled_strength
        strengths = (strength, second) if stage == STAGE_1 else (first, strength)
        phase = Phase.STAGE_1 if stage == STAGE_1 else Phase.STAGE_2
        pipeline.pipeline.residency.prefetch(Component.TRANSFORMER, phase)
        return io.NodeOutput(replace(pipeline, distilled_strength=strengths))


class Upsample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageUpsample",
            display_name="LTX-2 Upsample",
            category=CATEGORY,
            description="Doubles width and height of the video latent between the stages. The audio passes through.",
            inputs=[
                pipeline_input(),
                io.Latent.Input("latent", tooltip="Video and audio latent of stage 1, from LTX-2 Denoise."),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="The latent at twice the size.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, latent: Latent) -> io.NodeOutput:
        request = request_of(latent)
        if not pipeline.pipeline.models.has_upsampler:
            fix = "Choose the spatial x2 upscaler of the checkpoint's generation in LTX-2 Loader."
            raise SettingError("upsampler", None, "none is loaded", fix)
        pair = pipeline.pipeline.upsample(to_pair(latent), NodeProgress())
        return io.NodeOutput(to_latent(pair, request, latent))


class Refine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageRefine",
            display_name="LTX-2 Refine (stage 2)",
            category=CATEGORY,
            description="Stage 2: a few steps at full size with the distilled LoRA and the prompt alone. Size, rate, "
            "seed and images are those of stage 1; they come with the latent.",
            inputs=[
                pipeline_input(),
                io.Conditioning.Input("positive", tooltip="The prompt of stage 1, from LTX-2 Text Encode."),
                io.Latent.Input("latent", tooltip="The upsampled latent, from LTX-2 Upsample."),
                io.Combo.Input(
                    "audio_source",
                    options=[FROM_PRESET, *(source.value for source in AudioSource)],
                    default=FROM_PRESET,
                    tooltip="Whose sound the latent carries on: stage 1's as it was, or stage 2's. preset: the "
                    "official choice, stage 1 for two-stage and hq, stage 2 for distilled.",
                ),
            ],
            outputs=[
                pipeline_output("The same models, for the node that runs next."),
                io.Latent.Output("latent", display_name="latent", tooltip="The finished video and audio latent."),
            ],
        )

    @classmethod
    def execute(
        cls, pipeline: PipelineHandle, positive: Conditioning, latent: Latent, audio_source: str
    ) -> io.NodeOutput:
        request = request_of(latent)
        chosen = None if audio_source == FROM_PRESET else AudioSource(audio_source)
        request = replace(request, recipe=pipeline.adjusted(request.recipe), audio_source=chosen)
        upsampled = to_pair(latent)
        _check_upsampled(pipeline, upsampled, request.recipe.stages, request.height, request.width)
        context = to_context(positive, pipeline, "positive")
        refined = pipeline.pipeline.refine(request, upsampled, context, NodeProgress())
        if request.effective_audio_source is AudioSource.STAGE_1:
            refined = LatentPair(refined.video, upsampled.audio)
        return io.NodeOutput(pipeline, to_latent(refined, request, latent))


def _check_upsampled(pipeline: PipelineHandle, latents: LatentPair, stages: int, height: int, width: int) -> None:
    if stages != 2:
        fix = "Connect LTX-2 Denoise to LTX-2 Decode, or choose another preset."
        raise SettingError("preset", "one-stage", "has no second stage", fix)
    scale = pipeline.pipeline.models.scale
    size = (latents.video.shape[-1] * scale.width, latents.video.shape[-2] * scale.height)
    if size != (width, height):
        problem = f"must be the {width}x{height} that stage 1 was asked for"
        fix = "Connect LTX-2 Upsample between LTX-2 Denoise and LTX-2 Refine."
        raise SettingError("latent", f"{size[0]}x{size[1]}", problem, fix)


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageDecode",
            display_name="LTX-2 Decode",
            category=CATEGORY,
            description="Latents to frames and sound. Takes the latent of either stage.",
            inputs=[
                pipeline_input(),
                io.Latent.Input("latent", tooltip="Video and audio latent, from LTX-2 Refine or LTX-2 Denoise."),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second of the video. 0 takes the rate that the latent was made for.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the picture with one of ComfyUI's own VAEs, in place of the pipeline's.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The frames."),
                io.Audio.Output("audio", display_name="audio", tooltip="The sound, stereo."),
                io.Video.Output("video", display_name="video", tooltip="Frames and sound together, for Save Video."),
            ],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, latent: Latent, fps: float, vae: Any = None) -> io.NodeOutput:
        pair, engine, progress = to_pair(latent), pipeline.pipeline, NodeProgress()
        request = decode_request(latent, pair, pipeline, fps)
        if vae is None:
            sink = ImageSink()
            audio = to_audio(engine.decode(request, pair, sink, progress))
            images = sink.images()
        else:
            images = vae.decode(pair.video).flatten(0, 1)  # BFHWC -> FHWC
            audio = to_audio(decode_audio(engine.models, engine.residency, request, pair.audio))
        return io.NodeOutput(images, audio, to_video(images, audio, request.fps))
