"""Conditioning images: read, put through H.264 as the training frames were, and fitted to the clip (fact sheet 4.6)."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ..errors import SettingError

logger = logging.getLogger("ltx2.media")

_FIX = "Give a picture that opens in an image viewer, such as a PNG, JPEG or WebP file."


_LONGEST_SIDE = 16384  # libx264 refuses more; found before any weight is read, whatever the round trip's quality


class Fit(NamedTuple):
    """How a picture covers a target: resize to (height, width), then cut the target out at (top, left)."""

    height: int
    width: int
    top: int
    left: int


def load_image(source: Path | Tensor, setting: str = "image", as_shown: bool = True) -> Tensor:
    """The picture as uint8 RGB (H, W, 3) on the CPU. Alpha is dropped, palettes and gray are expanded.

    Args:
        source: a file, or uint8 pixels (H, W, 3), which are only checked.
        setting: name of the setting that errors show.
        as_shown: turn the picture as its EXIF orientation says and convert its colour profile to sRGB, as the official
            code does since 2026-08-11; False takes the pixels as stored.

    Raises:
        SettingError: the file is missing or not an image, or the tensor is not uint8 (H, W, 3).
    """
    if isinstance(source, Tensor):
        if source.dtype != torch.uint8 or source.ndim != 3 or source.shape[-1] != 3 or 0 in source.shape:
            shape = tuple(source.shape)
            raise SettingError(
                setting, f"{source.dtype} {shape}", "must be uint8 (H, W, 3)", "Convert the pixels first."
            )
        return source.cpu()
    path = Path(source)
    if path.is_dir():
        raise SettingError(setting, path, "is a folder", "Give the picture itself.")
    if not path.is_file():
        raise SettingError(setting, path, "there is no such file", "Check the path and its spelling.")
    try:
        with Image.open(path) as image:
            if max(image.size) > _LONGEST_SIDE:
                problem = f"is {image.width}x{image.height}; H.264 takes at most {_LONGEST_SIDE} pixels a side"
                raise SettingError(setting, path, problem, "Give a smaller picture.")
            return torch.from_numpy(_rgb(_as_shown(image) if as_shown else image))
    except (SettingError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever they stumble over, struct.error and TypeError included
        raise SettingError(setting, path, f"is not an image that can be read ({error})", _FIX) from error


def _as_shown(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if not profile:
        return image
    opaque = image.convert({"RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode))
    try:
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(
            opaque, ImageCms.ImageCmsProfile(io.BytesIO(profile)), target, outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("The colour profile of the image cannot be used, its colours are taken as sRGB: %s", error)
        return image
    return converted or image


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion clips at 255 instead of scaling
        gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))  # a writable copy; convert drops alpha without blending


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
    pixels = source.permute(2, 0, 1)[None].float()  # HWC -> BCHW
    pixels = torch.nn.functional.interpolate(pixels, (fit.height, fit.width), mode="bilinear", align_corners=False)
    pixels = pixels[:, :, fit.top : fit.top + height, fit.left : fit.left + width]
    return (pixels / 127.5 - 1.0).unsqueeze(2).contiguous()
