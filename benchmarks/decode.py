"""``ltx2 bench decode``: everything around the DiT, part by part: text, upsampling, pictures and sound."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..ltx2_core.media.sink import NullSink
from ..ltx2_core.models.text.config import TEXT_TOKENS
from ..ltx2_core.models.text.gemma import gemma_states
from ..ltx2_core.protocols import NoProgress
from ..ltx2_core.recipes import DEFAULT_FPS, official_recipe
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.stages.decode import decode_audio, decode_video
from ..ltx2_core.stages.prompt import encode_prompts
from ..ltx2_core.stages.upsample import upsample
from ..ltx2_core.stages.validate import check_size
from ..ltx2_core.types import Component, LatentPair, VideoSize
from .ceilings import matmul_rates
from .measure import (
    JSON,
    Action,
    Deadline,
    Save,
    Timer,
    in_turns,
    kernels,
    launches,
    machine,
    release,
    timer_for,
)
from .placement import OnDevice
from .synthetic_models import PROMPT_TOKENS, SyntheticModels

logger = logging.getLogger("ltx2.benchmarks")

PARTS = ("text", "upsample", "video", "audio")
PROMPTS = ("a full-size benchmark", "a negative prompt")
_QUIET = NoProgress()


class Measured(NamedTuple):
    """One thing to time.

    Attributes:
        whole: the stage's own function; else it is a part of the one before.
    """

    part: str
    what: str
    action: Action
    whole: bool = True


@dataclass(frozen=True)
class DecodeBenchmark:
    """What is measured.

    Attributes:
        parts: some of :data:`PARTS`.
        sizes: of the clips that are decoded; the first one's half is what is upsampled, and its length is the sound's.
    """

    models: SyntheticModels
    sizes: Sequence[VideoSize]
    parts: Sequence[str] = PARTS
    repeat: int = 5
    limit_s: float | None = None

    def check(self) -> None:
        """Raises :class:`SettingError` for a size that two stages cannot make."""
        for frames, height, width in self.sizes:
            check_size(width, height, frames, DEFAULT_FPS, 2, self.models.scale)

    def run(self, save: Save, device: torch.device | None = None, timer: Timer | None = None) -> JSON:
        """All parts; ``save`` takes the figures after each row."""
        device = device or torch.device("cuda")
        timer, deadline = timer or timer_for(device), Deadline(self.limit_s)
        rates = matmul_rates(device)
        figures: JSON = {"benchmark": "decode", "machine": machine(device), "matmul": rates.summary()}
        figures.update(rows=[], left_out=[])
        for part in self.parts:
            residency = OnDevice(self.models, device)
            with torch.inference_mode():
                for measured in getattr(self, f"_{part}")(residency):
                    if not deadline.allows():
                        figures["left_out"].append(f"{measured.part}, {measured.what}")
                        continue
                    row = _row(measured, self.repeat, device, timer, deadline)
                    if row.get("tflop"):
                        row["floor_ms"] = round(row["tflop"] / rates.bf16 * 1000, 2)
                    figures["rows"].append(row)
                    save(figures)
            residency.drop()
            release(device)
        save(figures)
        return figures

    def _text(self, residency: OnDevice) -> Iterator[Measured]:
        encoder, connector = (residency.module(c) for c in (Component.TEXT_ENCODER, Component.TEXT_CONNECTOR))
        tokenizer = self.models.tokenizer()
        ids = [tokenizer.encode(prompt, TEXT_TOKENS).tensor(residency.device) for prompt in PROMPTS]
        what = f"two prompts of {PROMPT_TOKENS} tokens"
        yield Measured("text", what, lambda: encode_prompts(self.models, residency, PROMPTS, _QUIET))
        yield Measured("text encoder", what, lambda: gemma_states(encoder, ids), whole=False)
        states = gemma_states(encoder, ids)
        yield Measured("connectors", what, lambda: [connector(hidden) for hidden in states], whole=False)

    def _upsample(self, residency: OnDevice) -> Iterator[Measured]:
        latents = self._latents(self.sizes[0].halved(), residency.device)
        for component in (Component.VIDEO_ENCODER, Component.UPSAMPLER):
            residency.module(component)
        frames, height, width = self.sizes[0]
        what = f"to {width}x{height}x{frames}"
        yield Measured("upsampler", what, lambda: upsample(self.models, residency, latents, _QUIET))

    def _video(self, residency: OnDevice) -> Iterator[Measured]:
        decoder = residency.module(Component.VIDEO_DECODER)
        for size in self.sizes:
            latent = self._latents(size, residency.device).video
            what = f"{size.width}x{size.height}x{size.frames}"
            yield Measured("video", what, _into_nothing(self.models, residency, latent))
            yield Measured("video, without frames to the host", what, _on_device(decoder, latent), whole=False)

    def _audio(self, residency: OnDevice) -> Iterator[Measured]:
        size = self.sizes[0]
        recipe = official_recipe("two-stage", self.models.generation, self.models.num_layers)
        request = GenerationRequest("", recipe, width=size.width, height=size.height, frames=size.frames)
        decoder, latent = residency.module(Component.AUDIO_DECODER), self._latents(size, residency.device).audio
        residency.module(Component.VOCODER)
        what = f"{size.frames / DEFAULT_FPS:.2f} s"
        yield Measured("sound", what, lambda: decode_audio(self.models, residency, request, latent))
        yield Measured("audio VAE", what, lambda: decoder.decode(latent), whole=False)

    def _latents(self, size: VideoSize, device: torch.device) -> LatentPair:
        """Random ones, normalised."""
        generator = torch.Generator(device).manual_seed(0)
        video = size.latent(self.models.latent_channels, self.models.scale)
        audio = self.models.audio_geometry.latent(size.frames / DEFAULT_FPS)
        made = [torch.randn(s, generator=generator, device=device).to(self.models.dtype) for s in (video, audio)]
        return LatentPair(*made)


def _into_nothing(models: SyntheticModels, residency: OnDevice, latent: Tensor) -> Action:
    return lambda: decode_video(models, residency, latent, NullSink(), _QUIET)


def _on_device(decoder: Any, latent: Tensor) -> Action:
    def run() -> None:
        for _ in decoder.decode_streamed(latent):
            pass

    return run


def _row(measured: Measured, repeat: int, device: torch.device, timer: Timer, deadline: Deadline) -> JSON:
    name = f"{measured.part}, {measured.what}"
    samples = in_turns({name: measured.action}, repeat, timer, deadline, device)[name]
    row: JSON = {"part": measured.part, "what": measured.what, "whole": measured.whole}
    if samples.error is not None:
        return row | {"error": samples.error}
    row |= {"ms": samples.summary(), "peak_bytes_beyond_weights": samples.peak_bytes}
    row["launches"] = launches(measured.action, device)
    row["tflop"] = round(counted(measured.action) / 1e12, 3)
    logger.info("%s: %.2f ms, %s bytes, %g TFLOP", name, samples.median, samples.peak_bytes, row["tflop"])
    return row


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """PyTorch's own counter refuses queries that share keys and values in groups, as Gemma's do."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


_ATTENTIONS = {
    operation: _attention_flops
    for operation in (
        torch.ops.aten._scaled_dot_product_efficient_attention,
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_cudnn_attention,
    )
}


def counted(action: Action) -> int:
    """Operations of the matrix products, convolutions and attentions that PyTorch runs, two for each multiply-add."""
    with kernels("eager"), FlopCounterMode(display=False, custom_mapping=_ATTENTIONS) as counter:
        action()
    total: int = counter.get_total_flops()
    return total
