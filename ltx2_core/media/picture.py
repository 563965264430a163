"""Pictures of every kind as 8-bit RGB: from files, and from the floating point numbers that programs hand over."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ..errors import SettingError
from .source import open_media, shown_name

__all__ = ["Picture", "check_pixels", "given_picture", "read_picture"]

logger = logging.getLogger("ltx2.media")

_FIX = "Give a picture that opens in an image viewer, such as a PNG, JPEG or WebP file."
_SMALLER = "Give a smaller picture: it is reduced to the clip's size anyway."
_LONGEST_SIDE = 16384  # libx264 refuses more; found before any weight is read, whatever the round trip's quality
# 8192 x 8192: with its copies while it is converted, such a picture takes 0.7 GB
_MOST_PIXELS = 1 << 26
# Second pictures that no viewer plays: previews and brightness maps of phones, layers
_ONE_PICTURE = frozenset({"MPO", "PSD"})
_SIXTEEN_BIT = frozenset({"PNG", "PPM", "JPEG2000"})  # have no numbers of 32 bits, whatever Pillow calls them
_ROUNDED = 0.5 / 255  # values so far outside of 0 to 1 are the rounding of an earlier node
_FARTHEST = 1.0  # upscalers overshoot by tenths; farther off it is another scale, such as 0 to 255


class Picture(NamedTuple):
    """uint8 (H, W, 3) on the CPU, and what the user should know of how it was made."""

    pixels: Tensor
    notices: tuple[str, ...] = ()


def check_pixels(pixels: Tensor, setting: str) -> None:
    """Raises :class:`SettingError` for anything but uint8 (H, W, 3) of a size that can be used."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        problem = "must be uint8 (H, W, 3)"
        raise SettingError(setting, f"{pixels.dtype} {tuple(pixels.shape)}", problem, "Convert the pixels first.")
    _check_size(pixels.shape[1], pixels.shape[0], setting, tuple(pixels.shape))


def _check_size(width: int, height: int, setting: str, value: object) -> None:
    if max(width, height) > _LONGEST_SIDE:
        problem = f"is {width}x{height}; H.264 takes at most {_LONGEST_SIDE} pixels a side"
        raise SettingError(setting, value, problem, _SMALLER)
    if width * height > _MOST_PIXELS:
        problem = f"is {width}x{height}; at most {_MOST_PIXELS} pixels in all are taken, such as 8192x8192"
        raise SettingError(setting, value, problem, _SMALLER)


def given_picture(image: Tensor, setting: str = "image") -> Picture:
    """A picture of floating point numbers in [0, 1], (H, W, C), as 8-bit RGB.

    Args:
        image: one channel is gray; a fourth is transparency, which is ignored with a notice.
        setting: name of the setting that errors show.

    Raises:
        SettingError: it is no picture, or its values are of another range.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = str(image.dtype) if isinstance(image, Tensor) else type(image).__name__
        raise SettingError(setting, kind, "must be floating point numbers from 0 to 1", "Load the picture anew.")
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        problem = "must be one picture of height, width and 1, 3 or 4 channels"
        raise SettingError(setting, shape, problem, "Load the picture anew.")
    _check_size(shape[1], shape[0], setting, shape)
    values = image.detach().to(device="cpu", dtype=torch.float32)
    notices = _range_notices(values, setting)
    pixels = values.mul(255.0).round_().clamp_(0, 255).to(torch.uint8)
    colours = pixels[:, :, :3].expand(-1, -1, 3).contiguous()
    if shape[2] == 4:
        notices += _transparency(pixels[:, :, 3].numpy(), colours.numpy(), "image")
    return Picture(colours, notices)


def _range_notices(values: Tensor, setting: str) -> tuple[str, ...]:
    low, high = (float(value) for value in values.aminmax())
    fix = "An IMAGE has values from 0 to 1; check the node that made it."
    if not np.isfinite([low, high]).all():
        raise SettingError(setting, tuple(values.shape), "holds values that are not finite numbers", fix)
    if low < -_FARTHEST or high > 1 + _FARTHEST:
        raise SettingError(setting, tuple(values.shape), f"holds values from {low:g} to {high:g}", fix)
    if low >= -_ROUNDED and high <= 1 + _ROUNDED:
        return ()
    return (f"The image has values from {low:.2f} to {high:.2f}: they are cut at 0 and 1.",)


def read_picture(path: Path, setting: str = "image", as_shown: bool = True) -> Picture:
    """The picture of a file as 8-bit RGB. Palettes and gray are expanded, and deeper numbers are scaled.

    Transparency is ignored: the colours stored under it are taken, as official code has it. The first picture of
    several is taken. Both are said in notices.

    Args:
        setting: name of the setting that errors show.
        as_shown: follow the EXIF orientation and the colour profile; False takes the pixels as stored.

    Raises:
        SettingError: the file is missing, no picture, damaged, too large, or of numbers whose range is not known.
    """
    with open_media(path, setting, "picture") as file:
        try:
            with Image.open(file) as image:
                _check_size(image.width, image.height, setting, path)
                picture = _converted(image, as_shown, shown_name(path))
        except (SettingError, MemoryError):
            raise
        except _UnknownRange as error:
            fix = "Save it with 8 or 16 bits, or with floating point values from 0 to 1."
            raise SettingError(setting, path, str(error), fix) from error
        except Image.DecompressionBombError as error:
            raise SettingError(setting, path, "has too many pixels", _SMALLER) from error
        except Exception as error:  # Pillow's readers raise whatever they stumble over, struct.error and TypeError too
            problem = f"is not an image that can be read ({error or type(error).__name__})"
            raise SettingError(setting, path, problem, _FIX) from error
    return picture


class _UnknownRange(ValueError):
    """What the numbers of a picture are, as the rest of a sentence."""


def _converted(image: Image.Image, as_shown: bool, name: str) -> Picture:
    several = _several(image)
    image.load()
    profile = image.info.get("icc_profile") if as_shown else None
    turned = ImageOps.exif_transpose(image) if as_shown else image
    plain, scaled = _eight_bit(turned, image.format or "")
    alpha = _alpha(turned)
    shown, profiled = _through_profile(plain, profile) if profile else (None, None)
    pixels = np.array(shown or _rgb(plain))  # a writable copy
    notices = tuple(f"The picture {name} {notice}." for notice in (several, scaled, profiled) if notice)
    if alpha is not None:
        notices += _transparency(np.asarray(alpha), pixels, f"picture {name}")
    return Picture(torch.from_numpy(pixels), notices)


def _several(image: Image.Image) -> str | None:
    count = getattr(image, "n_frames", 1)
    if count < 2 or image.format in _ONE_PICTURE:
        return None
    return f"holds {count} pictures: the first is taken"


def _eight_bit(image: Image.Image, kind: str) -> tuple[Image.Image, str | None]:
    """The picture with 8 bits a channel, and what was assumed for it."""
    if image.mode.startswith("I"):
        return _scaled(image, kind in _SIXTEEN_BIT or image.mode.startswith("I;16"))
    return _scaled(image, False) if image.mode == "F" else (image, None)


def _scaled(image: Image.Image, sixteen_bit: bool) -> tuple[Image.Image, str | None]:
    """Gray numbers of more than 8 bits; Pillow's own conversion cuts them at 255.

    Raises:
        _UnknownRange: they are neither from 0 to 1, nor whole numbers of 8 or 16 bits.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _UnknownRange("holds values that are not finite numbers")
    whole = values.dtype.kind in "iu" or bool((values == np.round(values)).all())
    if low < 0 or high > 65535 or not (whole or high <= 1):
        raise _UnknownRange(f"holds values from {low:g} to {high:g}, whose black and white are not known")
    if sixteen_bit:
        return _gray(values.astype(np.int64) >> 8), None
    if values.dtype.kind == "f" and high <= 1:
        return _gray(np.round(values.astype(np.float64) * 255)), None
    bits = 8 if high <= 255 else 16
    notice = f"has numbers of 32 bits, from {low:g} to {high:g}: they are taken as numbers of {bits} bits"
    return _gray(values.astype(np.int64) >> (bits - 8)), notice


def _gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def _alpha(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is, mode L, or None where all are."""
    if not image.has_transparency_data or image.mode[0] in "IF":  # Pillow knows no transparency of deeper gray
        return None
    alpha = image.getchannel("A") if "A" in image.getbands() else image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _transparency(alpha: np.ndarray, colours: np.ndarray, what: str) -> tuple[str, ...]:
    """A notice where pixels are not opaque (alpha below 255)."""
    clear = alpha < 255
    if not clear.any():
        return ()
    share = max(100 * float(clear.mean()), 0.1)
    hidden = colours[alpha == 0]
    one = len(hidden) and (hidden == hidden[0]).all()
    shown = f"their stored colour rgb({', '.join(map(str, hidden[0]))}) shows" if one else "their stored colours show"
    return (f"The {what} is transparent in {share:.3g}% of its pixels. Transparency is ignored: {shown}.",)


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of the colours as stored, without a profile of the file's own; transparency is dropped, not blended."""
    if image.mode == "LAB":  # Pillow itself cannot convert it
        return _profiled(image, ImageCms.createProfile("LAB"))
    whole = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # the only way out of colours multiplied by transparency
    return (image.convert(whole) if whole else image).convert("RGB")


# What a profile's colour space takes, from the modes of pictures that it can belong to
_TAKES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "RGB": ("RGB", lambda mode: mode not in ("CMYK", "LAB")),
    "GRAY": ("L", lambda mode: mode in ("1", "L", "LA", "La", "P", "PA")),
    "CMYK": ("CMYK", lambda mode: mode == "CMYK"),
    "Lab": ("LAB", lambda mode: mode == "LAB"),
}


def _through_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image | None, str | None]:
    """The picture in sRGB, as its colour profile says, or None with what is wrong with the profile."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        mode, belongs = _TAKES.get(space, ("", lambda _: False))
        if not belongs(image.mode):
            raise ValueError(f"it is for {space}, and the picture is {image.mode}")
        source = image if image.mode == mode else _rgb(image).convert(mode)
        return _profiled(source, opened), None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        logger.warning("The colour profile of the image cannot be used, its colours are taken as sRGB: %s", error)
        return None, "has a colour profile that cannot be used: its colours are taken as sRGB"


def _profiled(image: Image.Image, profile: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if converted is None:
        raise ValueError("the conversion gave nothing")
    return converted
