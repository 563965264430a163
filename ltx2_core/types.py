"""Shapes, streams, requests and results that the parts of the engine exchange.

Axis letters used in comments: B batch, C channels, F frames, H height, W width, T tokens, S text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class ScaleFactors(NamedTuple):
    """How many pixels one latent cell covers: released video VAEs have (8, 32, 32)."""

    time: int
    height: int
    width: int


class VideoLatentShape(NamedTuple):
    """Shape of a video latent, (B, C, F, H, W)."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    @property
    def token_count(self) -> int:
        """Tokens of one batch item; patch size is 1, order f, h, w with w fastest."""
        return self.frames * self.height * self.width


class VideoSize(NamedTuple):
    """Size of a clip in pixels."""

    frames: int
    height: int
    width: int

    def latent(self, channels: int, scale: ScaleFactors, batch: int = 1) -> VideoLatentShape:
        """Shape of the latent that decodes to this size, F' = (F - 1) // time + 1."""
        return VideoLatentShape(
            batch, channels, (self.frames - 1) // scale.time + 1, self.height // scale.height, self.width // scale.width
        )

    def halved(self) -> VideoSize:
        """The stage-1 size of a two-stage run."""
        return VideoSize(self.frames, self.height // 2, self.width // 2)


class AudioLatentShape(NamedTuple):
    """Shape of an audio latent, (B, C, F, mel bins)."""

    batch: int
    channels: int
    frames: int
    mel_bins: int

    @property
    def token_count(self) -> int:
        return self.frames

    @property
    def token_channels(self) -> int:
        """Width of one audio token: channel-major, feature = channel * mel_bins + bin."""
        return self.channels * self.mel_bins


class AudioGeometry(NamedTuple):
    """What ties seconds to audio latent frames; released models: 16000 Hz / hop 160 / 4 = 25 frames per second."""

    sampling_rate: int
    hop_length: int
    downsample: int
    channels: int
    mel_bins: int  # of the latent

    @property
    def frames_per_second(self) -> float:
        return float(self.sampling_rate) / float(self.hop_length) / float(self.downsample)

    def latent(self, seconds: float, batch: int = 1) -> AudioLatentShape:
        """Latent shape for a duration; Python's half-to-even rounding, as the official code has it."""
        return AudioLatentShape(batch, self.channels, round(seconds * self.frames_per_second), self.mel_bins)


class Phase(str, Enum):
    """A part of a run; each LoRA has its strength in it."""

    PROMPT = "prompt"
    CONDITION = "condition"
    STAGE_1 = "stage_1"
    UPSAMPLE = "upsample"
    STAGE_2 = "stage_2"
    DECODE = "decode"


class Component(str, Enum):
    """The modules that a run needs, each loaded and placed on its own."""

    TEXT_ENCODER = "text_encoder"  # Gemma 3
    TEXT_CONNECTOR = "text_connector"  # feature extractor and connectors
    TRANSFORMER = "transformer"  # the DiT
    VIDEO_ENCODER = "video_encoder"
    VIDEO_DECODER = "video_decoder"
    AUDIO_ENCODER = "audio_encoder"
    AUDIO_DECODER = "audio_decoder"
    VOCODER = "vocoder"
    UPSAMPLER = "upsampler"


class CrossTimestepRule(str, Enum):
    """Which noise level drives the audio-video cross attention (docs/model.md 0 and 2.8)."""

    OWN = "own"  # scale, shift and gates: the stream's own per-token level (2026-01)
    OTHER = "other"  # all of them: the other stream's scalar sigma (1.0.0)
    SPLIT = "split"  # scale and shift: own per-token level; gates: the other stream's scalar sigma (newest)


@dataclass(frozen=True)
class Rope:
    """cos and sin of one rotary embedding, (B, heads, T, head_dim / 2) for split, (B, T, dim) for interleaved."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class StreamRope:
    """The two rotary embeddings that a stream needs: self attention, and the time-only one of the cross attention."""

    self_attention: Rope
    cross_attention: Rope


@dataclass(frozen=True)
class StreamInput:
    """One stream (video or audio) of a DiT call.

    Batch 1 serves all items of the call.
    """

    latent: Tensor  # (B, T, C) noisy tokens
    timesteps: Tensor  # (B, L) noise levels mask * sigma in [0, 1], float32: the distinct ones, one per token, or one
    sigma: Tensor  # (B,): the stream's scalar noise level, float32
    context: Tensor  # (P, S, D): text embeddings of the distinct prompts, as the connectors return them
    rope: StreamRope
    enabled: bool = True  # False: carried through unchanged, still serves as keys and values for the other stream
    token_levels: Tensor | None = None  # (T,) int64: which of ``timesteps`` each token has, where L is neither 1 nor T


VelocityPair = tuple[Tensor | None, Tensor | None]
"""Velocities (B, T, C) of video and audio; None where a stream is not computed."""


@dataclass(frozen=True)
class Perturbation:
    """What one pass leaves out. STG replaces a self attention's softmax result by its value projection."""

    video_stg_blocks: frozenset[int] = frozenset()
    audio_stg_blocks: frozenset[int] = frozenset()
    skip_cross_modal: bool = False  # both audio-to-video and video-to-audio, in all blocks

    @property
    def first_block(self) -> int | None:
        """The first block with a perturbed self attention."""
        return min(self.video_stg_blocks | self.audio_stg_blocks, default=None)


@dataclass(frozen=True)
class BatchItem:
    """One evaluation among those that a DiT call makes side by side.

    Attributes:
        context: number of the prompt that it reads, of those that the streams carry.
        perturbation: what it leaves out.
        branches_from: number of the item that it equals before its first perturbed block. It begins there, as a copy.
        video, audio: whether the stream is computed; without audio-video exchange one may be left out.
    """

    context: int = 0
    perturbation: Perturbation = Perturbation()
    branches_from: int | None = None
    video: bool = True
    audio: bool = True

    @property
    def first_block(self) -> int:
        """The first block that computes it."""
        return 0 if self.branches_from is None else self.perturbation.first_block or 0


@dataclass(frozen=True)
class PromptContext:
    """Text embeddings of one prompt, (1, S, D) each; ``notices`` says what the user should know of its text."""

    video: Tensor
    audio: Tensor
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class AudioClip:
    """Sound: waveform (1, channels, N) float32 in [-1, 1], two channels where we made it, and its rate in Hz.

    ``notices`` says what the user should know of how it was read.
    """

    waveform: Tensor
    sampling_rate: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageCondition:
    """An image that the clip must show.

    Attributes:
        image: file, or uint8 pixels (H, W, 3).
        frame: pixel frame index, 0 for the first; negative ones count from the end, -1 is the last.
        strength: 1 keeps the image, 0 ignores it.
        notices: what the user should know of how the pixels were made from the image.
    """

    image: Path | Tensor
    frame: int = 0
    strength: float = 1.0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class StreamGuidance:
    """Guidance of one stream, applied to the clean estimate x0 (docs/model.md 6).

    Attributes:
        cfg: text guidance scale, 1 is off.
        stg: spatio-temporal guidance scale, 0 is off.
        modality: scale of the guidance against the pass without audio-video exchange, 1 is off.
        rescale: share of the standard-deviation rescale, 0 is off.
        blocks: transformer blocks whose self attention the STG pass perturbs.
        skip: n > 0 evaluates the stream on every (n + 1)-th step only.
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    blocks: tuple[int, ...] = ()
    skip: int = 0

    @property
    def guided(self) -> bool:
        """Whether the stream is compared with anything; the official code compares scales with math.isclose."""
        off = ((self.cfg, 1.0), (self.stg, 0.0), (self.modality, 1.0))
        return not all(math.isclose(scale, neutral) for scale, neutral in off)


@dataclass(frozen=True)
class Guidance:
    video: StreamGuidance = StreamGuidance()
    audio: StreamGuidance = StreamGuidance()


@dataclass(frozen=True)
class LatentPair:
    """Latents of both streams after a stage: video (1, C, F, H, W), audio (1, C, T, mel bins), both normalised."""

    video: Tensor
    audio: Tensor


@dataclass
class StageRecord:
    """What one stage cost."""

    name: str
    ms: float
    peak_bytes: int = 0
    h2d_bytes: int = 0
    d2h_bytes: int = 0


@dataclass
class RunReport:
    """The JSON that ``--report`` writes; field names are the contract.

    ``notices`` are sentences that the user should read: what was left out, cut, or done otherwise than asked.
    ``device_bytes`` and ``host_bytes`` say what is held at the end of the run, by component; "base" and "merged" are
    the transformer's sets of weights, "adapters" the LoRA matrices. ``pinned_bytes`` is the page-locked host memory.
    """

    stages: list[StageRecord] = field(default_factory=list)
    mode: str = ""
    mode_reason: str = ""
    revision: str = ""
    recipe: str = ""
    seed: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    device_bytes: Mapping[str, int] = field(default_factory=dict)
    host_bytes: Mapping[str, int] = field(default_factory=dict)
    pinned_bytes: int = 0
    notices: list[str] = field(default_factory=list)


DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

PRECISIONS = ("auto", "fp8", "full")
"""Of the transformer's linear layers: as the file is; the large ones in fp8; all of them in the models' dtype."""
