"""Latent upsampler: a video latent of more height and width, or of more frames (docs/model.md 7.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels.convolution import in_order, unbiased
from ..kernels.groups import normalised
from ..kernels.layout import Stride, unfold
from .config_reader import ConfigReader

NORM_GROUPS = 32
BLUR_TAPS = 5

_FIX = "Use an official LTX-2 upscaler file."


class UpsamplerKind(str, Enum):
    """The networks that share this architecture; the values are what a user reads."""

    X2 = "x2"
    X2_RATIONAL = "x2 rational"
    X1_5 = "x1.5"
    TEMPORAL = "temporal"
    SPATIO_TEMPORAL = "spatio-temporal"


@dataclass(frozen=True)
class _Traits:
    """How a kind resamples: shuffle by ``shuffle``, then keep every ``blur_stride``-th pixel."""

    shuffle: Stride
    kernel_dims: int
    rational: bool = False
    blur_stride: int = 1

    @property
    def spatial_factor(self) -> float:
        return self.shuffle[1] / self.blur_stride

    @property
    def temporal_factor(self) -> int:
        return self.shuffle[0]

    @property
    def expansion(self) -> int:
        return self.shuffle[0] * self.shuffle[1] * self.shuffle[2]


_TRAITS: Mapping[UpsamplerKind, _Traits] = {
    UpsamplerKind.X2: _Traits((1, 2, 2), kernel_dims=2),
    UpsamplerKind.X2_RATIONAL: _Traits((1, 2, 2), kernel_dims=2, rational=True),
    UpsamplerKind.X1_5: _Traits((1, 3, 3), kernel_dims=2, rational=True, blur_stride=2),
    UpsamplerKind.TEMPORAL: _Traits((2, 1, 1), kernel_dims=3),
    UpsamplerKind.SPATIO_TEMPORAL: _Traits((2, 2, 2), kernel_dims=3),
}


@dataclass(frozen=True)
class UpsamplerConfig:
    """Sizes of a latent upsampler.

    Attributes:
        kind: what it resamples.
        latent_channels: channels of the latent.
        channels: width of the network.
        res_blocks: residual blocks before the resampling, and as many after it.
    """

    kind: UpsamplerKind
    latent_channels: int
    channels: int
    res_blocks: int

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> UpsamplerConfig:
        """Reads the kind and the sizes off a file's tensors, which always carry them; the metadata must agree.

        Args:
            config: the file's ``config`` metadata, None when it has none.
            shapes: shape of every tensor in the file, by name.

        Raises:
            ConfigError: the tensors are of no known kind, or the metadata says something else than they do.
        """
        first = shapes.get("initial_conv.weight", ())
        if len(first) != 5:
            problem = "must be the 5-D weight of a convolution over space and time"
            raise ConfigError("initial_conv.weight", first or None, problem, _FIX)
        channels, latent_channels = first[:2]
        if channels % NORM_GROUPS:
            problem = f"has {channels} output channels, which must be a multiple of {NORM_GROUPS} norm groups"
            raise ConfigError("initial_conv.weight", first, problem, _FIX)
        before, after = (_count_blocks(shapes, prefix) for prefix in ("res_blocks", "post_upsample_res_blocks"))
        if not before or before != after:
            problem = f"there are {before} blocks, and {after} in post_upsample_res_blocks"
            raise ConfigError("res_blocks", before, problem, _FIX)
        found = cls(_find_kind(shapes, channels), latent_channels, channels, before)
        if config is not None:
            found._require_agreement(ConfigReader("upsampler", config))
        return found

    @property
    def traits(self) -> _Traits:
        return _TRAITS[self.kind]

    @property
    def spatial_factor(self) -> float:
        """By how much height and width grow."""
        return self.traits.spatial_factor

    @property
    def temporal_factor(self) -> int:
        """By how much frames grow: 2 turns F latent frames into 2F - 1."""
        return self.traits.temporal_factor

    def _require_agreement(self, section: ConfigReader) -> None:
        spatial = self.spatial_factor != 1
        facts: dict[str, Any] = {
            "in_channels": self.latent_channels,
            "mid_channels": self.channels,
            "num_blocks_per_stage": self.res_blocks,
            "dims": 3,
            "spatial_upsample": spatial,
            "temporal_upsample": self.temporal_factor != 1,
        }
        if spatial and self.temporal_factor == 1:  # the other kinds have no use for these keys
            facts |= {"spatial_scale": self.spatial_factor, "rational_resampler": self.traits.rational}
        for key, fact in facts.items():
            if key in section and section.raw(key) != fact:
                raise section.error(key, f"differs from the file's tensors, which have {fact!r}")


def _count_blocks(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    count = 0
    while f"{prefix}.{count}.conv1.weight" in shapes:
        count += 1
    return count


def _find_kind(shapes: Mapping[str, tuple[int, ...]], channels: int) -> UpsamplerKind:
    rational = "upsampler.blur_down.kernel" in shapes
    name = "upsampler.conv.weight" if rational else "upsampler.0.weight"
    shape = shapes.get(name, ())
    for kind, traits in _TRAITS.items():
        expected = (traits.expansion * channels, channels, *[3] * traits.kernel_dims)
        if traits.rational == rational and tuple(shape) == expected:
            return kind
    kinds = ", ".join(kind.value for kind in UpsamplerKind)
    raise ConfigError(name, shape or None, f"is of no known kind of upsampler (known: {kinds})", _FIX)


def _activated(conv: nn.Conv3d, norm: nn.GroupNorm, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """SiLU(norm(conv(x)) + skip), in channels-last order where kernels are fused."""
    return normalised(*unbiased(conv, x), norm.num_groups, norm.weight, norm.bias, norm.eps, skip)


class ResBlock(nn.Module):
    """SiLU(x + norm(conv(SiLU(norm(conv(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        return _activated(self.conv2, self.norm2, _activated(self.conv1, self.norm1, x), x)


class ShuffleUpsample(nn.Sequential):
    """A convolution (key ``0``) whose output channels unfold into pixels, or into frames, of which the first goes."""

    def __init__(self, channels: int, traits: _Traits) -> None:
        conv = nn.Conv2d if traits.kernel_dims == 2 else nn.Conv3d
        super().__init__(conv(channels, traits.expansion * channels, 3, padding=1))
        self.shuffle = traits.shuffle

    def forward(self, x: Tensor) -> Tensor:
        return _unfolded(self[0], x, self.shuffle, dropped=self.shuffle[0] - 1)


class BlurDown(nn.Module):
    """Keeps every ``stride``-th pixel of every frame, behind a low pass whose taps come with the file."""

    kernel: Tensor

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("kernel", torch.zeros(1, 1, BLUR_TAPS, BLUR_TAPS))

    def forward(self, frames: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)); stride 1 passes through, as the file means it."""
        if self.stride == 1:
            return frames
        channels = frames.shape[1]
        taps = self.kernel.to(frames.dtype).expand(channels, -1, -1, -1)
        return F.conv2d(frames, taps, stride=self.stride, padding=BLUR_TAPS // 2, groups=channels)


class RationalUpsample(nn.Module):
    """The spatial shuffle, followed by a blurred reduction where the factor is a fraction."""

    def __init__(self, channels: int, traits: _Traits) -> None:
        super().__init__()
        self.shuffle = traits.shuffle
        self.conv = nn.Conv2d(channels, traits.expansion * channels, 3, padding=1)
        self.blur_down = BlurDown(traits.blur_stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.blur_down.stride == 1:
            return _unfolded(self.conv, x, self.shuffle, dropped=0)
        return _clips(self._resample(_frames(x)), len(x))

    def _resample(self, frames: Tensor) -> Tensor:
        out: Tensor = self.blur_down(F.pixel_shuffle(self.conv(frames), self.shuffle[1]))
        return out


def _unfolded(conv: nn.Module, x: Tensor, shuffle: Stride, dropped: int) -> Tensor:
    """A convolution of (B, C, F, H, W), or of its frames, unfolded from channels, without the first frames."""
    if isinstance(conv, nn.Conv3d):
        out, bias = unbiased(conv, x)
    else:
        frames, bias = unbiased(conv, _frames(x))
        out = _clips(frames, len(x))
    return unfold(out, bias, shuffle, dropped)


def _frames(x: Tensor) -> Tensor:
    """(B, C, F, H, W) to pictures (B * F, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _clips(frames: Tensor, batch: int) -> Tensor:
    """The inverse of :func:`_frames`."""
    return frames.view(batch, len(frames) // batch, *frames.shape[1:]).transpose(1, 2)


class LatentUpsampler(nn.Module):
    """Upsamples a video latent. State-dict keys are those of the file."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        channels, traits = config.channels, config.traits
        self.initial_conv = nn.Conv3d(config.latent_channels, channels, 3, padding=1)
        self.initial_norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.res_blocks = nn.ModuleList(ResBlock(channels) for _ in range(config.res_blocks))
        self.upsampler = (RationalUpsample if traits.rational else ShuffleUpsample)(channels, traits)
        self.post_upsample_res_blocks = nn.ModuleList(ResBlock(channels) for _ in range(config.res_blocks))
        self.final_conv = nn.Conv3d(channels, config.latent_channels, 3, padding=1)

    @property
    def spatial_factor(self) -> float:
        return self.config.spatial_factor

    @property
    def temporal_factor(self) -> int:
        return self.config.temporal_factor

    @torch.no_grad()
    def forward(self, latent: Tensor) -> Tensor:
        """Upsamples a latent that was un-normalised with the video autoencoder's statistics.

        Args:
            latent: (B, latent_channels, F, H, W) of any float dtype.

        Returns:
            (B, latent_channels, F', H', W'), un-normalised, in the weights' dtype. F' = F, or 2F - 1 of a temporal
            kind; H' = ceil(spatial_factor * H), and W' alike.

        Raises:
            ValueError: the latent has another number of channels.
        """
        channels = self.config.latent_channels
        if latent.ndim != 5 or latent.shape[1] != channels:
            raise ValueError(f"latent must be (B, {channels}, F, H, W), got {tuple(latent.shape)}")
        x = _activated(self.initial_conv, self.initial_norm, latent.to(self.initial_conv.weight.dtype))
        for block in self.res_blocks:
            x = block(x)
        x = self.upsampler(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        last = self.final_conv
        return F.conv3d(x, in_order(last.weight), last.bias, padding=last.padding).contiguous()
