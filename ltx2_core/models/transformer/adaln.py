"""Adaptive layer norm with one embedding shared by all blocks (PixArt-alpha, arXiv 2310.00426; docs/model.md 2.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SINUSOID_CHANNELS = 256
_SINUSOID_PERIOD = 10000.0


def sinusoid(timesteps: Tensor) -> Tensor:
    """(...,) -> (..., 256) float32: cosines, then sines, at frequencies from 1 down to 1/10000."""
    half = SINUSOID_CHANNELS // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[..., None] * torch.exp(-math.log(_SINUSOID_PERIOD) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(SINUSOID_CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid(timesteps).to(dtype))))  # type: ignore[no-any-return]


class TimestepEmbedding(nn.Module):
    """Only here for the checkpoint's key names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return self.timestep_embedder(timesteps, dtype)  # type: ignore[no-any-return]


class AdaLayerNormSingle(nn.Module):
    """Modulation numbers of a noise level; the blocks add their own tables.

    Args:
        rows: modulation vectors per token.
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.emb = TimestepEmbedding(width)
        self.linear = nn.Linear(width, rows * width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(B, L) scaled timesteps -> modulation (B, L, rows, width), and the embedding itself, (B, L, width)."""
        embedded = self.emb(timesteps, dtype)
        return self.linear(F.silu(embedded)).unflatten(-1, (self.rows, -1)), embedded
