"""Audio autoencoder: log-mel spectrograms to latents and back."""

from .config import AudioVAEConfig
from .decoder import AudioDecoder
from .encoder import AudioEncoder
from .mel import mel_filterbank, waveform_to_mel

__all__ = ["AudioDecoder", "AudioEncoder", "AudioVAEConfig", "mel_filterbank", "waveform_to_mel"]
