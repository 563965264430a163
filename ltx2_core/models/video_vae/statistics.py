"""Mean and standard deviation of the latent's channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STATISTICS_NAMES = ("mean-of-means", "std-of-means")
"""What a loader keeps of ``vae.per_channel_statistics.*``; the file's other entries there (``channel``,
``mean-of-stds``, ``mean-of-stds_over_std-of-means``, ...) are read by nobody (docs/model.md 1.2)."""


class LatentStatistics(nn.Module):
    """Statistics of every latent channel, over the training set."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        mean, std = STATISTICS_NAMES
        self.register_buffer(mean, torch.zeros(channels))
        self.register_buffer(std, torch.ones(channels))

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw latent (B, C, F, H, W) to one with zero mean and unit deviation, in float32."""
        mean, std = self._columns()
        return (latent.float() - mean) / std

    def denormalise(self, latent: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`, in float32."""
        mean, std = self._columns()
        return latent.float() * std + mean

    def _columns(self) -> tuple[Tensor, Tensor]:
        mean, std = (self.get_buffer(name).float().view(-1, 1, 1, 1) for name in STATISTICS_NAMES)
        return mean, std
