"""The DiT calls that are measured: shapes A to E2 of the released recipes, with random tokens at real positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ltx2_core.models.text.config import TEXT_TOKENS
from ..ltx2_core.models.transformer.graphs import LEAST_CALLS, GraphedCalls
from ..ltx2_core.models.transformer.positions import audio_positions, video_positions
from ..ltx2_core.recipes import DEFAULT_FPS, DEFAULT_FRAMES, STAGE_2_SIGMAS, Recipe, official_recipe
from ..ltx2_core.sampling.evaluate import GuidedModel
from ..ltx2_core.sampling.passes import Call, Role, plan_calls
from ..ltx2_core.sampling.state import StreamState
from ..ltx2_core.types import (
    AudioLatentShape,
    CrossTimestepRule,
    Guidance,
    PromptContext,
    StreamInput,
    VideoLatentShape,
    VideoSize,
)
from .flops import Tokens
from .synthetic_models import SyntheticModels

SIGMA = 0.7  # somewhere in the middle: the cost does not depend on it


@dataclass(frozen=True)
class Shape:
    """One step of a stage.

    Attributes:
        size: of the stage's own picture in pixels.
        what: which step it is, in words.
        recipe: whose guided stage-1 step is made; None: one plain pass.
        repeats: about how often the stage makes it.
    """

    name: str
    size: VideoSize
    what: str
    recipe: str | None = None
    repeats: int = LEAST_CALLS

    def settings(self, models: SyntheticModels) -> tuple[Guidance, bool]:
        """What the step is guided by, and whether its passes run one after the other."""
        if self.recipe is None:
            return Guidance(), False
        recipe: Recipe = official_recipe(self.recipe, models.generation, models.num_layers)
        return recipe.guidance, recipe.separate_passes

    def calls(self, models: SyntheticModels) -> tuple[Call, ...]:
        guidance, separate = self.settings(models)
        return plan_calls(guidance, Role.GUIDED, Role.GUIDED, separate)

    def passes(self, models: SyntheticModels) -> int:
        return sum(len(call.items) for call in self.calls(models))

    def video(self, models: SyntheticModels) -> VideoLatentShape:
        return self.size.latent(models.latent_channels, models.scale)

    def audio(self, models: SyntheticModels) -> AudioLatentShape:
        return models.audio_geometry.latent(self.size.frames / DEFAULT_FPS)

    def tokens(self, models: SyntheticModels) -> Tokens:
        return Tokens(self.video(models).token_count, self.audio(models).token_count, TEXT_TOKENS)


def _size(width: int, height: int, frames: int = DEFAULT_FRAMES) -> VideoSize:
    return VideoSize(frames, height, width)


_REFINING = len(STAGE_2_SIGMAS) - 1

SHAPES: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("A1", _size(384, 256), "stage 1 of 768x512, one pass"),
        Shape("A4", _size(384, 256), "stage 1 of 768x512, its four guided passes", "two-stage"),
        Shape("B", _size(768, 512), "stage 2 of 768x512", repeats=_REFINING),
        Shape("C3", _size(960, 544), "stage 1 of 1920x1088 by hq, three guided passes", "hq"),
        Shape("E2", _size(1536, 1024), "stage 2 of 1536x1024", repeats=_REFINING),
        Shape("D", _size(1920, 1088), "stage 2 of 1920x1088", repeats=_REFINING),
    )
}

# Widths and heights from 1,536 to 32,640 tokens, and frames from one second to eleven at the size of shape B
SWEEP_SIZES = ((384, 256), (512, 384), (768, 384), (768, 512), (960, 544), (1152, 768), (1536, 1024), (1920, 1088))
SWEEP_FRAMES = (25, 49, 97, 121, 161, 193, 257)


def sweep() -> tuple[Shape, ...]:
    """One plain pass at each size of 121 frames, then at each length of 768x512."""
    sizes = [Shape(f"{w}x{h}", _size(w, h), "sizes") for w, h in SWEEP_SIZES]
    lengths = [Shape(f"{frames} frames", _size(768, 512, frames), "lengths") for frames in SWEEP_FRAMES]
    return (*sizes, *lengths)


class DitCall(NamedTuple):
    """Arguments of a call of the DiT."""

    video: StreamInput | None
    audio: StreamInput | None
    items: Any
    rule: CrossTimestepRule


@dataclass(frozen=True)
class Step:
    """A step that can be repeated: the guided evaluation, and the calls of the DiT alone that it makes.

    The evaluation is that of one stage: what its model keeps from call to call (CUDA graphs) is there from the third
    one on.
    """

    model: GuidedModel
    states: tuple[StreamState, StreamState]
    transformer: nn.Module
    calls: Sequence[DitCall]

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Guided clean estimates of both streams."""
        with torch.inference_mode():
            return self.model(*self.states, SIGMA, 0)

    def call_transformer(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """The velocities of each call."""
        with torch.inference_mode():
            return [self.transformer(*call) for call in self.calls]


@dataclass(frozen=True)
class Inputs:
    """Random tokens and texts of a shape; the same for the same seed, whatever the dtype."""

    video: Tensor  # (1, T, C)
    audio: Tensor
    prompts: tuple[PromptContext, PromptContext]
    positions: tuple[Tensor, Tensor]

    @classmethod
    def draw(cls, models: SyntheticModels, shape: Shape, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        config, tokens = models.transformer, shape.tokens(models)

        def random(length: int, width: int) -> Tensor:
            numbers = torch.randn(1, length, width, generator=generator, device=device)
            return numbers.to(models.dtype)

        def prompt() -> PromptContext:
            video, audio = (config.caption_channels or stream.width for stream in (config.video, config.audio))
            return PromptContext(random(tokens.text, video), random(tokens.text, audio))

        return cls(
            random(tokens.video, config.video.channels),
            random(tokens.audio, config.audio.channels),
            (prompt(), prompt()),
            (
                video_positions(shape.video(models), DEFAULT_FPS, models.scale, device),
                audio_positions(shape.audio(models), models.audio_geometry, device),
            ),
        )

    def step(self, models: SyntheticModels, shape: Shape, transformer: Any, dtype: torch.dtype | None = None) -> Step:
        """The step as a stage prepares it; ``dtype`` other than the models' for a more exact one."""
        dtype = dtype or models.dtype
        guidance, separate = shape.settings(models)
        positive, negative = (PromptContext(p.video.to(dtype), p.audio.to(dtype)) for p in self.prompts)
        states = (
            StreamState.start(self.video.to(dtype), self.positions[0]),
            StreamState.start(self.audio.to(dtype), self.positions[1]),
        )
        recorder = _Recorder(transformer)
        with torch.inference_mode():
            ropes = (
                transformer.stream_rope(self.positions[0], "video", dtype),
                transformer.stream_rope(self.positions[1], "audio", dtype),
            )

        def model(dit: Any) -> GuidedModel:
            rule = CrossTimestepRule.SPLIT
            return GuidedModel(dit, positive, negative, guidance, *ropes, cross_rule=rule, separate=separate)

        with torch.inference_mode():
            model(recorder)(*states, SIGMA, 0)
        # Graphs, where a stage has them: from the third call on; the calls of the DiT alone are launched one by one
        return Step(model(GraphedCalls(transformer, shape.repeats)), states, transformer, recorder.calls)


class _Recorder:
    """Stands where the DiT would, and keeps what it is asked for; answers zeros."""

    def __init__(self, transformer: Any) -> None:
        self._transformer, self.calls = transformer, list[DitCall]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def __call__(
        self, video: StreamInput | None, audio: StreamInput | None, items: Any, rule: CrossTimestepRule
    ) -> tuple[Tensor | None, Tensor | None]:
        self.calls.append(DitCall(video, audio, items, rule))

        def zeros(stream: StreamInput | None, count: int) -> Tensor | None:
            return None if stream is None else stream.latent.new_zeros(count, *stream.latent.shape[1:])

        return zeros(video, sum(i.video for i in items)), zeros(audio, sum(i.audio for i in items))


Factory = Callable[[str], SyntheticModels]
"""Models by precision."""
