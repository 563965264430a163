"""Convolutions that give the same sum each time, asked for call by call instead of in cuDNN's global switch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["RepeatableConvolutions"]

Sizes = int | Sequence[int]


class RepeatableConvolutions(TorchFunctionMode):
    """``with RepeatableConvolutions():`` no convolution of this thread is one of cuDNN's that add in random order.

    For the calls that a vocoder makes: in one or two dimensions, padded by numbers.

    ``torch.backends.cudnn.deterministic`` would ask for the same, but of every thread in the process, and two threads
    that leave in another order than they came would leave it on.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        call: Callable[..., Any] = _REPLACED.get(func, func)
        return call(*args, **(kwargs or {}))


def _plain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    return _convolution(input, weight, bias, stride, padding, dilation, False, 0, groups)


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    return _convolution(input, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Tensor:
    cudnn = torch.backends.cudnn
    # The overload without TF32's switch reads that itself, from whichever of the two settings a user set
    out: Tensor = torch.ops.aten._convolution.deprecated(
        x,
        weight,
        bias,
        _list(stride),
        _list(padding),
        _list(dilation),
        transposed,
        _list(output_padding),
        groups,
        cudnn.benchmark,
        True,
        cudnn.enabled,
    )
    return out


def _list(sizes: Sizes) -> list[int]:
    return [sizes] if isinstance(sizes, int) else list(sizes)


_REPLACED: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    torch.conv1d: _plain,
    torch.conv2d: _plain,
    torch.conv_transpose1d: _transposed,
}
