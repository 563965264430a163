"""What the ``audio_vae`` section of a checkpoint's metadata says about the audio autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...types import AudioGeometry
from ..config_reader import ConfigReader
from ..counts import Count

_RES_BLOCKS = "audio_vae.model.params.ddconfig.num_res_blocks"


@dataclass(frozen=True)
class AudioVAEConfig:
    """Sizes of the audio autoencoder and of the log-mel spectrogram that it works on (docs/model.md 1.3 and 7.2).

    Attributes:
        base_channels: width of the outermost level (``ch``).
        multipliers: width of each level as a multiple of ``base_channels``, outermost first (``ch_mult``).
        res_blocks: residual blocks per encoder level; the decoder has one more per level.
        in_channels: channels of the encoder's spectrogram, 2 for stereo.
        out_channels: channels of the decoder's spectrogram.
        latent_channels: channels of the latent (``z_channels``).
        double_z: whether the encoder also predicts log-variances, which inference ignores.
        mel_bins: mel bands of the spectrogram.
        sampling_rate: rate in Hz that spectrograms are taken at.
        hop_length: samples between two spectrogram frames.
        n_fft: samples under one analysis window.
        mel_min_hz: lower edge of the lowest mel band.
        mel_max_hz: upper edge of the highest mel band.
    """

    base_channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    in_channels: int
    out_channels: int
    latent_channels: int
    double_z: bool
    mel_bins: int
    sampling_rate: int
    hop_length: int
    n_fft: int
    mel_min_hz: float
    mel_max_hz: float

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> AudioVAEConfig:
        """Reads ``config["audio_vae"]``.

        Raises:
            ConfigError: a key is missing, or asks for something that no released LTX-2 file has.
        """
        section = ConfigReader.of(config, "audio_vae")
        params = section.child("model").child("params")
        network = params.child("ddconfig")
        preprocessing = section.child("preprocessing")
        stft = preprocessing.child("stft")
        mel = preprocessing.child("mel") if "mel" in preprocessing else ConfigReader(f"{preprocessing.section}.mel", {})
        _require_supported(network, stft)

        multipliers = network.ints("ch_mult")
        if not multipliers or min(multipliers) < 1:
            raise network.error("ch_mult", "must list at least one positive multiple")
        # The official readers look for the band count in the network's keys first, then in the spectrogram's.
        mel_bins = network.int("mel_bins") if "mel_bins" in network else mel.int("n_mel_channels")
        downsample = 2 ** (len(multipliers) - 1)
        if mel_bins % downsample:
            raise network.error("mel_bins", f"must be a multiple of {downsample}, by which the encoder shrinks it")
        if mel.int("n_mel_channels", mel_bins) != mel_bins:
            raise mel.error("n_mel_channels", f"differs from {network.section}.mel_bins = {mel_bins}")

        n_fft = stft.int("filter_length", minimum=2)
        if stft.int("win_length", n_fft) != n_fft:
            raise stft.error("win_length", f"must equal filter_length = {n_fft}")
        sampling_rate = params.int("sampling_rate")
        mel_min_hz, mel_max_hz = mel.float("mel_fmin", 0.0), mel.float("mel_fmax", sampling_rate / 2)
        if not 0 <= mel_min_hz < mel_max_hz <= sampling_rate / 2:
            raise mel.error("mel_fmax", f"must lie above mel_fmin = {mel_min_hz} and at most at {sampling_rate / 2} Hz")
        return cls(
            base_channels=network.int("ch"),
            multipliers=multipliers,
            res_blocks=network.int("num_res_blocks"),
            in_channels=network.int("in_channels"),
            out_channels=network.int("out_ch"),
            latent_channels=network.int("z_channels"),
            double_z=network.bool("double_z"),
            mel_bins=mel_bins,
            sampling_rate=sampling_rate,
            hop_length=stft.int("hop_length"),
            n_fft=n_fft,
            mel_min_hz=mel_min_hz,
            mel_max_hz=mel_max_hz,
        )

    @property
    def encoder_counts(self) -> tuple[Count, ...]:
        return (Count(_RES_BLOCKS, self.res_blocks, "down.0.block"),)

    @property
    def decoder_counts(self) -> tuple[Count, ...]:
        return (Count(_RES_BLOCKS, self.res_blocks, "up.0.block", more=1),)

    @property
    def downsample(self) -> int:
        """Spectrogram frames, and mel bands, per latent cell."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def latent_mel_bins(self) -> int:
        return self.mel_bins // self.downsample

    @property
    def geometry(self) -> AudioGeometry:
        return AudioGeometry(
            sampling_rate=self.sampling_rate,
            hop_length=self.hop_length,
            downsample=self.downsample,
            channels=self.latent_channels,
            mel_bins=self.latent_mel_bins,
        )


def _require_supported(network: ConfigReader, stft: ConfigReader) -> None:
    network.require("norm_type", "pixel")
    network.require("causality_axis", "height")
    network.require("attn_resolutions", [])
    network.require("mid_block_add_attention", False)
    network.require("resamp_with_conv", True, default=True)
    network.require("downsample_time", False, default=False)
    # Says the same as causality_axis, for the timestamps of the latent frames; files without it mean true.
    stft.require("causal", True, default=True)
