"""What the ``vae`` section of a checkpoint's metadata says about the video autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...kernels.layout import Stride
from ...types import ScaleFactors
from ..config_reader import ConfigReader
from ..counts import Count

PIXEL_CHANNELS = 3
PADDING_MODES = ("zeros", "reflect")

_STRIDES: Mapping[str, Stride] = {"time": (2, 1, 1), "space": (1, 2, 2), "all": (2, 2, 2)}
_ENCODER_STRIDES = {f"compress_{axes}_res": stride for axes, stride in _STRIDES.items()}
_DECODER_STRIDES = {f"compress_{axes}": stride for axes, stride in _STRIDES.items()}


@dataclass(frozen=True)
class ResStage:
    """``count`` residual blocks of constant width (``res_x``)."""

    channels: int
    count: int


@dataclass(frozen=True)
class ResampleStage:
    """A change of resolution by 2 along the axes whose stride is 2 (``compress_*``)."""

    in_channels: int
    out_channels: int
    stride: Stride
    residual: bool

    @property
    def cells(self) -> int:
        """Positions on the fine side for each one on the coarse side."""
        return math.prod(self.stride)


Stage = ResStage | ResampleStage


@dataclass(frozen=True)
class VideoVAEConfig:
    """Sizes of the video autoencoder (docs/model.md 1.3 and 7.1).

    Attributes:
        latent_channels: channels of the latent.
        patch_size: pixels per side of the patches that the outermost convolutions see.
        encoder_channels: width after the encoder's first convolution.
        encoder_stages: in the order of application.
        encoder_padding: ``zeros`` or ``reflect``, at the edges of the picture.
        decoder_channels: width after the decoder's first convolution.
        decoder_stages: in the order of application, which is the reverse of the metadata's.
        decoder_padding: as ``encoder_padding``.
        scale: pixels per latent cell.
    """

    latent_channels: int
    patch_size: int
    encoder_channels: int
    encoder_stages: tuple[Stage, ...]
    encoder_padding: str
    decoder_channels: int
    decoder_stages: tuple[Stage, ...]
    decoder_padding: str
    scale: ScaleFactors

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> VideoVAEConfig:
        """Reads ``config["vae"]``.

        Raises:
            ConfigError: a key is missing, asks for something that no released LTX-2 file has, or the two block lists do
                not fit each other.
        """
        section = ConfigReader.of(config, "vae")
        section.require("_class_name", "CausalVideoAutoencoder", default="CausalVideoAutoencoder")
        section.require("dims", 3, default=3)
        section.require("in_channels", PIXEL_CHANNELS, default=PIXEL_CHANNELS)
        section.require("out_channels", PIXEL_CHANNELS, default=PIXEL_CHANNELS)
        section.require("norm_layer", "pixel_norm", default="pixel_norm")
        section.require("latent_log_var", "uniform", default="uniform")
        section.require("use_quant_conv", False, default=False)
        section.require("normalize_latent_channels", False, default=False)
        section.require("causal_decoder", False, default=False)
        # Official code takes a missing key for true, which no released weights support.
        section.require("timestep_conditioning", False, default=False)

        latent_channels, patch_size = section.int("latent_channels"), section.int("patch_size")
        encoder_channels = section.int("encoder_base_channels", latent_channels)
        encoder = _encoder_stages(section, encoder_channels)
        decoder_channels, decoder = _decoder_stages(section, section.int("decoder_base_channels", 128))
        scale = _scale(encoder, patch_size)
        if (decoded := _scale(decoder, patch_size)) != scale:
            raise section.error(
                "decoder_blocks", f"decodes cells of {tuple(decoded)}, encoder_blocks of {tuple(scale)}"
            )
        return cls(
            latent_channels=latent_channels,
            patch_size=patch_size,
            encoder_channels=encoder_channels,
            encoder_stages=encoder,
            encoder_padding=_padding(section, "encoder", "zeros"),
            decoder_channels=decoder_channels,
            decoder_stages=decoder,
            decoder_padding=_padding(section, "decoder", "reflect"),
            scale=scale,
        )

    @property
    def encoder_counts(self) -> tuple[Count, ...]:
        return _counts("encoder_blocks", range(len(self.encoder_stages)), self.encoder_stages, "down_blocks")

    @property
    def decoder_counts(self) -> tuple[Count, ...]:
        return _counts("decoder_blocks", range(len(self.decoder_stages))[::-1], self.decoder_stages, "up_blocks")

    @property
    def patch_channels(self) -> int:
        """Channels of a patchified picture."""
        return PIXEL_CHANNELS * self.patch_size**2

    @property
    def encoder_out_channels(self) -> int:
        return _out_channels(self.encoder_stages, self.encoder_channels)

    @property
    def decoder_out_channels(self) -> int:
        return _out_channels(self.decoder_stages, self.decoder_channels)


def _padding(section: ConfigReader, half: str, default: str) -> str:
    """One key for both halves since March 2026; before that a key for each, and defaults that differ."""
    both, own = "spatial_padding_mode", f"{half}_spatial_padding_mode"
    return section.str(both if both in section else own, default, choices=PADDING_MODES)


def _blocks(section: ConfigReader, key: str) -> list[tuple[str, ConfigReader]]:
    """Name and options of every block, in the list's order; a bare number stands for ``num_layers``."""
    blocks = []
    for index, entry in enumerate(section.entries(key, "blocks")):
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not isinstance(entry[0], str):
            raise section.error(key, f"entry {index} must be a pair of a block's name and its options")
        name, options = entry
        if isinstance(options, (int, float)):
            options = {"num_layers": options}
        blocks.append((name, ConfigReader(f"{section.section}.{key}[{index}].{name}", options)))
    return blocks


def _require_known(section: ConfigReader, key: str, name: str, strides: Mapping[str, Stride]) -> None:
    if name != "res_x" and name not in strides:
        known = ", ".join(["res_x", *strides])
        raise section.error(key, f"the block {name!r} is not supported (supported: {known})")


def _res_stage(options: ConfigReader, channels: int) -> ResStage:
    options.require("inject_noise", False, default=False)
    return ResStage(channels, options.int("num_layers"))


def _encoder_stages(section: ConfigReader, channels: int) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    for name, options in _blocks(section, "encoder_blocks"):
        _require_known(section, "encoder_blocks", name, _ENCODER_STRIDES)
        if name == "res_x":
            stages.append(_res_stage(options, channels))
            continue
        multiplier = options.int("multiplier", 2)
        stage = ResampleStage(channels, channels * multiplier, _ENCODER_STRIDES[name], residual=True)
        if stage.cells % multiplier:
            raise options.error("multiplier", f"must divide {stage.cells}, the cells that the skip connection averages")
        if stage.out_channels % stage.cells:
            raise options.error(
                "multiplier", f"makes {stage.out_channels} channels, which must divide by {stage.cells}"
            )
        stages.append(stage)
        channels = stage.out_channels
    return tuple(stages)


def _decoder_stages(section: ConfigReader, base_channels: int) -> tuple[int, tuple[Stage, ...]]:
    """Width of the first stage, and the stages in the order of application."""
    blocks = _blocks(section, "decoder_blocks")[::-1]
    for name, _ in blocks:
        _require_known(section, "decoder_blocks", name, _DECODER_STRIDES)
    multipliers = [options.int("multiplier", 1) for name, options in blocks if name != "res_x"]
    first = channels = base_channels * math.prod(multipliers)
    stages: list[Stage] = []
    for name, options in blocks:
        if name == "res_x":
            stages.append(_res_stage(options, channels))
            continue
        multiplier, stride = options.int("multiplier", 1), _DECODER_STRIDES[name]
        if name != "compress_all":
            # Official code ignores it here, so what such a file means is not known.
            options.require("residual", False, default=False)
        stage = ResampleStage(channels, channels // multiplier, stride, options.bool("residual", False))
        if stage.residual and stage.cells % multiplier:
            raise options.error("multiplier", f"must divide {stage.cells}, the cells that the skip connection fills")
        if stage.residual and stage.in_channels % stage.cells:
            raise options.error("residual", f"needs {stage.in_channels} channels to divide by {stage.cells}")
        stages.append(stage)
        channels = stage.out_channels
    return first, tuple(stages)


def _counts(key: str, entries: Iterable[int], stages: Iterable[Stage], blocks: str) -> tuple[Count, ...]:
    """Residual blocks of each stage; ``entries`` says which entry of the metadata's list describes it."""
    return tuple(
        Count(f"vae.{key}[{entry}].res_x.num_layers", stage.count, f"{blocks}.{number}.res_blocks")
        for number, (entry, stage) in enumerate(zip(entries, stages, strict=True))
        if isinstance(stage, ResStage)
    )


def _out_channels(stages: Iterable[Stage], channels: int) -> int:
    for stage in stages:
        channels = stage.channels if isinstance(stage, ResStage) else stage.out_channels
    return channels


def _scale(stages: Iterable[Stage], patch_size: int) -> ScaleFactors:
    strides = [stage.stride for stage in stages if isinstance(stage, ResampleStage)]
    time, height, width = (math.prod(stride[axis] for stride in strides) for axis in range(3))
    return ScaleFactors(time, height * patch_size, width * patch_size)
