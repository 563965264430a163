"""Adaptive layer norm with one embedding shared by all blocks (PixArt-alpha, arXiv 2310.00426; docs/model.md 2.3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.rows import Affine, Row

SINUSOID_CHANNELS = 256
_SINUSOID_PERIOD = 10000.0


def sinusoid(timesteps: Tensor) -> Tensor:
    """(...,) -> (..., 256) float32: cosines, then sines, at frequencies from 1 down to 1/10000."""
    half = SINUSOID_CHANNELS // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[..., None] * torch.exp(-math.log(_SINUSOID_PERIOD) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Modulation(NamedTuple):
    """Modulation numbers of a stream's noise levels. Tokens take theirs only where they are used: with few levels, as
    in image to video, nothing of a token's size is kept.

    Attributes:
        vectors: (B, L, rows, D).
        token_levels: (T,) which level each token has; None: there is one level, or one per token, in order.
    """

    vectors: Tensor
    token_levels: Tensor | None = None

    def rows(self, table: Tensor, start: int = 0) -> tuple[Tensor, ...]:
        """The rows from ``start`` on, as many as ``table`` (rows, D) has, with it added: (B, t, D) each.

        Axis t is T, or 1 where one noise level serves all tokens.
        """
        rows = (table + self.vectors[:, :, start : start + len(table)]).unbind(2)
        if self.token_levels is None:
            return rows
        return tuple(row.index_select(1, self.token_levels) for row in rows)

    def row(self, table: Tensor, row: int, at: int | None = None) -> Row:
        """Row ``row`` of ``table`` (rows, D), with the vectors' row ``at`` added; the same one without ``at``."""
        return Row(table, row, self.vectors, row if at is None else at, self.token_levels)

    def affine(self, table: Tensor, scale: int, shift: int) -> Affine:
        """Scale and shift by their rows."""
        return Affine(self.row(table, scale), self.row(table, shift))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, in one pass over ``x``."""
    return torch.addcmul(shift, x, 1 + scale)


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
