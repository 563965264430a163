"""Conditioning images: put through H.264 as the training frames were, and fitted to the clip (docs/model.md 4.6)."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from ..types import ImageCondition
from .picture import check_pixels, given_picture, read_picture

__all__ = [
    "Fit",
    "condition_pixels",
    "cover",
    "given_picture",
    "h264_round_trip",
    "load_image",
    "with_pixels",
]

# A resized picture may have so many times the target's area before only the part inside the target is computed. The
# two ways differ by 3e-5 of 255 (rounding); 4 times leaves pictures of all usual shapes as they were.
_RESIZED_WHOLE = 4


class Fit(NamedTuple):
    """How a picture covers a target: resize to (height, width), then cut the target out at (top, left)."""

    height: int
    width: int
    top: int
    left: int


def load_image(source: Path | Tensor, setting: str = "image", as_shown: bool = True) -> Tensor:
    """The picture as uint8 RGB (H, W, 3) on the CPU, see :func:`.picture.read_picture`.

    Args:
        source: a file, or uint8 pixels (H, W, 3), which are only checked.
        setting: name of the setting that errors show.
        as_shown: turn the picture as its EXIF orientation says and convert its colour profile to sRGB, as the official
            code does since 2026-08-11; False takes the pixels as stored.

    Raises:
        SettingError: the file is missing or not an image, or the tensor is not uint8 (H, W, 3).
    """
    if isinstance(source, Tensor):
        check_pixels(source, setting)
        return source.cpu()
    return read_picture(Path(source), setting, as_shown).pixels


def with_pixels(image: ImageCondition, as_shown: bool, setting: str = "image") -> ImageCondition:
    """The same with the file's pixels and notices in place of its path, so that it is decoded once for all stages.

    Raises:
        SettingError: as :func:`load_image`.
    """
    if isinstance(image.image, Tensor):
        return image
    picture = read_picture(Path(image.image), setting, as_shown)
    return replace(image, image=picture.pixels, notices=(*image.notices, *picture.notices))


def h264_round_trip(image: Tensor, crf: int) -> Tensor:
    """What is left of a picture after one H.264 key frame.

    The encoder cuts the picture into one slice per core, as in the official code, so that the pixels depend on the
    machine's core count (by up to 25 of 255, measured on noise).

    Args:
        image: uint8 (H, W, 3); an odd last row or column is cut off, since 4:2:0 needs even sizes.
        crf: quality of libx264, 0 to 51; 0 returns the picture as it is.

    Returns:
        uint8 (H, W, 3).

    Raises:
        SettingError: ``crf`` is out of range.
    """
    if not 0 <= crf <= 51:
        raise SettingError("image-crf", crf, "must be from 0 to 51", "Use 33, the official value, or 0 for no loss.")
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    if crf == 0 or not height or not width:
        return image
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width].numpy()), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        return torch.from_numpy(next(container.decode(video=0)).to_ndarray(format="rgb24"))


def cover(source: tuple[int, int], target: tuple[int, int]) -> Fit:
    """The smallest resize of ``source`` (height, width) that covers ``target``, and its centre crop."""
    scale = max(target[0] / source[0], target[1] / source[1])
    height, width = math.ceil(source[0] * scale), math.ceil(source[1] * scale)
    return Fit(height, width, (height - target[0]) // 2, (width - target[1]) // 2)


def condition_pixels(image: Tensor, height: int, width: int, crf: int) -> Tensor:
    """The picture as the video encoder takes it.

    Args:
        image: uint8 (H, W, 3) from :func:`load_image`.
        height: of the clip, pixels.
        width: of the clip, pixels.
        crf: of the H.264 round trip that precedes the resize; 0 skips it.

    Returns:
        (1, 3, 1, height, width) float32 in [-1, 1].
    """
    source = h264_round_trip(image, crf)
    fit = cover((source.shape[0], source.shape[1]), (height, width))
    whole = fit.height * fit.width <= _RESIZED_WHOLE * height * width
    pixels = _resized(source, fit, height, width) if whole else _resized_inside(source, fit, height, width)
    return (pixels / 127.5 - 1.0).unsqueeze(2).contiguous()


def _resized(source: Tensor, fit: Fit, height: int, width: int) -> Tensor:
    pixels = source.permute(2, 0, 1)[None].float()  # HWC -> BCHW
    pixels = torch.nn.functional.interpolate(pixels, (fit.height, fit.width), mode="bilinear", align_corners=False)
    return pixels[:, :, fit.top : fit.top + height, fit.left : fit.left + width]


def _resized_inside(source: Tensor, fit: Fit, height: int, width: int) -> Tensor:
    """As :func:`_resized`, without what the cut leaves away: a strip one pixel high would else take 51 GB."""
    above, below, down = _neighbours(source.shape[0], fit.height, fit.top, height)
    left, right, across = _neighbours(source.shape[1], fit.width, fit.left, width)

    def row(rows: Tensor) -> Tensor:
        lines = source[rows]
        return torch.lerp(lines[:, left].float(), lines[:, right].float(), across[None, :, None])

    return torch.lerp(row(above), row(below), down[:, None, None]).permute(2, 0, 1)[None]  # HWC -> BCHW


def _neighbours(pixels: int, resized: int, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """For ``count`` resized pixels from ``start`` on: the stored ones on both sides, and the second's share."""
    scale = float(np.float32(pixels) / np.float32(resized))
    places = (torch.arange(start, start + count, dtype=torch.float64) + 0.5) * scale - 0.5
    places = places.float().clamp(0, pixels - 1)  # rounded as in PyTorch's own interpolation
    first = places.long()
    return first, (first + 1).clamp(max=pixels - 1), places - first
