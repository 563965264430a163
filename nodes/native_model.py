"""Our transformer as a MODEL for ComfyUI's own samplers, without a second copy of its weights.

The host's model class (``comfy.model_base.LTXAV``) keeps everything around the network: noise schedule, conditions,
masks. Inside, :class:`SharedTransformer` takes the network's place. It has no parameters, so that the host's patcher
finds nothing to move, cast or patch; the weights stay where the device manager has them, and a stage's LoRAs are merged
or applied as in our own stages. For as long as a sampler runs, it holds the transformer in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..ltx2_core.errors import SettingError
from ..ltx2_core.finite import Suspect, check_finite
from ..ltx2_core.models.transformer.positions import audio_positions, video_positions
from ..ltx2_core.sampling.state import audio_tokens, from_tokens, video_tokens
from ..ltx2_core.types import (
    AudioLatentShape,
    BatchItem,
    Component,
    CrossTimestepRule,
    Perturbation,
    Phase,
    StreamInput,
    StreamRope,
    VideoLatentShape,
)
from . import host
from .conversions import RAW_KEY, to_context
from .handle import PipelineHandle
from .panel import PANEL

Stream = Literal["video", "audio"]

# What the host's own model would follow and ours does not, in the host's names
_UNSUPPORTED_CONDITIONS: Mapping[str, str] = {
    "control": "a ControlNet",
    "attention_mask": "a mask over the text",
    "keyframe_idxs": "guide frames",
    "guide_attention_entries": "guide frames",
    "generated_keyframes": "generated keyframes",
    "ref_audio": "reference audio",
}
_UNSUPPORTED_OPTIONS: Mapping[str, str] = {
    "patches": "patches inside the network",
    "patches_replace": "replaced blocks",
    "optimized_attention_override": "another attention",
}
_FIX = "Leave that node out, or load the checkpoint with ComfyUI's own loader for it."


def native_model(handle: PipelineHandle, phase: Phase, strengths: Mapping[str, float]) -> Any:
    """A ``ModelPatcher`` that samples with the transformer of one stage.

    Args:
        strengths: of every LoRA, by adapter name.
    """
    shared = SharedTransformer(handle, phase, strengths)
    return host.model_around(shared, handle.pipeline.residency.device, shared.sampled)


class SharedTransformer(nn.Module):
    """What the host calls in place of its own network (``LTXAVModel``)."""

    def __init__(self, handle: PipelineHandle, phase: Phase, strengths: Mapping[str, float]) -> None:
        super().__init__()
        self.dtype = handle.pipeline.models.dtype
        # The host lays its noise masks out as tokens with these
        self.patchifier, self.a_patchifier = _Tokens(video_tokens), _Tokens(audio_tokens)
        self._handle, self._phase, self._strengths = handle, phase, dict(strengths)
        self._held: list[nn.Module] = []  # in a list, where the host's walk through the modules does not find it
        self._ropes: dict[Any, StreamRope] = {}

    @property
    def transformer_blocks(self) -> Any:
        """Where guiders of other packs look for the blocks that they replace, before any step.

        Raises:
            SettingError: always.
        """
        raise SettingError("model", "LTX-2 Model", "does not support replaced blocks", _FIX)

    def sampled(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Wraps a whole sampling of the host (``OUTER_SAMPLE``), so that a stage's weights are made once for it."""
        pipeline = self._handle.pipeline
        with pipeline.residency.recorder.measure(f"{self._phase.value} sampler"), self.hold():
            result = executor(*args, **kwargs)
        _check(result, f"the sampling of {self._phase.value.replace('_', ' ')}")
        PANEL.ran(host.current_run(), pipeline.last_report())
        return result

    @contextmanager
    def hold(self) -> Iterator[nn.Module]:
        """The transformer with this stage's weights, in use until the outermost call ends.

        Raises:
            SettingError: the same transformer is at work for another stage.
        """
        if self._held:
            yield self._held[0]
            return
        residency = self._handle.pipeline.residency
        if residency in _AT_WORK:
            fix = "Sample with one after the other."
            raise SettingError("model", self._phase.value, "its transformer is at work for another MODEL", fix)
        with residency.use(Component.TRANSFORMER, self._strengths) as transformer:
            _AT_WORK[residency] = self
            self._held.append(transformer)
            try:
                yield transformer
            finally:
                self._held.clear()
                self._ropes.clear()
                del _AT_WORK[residency]

    def preprocess_text_embeds(self, context: Tensor, unprocessed: bool = False) -> Tensor:
        """The host's hook for its connectors: (B, S, D) to the embeddings of both streams side by side."""
        prompts = [to_context([[item[None], {RAW_KEY: unprocessed}]], self._handle, "positive") for item in context]
        return torch.cat([torch.cat([prompt.video, prompt.audio], dim=-1) for prompt in prompts])

    def forward(self, x: Any, timestep: Any, transformer_options: Mapping[str, Any], **conditions: Any) -> Any:
        """Velocities in the latents' layout, a list where there are two streams; through the host's wrappers."""
        call = host.through_wrappers(self._evaluate, self, transformer_options)
        return call(x, timestep, transformer_options=transformer_options, **conditions)

    def _evaluate(
        self,
        x: Any,
        timestep: Any,
        context: Tensor,
        frame_rate: float = 25.0,
        transformer_options: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> Any:
        """
        Args:
            x: video (B, C, F, H, W), alone or in a list with audio (B, C, T, mel bins).
            timestep: noise levels (B,) or, where a mask is, (B, T, 1); a pair where they differ by stream.
            context: (B, S, Dv + Da) embeddings.
        """
        options = transformer_options or {}
        _refuse(options, conditions)
        streams = list(x) if isinstance(x, (list, tuple)) else [x]
        levels = list(timestep) if isinstance(timestep, (list, tuple)) else [timestep] * 2
        contexts = torch.split(context, list(self._handle.context_widths), dim=-1)
        video_shape = VideoLatentShape(*streams[0].shape)
        audio_shape = AudioLatentShape(*streams[1].shape) if len(streams) > 1 else None
        with self.hold() as transformer:
            rope = self._rope(transformer, "video", video_shape, float(frame_rate))
            video = _input(video_tokens(streams[0]), levels[0], contexts[0], rope)
            audio = None
            if audio_shape is not None:
                rope = self._rope(transformer, "audio", audio_shape, 0.0)
                audio = _input(audio_tokens(streams[1]), levels[1], contexts[1], rope)
            items = _items(options, video_shape.batch, audio is not None)
            velocities = transformer(video, audio, items, CrossTimestepRule.SPLIT)
        if audio_shape is None:
            return from_tokens(velocities[0], video_shape)
        return [from_tokens(velocities[0], video_shape), from_tokens(velocities[1], audio_shape)]

    def _rope(
        self, transformer: Any, stream: Stream, shape: VideoLatentShape | AudioLatentShape, fps: float
    ) -> StreamRope:
        """Rotary tables of a stream; one serves all steps of a sampling."""
        key = (shape[1:], fps)
        if key not in self._ropes:
            models, device = self._handle.pipeline.models, self._handle.pipeline.residency.device
            single = shape._replace(batch=1)
            positions = (
                video_positions(single, fps, models.scale, device)
                if isinstance(single, VideoLatentShape)
                else audio_positions(single, models.audio_geometry, device)
            )
            self._ropes[key] = transformer.stream_rope(positions, stream, self.dtype)
        return self._ropes[key]


_AT_WORK: WeakKeyDictionary[Any, SharedTransformer] = WeakKeyDictionary()
"""By device manager, whose MODEL holds the transformer."""


def _check(result: Any, stage: str) -> None:
    """Raises :class:`NotFiniteError` where a sampling has made no numbers: the host would decode them to black."""
    streams = tuple(result.unbind()) if getattr(result, "is_nested", False) else (result,)
    found = tuple(stream for stream in streams if torch.is_tensor(stream))
    cause = "Likely causes: a cfg or a LoRA strength that is too high, a damaged file, or a latent that was so before."
    check_finite(stage, Suspect("the latent", cause, found))


class _Tokens:
    """The one method of a patchifier that the host's model class calls."""

    def __init__(self, to_tokens: Callable[[Tensor], Tensor]) -> None:
        self._to_tokens = to_tokens

    def patchify(self, latent: Tensor) -> tuple[Tensor, None]:
        return self._to_tokens(latent), None


def _refuse(options: Mapping[str, Any], conditions: Mapping[str, Any]) -> None:
    """Raises :class:`SettingError` for what would be ignored."""
    found = [words for name, words in _UNSUPPORTED_CONDITIONS.items() if _is_set(conditions.get(name))]
    found += [words for name, words in _UNSUPPORTED_OPTIONS.items() if _is_set(options.get(name))]
    across = [options.get(name, True) for name in ("a2v_cross_attn", "v2a_cross_attn")]
    if across[0] != across[1]:
        found.append("an exchange between sound and picture in one direction only")
    if not all(options.get(name, True) for name in ("run_vx", "run_ax")):
        found.append("a stream that is left out")
    if found:
        raise SettingError("model", "LTX-2 Model", f"does not support {' and '.join(dict.fromkeys(found))}", _FIX)


def _is_set(value: Any) -> bool:
    if torch.is_tensor(value):
        return value.numel() > 0
    if isinstance(value, Mapping):
        return any(_is_set(item) for item in value.values())
    return value is not None and value != []


def _input(tokens: Tensor, levels: Tensor, context: Tensor, rope: StreamRope) -> StreamInput:
    timesteps = levels.reshape(levels.shape[0], -1).float()
    # The stream's own noise level is that of its noisiest token
    return StreamInput(tokens, timesteps, timesteps.amax(dim=1), context, rope)


def _items(options: Mapping[str, Any], batch: int, with_audio: bool) -> tuple[BatchItem, ...]:
    """What the host's guidance nodes leave out: self attentions (STG), or the exchange between the streams."""
    blocks = frozenset(int(block) for block in options.get("stg_self_attn_blocks", ()))
    left_out = Perturbation(blocks, blocks if with_audio else frozenset(), not options.get("a2v_cross_attn", True))
    return tuple(BatchItem(context=number, perturbation=left_out) for number in range(batch))
