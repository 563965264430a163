"""Convolutions over space and time that can be fed piece by piece, and the blocks made of them (docs/model.md 7.1).

A convolution that looks one frame ahead cannot finish a piece's last frame before the next piece is there. So every
convolution keeps its last two input frames, is one frame late, and pads by repeating frames only where the clip itself
begins or ends. Nothing is computed twice, and cutting a clip into pieces changes no pixel beyond float rounding.

A convolution's bias is left to whoever reads the result next, which saves a pass over it: libraries add it in one of
its own.

Tensors are (B, C, F, H, W), in channels-last order where kernels are fused; submodule names are the official
checkpoint's key names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.convolution import in_order
from ...kernels.frames import Edges, add_, window
from ...kernels.layout import space_to_depth, unfold
from .config import ResampleStage, ResStage, Stage

NORM_EPS = 1e-8  # the audio VAE has 1e-6
KERNEL = 3
TIME = 2  # the frame axis


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
        self._frames[owner] = frames

    def add_skip(self, owner: nn.Module, out: Tensor, bias: Tensor | None, skip: Tensor) -> Tensor:
        """Adds a bias and a skip connection into ``out``, in place, frame to frame.

        ``out`` comes from convolutions and so is late: the frames of ``skip`` that it has not reached yet are kept for
        the next piece. Where ``out`` has more channels, those of ``skip`` repeat as a whole.
        """
        done, late = 0, []
        for part in (*self._skips.pop(owner, ()), skip):
            if count := min(part.shape[TIME], out.shape[TIME] - done):
                add_(out.narrow(TIME, done, count), bias, part.narrow(TIME, 0, count))
            done += count
            if rest := part.shape[TIME] - count:
                late.append(part.narrow(TIME, count, rest).clone())
        if late:
            self._skips[owner] = late
        return out

    def begins(self, owner: nn.Module, x: Tensor) -> bool:
        """Whether ``x`` holds the first frame of the clip that ``owner`` sees."""
        if owner in self._begun or not x.shape[TIME]:
            return False
        self._begun.add(owner)
        return True


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

    def forward(self, x: Tensor, carry: Carry, x_bias: Tensor | None = None, biased: bool = True) -> Tensor:
        """(B, C, f, H, W) to (B, C', f', H, W); f' is f in the middle of a clip, and may be 0 where it begins.

        Args:
            x: the next frames; overwritten where ``x_bias`` is given.
            carry: of this clip.
            x_bias: (C,), still to be added to ``x``.
            biased: False leaves this convolution's bias to whoever takes the result.
        """
        conv = self.conv
        if x.shape[TIME]:
            frames = self._window(x, x_bias, carry)
            if frames.shape[TIME] >= KERNEL:
                out = F.conv3d(frames, in_order(conv.weight), None, padding=conv.padding)
                return out.add_(self.bias.view(-1, 1, 1, 1)) if biased else out
        return x.new_empty(x.shape[0], conv.out_channels, 0, *x.shape[3:])

    @property
    def bias(self) -> Tensor:
        """(C',)"""
        assert self.conv.bias is not None
        return self.conv.bias

    def _window(self, x: Tensor, bias: Tensor | None, carry: Carry) -> Tensor:
        """The frames that the kernel slides over, activated and padded."""
        kept = carry.take_frames(self)
        edges = Edges(
            before=self.before if kept is None else kept.shape[TIME],
            after=self.after if carry.last else 0,
            margin=self.margin,
        )
        eps = NORM_EPS if self.activated else None
        out, rest = window(x, bias, kept, edges, eps, keep=0 if carry.last else KERNEL - 1)
        if rest is not None:
            carry.keep_frames(self, rest)
        return out


class ResBlock(nn.Module):
    """Two activated convolutions with a skip, of constant width."""

    def __init__(self, channels: int, padding: str, causal: bool) -> None:
        super().__init__()
        self.conv1 = SpaceTimeConv(channels, channels, padding, causal, activated=True)
        self.conv2 = SpaceTimeConv(channels, channels, padding, causal, activated=True)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        hidden = self.conv1(x, carry, biased=False)
        out = self.conv2(hidden, carry, x_bias=self.conv1.bias, biased=False)
        return carry.add_skip(self, out, self.conv2.bias, x)


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
        out: Tensor = self.conv(x, carry, biased=False)
        bias: Tensor | None = self.conv.bias
        if self.stage.residual:
            # The unfolded input repeats along the channels as a whole, so it can be added before unfolding.
            out, bias = carry.add_skip(self, out, bias, x), None
        doubles_time = self.stage.stride[0] == 2
        return unfold(out, bias, self.stage.stride, dropped=int(doubles_time and carry.begins(self, out)))


def down_block(stage: Stage, padding: str) -> nn.Module:
    if isinstance(stage, ResStage):
        return ResBlocks(stage, padding, causal=True)
    return Downsample(stage, padding, causal=True)


def up_block(stage: Stage, padding: str) -> nn.Module:
    if isinstance(stage, ResStage):
        return ResBlocks(stage, padding, causal=False)
    return Upsample(stage, padding, causal=False)
