from __future__ import annotations

import logging
from typing import Literal

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import tiny_config
from ltx2_two_stage.ltx2_core.loading.synthetic_weights import fill_random_
from ltx2_two_stage.ltx2_core.models.video_vae import (
    STATISTICS_NAMES,
    LatentStatistics,
    VideoDecoder,
    VideoEncoder,
    VideoVAEConfig,
)


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    with torch.device("meta"):
        module = VideoEncoder(VideoVAEConfig.from_metadata(tiny_config("2.3")))
    return fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()  # type: ignore[return-value]


def test_frames_beyond_a_whole_cell_are_cropped_at_the_end(
    encoder: VideoEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = torch.rand(1, 3, 12, 32, 64) * 2 - 1
    with caplog.at_level(logging.WARNING, "ltx2.video_vae"):
        latent = encoder.encode(pixels)
    assert "12 frames without the last 3" in caplog.text
    assert latent.shape == (1, 16, 2, 1, 2)
    assert torch.equal(latent, encoder.encode(pixels[:, :, :9]))


def test_no_latent_frame_sees_a_later_pixel_frame(encoder: VideoEncoder) -> None:
    pixels = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    changed = pixels.clone()
    changed[:, :, 9:] = 0
    before, after = encoder.encode(pixels), encoder.encode(changed)
    # Identical sums; the convolution may order them another way where the data behind them differ.
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2], atol=1e-6, rtol=0)
    assert (before[:, :, 2] - after[:, :, 2]).abs().max() > 0.01


@pytest.mark.parametrize(("height", "width", "setting"), [(48, 64, "height"), (64, 40, "width"), (16, 32, "height")])
def test_sizes_off_the_grid_are_named(encoder: VideoEncoder, height: int, width: int, setting: str) -> None:
    with pytest.raises(SettingError, match=r"multiple of 32.*Use 32 or 64") as caught:
        encoder.encode(torch.zeros(1, 3, 1, height, width))
    assert caught.value.setting == setting


@pytest.mark.parametrize("shape", [(1, 4, 1, 32, 32), (3, 1, 32, 32), (1, 3, 0, 32, 32)])
def test_other_tensors_are_refused(encoder: VideoEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels must be"):
        encoder.encode(torch.zeros(shape))


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
def test_state_dict_has_the_official_keys(variant: Literal["2.0", "2.3"]) -> None:
    config = VideoVAEConfig.from_metadata(tiny_config(variant))
    with torch.device("meta"):
        keys = {*VideoEncoder(config).state_dict()}
        decoder_keys = {*VideoDecoder(config).state_dict()}
    for expected in ("conv_in.conv.weight", "conv_out.conv.bias", "per_channel_statistics.std-of-means"):
        assert expected in keys & decoder_keys
    assert {"down_blocks.0.res_blocks.0.conv1.conv.weight", "down_blocks.1.conv.conv.bias"} <= keys
    assert {"up_blocks.0.res_blocks.0.conv2.conv.bias", "up_blocks.1.conv.conv.weight"} <= decoder_keys
    statistics = {key.split(".")[1] for key in keys if key.startswith("per_channel_statistics.")}
    assert statistics == set(STATISTICS_NAMES)


def test_statistics_are_applied_in_float32() -> None:
    statistics = LatentStatistics(2)
    statistics.load_state_dict({"mean-of-means": torch.tensor([1.0, -2.0]), "std-of-means": torch.tensor([2.0, 0.5])})
    raw = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1, 1).bfloat16()
    normal = statistics.to(torch.bfloat16).normalise(raw)
    assert normal.dtype == torch.float32
    assert normal.flatten().tolist() == [1.0, 2.0]
    assert statistics.denormalise(normal).flatten().tolist() == [3.0, -1.0]


def test_reduced_precision_stays_close(encoder: VideoEncoder) -> None:
    pixels = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    exact = encoder.encode(pixels)
    with torch.device("meta"):
        half = VideoEncoder(encoder.config)
    half.load_state_dict({k: v.bfloat16() for k, v in encoder.state_dict().items()}, assign=True)
    rounded = half.encode(pixels)
    assert rounded.dtype == torch.bfloat16
    # About twenty bfloat16 layers of 0.4% rounding each.
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()
