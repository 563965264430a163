"""Latent to pixels: in one go, as a stream over time, or in tiles."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from ...finite import FiniteWatch
from ...kernels.layout import to_bytes, to_pixels
from .config import VideoVAEConfig
from .layers import Carry, ResBlocks, SpaceTimeConv, up_block
from .statistics import LatentStatistics
from .tiling import Tiles, Tiling

# How many bytes the widest layer's frames of one pass may have: 42 frames at 768x512, 8 at 1920x1088. One H200: twice
# as many decode 1 to 3% faster by themselves, 2 to 10% slower with their way to the host, and need 40% more memory
PASS_BYTES = 2**28
LEAST_FRAMES = 4


class NotFinitePixels(ArithmeticError):
    """The decoder made values that are not finite."""


class VideoDecoder(nn.Module):
    """The decoder half of the video autoencoder (docs/model.md 7.1); deterministic, and not causal.

    State-dict keys are those of the checkpoint after ``vae.decoder.``, plus ``per_channel_statistics.*``.
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        padding = config.decoder_padding
        self.per_channel_statistics = LatentStatistics(config.latent_channels)
        self.conv_in = SpaceTimeConv(config.latent_channels, config.decoder_channels, padding, causal=False)
        self.up_blocks = nn.ModuleList(up_block(stage, padding) for stage in config.decoder_stages)
        self.conv_out = SpaceTimeConv(
            config.decoder_out_channels, config.patch_channels, padding, causal=False, activated=True
        )

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Decodes a whole clip in one pass, which needs memory in proportion to its length.

        Args:
            latent: normalised, (B, latent_channels, F', H', W').

        Returns:
            Pixels (B, 3, time * (F' - 1) + 1, height * H', width * W'), about in [-1, 1], in the weights' dtype.

        Raises:
            ValueError: the latent has another number of channels, or is too small for the edge padding.
        """
        self._check(latent)
        (pixels,) = self._stream(latent, None, to_pixels)
        return pixels

    @torch.no_grad()
    def decode_streamed(
        self, latent: Tensor, tiling: Tiling | None = None, frames_per_pass: int | None = None
    ) -> Iterator[Tensor]:
        """Decodes a clip as consecutive chunks of frames, which add up to what :meth:`decode` returns.

        Without tiling the pixels equal those of :meth:`decode` up to float rounding, and memory does not grow with the
        length of the clip: every layer passes on at most ``frames_per_pass`` frames at a time and remembers two. Tiles
        in space, and in time where ``tiling.tile_frames`` is set, need less memory still, but no layer sees past the
        edge of a tile: pixels differ where tiles meet (:class:`Tiling` says by how much).

        Args:
            latent: normalised, (B, latent_channels, F', H', W').
            tiling: how to cut the clip into tiles; None decodes full frames.
            frames_per_pass: frames that a layer handles at a time; more is faster until the device is busy. None: as
                :meth:`frames_per_pass` says.

        Yields:
            Pixels (B, 3, f, H, W), f >= 1, in the weights' dtype.

        Raises:
            SettingError: ``tiling`` does not fit the scale of this model.
            ValueError: as :meth:`decode`, or ``frames_per_pass`` is not positive.
        """
        self._check(latent)
        frames_per_pass = self._limit(latent, frames_per_pass)
        if tiling is None:
            yield from self._stream(latent, frames_per_pass, to_pixels)
            return
        tiles = tiling.split(latent.shape[2], latent.shape[3], latent.shape[4], self.config.scale)
        dtype = self.conv_in.conv.weight.dtype
        if tiling.tile_frames is None:
            for frames in self._blended(latent, tiles, frames_per_pass):
                yield frames.to(dtype)
            return
        pending: Tensor | None = None  # weighted frames that the next tile in time has a share in
        for time, following in zip(tiles.times, [*tiles.times[1:], None], strict=True):
            (frames,) = self._blended(latent[:, :, time.cells], tiles, None)
            frames *= time.weight.to(frames.device)[:, None, None]
            if pending is not None:
                frames[:, :, : pending.shape[2]] += pending
            complete = (time.pixels.stop if following is None else following.pixels.start) - time.pixels.start
            pending = frames[:, :, complete:].clone()  # a view would keep the whole tile alive
            frames = frames[:, :, :complete].to(dtype)
            yield frames

    @torch.no_grad()
    def decode_frames(self, latent: Tensor, frames_per_pass: int | None = None) -> Generator[Tensor, None, None]:
        """As :meth:`decode_streamed` without tiling, but frames as a picture file holds them.

        Yields:
            Frames of the first batch item, uint8 (f, H, W, 3), f >= 1, on the latent's device. Pixels are clipped to
            [-1, 1] and truncated, not rounded, as in the official code.

        Raises:
            ValueError: as :meth:`decode_streamed`.
            NotFinitePixels: at the end, when some of the pixels were no numbers. Bytes do not show that.
        """
        self._check(latent)
        watch = FiniteWatch()
        watch.see(self.conv_out.bias)

        def finish(x: Tensor, bias: Tensor, patch: int) -> Tensor:
            watch.see(x)
            return to_bytes(x, bias, patch)

        yield from self._stream(latent[:1], self._limit(latent, frames_per_pass), finish)
        if not watch.ok():
            raise NotFinitePixels

    def frames_per_pass(self, height: int, width: int) -> int:
        """How many frames of ``height`` x ``width`` latent cells a layer handles at a time: what fits PASS_BYTES."""
        cells = self.config.scale.height * self.config.scale.width // self.config.patch_size**2
        row = self.config.decoder_out_channels * self.conv_in.conv.weight.element_size()
        return max(LEAST_FRAMES, PASS_BYTES // (height * width * cells * row))

    def _limit(self, latent: Tensor, frames_per_pass: int | None) -> int:
        if frames_per_pass is None:
            return self.frames_per_pass(latent.shape[3], latent.shape[4])
        if frames_per_pass < 1:
            raise ValueError(f"frames_per_pass must be at least 1, got {frames_per_pass}")
        return frames_per_pass

    def _blended(self, latent: Tensor, tiles: Tiles, limit: int | None) -> Iterator[Tensor]:
        """Streams all tiles of a frame side by side and yields their weighted sums, (B, 3, f, H, W) in float32."""
        grid = [(row, column) for row in tiles.rows for column in tiles.columns]
        streams = [self._stream(latent[..., row.cells, column.cells], limit, to_pixels) for row, column in grid]
        weights = [torch.outer(row.weight, column.weight).to(latent.device) for row, column in grid]
        height, width = tiles.rows[-1].pixels.stop, tiles.columns[-1].pixels.stop
        for first in streams[0]:
            frames = first.new_zeros(*first.shape[:3], height, width, dtype=torch.float32)
            # All streams run through the same stages, so their pieces are of the same length; one is held at a time.
            pieces = chain((first,), map(next, streams[1:]))
            for (row, column), weight, piece in zip(grid, weights, pieces, strict=True):
                frames[..., row.pixels, column.pixels].addcmul_(piece, weight)
            yield frames

    def _check(self, latent: Tensor) -> None:
        channels = self.config.latent_channels
        if latent.ndim != 5 or latent.shape[1] != channels or not latent.shape[2]:
            raise ValueError(f"latent must be (B, {channels}, F, H, W), got {tuple(latent.shape)}")
        if self.config.decoder_padding == "reflect" and min(latent.shape[3:]) < 2:
            raise ValueError(f"this decoder needs at least 2 x 2 latent cells a frame, got {tuple(latent.shape[3:])}")

    @property
    def _stages(self) -> list[nn.Module]:
        """What is applied in turn; residual blocks one by one, so that each gets pieces of limited length."""
        blocks: list[nn.Module] = []
        for block in self.up_blocks:
            blocks.extend(block.res_blocks if isinstance(block, ResBlocks) else [block])
        return [self.conv_in, *blocks, self.conv_out]

    def _stream(
        self, latent: Tensor, limit: int | None, finish: Callable[[Tensor, Tensor, int], Tensor]
    ) -> Iterator[Tensor]:
        """Runs pieces of at most ``limit`` frames through the stages, the deepest piece first.

        ``finish`` makes pictures of what the last convolution makes, without its bias.
        """
        stages, carry = self._stages, Carry()
        x = self.per_channel_statistics.denormalise(latent).to(self.conv_in.conv.weight.dtype)
        # Stage and input of what is to be done; what is further down the list comes later in time.
        waiting = [(0, x, True)]
        del x
        while waiting:
            depth, piece, last = waiting.pop()
            if limit is not None and piece.shape[2] > limit:
                waiting.append((depth, piece[:, :, limit:], last))
                piece, last = piece[:, :, :limit], False
            carry.last = last
            final = depth + 1 == len(stages)
            piece = self.conv_out(piece, carry, biased=False) if final else stages[depth](piece, carry)
            if not piece.shape[2]:
                continue
            if final:
                yield finish(piece, self.conv_out.bias, self.config.patch_size)
            else:
                waiting.append((depth + 1, piece, last))
