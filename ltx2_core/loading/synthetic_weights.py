"""Random weights under which every part of a model has an effect and no activation explodes (fact sheet 11.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

LINEAR_GAIN = 0.8  # of 1 / sqrt(fan_in): residual streams stay O(1) over 48 blocks
TABLE_STD = 0.3  # biases and modulation tables; zeros would hide index mistakes
NORM_STD = 0.2  # norm weights around 1, statistics around (0, 1)
BWE_SAMPLE_RATE = 16000.0  # Hz, input of the bandwidth extension


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


def kaiser_sinc_filter(taps: int = 12, cutoff: float = 0.25, half_width: float = 0.3) -> Tensor:
    """The low-pass of the 2x resamplers in the 2.3 vocoder, (taps,) float32 with unit sum (fact sheet 7.4)."""
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95  # Kaiser's design formula, in dB
    beta = 0.1102 * (attenuation - 8.7) if attenuation > 50 else 0.5842 * (attenuation - 21) ** 0.4
    if attenuation <= 50:
        beta += 0.07886 * (attenuation - 21)
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
    time = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    response = 2 * cutoff * torch.sinc(2 * cutoff * time) * window
    return (response / response.sum()).float()


def fourier_basis(shape: tuple[int, ...]) -> Tensor:
    """Hann-windowed DFT as a convolution kernel, (2 * bins, 1, n): first the real rows, then the imaginary ones."""
    bins, length = shape[0] // 2, shape[-1]
    window = torch.hann_window(length, dtype=torch.float64)
    angle = -2 * math.pi / length * torch.outer(torch.arange(bins, dtype=torch.float64), torch.arange(length))
    return torch.cat([angle.cos() * window, angle.sin() * window]).reshape(shape).float()


def mel_basis(shape: tuple[int, ...], rate: float = BWE_SAMPLE_RATE) -> Tensor:
    """Triangular filters of unit area on the mel scale, (mels, bins); every filter is positive somewhere."""
    mels, bins = shape
    hertz = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangle = torch.minimum((hertz - left) / (centre - left), (right - hertz) / (right - centre)).clamp_min(0)
    spacing = rate / 2 / (bins - 1)
    # Low filters are narrower than the grid of frequencies and may fall between two of its points.
    nearest = (1 - (hertz - centre).abs() / spacing).clamp_min(0)
    return (torch.where(triangle.sum(1, keepdim=True) > 0, triangle, nearest) * 2 / (right - left)).float()


def _filter(shape: tuple[int, ...]) -> Tensor:
    return kaiser_sinc_filter(shape[-1]).expand(shape)


def _binomial_blur(shape: tuple[int, ...]) -> Tensor:
    """The 5x5 blur of the rational upsampler, unit sum."""
    row = torch.tensor([math.comb(shape[-1] - 1, k) for k in range(shape[-1])], dtype=torch.float64)
    row /= row.sum()
    return torch.outer(row, row).float().expand(shape)


_CONSTANTS: Mapping[str, Callable[[tuple[int, ...]], Tensor]] = {
    "filter": _filter,
    "kernel": _binomial_blur,
    "forward_basis": fourier_basis,
    "inverse_basis": fourier_basis,  # stored by official files, read by nobody
    "mel_basis": mel_basis,
}
