"""Sampler steps on the clean estimate x0."""

from __future__ import annotations

from torch import Tensor


def velocity(latent: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """The flow that leads from ``x0`` to the latent at noise level ``sigma``: (latent - x0) / sigma.

    Computed in float32 and rounded to the latent's dtype, as the official code does.

    Args:
        latent, x0: (1, T, C).
        sigma: above 0.
    """
    return ((latent.float() - x0.float()) / sigma).to(latent.dtype)


def euler_step(latent: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One Euler step of the flow ODE (docs/model.md 5.2).

    Args:
        latent, x0: (1, T, C).
        sigma, sigma_next: noise levels before and after; ``sigma`` is above 0.
    """
    return (latent.float() + velocity(latent, x0, sigma).float() * (sigma_next - sigma)).to(latent.dtype)
