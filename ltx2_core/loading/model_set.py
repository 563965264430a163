"""Everything a pipeline needs of a set of model files: checked from the headers at once, loaded part by part later."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from ..components import COMPONENTS, PARTS, weight_dtype
from ..errors import CheckpointError, ConfigError, SettingError
from ..files.saving import check_path
from ..files.stamp import Stamp
from ..limits import checked
from ..models.audio_vae import AudioVAEConfig
from ..models.text.config import TextConfig
from ..models.text.gemma import GemmaSource, PromptTokenizer
from ..models.transformer.config import TransformerConfig
from ..models.upsampler import UpsamplerConfig
from ..models.video_vae.config import VideoVAEConfig
from ..models.vocoder import VocoderConfig
from ..models.weights_file import WeightsFile
from ..plain_text import LONGEST_LINE, plain
from ..recipes import UNKNOWN
from ..types import AudioGeometry, Component, Phase, ScaleFactors
from .artifact_names import is_distilled_lora, variant_of
from .component_source import ComponentSource, Piece, check_counts
from .lora import LoRAFile, check_fit, inject, set_adapters
from .model_files import LoRASource, ModelFiles, Stage
from .model_parts import ModelParts, naming_file
from .opened_files import USE_UPSAMPLER, OpenedFiles
from .precision import AUTO, check_precision, scaled_layers

__all__ = ["Adapter", "LoRASource", "ModelFiles", "ModelSet", "Stage"]

logger = logging.getLogger("ltx2.loading")

DISTILLED = "distilled"  # name of the distilled LoRA's adapter
_STAGES: Mapping[Phase, Stage] = {Phase.STAGE_1: "1", Phase.STAGE_2: "2"}


@dataclass(frozen=True)
class Adapter:
    """A LoRA under the name that it has in the transformer; ``source`` is None for the distilled one.

    ``notices`` are sentences about the file that the user should read.

    The name of a user's LoRA says which file it is: the same file has the same name in every set, however often given.
    """

    name: str
    lora: LoRAFile
    source: LoRASource | None
    notices: tuple[str, ...] = ()

    def strength(self, stage: Stage, distilled_strength: tuple[float, float]) -> float:
        if self.source is None:
            return distilled_strength[0 if stage == "1" else 1]
        return self.source.strength if self.source.stage in (stage, "both") else 0.0


@dataclass(frozen=True)
class ModelSet:
    """Model files that fit each other. Weights are read by :meth:`build` only.

    Attributes:
        dtype: of the loaded weights; the vocoder's are float32, some of the transformer's may be fp8.
        adapters: the LoRAs of this set.
        layers: (out, in) of the transformer's linear layers by path.
        loras: every LoRA of this set and of those that were made from it, by name: one loaded transformer serves all.
        file_notices: sentences about the files beside the LoRAs that the user should read.
        variant: of the checkpoint, see :func:`.artifact_names.variant_of`.
    """

    files: ModelFiles
    dtype: torch.dtype
    transformer: TransformerConfig
    text: TextConfig
    video_vae: VideoVAEConfig
    audio_vae: AudioVAEConfig
    vocoder: VocoderConfig
    upsampler: UpsamplerConfig | None
    gemma: GemmaSource
    adapters: tuple[Adapter, ...]
    sources: Mapping[Component, ComponentSource]
    layers: Mapping[str, tuple[int, int]]
    loras: dict[str, LoRAFile]
    file_notices: tuple[str, ...] = ()
    variant: str = UNKNOWN

    @classmethod
    def open(cls, files: ModelFiles, dtype: torch.dtype, precision: str = AUTO) -> ModelSet:
        """Reads headers and metadata, and checks everything that can be checked without weights.

        Args:
            precision: of the transformer's linear layers, one of ``precision.PRECISIONS``.

        Raises:
            CheckpointError: a file is missing, damaged, of another model or generation, or does not fit the others.
            ConfigError: a description in the metadata is incomplete or not supported.
            SettingError: a LoRA's strength or stage cannot work, or there is no such precision.
        """
        _check_loras(files.loras)
        check_precision(precision)
        opened = OpenedFiles.open(files)
        parts = opened.parts
        pieces = {component: parts.pieces(component) for component in PARTS}
        config, described = parts.config()
        configs = {component: _read(parts, component, config, pieces[component]) for component in PARTS}
        transformer, text = configs[Component.TRANSFORMER], configs[Component.TEXT_CONNECTOR]
        video, audio = configs[Component.VIDEO_DECODER], configs[Component.AUDIO_DECODER]
        _check_latents(transformer, video, audio)
        _check_text(transformer, text)
        for component in PARTS:
            check_counts(component, pieces[component], COMPONENTS[component].counts(configs[component]))
        in_fp8 = {Component.TRANSFORMER: partial(scaled_layers, precision, config=transformer)}
        sources, linear = {}, {}
        for component in PARTS:
            create = partial(COMPONENTS[component].make, configs[component])
            sources[component], linear[component] = ComponentSource.checked(
                component, pieces[component], create, in_fp8.get(component)
            )
        layers = linear[Component.TRANSFORMER]
        upsampler, notices = None, tuple[str, ...]()
        if opened.upsampler is not None:
            upsampler, sources[Component.UPSAMPLER], notices = _upsampler(opened.upsampler, video, parts.checkpoint)
        adapters = _adapters(opened, files.loras, layers, transformer.generation)
        loras = {adapter.name: adapter.lora for adapter in adapters}
        _check_gemma(opened.gemma, text)
        models = (transformer, text, video, audio, configs[Component.VOCODER], upsampler, opened.gemma)
        said = (*described, *notices)
        return cls(files, dtype, *models, adapters, sources, layers, loras, said, _variant(parts.checkpoint))

    def with_lora(self, source: LoRASource) -> ModelSet:
        """This set with one LoRA more. A transformer that is loaded serves both sets: only adapters differ.

        Raises:
            CheckpointError: the file is no LoRA for this transformer.
            SettingError: its strength or stage cannot work.
        """
        _check_loras((source,))
        check_path("lora", source.path)
        adapter = _adapter(source, LoRAFile.open(source.path, "lora"), self.layers, self.generation)
        self.loras[adapter.name] = adapter.lora
        files = replace(self.files, loras=(*self.files.loras, source))
        return replace(self, files=files, adapters=(*self.adapters, adapter))

    @property
    def generation(self) -> str:
        """ "2.0" or "2.3"."""
        return self.transformer.generation

    @property
    def num_layers(self) -> int:
        return self.transformer.num_layers

    @property
    def latent_channels(self) -> int:
        return self.video_vae.latent_channels

    @property
    def scale(self) -> ScaleFactors:
        return self.video_vae.scale

    @property
    def audio_geometry(self) -> AudioGeometry:
        return self.audio_vae.geometry

    @property
    def has_upsampler(self) -> bool:
        return self.upsampler is not None

    @property
    def has_distilled_lora(self) -> bool:
        return any(adapter.source is None for adapter in self.adapters)

    @property
    def distilled_adapters(self) -> frozenset[str]:
        official = {adapter.lora.file.stamp for adapter in self.adapters if adapter.source is None}
        return frozenset(adapter.name for adapter in self.adapters if _is_distilled(adapter, official))

    @property
    def user_adapters(self) -> Mapping[str, str]:
        return {a.name: a.source.path.name for a in self.adapters if a.source is not None}

    @property
    def file_names(self) -> Mapping[str, str]:
        return self.files.by_role()

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about the files that the user should read."""
        found = [notice for adapter in self.adapters for notice in adapter.notices]
        return tuple(dict.fromkeys([*self.file_notices, *found, *_added_up(self.adapters)]))

    def tokenizer(self) -> PromptTokenizer:
        return self.gemma.load_tokenizer()

    def build(self, component: Component, device: torch.device | str) -> nn.Module:
        """Loads a component onto ``device``, for inference.

        The transformer has every LoRA in it, inactive until :meth:`set_phase`.

        Raises:
            CheckpointError: a file changed since it was opened, or cannot be read.
            SettingError: no file holds the component.
        """
        device = torch.device(device)
        if component is Component.TEXT_ENCODER:
            return self.gemma.load_model(self.dtype, device)
        module = self._source(component).build(device, self._dtype(component))
        if component is Component.TRANSFORMER and self.adapters:
            inject(module, self._files_of({adapter.name for adapter in self.adapters}))
        return module

    def skeleton(self, component: Component) -> nn.Module:
        """The component's module on the meta device, in its final dtype, without LoRAs."""
        return self._source(component).skeleton(self._dtype(component))

    def fill(self, component: Component, tensors: Mapping[str, Tensor]) -> None:
        """Reads a component's weights into tensors that are given by name, straight into host memory where that fits.

        Raises:
            CheckpointError: a file changed since it was opened, or cannot be read.
        """
        self._source(component).fill(tensors)

    def adapt(self, transformer: nn.Module, names: Collection[str]) -> None:
        """Puts the LoRAs of these names into a transformer, inactive, their matrices in host memory.

        They may be those of another set that was made from this one.
        """
        inject(transformer, self._files_of(names), torch.device("cpu"))

    def _files_of(self, names: Collection[str]) -> list[tuple[str, LoRAFile]]:
        # In one order whatever came before, so that sums round alike
        return [(name, self.loras[name]) for name in sorted(names)]

    def component_bytes(self, component: Component) -> int:
        """Bytes of a loaded component, for the transformer without its LoRAs (:meth:`adapter_bytes`)."""
        if component is Component.TEXT_ENCODER:
            return self.gemma.parameters * self.dtype.itemsize
        return self._source(component).nbytes(self._dtype(component))

    def adapter_bytes(self) -> int:
        """Bytes of all loaded LoRAs."""
        files = {adapter.name: adapter.lora for adapter in self.adapters}
        return sum(lora.parameters for lora in files.values()) * self.dtype.itemsize

    def text_states_bytes(self) -> int:
        """Bytes of the text encoder's states of a prompt and a negative one, both as long as can be."""
        return self.text.longest_pair * self.dtype.itemsize

    def adapter_strengths(self, phase: Phase, distilled_strength: tuple[float, float]) -> Mapping[str, float]:
        """Strength of every adapter in a denoising stage; empty in the other phases, which change none.

        A file that is given several times acts with the sum of its strengths.

        Args:
            distilled_strength: of the distilled LoRA in stage 1 and in stage 2.
        """
        stage = _STAGES.get(phase)
        if stage is None:
            return {}
        strengths = dict.fromkeys(sorted(adapter.name for adapter in self.adapters), 0.0)
        for adapter in self.adapters:
            strengths[adapter.name] += adapter.strength(stage, distilled_strength)
        return strengths

    def set_phase(self, transformer: nn.Module, phase: Phase, distilled_strength: tuple[float, float]) -> None:
        """Gives every adapter its strength for a phase; phases other than the two stages leave them as they are."""
        set_adapters(transformer, self.adapter_strengths(phase, distilled_strength))

    def _dtype(self, component: Component) -> torch.dtype:
        return weight_dtype(component, self.dtype)

    def _source(self, component: Component) -> ComponentSource:
        if component not in self.sources:
            what = component.value.replace("_", "-")
            raise SettingError(what, None, "is not given", f"Give the file for {what}.")
        return self.sources[component]


def _read(parts: ModelParts, component: Component, config: Mapping[str, Any], pieces: Sequence[Piece]) -> Any:
    """A component's config; an error in it names the file."""
    row = COMPONENTS[component]
    shapes = {name: piece.file.tensors[key].shape for piece in pieces for name, key in piece.names.items()}
    return naming_file(parts, row.section or "", lambda: row.read(config, shapes))


def _variant(checkpoint: WeightsFile) -> str:
    """Told from the file's name, else from that of the file which it links to, else from a title in its metadata."""
    texts = [checkpoint.path.name, checkpoint.path.resolve().name]
    texts += [checkpoint.metadata.get(key, "") for key in _TITLES]
    return next((variant for text in texts if (variant := variant_of(text)) != UNKNOWN), UNKNOWN)


# Where programs that save checkpoints write what one is called
_TITLES = ("modelspec.title", "general.name", "model_version", "name")


def _check_loras(loras: tuple[LoRASource, ...]) -> None:
    for lora in loras:
        checked("lora strength", lora.strength)
        if lora.stage not in ("1", "2", "both"):
            raise SettingError("lora stage", lora.stage, "is not a stage", "Choose 1, 2 or both.")


def _check_latents(transformer: TransformerConfig, video: VideoVAEConfig, audio: AudioVAEConfig) -> None:
    """The transformer's tokens must be the autoencoders' latents."""
    fix = "Use the files of one release."
    if transformer.video.channels != video.latent_channels:
        problem = f"differs from the video VAE's {video.latent_channels} latent channels"
        raise ConfigError("transformer.in_channels", transformer.video.channels, problem, fix)
    token = audio.geometry.channels * audio.geometry.mel_bins
    if transformer.audio.channels != token:
        problem = f"differs from the audio VAE's {token} numbers per latent frame"
        raise ConfigError("transformer.audio_in_channels", transformer.audio.channels, problem, fix)


def _check_text(transformer: TransformerConfig, text: TextConfig) -> None:
    """Without caption projections the streams take the connectors' output as it is."""
    if transformer.caption_channels is not None:
        return
    for prefix, connector, stream in (("", text.video, transformer.video), ("audio_", text.audio, transformer.audio)):
        if connector.width != stream.width:
            key = f"transformer.{prefix}connector_num_attention_heads"
            problem = f"makes a connector {connector.width} wide; {prefix}cross_attention_dim is {stream.width}"
            raise ConfigError(key, connector.heads, problem, "Use an official LTX-2.3 file.")


def _upsampler(
    file: WeightsFile, video: VideoVAEConfig, checkpoint: WeightsFile
) -> tuple[UpsamplerConfig, ComponentSource, tuple[str, ...]]:
    row = COMPONENTS[Component.UPSAMPLER]
    config: UpsamplerConfig = row.read(file.config, {name: info.shape for name, info in file.tensors.items()})
    if (config.temporal_factor, config.spatial_factor) != (1, 2):
        raise file.error(f"is an upsampler of another kind ({config.kind.value})", USE_UPSAMPLER)
    if config.latent_channels != video.latent_channels:
        problem = f"is made for latents of {config.latent_channels} channels; the video VAE has {video.latent_channels}"
        raise file.error(problem, USE_UPSAMPLER)
    versions = [v[:3] for v in (file.model_version, checkpoint.model_version) if v]
    notices = tuple[str, ...]()
    if len(set(versions)) > 1:
        differ = "The upsampler is of LTX-{}, the checkpoint of LTX-{}: their latents differ."
        notices = (plain(differ.format(*versions), LONGEST_LINE),)
        logger.warning(*notices)
    pieces = [Piece(file, {name: name for name in file.tensors})]
    source, _ = ComponentSource.checked(Component.UPSAMPLER, pieces, partial(row.make, config))
    return config, source, notices


def _adapters(
    opened: OpenedFiles, sources: tuple[LoRASource, ...], layers: Mapping[str, tuple[int, int]], generation: str
) -> tuple[Adapter, ...]:
    users = tuple(_adapter(*pair, layers, generation) for pair in zip(sources, opened.loras, strict=True))
    lora = opened.distilled_lora
    if lora is None:
        return users
    return (Adapter(DISTILLED, lora, None, check_fit(lora, layers, generation)), *users)


def _adapter(source: LoRASource, lora: LoRAFile, layers: Mapping[str, tuple[int, int]], generation: str) -> Adapter:
    notices = check_fit(lora, layers, generation)
    identity = f"{source.path.resolve()} {' '.join(map(str, lora.file.stamp))}"
    return Adapter(f"lora_{sha256(os.fsencode(identity)).hexdigest()[:16]}", lora, source, notices)


def _is_distilled(adapter: Adapter, official: Collection[Stamp]) -> bool:
    """Whether it is the distilled LoRA: given as such, the same file under whatever name, or one of its names."""
    return adapter.lora.file.stamp in official or (
        adapter.source is not None and is_distilled_lora(adapter.source.path.name)
    )


def _added_up(adapters: Collection[Adapter]) -> Iterator[str]:
    """A sentence about each file that acts several times in one stage."""
    same: dict[str, list[Adapter]] = {}
    for adapter in adapters:
        if adapter.source is not None:
            same.setdefault(adapter.name, []).append(adapter)
    for given in same.values():
        strengths = {stage: [s for a in given if (s := a.strength(stage, (0.0, 0.0)))] for stage in _STAGES.values()}
        sums = [f"{sum(values):g} in stage {stage}" for stage, values in strengths.items() if len(values) > 1]
        if sums:
            file = given[0].lora.file.path.name
            yield f"The LoRA {file} is given more than once: its strengths add up to {' and '.join(sums)}."


def _check_gemma(gemma: GemmaSource, text: TextConfig) -> None:
    """The text projection is made for one size of the text encoder."""
    fix = "Use the text encoder of the release: Gemma 3 12B for the official files."
    for what, value, expected in (
        ("a hidden size", gemma.hidden_size, text.text_width),
        ("a number of layers", gemma.num_layers, text.num_states - 1),
    ):
        if value != expected:
            problem = f"has {what} of {value}; the checkpoint's text projection is made for {expected}"
            raise CheckpointError("gemma", gemma.path, problem, fix)
