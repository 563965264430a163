"""The state of one stream while it is denoised: tokens, what is known of them, and where they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..types import AudioLatentShape, VideoLatentShape


def video_tokens(latent: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B, F*H*W, C), w fastest."""
    return latent.flatten(2).transpose(1, 2).contiguous()


def audio_tokens(latent: Tensor) -> Tensor:
    """(B, C, T, M) -> (B, T, C*M), feature = channel * M + bin."""
    return latent.transpose(1, 2).flatten(2).contiguous()


def from_tokens(tokens: Tensor, shape: VideoLatentShape | AudioLatentShape) -> Tensor:
    """The latent of ``shape``; tokens past its count (appended keyframes) are dropped."""
    tokens = tokens[:, : shape.token_count]
    if isinstance(shape, VideoLatentShape):
        return tokens.transpose(1, 2).reshape(shape).contiguous()
    return tokens.reshape(shape.batch, shape.frames, shape.channels, shape.mel_bins).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class StreamState:
    """One stream during denoising.

    Attributes:
        latent: (1, T, C) noisy tokens, in the model's dtype.
        clean: (1, T, C) what the tokens are pulled to where the mask is below 1.
        mask_values: (M,) float32; 1 denoises freely, 0 keeps ``clean``. Few: one for the free tokens and one for each
            conditioning.
        positions: (1, axes, T, 2) start and end of every token.
        token_values: (T,) int64, which mask value each token has; None: all have the only one.
        uniform: every mask value is 1, so that one timestep serves all tokens.
        frozen: the stream is given (mask 0 everywhere) and only serves the other one.
    """

    latent: Tensor
    clean: Tensor
    mask_values: Tensor
    positions: Tensor
    token_values: Tensor | None = None
    uniform: bool = True
    frozen: bool = False

    @classmethod
    def start(cls, tokens: Tensor, positions: Tensor) -> StreamState:
        """A stream to be denoised from ``tokens`` (zeros, or the latent of an earlier stage)."""
        return cls(tokens, tokens, torch.ones(1, dtype=torch.float32, device=tokens.device), positions)

    @classmethod
    def given(cls, tokens: Tensor, positions: Tensor) -> StreamState:
        """A stream that stays as it is and serves the other one."""
        mask = torch.zeros(1, dtype=torch.float32, device=tokens.device)
        return cls(tokens, tokens, mask, positions, uniform=False, frozen=True)

    @cached_property
    def mask(self) -> Tensor:
        """(1, T, 1) float32, every token's mask value."""
        return self._per_token(self.mask_values[None])[..., None].expand(-1, self.latent.shape[1], -1)

    def with_replaced(self, tokens: Tensor, strength: float, start: int = 0, overwrite: bool = False) -> StreamState:
        """Conditions the tokens from ``start`` on: ``clean`` is set, the mask is 1 - strength (docs/model.md 4.3).

        ``overwrite`` also replaces the latent, as revisions before the newest do.
        """
        span = slice(start, start + tokens.shape[1])
        clean, values, latent = self.clean.clone(), self._token_values().clone(), self.latent
        clean[:, span] = tokens
        values[span] = len(self.mask_values)
        if overwrite:
            latent = latent.clone()
            latent[:, span] = tokens
        mask_values = torch.cat([self.mask_values, torch.full_like(self.mask_values[:1], 1.0 - strength)])
        return replace(self, latent=latent, clean=clean, mask_values=mask_values, token_values=values, uniform=False)

    def with_appended(self, tokens: Tensor, strength: float, positions: Tensor, overwrite: bool = False) -> StreamState:
        """Appends conditioning tokens (keyframes) at the end of the sequence (docs/model.md 4.4).

        The official code holds the mask of appended tokens in the model's dtype, which rounds 1 - strength.
        """
        rounded = torch.full((1,), 1.0 - strength, dtype=tokens.dtype, device=tokens.device).float()
        values = self._token_values()
        return replace(
            self,
            latent=torch.cat([self.latent, tokens if overwrite else torch.zeros_like(tokens)], dim=1),
            clean=torch.cat([self.clean, tokens], dim=1),
            mask_values=torch.cat([self.mask_values, rounded]),
            positions=torch.cat([self.positions, positions], dim=2),
            token_values=torch.cat([values, values.new_full((tokens.shape[1],), len(self.mask_values))]),
            uniform=False,
        )

    def timesteps(self, sigma: float) -> Tensor:
        """Per-token noise levels mask * sigma, (1, T) float32, or (1, 1) when all tokens share one."""
        return self._per_token(self.levels(sigma))

    def levels(self, sigma: float) -> Tensor:
        """The noise levels of the mask's values, (1, M) float32."""
        return self.mask_values[None] * sigma

    def blend(self, x0: Tensor) -> Tensor:
        """``x0`` where the mask is 1, ``clean`` where it is 0; float32 arithmetic, ``x0``'s dtype."""
        if self.uniform:
            return x0
        return (x0 * self.mask + self.clean.to(self.mask.dtype) * (1 - self.mask)).to(x0.dtype)

    def _per_token(self, values: Tensor) -> Tensor:
        return values if self.token_values is None else values.index_select(1, self.token_values)

    def _token_values(self) -> Tensor:
        if self.token_values is not None:
            return self.token_values
        return torch.zeros(self.latent.shape[1], dtype=torch.int64, device=self.latent.device)
