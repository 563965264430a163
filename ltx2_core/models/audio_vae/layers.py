"""Convolutions, norm and residual block that the audio encoder and decoder share (docs/model.md 7.2).

Tensors are (B, C, T, M): time is the height of the image, mel bands are its width. Submodule names are the official
checkpoint's key names, which is why a causal convolution nests a ``conv``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6  # the video VAE has 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    """Divides every cell by the root mean square over its channels, (B, C, T, M) in and out.

    The sum of squares is taken in float32 whatever the input's precision.
    """
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    rms = norm.square().div_(x.shape[1]).add_(NORM_EPS).sqrt_()
    out: Tensor = x / rms.to(x.dtype)
    return out


class CausalConv2d(nn.Module):
    """A convolution that sees no later frame: zeros before the first frame, and on both sides of the mel axis."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        side = (kernel_size - 1) // 2
        self.padding = (side, kernel_size - 1 - side, kernel_size - 1, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, self.padding))
        return out


class ResBlock(nn.Module):
    """Two normalised convolutions with a skip, (B, C, T, M) to (B, C', T, M)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut: nn.Module | None = CausalConv2d(in_channels, out_channels, kernel_size=1)
        else:
            self.nin_shortcut = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(pixel_norm(x)))
        hidden = self.conv2(F.silu(pixel_norm(hidden)))
        out: Tensor = hidden + (x if self.nin_shortcut is None else self.nin_shortcut(x))
        return out


class MidBlock(nn.Module):
    """The two residual blocks at the narrowest point."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.block_1(x))
        return out


class LatentStatistics(nn.Module):
    """Mean and standard deviation of every latent feature.

    The stored vectors belong to audio tokens, whose features are packed channel-major: ``channel * mel_bins + bin``.
    """

    def __init__(self, channels: int, mel_bins: int) -> None:
        super().__init__()
        self.shape = (channels, 1, mel_bins)
        self.register_buffer("mean-of-means", torch.zeros(channels * mel_bins))
        self.register_buffer("std-of-means", torch.ones(channels * mel_bins))

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw latent (B, C, T, M) to one with zero mean and unit deviation, in float32."""
        return (latent.float() - self._table("mean-of-means")) / self._table("std-of-means")

    def denormalise(self, latent: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`, in float32."""
        return latent.float() * self._table("std-of-means") + self._table("mean-of-means")

    def _table(self, name: str) -> Tensor:
        return self.get_buffer(name).float().view(self.shape)
