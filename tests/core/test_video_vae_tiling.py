from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import SettingError
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import full_size_config, tiny_config
from ltx2_two_stage.ltx2_core.loading.synthetic_weights import fill_random_
from ltx2_two_stage.ltx2_core.models.video_vae import Tiling, VideoDecoder, VideoVAEConfig
from ltx2_two_stage.ltx2_core.models.video_vae.config import ResStage
from ltx2_two_stage.ltx2_core.models.video_vae.tiling import Span, Tile, spans
from ltx2_two_stage.ltx2_core.types import ScaleFactors
from torch import Tensor

SCALE = ScaleFactors(8, 32, 32)
TOLERANCE = 1e-5  # the same sums in another order


def build(variant: Literal["2.0", "2.3"]) -> VideoDecoder:
    with torch.device("meta"):
        module = VideoDecoder(VideoVAEConfig.from_metadata(tiny_config(variant)))
    return fill_random_(module, torch.Generator().manual_seed(0), "cpu").eval()  # type: ignore[return-value]


DECODERS = {"2.0": build("2.0"), "2.3": build("2.3")}
VARIANTS = pytest.mark.parametrize("variant", list(DECODERS))


def noise(frames: int, height: int, width: int) -> Tensor:
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(1))


def tiled(decoder: VideoDecoder, latent: Tensor, tiling: Tiling) -> Tensor:
    return torch.cat(list(decoder.decode_streamed(latent, tiling)), dim=2)


def reach(config: VideoVAEConfig) -> float:
    """How many latent cells to each side a pixel depends on: one position of its level for every convolution."""
    cells, total = 1.0, 1.0
    for stage in config.decoder_stages:
        if isinstance(stage, ResStage):
            total += 2 * stage.count * cells
        else:
            total += cells
            cells /= stage.stride[2]
    return total + cells


@pytest.mark.parametrize(
    ("length", "size", "overlap", "expected"),
    [
        pytest.param(16, 16, 2, [Span(0, 16, 0, 0)], id="one tile"),
        pytest.param(17, 16, 2, [Span(0, 16, 0, 2), Span(14, 17, 2, 0)], id="short last tile"),
        pytest.param(
            60, 16, 2, [Span(0, 16, 0, 2), *(Span(s, s + 16, 2, 2) for s in (14, 28)), Span(42, 58, 2, 2)], id="1920"
        ),
    ],
)
def test_spans(length: int, size: int, overlap: int, expected: list[Span]) -> None:
    cuts = spans(length, size, overlap)
    assert cuts[: len(expected)] == expected
    assert cuts[-1].stop == length
    assert len(cuts) == max(1, math.ceil((length - overlap) / (size - overlap)))


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        pytest.param(34, 60, [9, 9, 9, 9, 6], [16, 16, 16, 16, 4], id="1920x1088"),
        pytest.param(60, 34, [16, 16, 16, 16, 4], [9, 9, 9, 9, 6], id="portrait"),
        pytest.param(16, 16, [16], [16], id="512x512"),
        pytest.param(2, 40, [2], [16, 16, 12], id="a strip keeps at least overlap + 1"),
    ],
)
def test_only_the_longer_side_gets_the_whole_tile(height: int, width: int, rows: list[int], columns: list[int]) -> None:
    tiles = Tiling().split(1, height, width, SCALE)
    assert [tile.cells.stop - tile.cells.start for tile in tiles.rows] == rows
    assert [tile.cells.stop - tile.cells.start for tile in tiles.columns] == columns


def test_later_tiles_in_time_start_one_cell_early() -> None:
    times = Tiling().split(16, 1, 1, SCALE).times
    assert [(tile.cells.start, tile.cells.stop) for tile in times] == [(0, 8), (4, 13), (9, 16)]
    assert [(tile.pixels.start, tile.pixels.stop) for tile in times] == [(0, 57), (32, 97), (72, 121)]
    assert times[1].weight[0] == 0.0
    torch.testing.assert_close(times[1].weight[:25], torch.arange(25) / 25)
    torch.testing.assert_close(times[0].weight[-24:], 1 - torch.arange(1, 25) / 25)


def test_ramps_in_space_reach_neither_end() -> None:
    first, second = Tiling().split(1, 1, 30, SCALE).columns
    torch.testing.assert_close(second.weight[:64], torch.arange(1, 65) / 65)
    torch.testing.assert_close(first.weight[-64:], 1 - torch.arange(1, 65) / 65)


@pytest.mark.parametrize(
    "tiling", [Tiling(), Tiling(512, 384, 64, 48), Tiling(96, 64, 32, 24), Tiling(512, 64, 64, 0)], ids=repr
)
@pytest.mark.parametrize("size", [(16, 34, 60), (31, 22, 40), (3, 3, 70)], ids=str)
def test_weights_are_a_partition_of_unity(tiling: Tiling, size: tuple[int, int, int]) -> None:
    axes: list[list[Tile]] = list(tiling.split(*size, SCALE))
    for tiles, pixels in zip(axes, (8 * size[0] - 7, 32 * size[1], 32 * size[2]), strict=True):
        total = torch.zeros(pixels, dtype=torch.float64)
        for tile in tiles:
            assert tile.weight.min() >= 0
            total[tile.pixels] += tile.weight
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)  # float32 weights


@VARIANTS
@pytest.mark.parametrize("tile_frames", [64, None])
def test_a_clip_within_one_tile_is_untouched(variant: str, tile_frames: int | None) -> None:
    decoder, latent = DECODERS[variant], noise(2, 2, 3)
    assert torch.equal(tiled(decoder, latent, Tiling(tile_frames=tile_frames)), decoder.decode(latent))


def test_released_models_reach_as_far_as_documented() -> None:
    pixels = {v: reach(VideoVAEConfig.from_metadata(full_size_config(v))) * 32 for v in ("2.0", "2.3")}  # type: ignore[arg-type]
    assert pixels == {"2.0": 692, "2.3": 484}
    assert "484 pixels (2.3) or 692 (2.0)" in " ".join((Tiling.__doc__ or "").split())


@VARIANTS
def test_tiles_in_space_change_only_what_lies_near_their_edges(variant: str) -> None:
    decoder, latent = DECODERS[variant], noise(2, 2, 40)
    tiling = Tiling(tile_frames=None)  # exact in time
    expected, out = decoder.decode(latent), tiled(decoder, latent, tiling)
    far = math.ceil(reach(decoder.config))
    same = torch.zeros(40, dtype=torch.bool)
    columns = tiling.split(2, 2, 40, decoder.config.scale).columns
    assert len(columns) == 3
    for cell in range(40):
        cuts = [edge for tile in columns for edge in (tile.cells.start, tile.cells.stop) if 0 < edge < 40]
        seen_by = [tile for tile in columns if tile.cells.start <= cell < tile.cells.stop]
        own = [e for tile in seen_by for e in (tile.cells.start, tile.cells.stop) if e in cuts]
        same[cell] = all(cell + 1 + far <= edge or cell - far >= edge for edge in own)
    assert 10 < same.sum() < 30
    difference = (out - expected).abs().amax((0, 1, 2, 3)).view(40, 32).amax(1)
    assert difference[same].max() < TOLERANCE
    assert difference.max() > 0.05  # a seam of random weights is no rounding error


@VARIANTS
def test_seams_stay_within_the_documented_bound_and_shrink_with_the_overlap(variant: str) -> None:
    decoder, latent = DECODERS[variant], noise(2, 2, 40)
    expected = decoder.decode(latent)
    relative, largest = [], []
    for overlap in (32, 64, 128, 256):
        difference = tiled(decoder, latent, Tiling(overlap=overlap, tile_frames=None)) - expected
        relative.append(float(difference.square().mean().sqrt() / expected.std()))
        largest.append(float(difference.abs().max() / expected.std()))
    assert relative == sorted(relative, reverse=True)
    assert relative[1] < 0.2
    assert largest[1] < 2.5


@VARIANTS
def test_tiles_in_time_change_only_what_lies_near_their_ends(variant: str) -> None:
    decoder, latent = DECODERS[variant], noise(20, 2, 2)
    expected = decoder.decode(latent)
    chunks = list(decoder.decode_streamed(latent, Tiling()))
    assert [chunk.shape[2] for chunk in chunks] == [32, 40, 40, 41]
    difference = (torch.cat(chunks, dim=2) - expected).abs().amax((0, 1, 3, 4))
    # The first frame lies in one tile whose cut, 7 cells later, is as far as these networks look ahead.
    assert difference[0] < TOLERANCE
    assert 0.01 < difference.max() < 2.5 * expected.std()


@VARIANTS
def test_streamed_tiles_are_exact_in_time(variant: str) -> None:
    decoder, latent = DECODERS[variant], noise(20, 2, 2)
    out = tiled(decoder, latent, Tiling(tile_frames=None))
    torch.testing.assert_close(out, decoder.decode(latent), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("options", "setting", "fix"),
    [
        ({"tile": 500}, "tile", "Use 480."),
        ({"tile": 32}, "tile", "Use 64."),
        ({"tile": 0}, "tile", "Use 64."),
        ({"overlap": 50}, "overlap", "Use 32."),
        ({"overlap": 0}, "overlap", "Use 32."),
        ({"overlap": 512}, "overlap", "Use 480."),
        ({"tile_frames": 60}, "tile_frames", "Use 56."),
        ({"overlap_frames": 64}, "overlap_frames", "Use 56."),
        ({"overlap_frames": -8}, "overlap_frames", "Use 0."),
        ({"overlap_frames": 20}, "overlap_frames", "Use 16."),
    ],
)
def test_bad_sizes_are_named(options: dict[str, Any], setting: str, fix: str) -> None:
    tiling = Tiling(**options)
    with pytest.raises(SettingError) as caught:
        tiling.check(SCALE)
    assert caught.value.setting == setting
    assert caught.value.fix == fix
    with pytest.raises(SettingError):
        next(DECODERS["2.3"].decode_streamed(noise(1, 2, 2), tiling))
