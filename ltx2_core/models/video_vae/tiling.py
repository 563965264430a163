"""Cuts a latent into overlapping tiles and blends what they decode to (docs/model.md 7.1, "Decode tiling")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import SettingError
from ...types import ScaleFactors


class Tile(NamedTuple):
    """One tile along one axis."""

    cells: slice  # of the latent
    pixels: slice  # of the clip: pixels, or frames
    weight: Tensor  # of every pixel in the blend, float32; the weights of all tiles add up to one


class Tiles(NamedTuple):
    """The tiles of a clip are all combinations of these."""

    times: list[Tile]
    rows: list[Tile]
    columns: list[Tile]


class Span(NamedTuple):
    """Where a tile lies, and how many of its cells at each end it shares with its neighbours."""

    start: int
    stop: int
    left: int
    right: int


@dataclass(frozen=True)
class Tiling:
    """How large the tiles of a decode are; the defaults are the official ones.

    A pixel of the released decoders depends on everything within 484 pixels (2.3) or 692 (2.0), so that only pixels
    farther than this from the edges of their tile equal those of an untiled decode. The rest differ most where tiles
    meet. With random weights and noise for a latent, which is the worst case, the default overlap leaves a root mean
    square difference below 0.2, and a largest one below 2.5, standard deviations of the picture; an overlap of 256
    pixels a third of that.

    Attributes:
        tile: longer side of a tile in pixels; the shorter one follows the clip's aspect ratio.
        overlap: pixels that neighbouring tiles share.
        tile_frames: frames of a tile in time. None decodes the tiles as streams, side by side: exact in time, nothing
            computed twice, at the price of a few remembered frames per layer and tile.
        overlap_frames: frames that neighbouring tiles in time share.
    """

    tile: int = 512
    overlap: int = 64
    tile_frames: int | None = 64
    overlap_frames: int = 24

    def check(self, scale: ScaleFactors) -> None:
        """Raises SettingError unless every size is a multiple of the scale and every overlap smaller than its tile."""
        cell = max(scale.height, scale.width)
        _check_axis("tile", self.tile, "overlap", self.overlap, cell, least=cell)
        if self.tile_frames is not None:
            _check_axis("tile_frames", self.tile_frames, "overlap_frames", self.overlap_frames, scale.time, least=0)

    def split(self, frames: int, height: int, width: int, scale: ScaleFactors) -> Tiles:
        """The tiles of a latent of ``frames`` x ``height`` x ``width`` cells.

        Raises:
            SettingError: as :meth:`check`.
        """
        self.check(scale)
        long = max(height, width)
        axes = []
        for length, factor in ((height, scale.height), (width, scale.width)):
            overlap = self.overlap // factor
            # Only the longer side gets the whole tile, so wide clips need no more tiles than square ones.
            size = max(2, overlap + 1, round(self.tile // factor * length / long))
            axes.append(_spatial_tiles(spans(length, size, overlap), factor))
        times = [Span(0, frames, 0, 0)]
        if self.tile_frames is not None:
            overlap = self.overlap_frames // scale.time
            times = spans(frames, max(2, overlap + 1, self.tile_frames // scale.time), overlap)
            # The first frame a tile decodes stands for one frame instead of `scale.time`, so later tiles start a cell
            # earlier and that frame gets no weight.
            times = times[:1] + [span._replace(start=span.start - 1, left=span.left + 1) for span in times[1:]]
        return Tiles(_temporal_tiles(times, scale.time), *axes)


def _check_axis(tile_name: str, tile: int, overlap_name: str, overlap: int, cell: int, least: int) -> None:
    if tile % cell or tile < 2 * cell:
        raise SettingError(
            tile_name,
            tile,
            f"must be a multiple of {cell}, and at least {2 * cell}",
            f"Use {max(2, tile // cell) * cell}.",
        )
    if overlap % cell or not least <= overlap < tile:
        fix = f"Use {min(max(overlap // cell * cell, least), tile - cell)}."
        raise SettingError(
            overlap_name,
            overlap,
            f"must be a multiple of {cell}, at least {least} and less than {tile_name} = {tile}",
            fix,
        )


def spans(length: int, size: int, overlap: int) -> list[Span]:
    """Cuts ``length`` cells into tiles of ``size`` that share ``overlap``; the last one may be shorter."""
    if length <= size:
        return [Span(0, length, 0, 0)]
    stride = size - overlap
    count = -(-(length - overlap) // stride)
    starts = [i * stride for i in range(count)]
    return [
        Span(start, min(start + size, length), overlap if start else 0, overlap if i + 1 < count else 0)
        for i, start in enumerate(starts)
    ]


def _spatial_tiles(cuts: list[Span], scale: int) -> list[Tile]:
    tiles = []
    for start, stop, left, right in cuts:
        weight = torch.ones((stop - start) * scale, dtype=torch.float64)
        _ramp(weight, left * scale, right * scale)
        tiles.append(Tile(slice(start, stop), slice(start * scale, stop * scale), weight))
    return _normalised(tiles)


def _temporal_tiles(cuts: list[Span], scale: int) -> list[Tile]:
    tiles = []
    for start, stop, left, right in cuts:
        pixels = slice(start * scale, (stop - 1) * scale + 1)
        weight = torch.ones(pixels.stop - pixels.start, dtype=torch.float64)
        if left:
            weight[0] = 0.0
            _ramp(weight[1:], (left - 1) * scale, 0)
        _ramp(weight, 0, right * scale)
        tiles.append(Tile(slice(start, stop), pixels, weight))
    return _normalised(tiles)


def _ramp(weight: Tensor, left: int, right: int) -> None:
    """Multiplies linear ramps of ``left`` and ``right`` pixels onto the ends; they never reach 0 or 1."""
    rise = [torch.arange(1, n + 1, dtype=weight.dtype) / (n + 1) for n in (left, right)]
    weight[:left] *= rise[0]
    weight[weight.shape[0] - right :] *= rise[1].flip(0)


def _normalised(tiles: list[Tile]) -> list[Tile]:
    """The tiles with weights that add up to one, also where the ramps of more than two tiles meet."""
    total = torch.zeros(tiles[-1].pixels.stop, dtype=torch.float64)
    for tile in tiles:
        total[tile.pixels] += tile.weight
    return [tile._replace(weight=(tile.weight / total[tile.pixels]).float()) for tile in tiles]
