"""Sampler steps on the clean estimate x0."""

from __future__ import annotations

from torch import Tensor


def euler_step(latent: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One Euler step of the flow ODE (fact sheet 5.2).

    The velocity is rounded to the latent's dtype before it is used, as the official code does.

    Args:
        latent, x0: (1, T, C).
        sigma, sigma_next: noise levels before and after; ``sigma`` is above 0.
    """
    velocity = ((latent.float() - x0.float()) / sigma).to(latent.dtype)
    return (latent.float() + velocity.float() * (sigma_next - sigma)).to(latent.dtype)
