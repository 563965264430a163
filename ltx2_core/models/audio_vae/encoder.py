"""Spectrogram to latent."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .config import AudioVAEConfig
from .layers import CausalConv2d, LatentStatistics, MidBlock, ResBlock, pixel_norm


class Downsample(nn.Module):
    """Halves time and mel bands with a strided convolution; frame 0 stays a frame of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 2, 0)))
        return out


class DownLevel(nn.Module):
    """Residual blocks of one resolution, and the way down to the next."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        self.downsample: nn.Module | None = None if last else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class AudioEncoder(nn.Module):
    """The encoder half of the audio autoencoder (docs/model.md 7.2).

    State-dict keys are those of the checkpoint after ``audio_vae.encoder.``, plus ``per_channel_statistics.*``.
    """

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base_channels * m for m in config.multipliers]
        levels = list(zip([config.base_channels, *widths], widths, strict=False))
        self.per_channel_statistics = LatentStatistics(config.latent_channels, config.latent_mel_bins)
        self.conv_in = CausalConv2d(config.in_channels, config.base_channels)
        self.down = nn.ModuleList(
            DownLevel(a, b, config.res_blocks, last=level == len(levels) - 1) for level, (a, b) in enumerate(levels)
        )
        self.mid = MidBlock(widths[-1])
        self.conv_out = CausalConv2d(widths[-1], config.latent_channels * (2 if config.double_z else 1))

    def encode(self, mel: Tensor) -> Tensor:
        """Encodes a log-mel spectrogram; the distribution's mean is taken, nothing is drawn.

        Args:
            mel: (B, in_channels, frames, mel_bins), as :func:`waveform_to_mel` returns it.

        Returns:
            Normalised latent (B, latent_channels, ceil(frames / downsample), latent_mel_bins) in the weights' dtype.

        Raises:
            ValueError: the spectrogram has another number of channels or mel bands.
        """
        expected = (self.config.in_channels, self.config.mel_bins)
        if mel.ndim != 4 or (mel.shape[1], mel.shape[3]) != expected:
            raise ValueError(f"mel must be (B, {expected[0]}, frames, {expected[1]}), got {tuple(mel.shape)}")
        dtype = self.conv_in.conv.weight.dtype
        x = self.conv_in(mel.to(dtype))
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(pixel_norm(self.mid(x))))
        means = x[:, : self.config.latent_channels]
        return self.per_channel_statistics.normalise(means).to(dtype)

    def forward(self, mel: Tensor) -> Tensor:
        return self.encode(mel)
