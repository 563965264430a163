"""Initial noise in the official layout, dtype, order and generator (docs/model.md 4.2, 4.5)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..recipes import Revision
from .state import StreamState

# The official pipelines hold latents in bfloat16 and draw noise in that dtype, in token layout.
NOISE_DTYPE = torch.bfloat16


def draw_noise(tokens: int, channels: int, generator: torch.Generator) -> Tensor:
    """(1, tokens, channels) standard normal numbers in bfloat16, on the generator's device.

    The dtype does not follow the model's, so that a float32 run starts from the very noise of a bfloat16 run.
    """
    return torch.randn(1, tokens, channels, generator=generator, device=generator.device, dtype=NOISE_DTYPE)


def add_noise(state: StreamState, generator: torch.Generator, scale: float, revision: Revision) -> StreamState:
    """The state at noise level ``scale``: 1 in stage 1, the first sigma in stage 2."""
    noise = draw_noise(state.latent.shape[1], state.latent.shape[2], generator).float()
    if revision.blend_keeps_upscaled:
        noisy = torch.lerp(state.latent.float(), noise, scale)
        latent = noisy if state.uniform else torch.lerp(state.clean.float(), noisy, state.mask)
    else:
        level = state.mask * scale
        latent = noise * level + state.latent.float() * (1 - level)
    return replace(state, latent=latent.to(state.latent.dtype))
