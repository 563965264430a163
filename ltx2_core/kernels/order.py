"""The order in memory in which tensor cores read a convolution's numbers: channels last, the channels side by side."""

from __future__ import annotations

import torch
from torch import Tensor

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
