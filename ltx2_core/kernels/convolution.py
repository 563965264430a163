"""Convolutions in the order in memory in which tensor cores read: channels last, the channels side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .availability import fused


def in_order(weight: Tensor) -> Tensor:
    """A convolution's weight (out, in, ...), from its first use on in channels-last order where kernels are fused.

    Files do not have that order, and libraries would make it at every call. The tensor object stays and shows other
    memory, so that nothing is held twice where it alone held the old one; whoever shares that keeps what it was. A
    device manager that lends weights binds the object to its own memory again when the visit ends.
    """
    if weight.stride(1) != 1 and fused(weight):
        # An ordinary tensor can only be rebound to an ordinary one, whatever mode the caller is in
        with torch.inference_mode(weight.is_inference()), torch.no_grad():
            ordered = weight.detach().movedim(1, -1).contiguous().movedim(-1, 1)
        weight.data = ordered
    return weight


def channels_last(x: Tensor) -> Tensor:
    """(B, C, T), in channels-last order where kernels are fused: libraries turn others into it and back."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if fused(x) else x


def unbiased(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution's result, and its bias (C,) where that is still to be added.

    Libraries add a bias in a pass of its own; a fused kernel that reads the result adds it in passing.
    """
    assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if not fused(x):
        return conv(x), None
    weight = in_order(conv.weight)
    if isinstance(conv, nn.Conv1d):
        return _of_a_row(conv, weight, x), conv.bias
    convolve = F.conv2d if isinstance(conv, nn.Conv2d) else F.conv3d
    return convolve(x, weight, None, padding=conv.padding), conv.bias


def _of_a_row(conv: nn.Conv1d, weight: Tensor, x: Tensor) -> Tensor:
    """Libraries keep channels-last order for pictures only: here for one of a single row."""
    assert not isinstance(conv.padding, str)
    padding, dilation = (0, *conv.padding), (1, *conv.dilation)
    return F.conv2d(x.unsqueeze(2), weight.unsqueeze(2), None, padding=padding, dilation=dilation).squeeze(2)
