"""What the ``vocoder`` section of a checkpoint's metadata says: flat in 2.0, ``vocoder`` and ``bwe`` within in 2.3."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..audio_vae.config import AudioVAEConfig
from ..config_reader import ConfigReader

STEREO = 2


class BlockKind(str, Enum):
    """Residual block of a generator; the values are the metadata's ``resblock``."""

    LEAKY = "1"  # HiFi-GAN: leaky ReLU
    AMP = "AMP1"  # BigVGAN: anti-aliased SnakeBeta


class FinalActivation(str, Enum):
    """What bounds a generator's waveform."""

    TANH = "tanh"
    CLAMP = "clamp"  # to [-1, 1]
    NONE = "none"


@dataclass(frozen=True)
class GeneratorConfig:
    """One spectrogram-to-waveform network (docs/model.md 7.3 and 7.4).

    Attributes:
        mel_bins: mel bands per channel of the stereo spectrogram.
        initial_channels: width before the first upsampling; every stage halves it.
        upsample_rates: factor of each stage.
        upsample_kernels: taps of each stage's transposed convolution.
        block: kind of the residual blocks.
        block_kernels: taps of the parallel residual blocks of a stage.
        block_dilations: dilations inside each of these blocks.
        final_activation: what bounds the waveform.
        final_bias: whether the last convolution has a bias.
        sampling_rate: of the waveform, in Hz.
    """

    mel_bins: int
    initial_channels: int
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    block: BlockKind
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    final_activation: FinalActivation
    final_bias: bool
    sampling_rate: int

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class BandwidthConfig:
    """The bandwidth extension behind a 2.3 vocoder (docs/model.md 7.4).

    Attributes:
        generator: network that predicts the residual at the higher rate.
        n_fft: samples under one window of the analysis between the stages.
        hop_length: samples between two of its frames.
        factor: output rate over input rate.
    """

    generator: GeneratorConfig
    n_fft: int
    hop_length: int
    factor: int


@dataclass(frozen=True)
class VocoderConfig:
    """A vocoder: a generator, and from 2.3 on a bandwidth extension behind it."""

    generator: GeneratorConfig
    bandwidth: BandwidthConfig | None = None

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> VocoderConfig:
        """Reads ``config["vocoder"]``, and the spectrogram's sizes from ``config["audio_vae"]``.

        Released files do not repeat the number of mel bands, nor 2.0's output rate, in the vocoder's own section; both
        follow from the audio VAE's. A file that holds a vocoder alone may state them as ``num_mels`` and
        ``output_sampling_rate``.

        Raises:
            ConfigError: a key is missing, is not supported, or contradicts another one.
        """
        section = ConfigReader.of(config, "vocoder")
        spectrogram = AudioVAEConfig.from_metadata(config) if "audio_vae" in config else None
        if "bwe" not in section:
            return cls(_flat_generator(section, spectrogram))
        bwe = section.child("bwe")
        return cls(_first_generator(section.child("vocoder"), bwe, spectrogram), _bandwidth(bwe))

    @property
    def sampling_rate(self) -> int:
        """Rate of the finished waveform, in Hz."""
        return (self.bandwidth.generator if self.bandwidth else self.generator).sampling_rate

    @property
    def samples_per_frame(self) -> int:
        """Samples of the finished waveform per frame of the audio VAE's spectrogram."""
        return self.generator.samples_per_frame * (self.bandwidth.factor if self.bandwidth else 1)


def _flat_generator(section: ConfigReader, spectrogram: AudioVAEConfig | None) -> GeneratorConfig:
    rate = _derived_rate(section, spectrogram)
    if rate is None or "output_sampling_rate" in section:
        stated = section.int("output_sampling_rate")
        if rate is not None and stated != rate:
            raise section.error("output_sampling_rate", f"does not follow from the spectrogram's rate ({rate:g} Hz)")
        rate = float(stated)
    if rate != int(rate):
        raise section.error("upsample_rates", f"give a broken sampling rate of {rate:g} Hz")
    # 2.0 files may lack the keys of the head: it has a bias, and ends in tanh (docs/model.md 1.3).
    return _generator(section, _spectrogram_bins(section, spectrogram), int(rate), final_bias=True, use_tanh=True)


def _first_generator(section: ConfigReader, bwe: ConfigReader, spectrogram: AudioVAEConfig | None) -> GeneratorConfig:
    section.require("resblock", BlockKind.AMP.value)
    rate = bwe.int("input_sampling_rate")
    derived = _derived_rate(section, spectrogram)
    if derived is not None and derived != rate:
        raise bwe.error("input_sampling_rate", f"does not follow from the spectrogram's rate ({derived:g} Hz)")
    return _generator(section, _spectrogram_bins(section, spectrogram), rate)


def _bandwidth(bwe: ConfigReader) -> BandwidthConfig:
    bwe.require("resblock", BlockKind.AMP.value)
    # The residual is added to the first waveform before anything bounds it.
    bwe.require("apply_final_activation", False, default=False)
    rate_in, rate_out = bwe.int("input_sampling_rate"), bwe.int("output_sampling_rate")
    if rate_out % rate_in:
        raise bwe.error("output_sampling_rate", f"must be a multiple of input_sampling_rate = {rate_in}")
    n_fft, hop = bwe.int("n_fft", minimum=2), bwe.int("hop_length")
    if bwe.int("win_size", n_fft) != n_fft:
        raise bwe.error("win_size", f"must equal n_fft = {n_fft}")
    if hop > n_fft:
        raise bwe.error("hop_length", f"must not exceed n_fft = {n_fft}")
    generator = _generator(bwe, bwe.int("num_mels"), rate_out, final=FinalActivation.NONE)
    factor = rate_out // rate_in
    if generator.samples_per_frame != hop * factor:
        raise bwe.error("upsample_rates", f"must multiply to hop_length * {factor} = {hop * factor}")
    return BandwidthConfig(generator, n_fft, hop, factor)


def _generator(
    section: ConfigReader,
    mel_bins: int,
    sampling_rate: int,
    final: FinalActivation | None = None,
    **defaults: bool,
) -> GeneratorConfig:
    section.require("stereo", True)
    block = BlockKind(section.str("resblock", choices=[kind.value for kind in BlockKind]))
    if block is BlockKind.AMP:
        section.require("activation", "snakebeta")
    else:
        # This block has no other activation and official code ignores the key, whose default there is "snake".
        section.str("activation", "leaky_relu", choices=("leaky_relu", "snake"))
    rates, kernels = section.ints("upsample_rates"), section.ints("upsample_kernel_sizes")
    if not rates or len(kernels) != len(rates):
        raise section.error("upsample_kernel_sizes", f"must list one size per upsample rate, {len(rates)} of them")
    if min(rates) < 1:
        raise section.error("upsample_rates", "must be positive")
    if any(excess < 0 or excess % 2 for excess in map(operator.sub, kernels, rates)):
        raise section.error("upsample_kernel_sizes", f"must each exceed its rate in {list(rates)} by an even number")
    channels = section.int("upsample_initial_channel")
    if channels % 2 ** len(rates):
        raise section.error("upsample_initial_channel", f"must be a multiple of {2 ** len(rates)}")
    block_kernels, block_dilations = section.ints("resblock_kernel_sizes"), _dilations(section)
    if not block_kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in block_kernels):
        raise section.error("resblock_kernel_sizes", "must be odd, or the blocks would change the length")
    if len(block_dilations) != len(block_kernels):
        raise section.error("resblock_dilation_sizes", "must have one list per entry of resblock_kernel_sizes")
    if final is None:
        final = _final_activation(section, defaults)
    else:
        section.bool("use_tanh_at_final", False)
    return GeneratorConfig(
        mel_bins=mel_bins,
        initial_channels=channels,
        upsample_rates=rates,
        upsample_kernels=kernels,
        block=block,
        block_kernels=block_kernels,
        block_dilations=block_dilations,
        final_activation=final,
        final_bias=_flag(section, "use_bias_at_final", defaults.get("final_bias")),
        sampling_rate=sampling_rate,
    )


def _final_activation(section: ConfigReader, defaults: Mapping[str, bool]) -> FinalActivation:
    # Absent in the first generator of 2.3, where it means true: the clamp between the stages matters when the waveform
    # saturates (docs/model.md 7.4).
    if not section.bool("apply_final_activation", True):
        return FinalActivation.NONE
    use_tanh = _flag(section, "use_tanh_at_final", defaults.get("use_tanh"))
    return FinalActivation.TANH if use_tanh else FinalActivation.CLAMP


def _flag(section: ConfigReader, key: str, default: bool | None) -> bool:
    return section.bool(key) if default is None else section.bool(key, default)


def _dilations(section: ConfigReader) -> tuple[tuple[int, ...], ...]:
    key = "resblock_dilation_sizes"
    rows = section.entries(key, "lists")
    reader = ConfigReader(f"{section.section}.{key}", {str(i): row for i, row in enumerate(rows)})
    dilations = tuple(reader.ints(str(i)) for i in range(len(rows)))
    if any(not row or min(row) < 1 for row in dilations):
        raise section.error(key, "must hold positive whole numbers")
    return dilations


def _spectrogram_bins(section: ConfigReader, spectrogram: AudioVAEConfig | None) -> int:
    if spectrogram is None:
        return section.int("num_mels")
    if section.int("num_mels", spectrogram.mel_bins) != spectrogram.mel_bins:
        raise section.error("num_mels", f"differs from the audio VAE's {spectrogram.mel_bins} mel bands")
    if spectrogram.out_channels != STEREO:
        raise section.error("stereo", f"contradicts the audio VAE's {spectrogram.out_channels} output channels")
    return spectrogram.mel_bins


def _derived_rate(section: ConfigReader, spectrogram: AudioVAEConfig | None) -> float | None:
    if spectrogram is None:
        return None
    return spectrogram.sampling_rate / spectrogram.hop_length * math.prod(section.ints("upsample_rates"))
