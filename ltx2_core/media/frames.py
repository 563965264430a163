"""From decoded pixels to the bytes of a frame."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(pixels: Tensor) -> Tensor:
    """Frames of the first batch item as bytes.

    Args:
        pixels: (B, 3, f, H, W), nominally in [-1, 1]; values outside are clipped.

    Returns:
        (f, H, W, 3) uint8, contiguous, on the device of ``pixels``. Truncated, not rounded, as the official code does
        (fact sheet 7.1).
    """
    unit = pixels[0].float().add(1.0).mul_(0.5).clamp_(0.0, 1.0)
    return unit.mul_(255.0).to(torch.uint8).permute(1, 2, 3, 0).contiguous()  # CFHW -> FHWC
