"""The whole run, as the list of its stages. The nodes call the stages one by one; ``run`` calls them in a row."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .media.sink import FrameSink, NullSink
from .protocols import Models, NoProgress, Progress, Residency
from .recipes import AudioSource
from .request import GenerationRequest, GenerationResult
from .sampling.guidance import needs_negative
from .stages.decode import decode
from .stages.denoise import denoise_stage
from .stages.plan import plan_stages
from .stages.prompt import encode_prompts
from .stages.upsample import upsample
from .stages.validate import validate
from .types import AudioClip, LatentPair, Phase, PromptContext, RunReport, StageRecord

F = TypeVar("F", bound=Callable[..., object])
_QUIET = NoProgress()


def _inference(function: F) -> F:
    return torch.inference_mode()(function)


class Pipeline:
    """Two-stage (or one-stage) generation with loaded models.

    Args:
        models: the loaded files, see ``loading.ModelSet``.
        residency: decides where the modules live.
    """

    def __init__(self, models: Models, residency: Residency) -> None:
        self.models, self.residency = models, residency

    def validate(self, request: GenerationRequest) -> None:
        """Raises :class:`SettingError` before any weight is read."""
        validate(self.models, request)

    @_inference
    def encode_prompt(
        self, request: GenerationRequest, progress: Progress = _QUIET
    ) -> tuple[PromptContext, PromptContext | None]:
        """Embeddings of the prompt, and of the negative prompt where the guidance needs one."""
        if not needs_negative(request.recipe.guidance):
            return encode_prompts(self.models, self.residency, [request.prompt], progress)[0], None
        prompts = [request.prompt, request.negative_prompt]
        positive, negative = encode_prompts(self.models, self.residency, prompts, progress)
        return positive, negative

    @_inference
    def denoise(
        self,
        request: GenerationRequest,
        positive: PromptContext,
        negative: PromptContext | None,
        progress: Progress = _QUIET,
    ) -> LatentPair:
        """Stage 1: guided denoising, at half size when the recipe has two stages."""
        plan = plan_stages(self.models, request)[0]
        return denoise_stage(self.models, self.residency, request, plan, positive, negative, None, progress)

    @_inference
    def upsample(self, latents: LatentPair, progress: Progress = _QUIET) -> LatentPair:
        """Doubles the video latent's height and width; the audio passes through."""
        return upsample(self.models, self.residency, latents, progress)

    @_inference
    def refine(
        self,
        request: GenerationRequest,
        upsampled: LatentPair,
        positive: PromptContext,
        progress: Progress = _QUIET,
    ) -> LatentPair:
        """Stage 2: a short denoising of the upsampled latent with the distilled LoRA and the positive prompt alone."""
        plan = plan_stages(self.models, request)[-1]
        if plan.phase is not Phase.STAGE_2:
            raise ValueError(f"the {request.recipe.name} recipe has no second stage")
        return denoise_stage(self.models, self.residency, request, plan, positive, None, upsampled, progress)

    @_inference
    def decode(
        self, request: GenerationRequest, latents: LatentPair, sink: FrameSink, progress: Progress = _QUIET
    ) -> AudioClip:
        """Frames and sound into ``sink``, which is closed at the end and aborted on any exception."""
        return decode(self.models, self.residency, request, latents, sink, progress)

    def run(
        self,
        request: GenerationRequest,
        progress: Progress = _QUIET,
        sink: FrameSink | None = None,
        keep_latents: bool = False,
    ) -> GenerationResult:
        """The whole recipe.

        Args:
            sink: takes the frames while they are decoded; None drops them.
            keep_latents: return every intermediate tensor, float32 on the CPU (``--save-latents``).

        Raises:
            SettingError: before any weight is read.
        """
        self.validate(request)
        self.residency.take_records()
        sink = sink or NullSink()
        kept = _Kept(sink) if keep_latents else None
        positive, negative = self.encode_prompt(request, progress)
        first = final = self.denoise(request, positive, negative, progress)
        upsampled = None
        if request.recipe.stages == 2:
            upsampled = self.upsample(first, progress)
            final = self.refine(request, upsampled, positive, progress)
        source = first if request.effective_audio_source is AudioSource.STAGE_1 else final
        decoded = LatentPair(final.video, source.audio)
        audio = self.decode(request, decoded, kept or sink, progress)
        latents = {}
        if kept is not None:
            sigmas = plan_stages(self.models, request)[0].sigmas
            latents = kept.tensors(positive, negative, sigmas, first, upsampled, final, audio)
        return GenerationResult(audio, self.report(request), decoded, latents)

    def report(self, request: GenerationRequest) -> RunReport:
        """What the stages since the last report cost; waits for the device."""
        device = self.residency.device
        return RunReport(
            stages=[StageRecord(**record) for record in self.residency.take_records()],
            mode=self.residency.mode,
            mode_reason=self.residency.mode_reason,
            revision=request.revision.name,
            recipe=request.recipe.name,
            seed=request.seed,
            files=dict(self.models.file_names),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            versions={"python": platform.python_version(), "torch": torch.__version__},
        )


class _Kept:
    """A sink that keeps the frames beside passing them on."""

    def __init__(self, sink: FrameSink) -> None:
        self._sink, self._frames = sink, list[Tensor]()
        self.open, self.audio, self.close, self.abort = sink.open, sink.audio, sink.close, sink.abort

    def frames(self, frames: Tensor) -> None:
        self._frames.append(frames)
        self._sink.frames(frames)

    def tensors(
        self,
        positive: PromptContext,
        negative: PromptContext | None,
        sigmas: tuple[float, ...],
        first: LatentPair,
        upsampled: LatentPair | None,
        final: LatentPair,
        audio: AudioClip,
    ) -> dict[str, Tensor]:
        """Every intermediate tensor under its contract name."""
        named: dict[str, Tensor | None] = {
            "video_context": positive.video,
            "audio_context": positive.audio,
            "negative_video_context": negative.video if negative else None,
            "negative_audio_context": negative.audio if negative else None,
            "stage1_sigmas": torch.tensor(sigmas),
            "stage1_video": first.video,
            "stage1_audio": first.audio,
            "upsampled_video": upsampled.video if upsampled else None,
            "stage2_video": final.video if upsampled else None,
            "stage2_audio": final.audio if upsampled else None,
            "audio_waveform": audio.waveform,
        }
        tensors = {k: v.to(device="cpu", dtype=torch.float32).contiguous() for k, v in named.items() if v is not None}
        return {**tensors, "frames": torch.cat(self._frames)}
