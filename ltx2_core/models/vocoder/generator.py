"""Spectrogram to waveform: HiFi-GAN (Kong et al., 2020) in 2.0, BigVGAN (Lee et al., 2023) in 2.3."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.convolution import channels_last, unbiased
from .activation import AntiAliasedSnake
from .config import STEREO, BlockKind, FinalActivation, GeneratorConfig

EDGE_KERNEL = 7  # of the first and the last convolution; the metadata has no key for it
LEAKY_SLOPE = 0.1
FINAL_LEAKY_SLOPE = 0.01  # the framework's default, not the slope of the blocks (docs/model.md 7.3)


class LeakyBlock(nn.Module):
    """HiFi-GAN's residual block: per dilation two convolutions behind leaky ReLUs, with a skip."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_conv(channels, kernel_size, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_conv(channels, kernel_size) for _ in dilations)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """(B, C, T) -> the same shape; nothing is left to be added."""
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            x = x + conv2(F.leaky_relu(conv1(F.leaky_relu(x, LEAKY_SLOPE)), LEAKY_SLOPE))
        return x, None


class AMPBlock(nn.Module):
    """BigVGAN's residual block: the same with anti-aliased SnakeBeta activations."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_conv(channels, kernel_size, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_conv(channels, kernel_size) for _ in dilations)
        self.acts1 = nn.ModuleList(AntiAliasedSnake(channels) for _ in dilations)
        self.acts2 = nn.ModuleList(AntiAliasedSnake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, T) -> the same shape, and a bias (C,) where one is still to be added."""
        total: Tensor | None = None
        for act1, conv1, act2, conv2 in zip(self.acts1, self.convs1, self.acts2, self.convs2, strict=True):
            hidden, bias = unbiased(conv1, act1(x, total))
            hidden, bias = unbiased(conv2, act2(hidden, bias))
            x, total = x + hidden, _sum(total, bias)
        return x, total


class Generator(nn.Module):
    """Transposed convolutions, each followed by the mean of parallel residual blocks (docs/model.md 7.3, 7.4).

    State-dict keys are those of a 2.0 checkpoint after ``vocoder.``. Float32 is the precision to run it in: over the
    full 2.3 vocoder with random weights, bfloat16 is off by 4% (relative L2) and saves nothing that a user notices;
    float32 convolutions in TF32, the default on CUDA, are off by 0.2%, exact ones by 4e-6 (66 and 97 ms for 5 s of
    sound on one H200).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.sampling_rate = config.sampling_rate
        amp = config.block is BlockKind.AMP
        block: type[LeakyBlock] | type[AMPBlock] = AMPBlock if amp else LeakyBlock
        widths = [config.initial_channels // 2**stage for stage in range(len(config.upsample_rates) + 1)]
        stages = zip(widths, widths[1:], config.upsample_rates, config.upsample_kernels, strict=False)

        edge = EDGE_KERNEL // 2
        self.conv_pre = nn.Conv1d(STEREO * config.mel_bins, widths[0], EDGE_KERNEL, padding=edge)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(a, b, kernel, stride=rate, padding=(kernel - rate) // 2) for a, b, rate, kernel in stages
        )
        self.resblocks = nn.ModuleList(
            block(width, kernel, dilations)
            for width in widths[1:]
            for kernel, dilations in zip(config.block_kernels, config.block_dilations, strict=True)
        )
        self.act_post: nn.Module = AntiAliasedSnake(widths[-1]) if amp else nn.LeakyReLU(FINAL_LEAKY_SLOPE)
        self.conv_post = nn.Conv1d(widths[-1], STEREO, EDGE_KERNEL, padding=edge, bias=config.final_bias)

    def forward(self, mel: Tensor) -> Tensor:
        """Synthesises a stereo waveform.

        Args:
            mel: log-mel spectrogram (B, 2, frames, mel_bins).

        Returns:
            (B, 2, frames * samples_per_frame) float32; in [-1, 1] unless the config has no final activation.

        Raises:
            ValueError: the spectrogram is not stereo or has another number of mel bands.
        """
        if mel.ndim != 4 or (mel.shape[1], mel.shape[3]) != (STEREO, self.config.mel_bins):
            raise ValueError(f"mel must be (B, {STEREO}, frames, {self.config.mel_bins}), got {tuple(mel.shape)}")
        # (B, S, T, M) -> (B, S * M, T)
        x = self.conv_pre(mel.to(self.conv_pre.weight.dtype).transpose(2, 3).flatten(1, 2))
        for stage, upsample in enumerate(self.ups):
            if self.config.block is BlockKind.LEAKY:
                x = F.leaky_relu(x, LEAKY_SLOPE)
            x = self._blocks(stage, upsample(x))
        return self._bounded(self.conv_post(self.act_post(x)).float())

    def _blocks(self, stage: int, x: Tensor) -> Tensor:
        """The mean of the stage's residual blocks."""
        count = len(self.config.block_kernels)
        if self.config.block is BlockKind.AMP:
            x = channels_last(x)
        # Summed one at a time: the activations at the full rate are the vocoder's largest tensors.
        outs: Iterator[tuple[Tensor, Tensor | None]] = (
            block(x) for block in list(self.resblocks)[stage * count : (stage + 1) * count]
        )
        total, bias = next(outs)
        for out, more in outs:
            total, bias = total.add_(out), _sum(bias, more)
        if bias is not None:
            total.add_(bias.unsqueeze(-1))
        return total.div_(count)

    def _bounded(self, waveform: Tensor) -> Tensor:
        if self.config.final_activation is FinalActivation.TANH:
            return _still_infinite(torch.tanh(waveform), waveform)
        if self.config.final_activation is FinalActivation.CLAMP:
            return bounded(waveform)
        return waveform


def bounded(waveform: Tensor) -> Tensor:
    """In [-1, 1], and NaN where it was infinite: a damaged file shall not pass as full volume."""
    return _still_infinite(waveform.clamp(-1.0, 1.0), waveform)


def _still_infinite(limited: Tensor, waveform: Tensor) -> Tensor:
    return limited.add_(waveform - waveform)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first + second


def _conv(channels: int, kernel_size: int, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding=dilation * (kernel_size - 1) // 2)
