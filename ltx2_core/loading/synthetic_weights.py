"""Random weights under which every part of a model has an effect and no activation explodes (docs/model.md 11.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..models.audio_vae.mel import mel_filterbank
from ..models.vocoder.activation import CUTOFF, HALF_WIDTH, kaiser_sinc_taps

LINEAR_GAIN = 0.8  # of 1 / sqrt(fan_in): residual streams stay O(1) over 48 blocks
TABLE_STD = 0.3  # biases and modulation tables; zeros would hide index mistakes
NORM_STD = 0.2  # norm weights around 1, statistics around (0, 1)
BWE_SAMPLE_RATE = 16000  # Hz, input of the bandwidth extension


def fill_random_(module: nn.Module, generator: torch.Generator, device: torch.device | str | None = None) -> nn.Module:
    """Fills every parameter and buffer of ``module`` in place; fast enough for a full-size model on a GPU.

    Linear and convolution weights are N(0, 0.64 / fan_in), norm weights 1 + 0.2 n, biases and tables 0.3 n. What a
    released file holds as constants (resampling filters, Fourier and mel bases) gets its true values.

    Args:
        module: any model of this package; tensors on the meta device are allocated first.
        generator: lives on the device that is filled.
        device: where meta tensors are allocated; None: the generator's device.

    Returns:
        The same module.
    """
    if any(tensor.is_meta for tensor in _tensors(module)):
        module.to_empty(device=device or generator.device)
    seen: set[int] = set()
    with torch.no_grad():
        for owner in module.modules():
            own = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
            for name, tensor in own:
                if id(tensor) not in seen:  # tied weights are drawn once
                    seen.add(id(tensor))
                    _fill(owner, name, tensor, generator)
    return module


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _fill(owner: nn.Module, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if constant := _CONSTANTS.get(name):
        tensor.copy_(constant(tuple(tensor.shape)))
    elif name == "std-of-means":
        tensor.normal_(0.0, NORM_STD, generator=generator).exp_()
    elif name == "mean-of-means":
        tensor.normal_(0.0, NORM_STD, generator=generator)
    elif name == "learnable_registers":
        tensor.normal_(generator=generator)
    elif name == "weight" and tensor.ndim > 1:
        tensor.normal_(0.0, LINEAR_GAIN / math.sqrt(_fan_in(owner, tensor)), generator=generator)
    elif name == "weight":
        tensor.normal_(1.0, NORM_STD, generator=generator)
    else:
        tensor.normal_(0.0, TABLE_STD, generator=generator)


def _fan_in(owner: nn.Module, weight: Tensor) -> float:
    """How many products add up to one output of the layer."""
    taps = math.prod(weight.shape[2:])
    if isinstance(owner, nn.ConvTranspose1d):  # [in, out, taps]; each output sees one tap in every `stride`
        return weight.shape[0] * taps / owner.stride[0]
    return weight.shape[1] * taps


def _fourier_basis(shape: tuple[int, ...]) -> Tensor:
    """Hann-windowed DFT as a convolution kernel, (2 * bins, 1, n): first the real rows, then the imaginary ones."""
    bins, length = shape[0] // 2, shape[-1]
    window = torch.hann_window(length, dtype=torch.float64)
    angle = -2 * math.pi / length * torch.outer(torch.arange(bins, dtype=torch.float64), torch.arange(length))
    return torch.cat([angle.cos() * window, angle.sin() * window]).reshape(shape).float()


def _mel_basis(shape: tuple[int, ...]) -> Tensor:
    mels, bins = shape
    return mel_filterbank(BWE_SAMPLE_RATE, 2 * (bins - 1), mels, 0.0, BWE_SAMPLE_RATE / 2)


def _low_pass(shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(kaiser_sinc_taps(shape[-1], CUTOFF, HALF_WIDTH)).expand(shape)


def _binomial_blur(shape: tuple[int, ...]) -> Tensor:
    """The 5x5 blur of the rational upsampler, unit sum."""
    row = torch.tensor([math.comb(shape[-1] - 1, k) for k in range(shape[-1])], dtype=torch.float64)
    row /= row.sum()
    return torch.outer(row, row).float().expand(shape)


_CONSTANTS: Mapping[str, Callable[[tuple[int, ...]], Tensor]] = {
    "filter": _low_pass,
    "kernel": _binomial_blur,
    "forward_basis": _fourier_basis,
    "inverse_basis": _fourier_basis,  # stored by official files, read by nobody
    "mel_basis": _mel_basis,
}
