"""Latent to spectrogram."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .config import AudioVAEConfig
from .layers import CausalConv2d, LatentStatistics, MidBlock, ResBlock, pixel_norm


class Upsample(nn.Module):
    """Doubles time and mel bands; the first frame is dropped, so T frames become 2T - 1, undoing the encoder's pad."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out[:, :, 1:]


class UpLevel(nn.Module):
    """Residual blocks of one resolution, and the way up to the next."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        self.upsample: nn.Module | None = None if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class AudioDecoder(nn.Module):
    """The decoder half of the audio autoencoder (docs/model.md 7.2).

    State-dict keys are those of the checkpoint after ``audio_vae.decoder.``, plus ``per_channel_statistics.*``.
    """

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base_channels * m for m in config.multipliers]
        self.per_channel_statistics = LatentStatistics(config.latent_channels, config.latent_mel_bins)
        self.conv_in = CausalConv2d(config.latent_channels, widths[-1])
        self.mid = MidBlock(widths[-1])
        # Stored by level, outermost first; applied from the innermost outwards.
        self.up = nn.ModuleList(
            UpLevel(a, b, config.res_blocks + 1, last=level == 0)
            for level, (a, b) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.conv_out = CausalConv2d(widths[0], config.out_channels)

    def decode(self, latent: Tensor) -> Tensor:
        """Decodes a normalised latent.

        Args:
            latent: (B, latent_channels, T, latent_mel_bins).

        Returns:
            Log-mel spectrogram (B, out_channels, downsample * (T - 1) + 1, mel_bins) in the weights' dtype.

        Raises:
            ValueError: the latent has another number of channels or mel bands.
        """
        expected = (self.config.latent_channels, self.config.latent_mel_bins)
        if latent.ndim != 4 or (latent.shape[1], latent.shape[3]) != expected:
            raise ValueError(f"latent must be (B, {expected[0]}, T, {expected[1]}), got {tuple(latent.shape)}")
        x = self.per_channel_statistics.denormalise(latent).to(self.conv_in.conv.weight.dtype)
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(pixel_norm(x)))
        return out

    def forward(self, latent: Tensor) -> Tensor:
        return self.decode(latent)
