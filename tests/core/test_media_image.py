"""Conditioning images: geometry, formats, the H.264 round trip, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.media.image import Fit, condition_pixels, cover, h264_round_trip, load_image
from PIL import Image, ImageCms


def gradient(height: int, width: int) -> torch.Tensor:
    """A smooth picture whose three channels differ and whose rows and columns differ."""
    rows = torch.linspace(0, 255, height)[:, None].expand(height, width)
    columns = torch.linspace(255, 0, width)[None].expand(height, width)
    return torch.stack([rows, columns, (rows + columns) / 2], -1).to(torch.uint8)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        pytest.param((512, 768), (512, 768), Fit(512, 768, 0, 0), id="same"),
        pytest.param((1080, 1920), (512, 768), Fit(512, 911, 0, 71), id="wider"),
        pytest.param((1920, 1080), (512, 768), Fit(1366, 768, 427, 0), id="taller"),
        pytest.param((100, 100), (64, 128), Fit(128, 128, 32, 0), id="square enlarged"),
        pytest.param((33, 47), (64, 64), Fit(64, 92, 0, 14), id="odd"),
        pytest.param((2, 3), (32, 32), Fit(32, 48, 0, 8), id="tiny"),
    ],
)
def test_cover_geometry(source: tuple[int, int], target: tuple[int, int], expected: Fit) -> None:
    assert cover(source, target) == expected


@pytest.mark.parametrize("height", [1, 31, 333, 1080])
@pytest.mark.parametrize("width", [1, 47, 500, 1921])
def test_cover_never_leaves_a_gap(height: int, width: int) -> None:
    fit = cover((height, width), (256, 384))
    assert fit.height >= 256 and fit.width >= 384
    assert min(fit.height - 256, fit.width - 384) <= 1  # one axis fits, up to the ceil of a rounded product
    assert fit.top >= 0 and fit.left >= 0


def test_pixels_without_round_trip_are_exact() -> None:
    image = gradient(64, 96)
    pixels = condition_pixels(image, 64, 96, crf=0)
    assert pixels.shape == (1, 3, 1, 64, 96) and pixels.dtype == torch.float32
    # exact: no resize happens, and both sides divide the same float32
    assert torch.equal(pixels[0, :, 0], image.permute(2, 0, 1).float() / 127.5 - 1)
    assert pixels.min() == -1 and pixels.max() == 1


def test_resize_is_bilinear_between_pixel_centres_then_cropped_in_the_middle() -> None:
    image = torch.zeros(2, 4, 3, dtype=torch.uint8)
    image[:, 2:] = 200
    pixels = condition_pixels(image, 4, 4, crf=0)[0, 0, 0]
    # width 4 -> 8 -> the middle 4: samples at source 0.75, 1.25, 1.75, 2.25 between the centres 1 (0) and 2 (200)
    expected = torch.tensor([0.0, 50.0, 150.0, 200.0]) / 127.5 - 1
    torch.testing.assert_close(pixels, expected.expand(4, 4), atol=1e-6, rtol=0)  # float32 rounding


def test_reducing_does_not_antialias() -> None:
    image = torch.zeros(4, 16, 3, dtype=torch.uint8)
    image[:, 1::4] = 255  # with antialiasing every sample would see this column
    pixels = condition_pixels(image, 1, 4, crf=0)[0, 0, 0, 0]
    # each sample lies between columns 4 i + 1 and 4 i + 2: half of 255
    torch.testing.assert_close(pixels, torch.zeros(4), atol=1e-6, rtol=0)


def test_round_trip_loses_a_little_and_cuts_odd_edges() -> None:
    image = gradient(65, 97)
    coded = h264_round_trip(image, 33)
    assert coded.shape == (64, 96, 3) and coded.dtype == torch.uint8
    error = (coded.float() - image[:64, :96].float()).abs()
    assert 0 < error.mean() < 6  # of 255; a smooth picture survives crf 33, but not untouched
    assert torch.equal(coded, h264_round_trip(image, 33))
    finer = (h264_round_trip(image, 10).float() - image[:64, :96].float()).abs()
    assert finer.mean() < error.mean()


def test_round_trip_equals_the_plain_encoder_call() -> None:
    """The official code sets crf and preset and leaves the rest to the encoder, threads included."""
    image = (torch.rand(256, 128, 3, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": "33", "preset": "veryfast"})
        stream.width, stream.height = 128, 256
        container.mux(
            stream.encode(av.VideoFrame.from_ndarray(image.numpy(), format="rgb24").reformat(format="yuv420p"))
        )
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        single = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert torch.equal(h264_round_trip(image, 33), torch.from_numpy(single))


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_round_trip_leaves_pictures_too_small_for_it(shape: tuple[int, int]) -> None:
    image = gradient(*shape)
    assert torch.equal(h264_round_trip(image, 33), image)


def test_crf_zero_is_the_identity_even_for_odd_sizes() -> None:
    image = gradient(65, 97)
    assert torch.equal(h264_round_trip(image, 0), image)


@pytest.mark.parametrize("crf", [-1, 52])
def test_crf_out_of_range(crf: int) -> None:
    with pytest.raises(SettingError, match=f"image-crf = {crf}"):
        h264_round_trip(gradient(4, 4), crf)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_pillow_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(gradient(20, 30).numpy()).convert(mode)
    path = tmp_path / f"picture.{'jpg' if mode == 'CMYK' else 'png'}"
    image.save(path)
    loaded = load_image(path)
    assert loaded.shape == (20, 30, 3) and loaded.dtype == torch.uint8
    with Image.open(path) as again:
        assert torch.equal(loaded, torch.from_numpy(np.array(again.convert("RGB"))))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[..., 3] = 0  # invisible
    Image.fromarray(pixels, "RGBA").save(tmp_path / "clear.png")
    assert (load_image(tmp_path / "clear.png") == 200).all()


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], np.uint16)).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0x40, 0xFF]


def test_orientation_tag_is_followed_unless_pixels_are_wanted_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    stored = gradient(20, 30)
    Image.fromarray(stored.numpy()).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "turned.png", as_shown=False), stored)
    assert torch.equal(load_image(tmp_path / "turned.png"), stored.rot90(-1, (0, 1)))


def test_colour_profile_is_converted_to_srgb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = torch.tensor([200, 100, 50], dtype=torch.uint8).expand(4, 4, 3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # the same profile with the primaries red and blue exchanged
    swapped = srgb.replace(b"rXYZ", b"xXYZ").replace(b"bXYZ", b"rXYZ").replace(b"xXYZ", b"bXYZ")
    for name, profile in {"same": srgb, "other": swapped, "broken": b"not a profile"}.items():
        Image.fromarray(stored.numpy()).save(tmp_path / f"{name}.png", icc_profile=profile)
    assert (load_image(tmp_path / "same.png").int() - stored.int()).abs().max() <= 1  # through floating point and back
    assert (load_image(tmp_path / "other.png").int() - stored.flip(-1).int()).abs().max() <= 2
    assert torch.equal(load_image(tmp_path / "broken.png"), stored)
    assert "colour profile" in caplog.text


def test_a_tensor_passes_through() -> None:
    image = gradient(4, 6)
    assert torch.equal(load_image(image), image)


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 4, 3), torch.zeros(4, 4, 4, dtype=torch.uint8), torch.zeros(0, 4, 3).byte()]
)
def test_a_wrong_tensor_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(SettingError, match="must be uint8"):
        load_image(bad)


def test_a_missing_file_names_setting_and_path(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"--image = .*none\.png.*no such file"):
        load_image(tmp_path / "none.png", "--image")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n cut off"], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fake.png"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=r"image = .*fake\.png.*is not an image"):
        load_image(path)


def test_a_truncated_image(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.effect_noise((64, 64), 60).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(SettingError, match="is not an image that can be read"):
        load_image(path)
