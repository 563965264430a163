"""Convolutions over space and time that can be fed piece by piece, and the blocks made of them (fact sheet 7.1).

A convolution that looks one frame ahead cannot finish a piece's last frame before the next piece is there. So every
convolution keeps its last two input frames, is one frame late, and pads by repeating frames only where the clip itself
begins or ends. Nothing is computed twice, and cutting a clip into pieces changes no pixel beyond float rounding.

Tensors are (B, C, F, H, W); submodule names are the official checkpoint's key names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ResampleStage, ResStage, Stage
from .layout import depth_to_space, space_to_depth

NORM_EPS = 1e-8  # the audio VAE has 1e-6
KERNEL = 3
TIME = -3  # the frame axis, counted from the end so that an axis may be added in front


@dataclass
class Carry:
    """What the layers remember between the consecutive pieces of one clip.

    A fresh one takes a whole clip as its only piece.

    Attributes:
        last: whether the piece in hand is the clip's last.
    """

    last: bool = True
    _frames: dict[nn.Module, Tensor] = field(default_factory=dict)
    _skips: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    _begun: set[nn.Module] = field(default_factory=set)

    def take_frames(self, owner: nn.Module) -> Tensor | None:
        """Input frames that ``owner`` kept of the last piece; None at the beginning of the clip."""
        return self._frames.pop(owner, None)

    def keep_frames(self, owner: nn.Module, frames: Tensor) -> None:
        if not self.last:
            self._frames[owner] = frames.clone()  # a view would keep the whole piece alive

    def add_skip(self, owner: nn.Module, out: Tensor, skip: Tensor) -> Tensor:
        """Adds a skip connection into ``out``, in place, frame to frame.

        ``out`` comes from convolutions and so is late: the frames of ``skip`` that it has not reached yet are kept for
        the next piece. Both have their frames on axis ``TIME``, and the other axes broadcast.
        """
        done, late = 0, []
        for part in (*self._skips.pop(owner, ()), skip):
            count = min(part.shape[TIME], out.shape[TIME] - done)
            out.narrow(TIME, done, count).add_(part.narrow(TIME, 0, count))
            done += count
            if rest := part.shape[TIME] - count:
                late.append(part.narrow(TIME, count, rest).clone())
        if late:
            self._skips[owner] = late
        return out

    def drop_first(self, owner: nn.Module, x: Tensor) -> Tensor:
        """``x`` without the first frame of the clip."""
        if owner in self._begun or not x.shape[TIME]:
            return x
        self._begun.add(owner)
        return x.narrow(TIME, 1, x.shape[TIME] - 1)


class SpaceTimeConv(nn.Module):
    """A 3x3x3 convolution of stride 1 that keeps the clip's size, optionally behind a pixel norm and SiLU.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        padding: ``zeros`` or ``reflect`` at the edges of the picture.
        causal: whether both extra frames are in front (a frame sees the past only), or one at each end.
        activated: whether the input passes through pixel norm and SiLU first.
    """

    def __init__(
        self, in_channels: int, out_channels: int, padding: str, causal: bool, activated: bool = False
    ) -> None:
        super().__init__()
        self.before, self.after = (KERNEL - 1, 0) if causal else (KERNEL // 2, KERNEL // 2)
        self.margin = KERNEL // 2 if padding == "reflect" else 0
        self.activated = activated
        # The library pads with zeros inside its kernels, for nothing; a reflected margin is written beside the frames.
        edge = KERNEL // 2 - self.margin
        self.conv = nn.Conv3d(in_channels, out_channels, KERNEL, padding=(0, edge, edge))

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        """(B, C, f, H, W) to (B, C', f', H, W); f' is f in the middle of a clip, and may be 0 where it begins."""
        if x.shape[2]:
            window = self._window(x, carry)
            if window.shape[2] >= KERNEL:
                out: Tensor = self.conv(window)
                return out
        return x.new_empty(x.shape[0], self.conv.out_channels, 0, *x.shape[3:])

    def _window(self, x: Tensor, carry: Carry) -> Tensor:
        """The frames that the kernel slides over, activated and padded, written once into one tensor."""
        kept = carry.take_frames(self)
        before = self.before if kept is None else kept.shape[2]
        after = self.after if carry.last else 0
        batch, channels, frames, height, width = x.shape
        m = self.margin
        window = x.new_empty(batch, channels, before + frames + after, height + 2 * m, width + 2 * m)
        fresh = window[:, :, before : before + frames]
        inner = fresh[..., m : m + height, m : m + width]
        if self.activated:
            torch.mul(x, inverse_rms(x), out=inner)
            # Of the whole window, though its edges hold nothing yet: a strided pass would take twice the time.
            F.silu(window, inplace=True)
        else:
            inner.copy_(x)
        if m:
            fresh[..., 0, :], fresh[..., -1, :] = fresh[..., 2, :], fresh[..., -3, :]
            fresh[..., 0], fresh[..., -1] = fresh[..., 2], fresh[..., -3]
        window[:, :, :before] = fresh[:, :, :1] if kept is None else kept
        window[:, :, before + frames :] = fresh[:, :, -1:]
        carry.keep_frames(self, window[:, :, 1 - KERNEL :])
        return window


def inverse_rms(x: Tensor) -> Tensor:
    """One over the root mean square of the channels, (B, C, F, H, W) to (B, 1, F, H, W); summed in float32."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    # Back in the input's dtype, as the official code has it: a product of mixed dtypes costs 5% of the whole decoding.
    inverse: Tensor = norm.square_().div_(x.shape[1]).add_(NORM_EPS).rsqrt_()
    return inverse.to(x.dtype)


class ResBlock(nn.Module):
    """Two activated convolutions with a skip, of constant width."""

    def __init__(self, channels: int, padding: str, causal: bool) -> None:
        super().__init__()
        self.conv1 = SpaceTimeConv(channels, channels, padding, causal, activated=True)
        self.conv2 = SpaceTimeConv(channels, channels, padding, causal, activated=True)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        return carry.add_skip(self, self.conv2(self.conv1(x, carry), carry), x)


class ResBlocks(nn.Module):
    """A stage of residual blocks."""

    def __init__(self, stage: ResStage, padding: str, causal: bool) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(ResBlock(stage.channels, padding, causal) for _ in range(stage.count))

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        for block in self.res_blocks:
            x = block(x, carry)
        return x


class Downsample(nn.Module):
    """Halves axes: a convolution folded into channels, plus the input folded likewise and averaged in groups.

    Takes whole clips only. Where time is halved, a copy of the first frame goes in front, so that it stays a cell of
    its own.
    """

    def __init__(self, stage: ResampleStage, padding: str, causal: bool) -> None:
        super().__init__()
        self.stage = stage
        self.conv = SpaceTimeConv(stage.in_channels, stage.out_channels // stage.cells, padding, causal)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        stride, channels = self.stage.stride, self.stage.out_channels
        if stride[0] == 2:
            x = torch.cat([x[:, :, :1], x], dim=2)
        out = space_to_depth(self.conv(x, carry), stride)
        folded = space_to_depth(x, stride)
        return out.add_(folded.view(out.shape[0], channels, -1, *out.shape[2:]).mean(dim=2))


class Upsample(nn.Module):
    """Doubles axes: a convolution unfolded from channels, optionally plus the input unfolded likewise.

    Where time is doubled, the first frame is dropped, which undoes the encoder's copy.
    """

    def __init__(self, stage: ResampleStage, padding: str, causal: bool) -> None:
        super().__init__()
        self.stage = stage
        self.conv = SpaceTimeConv(stage.in_channels, stage.out_channels * stage.cells, padding, causal)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        out: Tensor = self.conv(x, carry)
        if self.stage.residual:
            # The unfolded input repeats along the channels as a whole, so it can be added before unfolding.
            repeats = out.shape[1] // x.shape[1]
            carry.add_skip(self, out.view(x.shape[0], repeats, x.shape[1], *out.shape[2:]), x.unsqueeze(1))
        out = depth_to_space(out, self.stage.stride)
        return carry.drop_first(self, out) if self.stage.stride[0] == 2 else out


def down_block(stage: Stage, padding: str) -> nn.Module:
    if isinstance(stage, ResStage):
        return ResBlocks(stage, padding, causal=True)
    return Downsample(stage, padding, causal=True)


def up_block(stage: Stage, padding: str) -> nn.Module:
    if isinstance(stage, ResStage):
        return ResBlocks(stage, padding, causal=False)
    return Upsample(stage, padding, causal=False)
