"""The state of one stream while it is denoised: tokens, what is known of them, and where they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        mask: (1, T, 1) float32; 1 denoises freely, 0 keeps ``clean``.
        positions: (1, axes, T, 2) start and end of every token.
        uniform: every mask value is 1, so that one timestep serves all tokens.
        frozen: the stream is given (mask 0 everywhere) and only serves the other one.
    """

    latent: Tensor
    clean: Tensor
    mask: Tensor
    positions: Tensor
    uniform: bool = True
    frozen: bool = False

    @classmethod
    def start(cls, tokens: Tensor, positions: Tensor) -> StreamState:
        """A stream to be denoised from ``tokens`` (zeros, or the latent of an earlier stage)."""
        mask = torch.ones(*tokens.shape[:2], 1, dtype=torch.float32, device=tokens.device)
        return cls(tokens, tokens, mask, positions)

    def with_replaced(self, tokens: Tensor, strength: float, start: int = 0, overwrite: bool = False) -> StreamState:
        """Conditions the tokens from ``start`` on: ``clean`` is set there, the mask is 1 - strength (fact sheet 4.3).

        ``overwrite`` also replaces the latent, as revisions before the newest do.
        """
        span = slice(start, start + tokens.shape[1])
        clean, mask, latent = self.clean.clone(), self.mask.clone(), self.latent
        clean[:, span] = tokens
        mask[:, span] = 1.0 - strength
        if overwrite:
            latent = latent.clone()
            latent[:, span] = tokens
        return replace(self, latent=latent, clean=clean, mask=mask, uniform=False)

    def with_appended(self, tokens: Tensor, strength: float, positions: Tensor, overwrite: bool = False) -> StreamState:
        """Appends conditioning tokens (keyframes) at the end of the sequence (fact sheet 4.4).

        The official code holds the mask of appended tokens in the model's dtype, which rounds 1 - strength.
        """
        mask = torch.full((*tokens.shape[:2], 1), 1.0 - strength, dtype=tokens.dtype, device=tokens.device)
        return replace(
            self,
            latent=torch.cat([self.latent, tokens if overwrite else torch.zeros_like(tokens)], dim=1),
            clean=torch.cat([self.clean, tokens], dim=1),
            mask=torch.cat([self.mask, mask.float()], dim=1),
            positions=torch.cat([self.positions, positions], dim=2),
            uniform=False,
        )

    def timesteps(self, sigma: float) -> Tensor:
        """Per-token noise levels mask * sigma, (1, T) float32, or (1, 1) when all tokens share one."""
        if self.uniform:
            return torch.full((1, 1), sigma, dtype=torch.float32, device=self.latent.device)
        return self.mask[..., 0] * sigma

    def blend(self, x0: Tensor) -> Tensor:
        """``x0`` where the mask is 1, ``clean`` where it is 0; float32 arithmetic, ``x0``'s dtype."""
        if self.uniform:
            return x0
        return (x0 * self.mask + self.clean.to(self.mask.dtype) * (1 - self.mask)).to(x0.dtype)
