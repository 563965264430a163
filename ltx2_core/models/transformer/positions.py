"""Where tokens are: intervals [start, end) in seconds and pixels (docs/model.md 2.6 and 4.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...types import AudioGeometry, AudioLatentShape, ScaleFactors, VideoLatentShape


def video_positions(
    shape: VideoLatentShape,
    fps: float,
    scale: ScaleFactors,
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions of a video latent's tokens; its first frame covers one pixel frame, as the causal VAE encodes it.

    Args:
        fps: frames per second of the clip.

    Returns:
        (B, 3, T, 2) float32: start and end in seconds, pixel rows, pixel columns; tokens in the order f, h, w.
    """
    return _in_seconds(_pixel_bounds(shape, scale, causal_fix=True, device=device), fps)


def keyframe_positions(
    shape: VideoLatentShape,
    frame: int,
    fps: float,
    scale: ScaleFactors,
    single_frame_end: bool,
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions of conditioning tokens that start at pixel frame ``frame``; same layout as :func:`video_positions`.

    Args:
        shape: shape of the keyframe's latent.
        single_frame_end: a latent of one frame spans one pixel frame, as revisions since 2026-04-23 have it; otherwise
            it spans all frames of a latent cell.
    """
    bounds = _pixel_bounds(shape, scale, causal_fix=frame == 0, device=device)
    bounds[:, 0] += frame
    if single_frame_end and shape.frames == 1:
        bounds[:, 0, :, 1] = bounds[:, 0, :, 0] + 1
    return _in_seconds(bounds, fps)


def audio_positions(
    shape: AudioLatentShape, geometry: AudioGeometry, device: torch.device | str | None = None
) -> Tensor:
    """Positions of an audio latent's tokens, (B, 1, T, 2) float32: start and end in seconds; the first is causal."""
    frames = torch.arange(shape.frames, dtype=torch.float32, device=device)
    bounds = torch.stack((frames, frames + 1), dim=-1) * geometry.downsample
    mel = (bounds + 1 - geometry.downsample).clamp(min=0)
    seconds = mel * geometry.hop_length / geometry.sampling_rate
    return seconds.expand(shape.batch, 1, -1, -1)


def _pixel_bounds(
    shape: VideoLatentShape, scale: ScaleFactors, causal_fix: bool, device: torch.device | str | None
) -> Tensor:
    """(B, 3, T, 2) float32 in pixel frames, rows and columns."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in (shape.frames, shape.height, shape.width)]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    bounds = torch.stack(
        [torch.stack((cell, cell + 1), dim=-1) * size for cell, size in zip(cells, scale, strict=True)]
    )
    if causal_fix:
        bounds[0] = (bounds[0] + 1 - scale.time).clamp(min=0)
    return bounds.repeat(shape.batch, 1, 1, 1)


def _in_seconds(bounds: Tensor, fps: float) -> Tensor:
    bounds[:, 0] /= fps
    return bounds
