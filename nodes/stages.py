"""The stages of a run, one node each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..ltx2_core.errors import SettingError, memory_errors
from ..ltx2_core.finite import Suspect, check_finite
from ..ltx2_core.limits import checked
from ..ltx2_core.media.audio import lasting
from ..ltx2_core.protocols import Progress
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.recipes import AudioSource
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.sampling.guidance import needs_negative
from ..ltx2_core.stages.decode import decode_video
from ..ltx2_core.stages.validate import check_audio
from ..ltx2_core.types import AudioClip, Component, ImageCondition, LatentPair, Phase
from . import host
from .conditioning import read_conditioning
from .conversions import (
    FOREIGN_PROMPT,
    Conditioning,
    ImageSink,
    Latent,
    decode_request,
    prompt_text,
    silence,
    to_context,
    to_latent,
    to_pair,
    to_streams,
    to_video,
    with_video,
)
from .handle import PipelineHandle
from .panel import Watched
from .queued import problem_when_queued
from .refine_request import FROM_LATENT, TWO_STAGE_PRESETS, check_upsampled, refine_request
from .report import notes_shown, stages_text
from .request import clip_request, node_choice
from .sockets import (
    CATEGORY,
    UNCONNECTED,
    Unconnected,
    audio_input,
    bounds,
    clip_inputs,
    images_input,
    linked,
    pipeline_input,
    pipeline_output,
    recipe_input,
)
from .sound import to_audio

STAGE_1, STAGE_2 = "stage 1", "stage 2"
FROM_PRESET = "preset"


class Denoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageDenoise",
            hidden=[io.Hidden.unique_id],  # for host.queued_inputs
            display_name="LTX-2 Denoise (stage 1)",
            category=CATEGORY,
            description="Stage 1: makes picture and sound from noise, guided by the prompts. Presets of two stages "
            "work at half the width and height here.",
            search_aliases=["LTX-2", "sampler", "KSampler", "stage 1", "t2v"],
            inputs=[
                pipeline_input(),
                # Lazy, so that settings which cannot work are refused before the text encoder is loaded
                io.Conditioning.Input(
                    "positive", lazy=True, tooltip="What the clip shows and sounds like, from LTX-2 Text Encode."
                ),
                *clip_inputs(),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    lazy=True,
                    tooltip="What the guidance leads away from, from LTX-2 Text Encode. The distilled preset "
                    "needs none.",
                ),
                images_input(),
                recipe_input(),
                audio_input(),
            ],
            outputs=[
                pipeline_output("The same models, for the node that runs next."),
                io.Latent.Output("latent", display_name="latent", tooltip="Video and audio latent of stage 1."),
            ],
        )

    @classmethod
    def validate_inputs(cls, width: int | None = None) -> bool | str:
        return problem_when_queued({**host.queued_inputs(cls), "width": width}) or True

    @classmethod
    def check_lazy_status(
        cls,
        pipeline: PipelineHandle,
        preset: str,
        width: int,
        height: int,
        frames: int,
        fps: float,
        seed: int,
        steps: int,
        positive: Conditioning | None = None,
        negative: Conditioning | Unconnected | None = UNCONNECTED,
        images: tuple[ImageCondition, ...] | Unconnected | None = UNCONNECTED,
        recipe: RecipeChoice | Unconnected | None = UNCONNECTED,
        audio: Mapping[str, Any] | Unconnected | None = UNCONNECTED,
    ) -> list[str]:
        """Which texts have still to be encoded: those that are connected and None.

        Raises:
            SettingError: the other settings cannot work.
        """
        clip = (width, height, frames, fps, seed, images, audio)
        with host.told_on_the_node():
            choice, _ = node_choice(preset, steps, recipe)
            request = clip_request(pipeline, FOREIGN_PROMPT, "", choice, *clip)
            guided = _guided(request, choice.preset, negative is None or not isinstance(negative, str))
        return [
            name for name, text in (("positive", positive), ("negative", negative if guided else "")) if text is None
        ]

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
        negative: Conditioning | Unconnected | None = UNCONNECTED,
        images: tuple[ImageCondition, ...] | Unconnected | None = UNCONNECTED,
        recipe: RecipeChoice | Unconnected | None = UNCONNECTED,
        audio: Mapping[str, Any] | Unconnected | None = UNCONNECTED,
    ) -> io.NodeOutput:
        choice, notes = node_choice(preset, steps, recipe)
        notes += read_conditioning(positive, "positive", fps)
        request = clip_request(
            pipeline, prompt_text(positive), "", choice, width, height, frames, fps, seed, images, audio, notes
        )
        against = None
        if _guided(request, choice.preset, negative is not None and not isinstance(negative, str)):
            assert negative is not None and not isinstance(negative, str)
            notes += read_conditioning(negative, "negative", fps)
            against = to_context(negative, pipeline, "negative")
        elif negative != UNCONNECTED:
            notes += (f"The {choice.preset} preset guides nothing: the negative prompt is not used.",)
        request = replace(request, notices=notes)
        context = to_context(positive, pipeline, "positive")
        with Watched(pipeline) as progress:
            pair = pipeline.pipeline.denoise(request, context, against, progress)
        return io.NodeOutput(pipeline, to_latent(pair, request), ui=notes_shown(pipeline, request))


def _guided(request: GenerationRequest, preset: str, has_negative: bool) -> bool:
    """Whether stage 1 needs the negative prompt.

    Raises:
        SettingError: it does, and there is none.
    """
    guided = needs_negative(request.recipe.guidance)
    if guided and not has_negative:
        fix = "Connect the negative output of LTX-2 Text Encode."
        raise SettingError("negative", None, f"the {preset} preset needs it", fix)
    return guided


class LoRASwitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageLoRASwitch",
            hidden=[io.Hidden.unique_id],  # for host.queued_literals
            display_name="LTX-2 LoRA Switch",
            category=CATEGORY,
            description="Sets the strength of the distilled LoRA for a stage, in place of the preset's, and makes the "
            "transformer ready for that stage. Without this node a stage uses the preset's strength.",
            search_aliases=["LTX-2", "distilled LoRA", "strength", "stage 2"],
            inputs=[
                pipeline_input(),
                io.Combo.Input(
                    "stage", options=[STAGE_2, STAGE_1], default=STAGE_2, tooltip="Stage whose strength is set."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    **bounds("distilled-strength"),
                    step=0.01,
                    tooltip="Strength of the distilled LoRA. Official: two-stage 0 in stage 1 and 1 in stage 2, hq "
                    "0.25 and 0.5.",
                ),
            ],
            outputs=[pipeline_output("The models with this strength, for LTX-2 Refine or LTX-2 Denoise.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, stage: str, strength: float) -> io.NodeOutput:
        checked("distilled-strength", strength, "strength")
        first, second = pipeline.distilled_strength
        strengths = (strength, second) if stage == STAGE_1 else (first, strength)
        phase = Phase.STAGE_1 if stage == STAGE_1 else Phase.STAGE_2
        adapters = pipeline.pipeline.models.adapter_strengths(phase, (strength, strength))
        pipeline.pipeline.residency.prefetch(Component.TRANSFORMER, phase, adapters)
        return io.NodeOutput(replace(pipeline, distilled_strength=strengths))


class Upsample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageUpsample",
            display_name="LTX-2 Upsample",
            category=CATEGORY,
            description="Doubles width and height of the video latent between the stages. The audio passes through.",
            search_aliases=["LTX-2", "latent upscale", "spatial upscaler", "x2"],
            inputs=[
                pipeline_input(),
                io.Latent.Input(
                    "latent",
                    tooltip="Video latent of stage 1, with or without sound, from LTX-2 Denoise or one of ComfyUI's "
                    "own nodes.",
                ),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="The latent at twice the size.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, latent: Latent) -> io.NodeOutput:
        if not pipeline.pipeline.models.has_upsampler:
            fix = "Choose the spatial x2 upscaler of the checkpoint's generation in LTX-2 Loader."
            raise SettingError("upsampler", None, "none is loaded", fix)
        video, audio = to_streams(latent, pipeline)
        pair = LatentPair(video, video if audio is None else audio)  # the sound is not looked at
        with Watched(pipeline) as progress:
            upsampled = pipeline.pipeline.upsample(pair, progress)
        return io.NodeOutput(with_video(latent, upsampled.video))


class Refine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageRefine",
            hidden=[io.Hidden.unique_id],  # for host.queued_literals
            display_name="LTX-2 Refine (stage 2)",
            category=CATEGORY,
            description="Stage 2: a few steps at full size with the distilled LoRA and the prompt alone. Size, rate, "
            "seed and images are those of stage 1; they come with the latent of LTX-2 nodes. For the latent of other "
            "nodes, set them here.",
            search_aliases=["LTX-2", "sampler", "second pass", "hires fix", "stage 2"],
            inputs=[
                pipeline_input(),
                io.Conditioning.Input("positive", tooltip="The prompt of stage 1, from LTX-2 Text Encode."),
                io.Latent.Input(
                    "latent",
                    tooltip="The upsampled video and audio latent, from LTX-2 Upsample or one of ComfyUI's own nodes.",
                ),
                io.Combo.Input(
                    "audio_source",
                    options=[FROM_PRESET, *(source.value for source in AudioSource)],
                    default=FROM_PRESET,
                    tooltip="Whose sound the latent carries on: stage 1's as it was, or stage 2's. preset: the "
                    "official choice, stage 1 for two-stage and hq, stage 2 for distilled.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[FROM_LATENT, *TWO_STAGE_PRESETS],
                    default=FROM_LATENT,
                    optional=True,
                    tooltip="Official recipe of stage 2. from latent: that of stage 1, and for the latent of other "
                    "nodes two-stage with a distilled LoRA, distilled without.",
                    extra_dict={"advanced": True},
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    **bounds("fps", least=0),
                    step=0.01,
                    optional=True,
                    tooltip="Frames per second. 0 takes the rate of stage 1, or that of LTXVConditioning.",
                    extra_dict={"advanced": True},
                ),
                io.Int.Input(
                    "seed",
                    default=-1,
                    **bounds("seed", least=-1),
                    control_after_generate=False,  # the page would else draw a seed after every run
                    optional=True,
                    tooltip="Seed of the noise. -1 takes that of stage 1, and 0 for the latent of other nodes.",
                    extra_dict={"advanced": True},
                ),
                images_input("Images that the clip must show, in place of stage 1's, from LTX-2 Image Condition."),
            ],
            outputs=[
                pipeline_output("The same models, for the node that runs next."),
                io.Latent.Output("latent", display_name="latent", tooltip="The finished video and audio latent."),
            ],
        )

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        positive: Conditioning,
        latent: Latent,
        audio_source: str,
        preset: str = FROM_LATENT,
        fps: float = 0.0,
        seed: int = -1,
        images: tuple[ImageCondition, ...] | Unconnected | None = UNCONNECTED,
    ) -> io.NodeOutput:
        upsampled, pictures = to_pair(latent, pipeline), linked("images", images, "image")
        request = refine_request(latent, pipeline, upsampled, positive, preset, fps, seed, pictures)
        if audio_source != FROM_PRESET:
            request = replace(request, audio_source=AudioSource(audio_source))
            check_audio(request.audio, request.audio_source)
        check_upsampled(pipeline, upsampled, request)
        context = to_context(positive, pipeline, "positive")
        with Watched(pipeline) as progress:
            refined = pipeline.pipeline.refine(request, upsampled, context, progress)
        if request.effective_audio_source is AudioSource.STAGE_1:
            refined = LatentPair(refined.video, upsampled.audio)
        return io.NodeOutput(pipeline, to_latent(refined, request, latent), ui=notes_shown(pipeline, request))


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageDecode",
            hidden=[io.Hidden.unique_id],  # for host.queued_literals
            display_name="LTX-2 Decode",
            category=CATEGORY,
            description="Latents to frames and sound. Takes the latent of either stage, and of ComfyUI's own nodes.",
            search_aliases=["LTX-2", "VAE Decode", "audio decode", "video"],
            inputs=[
                pipeline_input(),
                io.Latent.Input(
                    "latent",
                    tooltip="Video and audio latent, from LTX-2 Refine, LTX-2 Denoise or one of ComfyUI's own nodes. "
                    "Without sound the clip is silent.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    **bounds("fps", least=0),
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
        video, audio = to_streams(latent, pipeline)
        request = decode_request(latent, video, pipeline, fps)
        with Watched(pipeline) as progress:
            if vae is None and audio is not None:
                sink = ImageSink(request.frames)
                clip = pipeline.pipeline.decode(request, LatentPair(video, audio), sink, progress)
                images = sink.images()
            else:
                with memory_errors(pipeline.pipeline.residency.mode):
                    images, clip = _decode_apart(pipeline, request, video, audio, vae, progress)
        sound, table = to_audio(lasting(clip, request.seconds)), stages_text(pipeline.pipeline.last_report())
        return io.NodeOutput(images, sound, to_video(images, sound, request.fps), ui=ui.PreviewText(table))


def _decode_apart(
    pipeline: PipelineHandle,
    request: GenerationRequest,
    video: Tensor,
    audio: Tensor | None,
    vae: Any,
    progress: Progress,
) -> tuple[Tensor, AudioClip]:
    """Frames (F, H, W, 3) by the host's VAE or the pipeline's, and the sound, if there is any."""
    models, residency = pipeline.pipeline.models, pipeline.pipeline.residency
    with residency.measure("decode"):
        clip = silence(request, pipeline) if audio is None else pipeline.pipeline.decode_sound(request, audio)
        if vae is not None:
            pictures: Tensor = vae.decode(video).flatten(0, 1)  # BFHWC -> FHWC
            cause = "Choose another VAE, or leave it out for the pipeline's own."
            check_finite("decoding", Suspect("the picture that the connected VAE makes", cause, (pictures,)))
            return pictures, clip
        sink = ImageSink(request.frames)
        progress.start("decode", request.frames)
        decode_video(models, residency, video, sink, progress)
    return sink.images(), clip
