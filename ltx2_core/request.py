"""What a user asks for, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .recipes import DEFAULT_FPS, DEFAULT_FRAMES, DEFAULT_SEED, DEFAULT_SIZE, REVISIONS, AudioSource, Recipe, Revision
from .types import AudioClip, Guidance, ImageCondition, LatentPair, RunReport, StreamGuidance, VideoSize


@dataclass(frozen=True)
class GenerationRequest:
    """One clip to make. :func:`ltx2_core.stages.validate` checks it before any weight is read.

    Attributes:
        recipe: sampling settings, see :func:`ltx2_core.recipes.official_recipe`.
        audio: sound that the picture is made for, from the clip's start, mono or stereo at any rate.
        image_crf: H.264 quality of the round trip that conditioning images make (0 skips it); None: the revision's.
        audio_source: None: the given sound where there is one, else the recipe's, else the revision's.
        notices: sentences that the user should read about how the request was made from what was asked.
    """

    prompt: str
    recipe: Recipe
    negative_prompt: str = ""
    width: int = DEFAULT_SIZE[0]
    height: int = DEFAULT_SIZE[1]
    frames: int = DEFAULT_FRAMES
    fps: float = DEFAULT_FPS
    seed: int = DEFAULT_SEED
    images: tuple[ImageCondition, ...] = ()
    audio: AudioClip | None = None
    image_crf: int | None = None
    audio_source: AudioSource | None = None
    revision: Revision = field(default_factory=lambda: REVISIONS["newest"])
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> VideoSize:
        return VideoSize(self.frames, self.height, self.width)

    @property
    def seconds(self) -> float:
        """Length of the clip, picture and sound."""
        return self.frames / self.fps

    @property
    def effective_guidance(self) -> Guidance:
        """Stage 1's guidance: the recipe's, of the picture alone where the sound is given (docs/model.md 8.3)."""
        guidance = self.recipe.guidance
        return guidance if self.audio is None else Guidance(guidance.video, StreamGuidance())

    @property
    def effective_audio_source(self) -> AudioSource:
        given = AudioSource.INPUT if self.audio is not None else None
        return self.audio_source or given or self.recipe.audio_source or self.revision.audio_source

    @property
    def effective_crf(self) -> int:
        return self.revision.image_crf if self.image_crf is None else self.image_crf


@dataclass
class GenerationResult:
    """What a run leaves besides the frames, which went to the sink while they were decoded.

    ``final`` is what was decoded: the last video latent with the audio latent of the chosen stage.
    ``latents`` holds the tensors of ``--save-latents`` under their contract names, on the CPU, when asked for.
    """

    audio: AudioClip
    report: RunReport
    final: LatentPair
    latents: dict[str, Tensor]
