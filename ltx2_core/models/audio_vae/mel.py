"""Waveform to the log-mel spectrogram that the audio encoder was trained on (docs/model.md 4.7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import SettingError
from .config import AudioVAEConfig

LOG_FLOOR = 1e-5

# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, then 27 mels per factor of 6.4.
_HZ_PER_MEL = 200.0 / 3.0
_LINEAR_MELS = 15.0
_LINEAR_HZ = _LINEAR_MELS * _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27.0


def waveform_to_mel(waveform: Tensor, config: AudioVAEConfig) -> Tensor:
    """Log-magnitude mel spectrogram of a clip.

    Args:
        waveform: (B, in_channels, N) in [-1, 1], already at ``config.sampling_rate``.

    Returns:
        (B, in_channels, N // hop_length + 1, mel_bins) float32, natural logarithm of amplitudes floored at 1e-5.

    Raises:
        SettingError: the clip has another number of channels, or is shorter than half an analysis window.
    """
    if waveform.ndim != 3 or waveform.shape[1] != config.in_channels:
        wanted = f"must have the shape (B, {config.in_channels}, samples)"
        fix = f"Give a clip with {config.in_channels} channels; repeat the channel of a mono clip."
        raise SettingError("audio", tuple(waveform.shape), wanted, fix)
    if waveform.shape[2] <= config.n_fft // 2:
        fix = f"Give at least {(config.n_fft // 2 + 1) / config.sampling_rate:.3f} seconds of audio."
        raise SettingError("audio", f"{waveform.shape[2]} samples", "is too short for one analysis window", fix)
    spectrum = torch.stft(
        waveform.float().flatten(0, 1),
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        window=torch.hann_window(config.n_fft, device=waveform.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    bank = mel_filterbank(
        config.sampling_rate, config.n_fft, config.mel_bins, config.mel_min_hz, config.mel_max_hz, waveform.device
    )
    mel: Tensor = (bank @ spectrum.abs()).clamp_(min=LOG_FLOOR).log_()
    return mel.transpose(1, 2).reshape(*waveform.shape[:2], -1, config.mel_bins)


def mel_filterbank(
    sampling_rate: int,
    n_fft: int,
    bands: int,
    min_hz: float,
    max_hz: float,
    device: torch.device | None = None,
) -> Tensor:
    """Triangular filters, evenly spaced on Slaney's mel scale, each of unit area over frequency in Hz.

    Returns:
        (bands, n_fft // 2 + 1) float32; row b rises from edge b to edge b + 1 and falls to edge b + 2.
    """
    # In float64 on the CPU, so that every device gets the same bank, also while a default device is set.
    f64, cpu = torch.float64, torch.device("cpu")
    mels = torch.linspace(hz_to_mel(min_hz), hz_to_mel(max_hz), bands + 2, dtype=f64, device=cpu)
    edges = torch.tensor([mel_to_hz(m) for m in mels.tolist()], dtype=f64, device=cpu)
    frequencies = torch.arange(n_fft // 2 + 1, dtype=f64, device=cpu) * (sampling_rate / n_fft)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre))
    return (triangles.clamp(min=0.0) * (2.0 / (high - low))).to(device=device, dtype=torch.float32)


def hz_to_mel(frequency: float) -> float:
    if frequency < _LINEAR_HZ:
        return frequency / _HZ_PER_MEL
    return _LINEAR_MELS + math.log(frequency / _LINEAR_HZ) / _LOG_STEP


def mel_to_hz(mel: float) -> float:
    if mel < _LINEAR_MELS:
        return mel * _HZ_PER_MEL
    return _LINEAR_HZ * math.exp((mel - _LINEAR_MELS) * _LOG_STEP)
