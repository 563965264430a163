"""Bandwidth extension: 2.3's second generator, which adds what a 16 kHz waveform cannot hold (docs/model.md 7.4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import BandwidthConfig, VocoderConfig
from .generator import Generator, bounded

LOG_FLOOR = 1e-5

# The resampler of the skip path: a sinc under a Hann window, six zero crossings to each side.
SINC_ZEROS = 6
SINC_ROLLOFF = 0.99


class STFTBasis(nn.Module):
    """The Fourier bases that the checkpoint stores, (2 * (n_fft // 2 + 1), 1, n_fft): real rows, then imaginary ones.

    Only ``forward_basis`` is used; ``inverse_basis`` is there because the file has it, and files load strictly.
    """

    forward_basis: Tensor
    inverse_basis: Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        rows = 2 * (n_fft // 2 + 1)
        self.register_buffer("forward_basis", torch.zeros(rows, 1, n_fft))
        self.register_buffer("inverse_basis", torch.zeros(rows, 1, n_fft))


class CausalLogMel(nn.Module):
    """Log-mel spectrogram whose frames see no later sample, with the bases and the bank that the file stores."""

    mel_basis: Tensor

    def __init__(self, config: BandwidthConfig) -> None:
        super().__init__()
        self.n_fft, self.hop_length = config.n_fft, config.hop_length
        self.stft_fn = STFTBasis(config.n_fft)
        self.register_buffer("mel_basis", torch.zeros(config.generator.mel_bins, config.n_fft // 2 + 1))

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S, N) float32, N a multiple of the hop, to (B, S, N // hop, mel_bins) float32.

        A matrix product, not a convolution: CUDA convolutions round their inputs to TF32 by default, and that error
        would drown the quiet bins that the logarithm then magnifies.
        """
        frames = F.pad(waveform, (self.n_fft - self.hop_length, 0)).unfold(-1, self.n_fft, self.hop_length)
        spectrum = frames @ self.stft_fn.forward_basis.float().squeeze(1).T
        real, imaginary = spectrum.chunk(2, dim=-1)
        mel = torch.hypot(real, imaginary) @ self.mel_basis.float().T
        return mel.clamp_(min=LOG_FLOOR).log_()


class BandwidthExtendedVocoder(nn.Module):
    """Two generators: a waveform at the lower rate, then its resampled self plus a predicted residual.

    State-dict keys are those of a 2.3 checkpoint after removing ``vocoder.`` once.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        if config.bandwidth is None:
            raise ValueError("the config has no bandwidth extension; build a Generator instead")
        self.config = config.bandwidth
        self.sampling_rate = config.sampling_rate
        self.vocoder = Generator(config.generator)
        self.bwe_generator = Generator(config.bandwidth.generator)
        self.mel_stft = CausalLogMel(config.bandwidth)

    def forward(self, mel: Tensor) -> Tensor:
        """Synthesises a stereo waveform.

        Args:
            mel: log-mel spectrogram (B, 2, frames, mel_bins).

        Returns:
            (B, 2, frames * samples_per_frame * factor) float32 in [-1, 1].

        Raises:
            ValueError: the spectrogram is not stereo or has another number of mel bands.
        """
        waveform: Tensor = self.vocoder(mel)
        samples = waveform.shape[-1]
        waveform = F.pad(waveform, (0, -samples % self.config.hop_length))
        residual: Tensor = self.bwe_generator(self.mel_stft(waveform))
        extended = residual + resample(waveform, self.config.factor)
        return bounded(extended[..., : samples * self.config.factor])


def resample(waveform: Tensor, factor: int) -> Tensor:
    """Multiplies the rate of (B, S, N) by a whole factor, edges replicated.

    Every output phase is one short filter over the input, so the work is one convolution with ``factor`` outputs.
    """
    taps = resampling_taps(factor)
    reach = (len(taps) // factor) // 2
    # Tap i of the prototype belongs to phase i % factor; the surplus of the last phases is zero.
    padded = taps + (0.0,) * (-len(taps) % factor)
    phases = torch.tensor(padded, dtype=waveform.dtype, device=waveform.device).view(-1, factor).flip(0).T
    frames = F.pad(waveform, (reach, reach), mode="replicate").unfold(-1, phases.shape[1], 1)
    return (frames @ phases.T).flatten(-2)


def resampling_taps(factor: int) -> tuple[float, ...]:
    """The Hann-windowed sinc that interpolates by ``factor``: 43 taps for 3; not stored in any file."""
    width = math.ceil(SINC_ZEROS / SINC_ROLLOFF)
    taps = []
    for index in range(2 * width * factor + 1):
        time = (index / factor - width) * SINC_ROLLOFF
        window = math.cos(max(-SINC_ZEROS, min(SINC_ZEROS, time)) * math.pi / SINC_ZEROS / 2) ** 2
        sinc = math.sin(math.pi * time) / (math.pi * time) if time else 1.0
        taps.append(SINC_ROLLOFF * sinc * window)
    return tuple(taps)
