"""What is done to frames (B, C, F, H, W) between the convolutions of the video autoencoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .availability import fused


class Edges(NamedTuple):
    """What a convolution's input gets around its frames.

    Attributes:
        before, after: frames in front and behind. Those in front are kept ones where there are any; else, as those
            behind, they repeat the frame beside them.
        margin: rows and columns at each edge of the picture, which is reflected there.
    """

    before: int
    after: int
    margin: int


def window(
    x: Tensor, bias: Tensor | None, kept: Tensor | None, edges: Edges, eps: float | None, keep: int
) -> tuple[Tensor, Tensor | None]:
    """The frames that a convolution slides over, written once into one tensor.

    Args:
        x: (B, C, f, H, W), f >= 1; overwritten where a bias is given.
        bias: (C,), still to be added to ``x``.
        kept: (B, C, before, H + 2 margin, W + 2 margin), the last frames of the window before this one.
        edges: what is put around the frames.
        eps: of the norm over the channels, behind which the frames pass through SiLU; None leaves them as they are.
        keep: how many of the last frames the next window will begin with.

    Returns:
        (B, C, before + f + after, H + 2 margin, W + 2 margin), in channels-last order where kernels are fused; and a
        copy of its last frames, at most ``keep``, None where that is 0.
    """
    if fused(x):
        from .triton.frames import window as kernel

        return kernel(x, bias, kept, edges, eps, keep)
    if bias is not None:
        x.add_(_per_channel(bias))
    (batch, channels, frames, height, width), (before, after, m) = x.shape, edges
    out = x.new_empty(batch, channels, before + frames + after, height + 2 * m, width + 2 * m)
    fresh = out[:, :, before : before + frames]
    inner = fresh[..., m : m + height, m : m + width]
    if eps is None:
        inner.copy_(x)
    else:
        torch.mul(x, _inverse_rms(x, eps), out=inner)
        # Of the whole window, though its edges hold nothing yet: a strided pass would take twice the time.
        F.silu(out, inplace=True)
    if m:
        fresh[..., 0, :], fresh[..., -1, :] = fresh[..., 2, :], fresh[..., -3, :]
        fresh[..., 0], fresh[..., -1] = fresh[..., 2], fresh[..., -3]
    out[:, :, :before] = fresh[:, :, :1] if kept is None else kept
    out[:, :, before + frames :] = fresh[:, :, -1:]
    return out, out[:, :, -keep:].clone() if keep else None  # a view would keep the whole window alive


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """One over the root mean square of the channels, (B, C, F, H, W) to (B, 1, F, H, W); summed in float32."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    # Back in the input's dtype, as the official code has it: a product of mixed dtypes costs 5% of the whole decoding.
    inverse: Tensor = norm.square_().div_(x.shape[1]).add_(eps).rsqrt_()
    return inverse.to(x.dtype)


def add_(out: Tensor, bias: Tensor | None, skip: Tensor) -> None:
    """Adds a bias (r * C,) and a skip connection (B, C, f, H, W), repeated r times, into (B, r * C, f, H, W)."""
    if fused(out):
        from .triton.frames import add_ as kernel

        kernel(out, bias, skip)
        return
    if bias is not None:
        out.add_(_per_channel(bias))
    batch, channels = skip.shape[:2]
    out.view(batch, -1, channels, *out.shape[2:]).add_(skip.unsqueeze(1))


def _per_channel(bias: Tensor) -> Tensor:
    return bias.view(-1, 1, 1, 1)
