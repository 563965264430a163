"""What the engine asks of its surroundings. The composition roots (nodes, command line) inject the implementations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .types import (
    AudioGeometry,
    BatchItem,
    Component,
    CrossTimestepRule,
    Phase,
    ScaleFactors,
    StreamInput,
    VelocityPair,
)


class Residency(Protocol):
    """Decides where modules live. The stages never call ``.to()``."""

    @property
    def device(self) -> torch.device:
        """The compute device."""
        ...

    @property
    def mode(self) -> str:
        """Name of the placement mode in force."""
        ...

    @property
    def mode_reason(self) -> str:
        """Why that mode was chosen, in words."""
        ...

    @property
    def notices(self) -> Sequence[str]:
        """Sentences about where the modules live that the user should read, such as a smaller mode that was taken."""
        ...

    def use(
        self, component: Component, phase: Phase, adapters: Mapping[str, float] | None = None
    ) -> AbstractContextManager[Any]:
        """The component's module, ready on the compute device while the context is open.

        ``adapters`` are the LoRA strengths that this use wants, by adapter name; None leaves them as they are.
        """
        ...

    def prefetch(self, component: Component, phase: Phase, adapters: Mapping[str, float] | None = None) -> None:
        """A hint that ``use`` will follow; returns at once."""
        ...

    def fall_back(self, problem: str) -> bool:
        """Asks for a placement that needs less device memory, after ``problem``; False when there is none."""
        ...

    def measure(self, stage: str) -> AbstractContextManager[None]:
        """Times what happens inside and notes its peak memory, as stage ``stage`` of the run."""
        ...

    def moved(self, h2d_bytes: int = 0, d2h_bytes: int = 0) -> None:
        """Counts bytes that the current stage moved between host and device itself."""
        ...

    def take_records(self) -> Sequence[Mapping[str, Any]]:
        """The stages measured since the last call: name, ms, peak_bytes, h2d_bytes, d2h_bytes. Waits for the device."""
        ...

    def last_records(self) -> Sequence[Mapping[str, Any]]:
        """The stages of the last run, as :meth:`take_records` gives them, whoever took them."""
        ...

    def status(self) -> Mapping[str, Mapping[str, int]]:
        """Bytes held now, by place ("device", "host", and "pinned": the host memory that is page-locked)."""
        ...


class Models(Protocol):
    """What the stages must know of the loaded models; everything comes from the files."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def generation(self) -> str:
        """ "2.0" or "2.3"."""
        ...

    @property
    def num_layers(self) -> int:
        """Blocks of the DiT."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of the video latent."""
        ...

    @property
    def scale(self) -> ScaleFactors: ...

    @property
    def audio_geometry(self) -> AudioGeometry: ...

    @property
    def has_upsampler(self) -> bool: ...

    @property
    def has_distilled_lora(self) -> bool: ...

    @property
    def variant(self) -> str:
        """Of the checkpoint: "dev", "distilled", or "unknown" where neither its name nor its metadata tells."""
        ...

    @property
    def distilled_adapters(self) -> Set[str]:
        """Names of the adapters that are the distilled LoRA: given as such, or as a user's, by its name."""
        ...

    @property
    def user_adapters(self) -> Mapping[str, str]:
        """Name of every user's LoRA adapter to its file's, without folders."""
        ...

    @property
    def file_names(self) -> Mapping[str, str]:
        """What was loaded, for the report: role to path."""
        ...

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about the loaded files that the user should read, such as what was left out of one."""
        ...

    def tokenizer(self) -> Any: ...

    def adapter_strengths(self, phase: Phase, distilled_strength: tuple[float, float]) -> Mapping[str, float]:
        """Strength of every LoRA adapter in a phase."""
        ...


class Progress(Protocol):
    """Told about stages and steps; may raise to interrupt (the exception passes through untouched)."""

    def start(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps begins."""
        ...

    def step(self, stage: str, done: int) -> None:
        """``done`` of the stage's steps are finished."""
        ...

    def finish(self, stage: str) -> None: ...


@runtime_checkable
class Watching(Protocol):
    """What a :class:`Progress` has beside its own methods where somebody may look at the video while it is made."""

    def preview(self, stage: str, done: int, latent: Callable[[], Tensor]) -> None:
        """Called after every denoising step.

        Args:
            latent: gives the clean estimate of the video latent after this step, (1, C, F, H, W) on the compute
                device. Without a call nothing is computed; reading its numbers waits for the device.
        """
        ...


class Velocities(Protocol):
    """The call of the transformer, plain or replayed."""

    def __call__(
        self,
        video: StreamInput | None,
        audio: StreamInput | None,
        items: Sequence[BatchItem],
        cross_rule: CrossTimestepRule,
    ) -> VelocityPair:
        """Velocities of both streams, (B, T, C) each, where B counts the items that compute it.

        Args:
            video, audio: None leaves a stream out, as does one that is not ``enabled``: its velocity is None.
            items: the evaluations that the call makes.
            cross_rule: noise level behind the audio-video exchange.
        """
        ...


class Attention(Protocol):
    """Scaled dot-product attention without a mask, (B, heads, T, head_dim) in and out."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class NoProgress:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int) -> None: ...

    def step(self, stage: str, done: int) -> None: ...

    def finish(self, stage: str) -> None: ...
