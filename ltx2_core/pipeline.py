"""The whole run, as the list of its stages. The nodes call the stages one by one; ``run`` calls them in a row."""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from .errors import DeviceMemoryError, is_out_of_memory, memory_error, memory_errors
from .media.audio import lasting
from .media.image import with_pixels
from .media.sink import FrameSink, NullSink
from .plain_text import plain
from .protocols import Models, NoProgress, Progress, Residency
from .recipes import AudioSource
from .request import GenerationRequest, GenerationResult
from .sampling.guidance import needs_negative
from .stages import belonging
from .stages.decode import decode, decode_audio
from .stages.denoise import denoise_stage
from .stages.plan import plan_stages
from .stages.prompt import connect_text, encode_prompts
from .stages.upsample import upsample
from .stages.validate import validate
from .types import AudioClip, LatentPair, Phase, PromptContext, RunReport, StageRecord

P = ParamSpec("P")
R = TypeVar("R")
_QUIET = NoProgress()
# A prompt's embeddings are 12 MB at full size; encoding it anew moves 24 GB where the text encoder streams
_PROMPTS_KEPT = 8


def _stage(method: Callable[Concatenate[Pipeline, P], R]) -> Callable[Concatenate[Pipeline, P], R]:
    """Runs a stage in inference mode, and once more in a smaller placement when the device runs out of memory."""
    stage = torch.inference_mode()(method)

    @wraps(method)
    def run(self: Pipeline, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return stage(self, *args, **kwargs)
        except Exception as error:
            mode, failed = self.residency.mode, self._memory_error(error)
            if failed is None:
                raise
        # Outside of the handler: the error's traceback keeps the failed stage's tensors alive
        # A smaller device mode takes less of the device's memory, and more of the machine's
        if failed.memory == "host" or not self.residency.fall_back(failed.problem):
            raise failed
        try:
            return stage(self, *args, **kwargs)
        except Exception as error:
            failed = self._memory_error(error, f"{mode}, then {self.residency.mode}")
            if failed is None:
                raise
        raise failed

    return run


def _stage_without_retry(method: Callable[Concatenate[Pipeline, P], R]) -> Callable[Concatenate[Pipeline, P], R]:
    """As :func:`_stage`, for a stage whose output has left already."""
    stage = torch.inference_mode()(method)

    @wraps(method)
    def run(self: Pipeline, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with memory_errors(self.residency.mode, self.residency.lightest):
            return stage(self, *args, **kwargs)

    return run


class Pipeline:
    """Two-stage (or one-stage) generation with loaded models.

    Args:
        models: the loaded files, see ``loading.ModelSet``.
        residency: decides where the modules live.
    """

    def __init__(self, models: Models, residency: Residency) -> None:
        self.models, self.residency = models, residency
        self._memory = _Memory()

    def _memory_error(self, error: Exception, mode: str | None = None) -> DeviceMemoryError | None:
        """What the user reads where an error says that memory ran out; None for another error."""
        if not is_out_of_memory(error):
            return None
        return memory_error(error, mode or self.residency.mode, self.residency.lightest)

    def with_models(self, models: Models) -> Pipeline:
        """This pipeline with models that differ in their LoRAs alone: prompts that it has encoded serve both."""
        other = Pipeline(models, self.residency)
        other._memory = self._memory
        return other

    def validate(self, request: GenerationRequest, refining: bool = False) -> None:
        """Raises :class:`SettingError` before any weight is read; ``refining`` where stage 1 is over."""
        validate(self.models, request, refining)

    @_stage
    def encode_prompt(
        self, request: GenerationRequest, progress: Progress = _QUIET
    ) -> tuple[PromptContext, PromptContext | None]:
        """Embeddings of the prompt, and of the negative prompt where the guidance needs one.

        The last few prompts' embeddings are kept, and a prompt among them is not encoded again.
        """
        guided = needs_negative(request.effective_guidance)
        wanted = [request.prompt, request.negative_prompt] if guided else [request.prompt]
        known = self._memory.prompts
        missing = [prompt for prompt in dict.fromkeys(wanted) if prompt not in known]
        if missing:
            new = encode_prompts(self.models, self.residency, missing, progress)
            known.update(zip(missing, new, strict=True))
        contexts = [known[prompt] for prompt in wanted]
        for prompt in wanted:
            known.move_to_end(prompt)
        while len(known) > _PROMPTS_KEPT:
            known.popitem(last=False)
        return contexts[0], contexts[1] if guided else None

    @_stage
    def connect_text(self, video: Tensor, audio: Tensor, progress: Progress = _QUIET) -> PromptContext:
        """Embeddings of a prompt of which only the projected features are known, (n, Dv) and (n, Da)."""
        return connect_text(self.models, self.residency, video, audio, progress)

    @_stage
    def denoise(
        self,
        request: GenerationRequest,
        positive: PromptContext,
        negative: PromptContext | None,
        progress: Progress = _QUIET,
    ) -> LatentPair:
        """Stage 1: guided denoising, at half size when the recipe has two stages."""
        self._memory.began(request, positive, negative)
        plan = plan_stages(self.models, request)[0]
        return denoise_stage(self.models, self.residency, request, plan, positive, negative, None, progress)

    @_stage
    def upsample(self, latents: LatentPair, progress: Progress = _QUIET) -> LatentPair:
        """Doubles the video latent's height and width; the audio passes through."""
        return upsample(self.models, self.residency, latents, progress)

    @_stage
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
        self._memory.began(request, positive, None)
        return denoise_stage(self.models, self.residency, request, plan, positive, None, upsampled, progress)

    @_stage_without_retry
    def decode(
        self, request: GenerationRequest, latents: LatentPair, sink: FrameSink, progress: Progress = _QUIET
    ) -> AudioClip:
        """Frames and sound into ``sink``, which is closed at the end and aborted on any exception."""
        clip = decode(self.models, self.residency, request, latents, sink, progress)
        self._memory.sound_notices = clip.notices
        return clip

    @_stage_without_retry
    def decode_sound(self, request: GenerationRequest, latent: Tensor) -> AudioClip:
        """The clip's sound alone: the given one where that is asked for, else that of an audio latent."""
        clip = decode_audio(self.models, self.residency, request, latent)
        self._memory.sound_notices = clip.notices
        return clip

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
        shown = request.revision.images_as_shown
        request = replace(request, images=tuple(with_pixels(image, shown) for image in request.images))
        self.validate(request)
        self.residency.recorder.take_records()
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
        return GenerationResult(lasting(audio, request.seconds), self.report(request), decoded, latents)

    def report(self, request: GenerationRequest) -> RunReport:
        """What the stages since the last report cost; waits for the device."""
        return self._report(request, self.residency.recorder.take_records())

    def last_report(self) -> RunReport:
        """What the last run cost, in one go or stage by stage, and what is held now; waits for the device."""
        return self._report(self._memory.last_request, self.residency.recorder.last_records())

    def _report(self, request: GenerationRequest | None, records: Sequence[Mapping[str, Any]]) -> RunReport:
        device, held = self.residency.device, self.residency.status()
        return RunReport(
            stages=[StageRecord(**record) for record in records],
            notices=self.notices(request),
            mode=self.residency.mode,
            mode_reason=self.residency.mode_reason,
            revision=request.revision.name if request else "",
            recipe=request.recipe.name if request else "",
            seed=request.seed if request else 0,
            files=dict(self.models.file_names),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            versions={"python": platform.python_version(), "torch": torch.__version__},
            device_bytes=dict(held["device"]),
            host_bytes=dict(held["host"]),
            pinned_bytes=sum(held["pinned"].values()),
        )

    def notices(self, request: GenerationRequest | None) -> list[str]:
        """What the user should read about the files, the request, the prompts and the sound of a run, in that order."""
        found = list(self.models.notices)
        if request is not None:
            found += belonging.notices(self.models, request)
            found += request.notices
            found += request.audio.notices if request.audio is not None else ()
            found += [notice for image in request.images for notice in image.notices]
            found += self._memory.prompt_notices
            found += self._memory.sound_notices
        found += self.residency.notices
        return list(dict.fromkeys(map(plain, found)))


@dataclass
class _Memory:
    """What pipelines over the same loaded models share.

    Attributes:
        last_request: of the last stage that denoised.
        prompt_notices: what the user should know of its prompts, whoever has encoded them.
        sound_notices: of the sound that was decoded since.
    """

    prompts: OrderedDict[str, PromptContext] = field(default_factory=OrderedDict)
    last_request: GenerationRequest | None = None
    prompt_notices: tuple[str, ...] = ()
    sound_notices: tuple[str, ...] = ()

    def began(self, request: GenerationRequest, positive: PromptContext, negative: PromptContext | None) -> None:
        """A stage denoises; stage 2 of a request adds to what stage 1 had to say of its prompts."""
        before = self.prompt_notices if request is self.last_request else ()
        new = (*positive.notices, *(negative.notices if negative is not None else ()))
        self.last_request, self.prompt_notices = request, tuple(dict.fromkeys((*before, *new)))
        self.sound_notices = ()


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
