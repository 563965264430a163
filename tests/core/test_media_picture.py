"""Pictures of every kind as 8-bit RGB: deep numbers, profiles, transparency, several in a file, sizes, strips."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.media import image as image_module
from ltx2_two_stage.ltx2_core.media.image import condition_pixels, with_pixels
from ltx2_two_stage.ltx2_core.media.picture import given_picture, read_picture
from ltx2_two_stage.ltx2_core.types import ImageCondition
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# the same profile with the primaries red and blue exchanged
SWAPPED = SRGB.replace(b"rXYZ", b"xXYZ").replace(b"bXYZ", b"rXYZ").replace(b"xXYZ", b"bXYZ")


def gray_profile(gamma: float) -> bytes:
    """A smallest gray profile (ICC.1:2001): white point and a curve of this gamma."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    table = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", 156, 20) + b"kTRC" + struct.pack(">II", 176, len(curve))
    head = struct.pack(">I4s4s4s4s4s", 176 + len(curve), bytes(4), b"\x02\x10\0\0", b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + white + curve


def saved(folder: Path, pixels: np.ndarray, ending: str = "tif", mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    if mode == "P":
        image, mode = image.quantize(16), None  # Pillow's conversion to "P" dithers
    path = folder / f"picture.{ending}"
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("values", "expected", "said"),
    [
        pytest.param(np.array([[0, 0.5, 1]], np.float32), [0, 128, 255], None, id="float 0 to 1"),
        pytest.param(np.array([[0, 0.25]], np.float32), [0, 64], None, id="float, dark"),
        pytest.param(np.array([[0, 128, 255]], np.float32), [0, 128, 255], "of 8 bits", id="float 0 to 255"),
        pytest.param(np.array([[0, 128, 65535]], np.float32), [0, 0, 255], "of 16 bits", id="float 0 to 65535"),
        pytest.param(np.array([[0, 128, 255]], np.int32), [0, 128, 255], "of 8 bits", id="int 0 to 255"),
        pytest.param(np.array([[0, 0x4000, 0xFFFF]], np.int32), [0, 64, 255], "of 16 bits", id="int 0 to 65535"),
        pytest.param(np.array([[0, 0x4000, 0xFFFF]], np.uint16), [0, 64, 255], None, id="16 bits"),
        pytest.param(np.array([[0, 200]], np.uint16), [0, 0], None, id="16 bits, dark"),
        pytest.param(np.array([[0, 0x4000, 0xFFFF]], ">u2"), [0, 64, 255], None, id="16 bits, big end first"),
    ],
)
def test_deep_numbers_are_scaled_by_their_range(
    tmp_path: Path, values: np.ndarray, expected: list[int], said: str | None
) -> None:
    for as_shown in (True, False):
        picture = read_picture(saved(tmp_path, values), as_shown=as_shown)
        assert picture.pixels[0, :, 0].tolist() == expected and picture.pixels.shape == (*values.shape, 3)
        assert picture.notices == () if said is None else said in picture.notices[0]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([[0, 1.5]], np.float32), id="float above 1"),
        pytest.param(np.array([[-0.5, 1]], np.float32), id="float below 0"),
        pytest.param(np.array([[0, 200.5]], np.float32), id="float, no whole numbers"),
        pytest.param(np.array([[0, np.nan]], np.float32), id="nan"),
        pytest.param(np.array([[0, np.inf]], np.float32), id="inf"),
        pytest.param(np.array([[0, 1 << 20]], np.int32), id="int of 20 bits"),
        pytest.param(np.array([[-1, 100]], np.int32), id="int below 0"),
    ],
)
def test_numbers_of_an_unknown_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(SettingError, match="holds values") as caught:
        read_picture(saved(tmp_path, values), "--image")
    assert caught.value.setting == "--image" and "Save it with 8 or 16 bits" in caught.value.fix


COLOUR = np.broadcast_to(np.array([200, 100, 50], np.uint8), (8, 8, 3))


@pytest.mark.parametrize(
    ("mode", "ending"), [("RGB", "png"), ("P", "png"), ("RGBA", "png"), ("RGB", "tif"), ("P", "tif"), ("RGB", "webp")]
)
def test_a_colour_profile_is_followed_in_every_mode(tmp_path: Path, mode: str, ending: str) -> None:
    lossless = {"lossless": True} if ending == "webp" else {}
    plain = read_picture(saved(tmp_path, COLOUR, ending, mode, icc_profile=SRGB, **lossless))
    swapped = read_picture(saved(tmp_path, COLOUR, ending, mode, icc_profile=SWAPPED, **lossless))
    assert (plain.pixels.int() - torch.from_numpy(COLOUR.copy()).int()).abs().max() <= 1  # through floating point
    assert (swapped.pixels.int() - plain.pixels.flip(-1).int()).abs().max() <= 2
    assert plain.notices == swapped.notices == ()


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_a_gray_profile_is_followed(tmp_path: Path, mode: str) -> None:
    level = np.full((8, 8, 3), 255 if mode == "1" else 100, np.uint8)
    dark = read_picture(saved(tmp_path, level, "png", mode, icc_profile=gray_profile(3.0)))
    light = read_picture(saved(tmp_path, level, "png", mode, icc_profile=gray_profile(1.0)))
    assert dark.notices == light.notices == ()
    if mode != "1":
        assert int(light.pixels.float().mean()) > 140 and int(dark.pixels.float().mean()) < 90


@pytest.mark.parametrize(
    ("mode", "ending", "profile"),
    [
        ("RGB", "png", b"no profile"),
        ("CMYK", "jpg", SRGB),
        ("RGB", "png", gray_profile(2.0)),
        ("RGB", "png", SRGB[:200]),
    ],
    ids=["garbage", "RGB profile of CMYK", "gray profile of RGB", "cut"],
)
def test_a_profile_that_does_not_fit_is_said(tmp_path: Path, mode: str, ending: str, profile: bytes) -> None:
    picture = read_picture(saved(tmp_path, COLOUR, ending, mode, icc_profile=profile))
    assert ["colour profile that cannot be used" in notice for notice in picture.notices] == [True]
    assert picture.pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "CMYK", "RGBX", "L", "1", "P", "LA", "PA"])
def test_every_mode_of_a_tiff_becomes_its_colours(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(COLOUR))
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    path = tmp_path / "a.tif"
    (image if mode == "LAB" else image.convert(mode)).save(path)
    pixels = read_picture(path).pixels.float().mean(dim=(0, 1))
    gray = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    wanted = torch.tensor([gray] * 3 if mode in ("L", "LA", "1") else [200.0, 100.0, 50.0])
    assert (pixels - wanted).abs().max() < (130 if mode == "1" else 8)  # a dithered picture; web palettes and LAB round


def with_alpha(*alphas: int) -> np.ndarray:
    pixels = np.full((1, len(alphas), 4), 80, np.uint8)
    pixels[0, :, 3] = alphas
    return pixels


@pytest.mark.parametrize(
    ("alphas", "said"),
    [
        pytest.param([255, 255, 255, 255], None, id="opaque"),
        pytest.param([0, 255, 255, 255], "transparent in 25% of its pixels", id="a hole"),
        pytest.param([254, 128, 1, 0], "transparent in 100%", id="half transparent"),
        pytest.param([0, 0, 0, 0], "rgb(80, 80, 80) shows", id="invisible"),
    ],
)
@pytest.mark.parametrize("kind", ["png", "tif", "webp", "tensor"])
def test_transparency_is_said_and_the_stored_colours_show(
    tmp_path: Path, kind: str, alphas: list[int], said: str | None
) -> None:
    pixels = with_alpha(*alphas)
    if kind == "tensor":
        picture = given_picture(torch.from_numpy(pixels).float() / 255)
    else:
        picture = read_picture(
            saved(tmp_path, pixels, kind, **({"lossless": True, "exact": True} if kind == "webp" else {}))
        )
    assert (picture.pixels == 80).all()
    assert picture.notices == () if said is None else said in picture.notices[0]


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour_is_said(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(COLOUR))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    colour = image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=colour)
    assert "transparent in 100%" in read_picture(tmp_path / "a.png").notices[0]
    image.save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").notices == ()


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_several_pictures_the_first_is_taken_and_it_is_said(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    picture = read_picture(tmp_path / f"a.{ending}")
    assert picture.pixels[0, 0].tolist() == [255, 0, 0]
    assert "holds 3 pictures: the first is taken" in picture.notices[0]


def png_of_zeros(path: Path, width: int, height: int) -> Path:
    """A PNG of one bit a pixel that is small however large the picture is."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes(min((1 + (width + 7) // 8) * height, 10_000)))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ((16385, 1), "16384 pixels a side"),
        ((1, 20000), "16384 pixels a side"),
        ((8193, 8192), "pixels in all"),
        ((16000, 12000), "pixels"),
        ((200_000, 200_000), "pixels"),
        ((2**31 - 1, 2**31 - 1), "pixels"),
    ],
    ids=str,
)
def test_the_area_is_bounded_too(tmp_path: Path, size: tuple[int, int], problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        read_picture(png_of_zeros(tmp_path / "bomb.png", *size))


@pytest.mark.parametrize(
    ("shape", "crf"),
    [((1, 16384), 0), ((16384, 1), 33), ((3, 9000), 33), ((9001, 2), 0), ((1, 1), 0), ((2, 700), 33)],
    ids=str,
)
def test_a_strip_is_cut_before_it_is_resized(shape: tuple[int, int], crf: int) -> None:
    image = torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels = condition_pixels(image, 256, 384, crf)
    assert pixels.shape == (1, 3, 1, 256, 384) and pixels.isfinite().all() and pixels.abs().max() <= 1


@pytest.mark.parametrize(
    ("source", "target"),
    [((108, 192), (64, 96)), ((192, 108), (64, 96)), ((33, 47), (64, 64)), ((2, 3), (32, 32)), ((7, 400), (64, 96))],
    ids=str,
)
def test_both_ways_of_resizing_agree(
    monkeypatch: pytest.MonkeyPatch, source: tuple[int, int], target: tuple[int, int]
) -> None:
    image = torch.randint(0, 256, (*source, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    monkeypatch.setattr(image_module, "_RESIZED_WHOLE", math.inf)
    whole = condition_pixels(image, *target, crf=0)
    monkeypatch.setattr(image_module, "_RESIZED_WHOLE", 0)
    inside = condition_pixels(image, *target, crf=0)
    assert (whole - inside).abs().max() < 1e-6  # float32 rounding: 6e-5 of 255


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        pytest.param(torch.full((4, 4, 3), torch.nan), "not finite", id="nan"),
        pytest.param(torch.full((4, 4, 3), torch.inf), "not finite", id="inf"),
        pytest.param(torch.full((4, 4, 3), 255.0), "from 255 to 255", id="0 to 255"),
        pytest.param(torch.full((4, 4, 3), -7.0), "from -7 to -7", id="below"),
        pytest.param(torch.zeros(4, 4, 3, dtype=torch.uint8), "floating point", id="uint8"),
        pytest.param(np.zeros((4, 4, 3)), "floating point", id="array"),
        pytest.param(None, "floating point", id="nothing"),
        pytest.param(torch.zeros(4, 4, 0), "channels", id="no channels"),
        pytest.param(torch.zeros(4, 4, 2), "channels", id="2 channels"),
        pytest.param(torch.zeros(4, 4, 5), "channels", id="5 channels"),
        pytest.param(torch.zeros(4, 4), "channels", id="mask"),
        pytest.param(torch.zeros(0, 4, 3), "channels", id="empty"),
        pytest.param(torch.zeros(1, 1, 1).expand(8200, 8200, 3), "pixels in all", id="large"),
        pytest.param(torch.zeros(1, 16385, 3), "16384 pixels a side", id="long"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        given_picture(image)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_every_floating_type_are_taken(dtype: torch.dtype, channels: int) -> None:
    picture = given_picture(torch.full((2, 3, channels), 1.0, dtype=dtype))
    assert picture.pixels.shape == (2, 3, 3) and (picture.pixels == 255).all() and picture.notices == ()


@pytest.mark.parametrize(("value", "said"), [(1.001, False), (-0.001, False), (1.2, True), (-0.3, True), (1.9, True)])
def test_values_a_little_outside_are_cut(value: float, said: bool) -> None:
    picture = given_picture(torch.tensor([0.5, value, 0.5]).expand(2, 2, 3))
    assert picture.pixels[0, 0, 1] == (255 if value > 1 else 0) and bool(picture.notices) == said


def test_a_file_becomes_pixels_and_notices_once(tmp_path: Path) -> None:
    path = saved(tmp_path, with_alpha(0, 255), "png")
    once = with_pixels(ImageCondition(path, -1, 0.5), True)
    path.unlink()
    assert isinstance(once.image, torch.Tensor) and (once.frame, once.strength) == (-1, 0.5)
    assert "transparent" in once.notices[0] and with_pixels(once, True) is once


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_a_cut_file_is_refused(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = saved(tmp_path, noise, ending)
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SettingError, match="is not an image that can be read"):
            read_picture(path)
    buffer = io.BytesIO(data)
    assert Image.open(buffer).size == (64, 64)
