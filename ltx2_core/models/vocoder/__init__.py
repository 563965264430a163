"""Vocoders: log-mel spectrograms to waveforms."""

from __future__ import annotations

from torch import nn

from .bandwidth import BandwidthExtendedVocoder
from .config import BandwidthConfig, GeneratorConfig, VocoderConfig
from .generator import Generator

__all__ = ["BandwidthConfig", "BandwidthExtendedVocoder", "Generator", "GeneratorConfig", "VocoderConfig"]
__all__ += ["build_vocoder"]


def build_vocoder(config: VocoderConfig) -> nn.Module:
    """The vocoder that a file holds; ``forward`` takes (B, 2, frames, mel_bins), ``sampling_rate`` is in Hz."""
    return Generator(config.generator) if config.bandwidth is None else BandwidthExtendedVocoder(config)
