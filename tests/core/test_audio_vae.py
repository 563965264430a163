from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import ConfigError, SettingError
from ltx2_two_stage.ltx2_core.models.audio_vae import (
    AudioDecoder,
    AudioEncoder,
    AudioVAEConfig,
    mel_filterbank,
    waveform_to_mel,
)
from ltx2_two_stage.ltx2_core.models.audio_vae.mel import hz_to_mel, mel_to_hz
from ltx2_two_stage.ltx2_core.types import AudioGeometry
from torch import nn

RELEASED: dict[str, Any] = {
    "audio_vae": {
        "model": {
            "params": {
                "ddconfig": {
                    "double_z": True,
                    "mel_bins": 64,
                    "z_channels": 8,
                    "resolution": 256,
                    "downsample_time": False,
                    "in_channels": 2,
                    "out_ch": 2,
                    "ch": 128,
                    "ch_mult": [1, 2, 4],
                    "num_res_blocks": 2,
                    "attn_resolutions": [],
                    "dropout": 0.0,
                    "mid_block_add_attention": False,
                    "norm_type": "pixel",
                    "causality_axis": "height",
                },
                "sampling_rate": 16000,
            }
        },
        "preprocessing": {
            "audio": {"sampling_rate": 16000},
            "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
            "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
        },
    }
}
DDCONFIG = ("model", "params", "ddconfig")


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The released metadata with one key of ``audio_vae`` set, or removed when the value is ``...``."""
    config = copy.deepcopy(RELEASED)
    node = config["audio_vae"]
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return config


def tiny_config(**network: Any) -> AudioVAEConfig:
    config = copy.deepcopy(RELEASED)
    sizes = {"ch": 8, "num_res_blocks": 1, "z_channels": 3, "mel_bins": 16, **network}
    config["audio_vae"]["model"]["params"]["ddconfig"].update(sizes)
    config["audio_vae"]["preprocessing"]["mel"]["n_mel_channels"] = sizes["mel_bins"]
    return AudioVAEConfig.from_metadata(config)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Non-degenerate weights: convolutions keep the variance, biases and statistics are far from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("weight"):
                tensor.normal_(0.0, math.sqrt(0.64 / tensor[0].numel()), generator=generator)
            elif name.endswith("std-of-means"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            else:
                tensor.normal_(0.0, 0.3, generator=generator)
    return module.eval().requires_grad_(False)


def test_released_metadata() -> None:
    config = AudioVAEConfig.from_metadata(RELEASED)
    assert config.geometry == AudioGeometry(16000, 160, 4, 8, 16)
    assert config.geometry.frames_per_second == 25.0
    assert (config.n_fft, config.mel_min_hz, config.mel_max_hz) == (1024, 0.0, 8000.0)


@pytest.mark.parametrize(
    ("kind", "parameters"), [(AudioEncoder, 21_333_008), (AudioDecoder, 31_915_138)], ids=["encoder", "decoder"]
)
def test_parameter_count_of_the_released_model(kind: type[nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        module = kind(AudioVAEConfig.from_metadata(RELEASED))
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert {name: b.shape for name, b in module.named_buffers()} == {
        "per_channel_statistics.mean-of-means": (128,),
        "per_channel_statistics.std-of-means": (128,),
    }


def test_official_key_names() -> None:
    with torch.device("meta"):
        encoder = set(AudioEncoder(AudioVAEConfig.from_metadata(RELEASED)).state_dict())
        decoder = set(AudioDecoder(AudioVAEConfig.from_metadata(RELEASED)).state_dict())
    assert {
        "conv_in.conv.weight",
        "down.0.block.1.conv2.conv.bias",
        "down.1.block.0.nin_shortcut.conv.weight",
        "down.1.downsample.conv.weight",
        "mid.block_2.conv1.conv.weight",
        "conv_out.conv.bias",
    } <= encoder
    assert {
        "up.2.block.2.conv1.conv.weight",
        "up.1.upsample.conv.conv.weight",
        "up.0.block.0.nin_shortcut.conv.bias",
    } <= (decoder)
    # No attention, no way down from the last level, none up from the first.
    assert not any("attn" in key or "down.2.downsample" in key for key in encoder)
    assert not any("attn" in key or "up.0.upsample" in key for key in decoder)


@pytest.mark.parametrize(("latent_frames", "mel_frames"), [(1, 1), (2, 5), (126, 501)])
def test_lengths_of_the_released_model(latent_frames: int, mel_frames: int) -> None:
    config = AudioVAEConfig.from_metadata(RELEASED)
    with torch.device("meta"):
        mel = AudioDecoder(config).decode(torch.empty(1, 8, latent_frames, 16))
        assert mel.shape == (1, 2, mel_frames, 64)
        assert AudioEncoder(config).encode(mel).shape == (1, 8, latent_frames, 16)


@pytest.mark.parametrize(("mel_frames", "latent_frames"), [(4, 1), (5, 2), (45, 12), (48, 12), (49, 13)])
def test_encoded_length_rounds_up(mel_frames: int, latent_frames: int) -> None:
    encoder = AudioEncoder(tiny_config())
    assert encoder.encode(torch.zeros(1, 2, mel_frames, 16)).shape == (1, 3, latent_frames, 4)


def test_no_output_sees_the_future() -> None:
    config = tiny_config()
    encoder, decoder = randomise(AudioEncoder(config)), randomise(AudioDecoder(config))
    mel, latent = torch.randn(1, 2, 17, 16), torch.randn(1, 3, 5, 4)
    later_mel, later_latent = mel.clone(), latent.clone()
    later_mel[:, :, 9:] += 1.0  # latent frame t ends with spectrogram frame 4 t
    later_latent[:, :, 3:] += 1.0  # spectrogram frames 4 t - 3 to 4 t come from latent frame t
    before, after = encoder(mel), encoder(later_mel)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3], after[:, :, 3])
    before, after = decoder(latent), decoder(later_latent)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9], after[:, :, 9])


def test_statistics_belong_to_packed_features() -> None:
    statistics = randomise(AudioDecoder(tiny_config())).get_submodule("per_channel_statistics")
    latent = torch.randn(2, 3, 5, 4)
    raw = statistics.denormalise(latent)  # type: ignore[operator]
    mean, std = statistics.get_buffer("mean-of-means"), statistics.get_buffer("std-of-means")
    for channel in range(3):
        for band in range(4):
            feature = channel * 4 + band
            expected = latent[:, channel, :, band] * std[feature] + mean[feature]
            torch.testing.assert_close(raw[:, channel, :, band], expected)
    # One multiplication and one division apart.
    torch.testing.assert_close(statistics.normalise(raw), latent, atol=1e-6, rtol=0)  # type: ignore[operator]


def test_meta_build_loads_strictly_and_leaves_nothing_on_meta() -> None:
    config = tiny_config()
    for kind in (AudioEncoder, AudioDecoder):
        source = randomise(kind(config))
        with torch.device("meta"):
            module = kind(config)
        module.load_state_dict(source.state_dict(), strict=True, assign=True)
        assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
        inputs = torch.randn(1, 2, 9, 16) if kind is AudioEncoder else torch.randn(1, 3, 3, 4)
        assert torch.equal(module(inputs), source(inputs))


def test_bfloat16_weights() -> None:
    config = tiny_config()
    encoder, decoder = randomise(AudioEncoder(config)), randomise(AudioDecoder(config))
    mel, latent = torch.randn(1, 2, 17, 16), torch.randn(1, 3, 5, 4)
    for module, inputs in ((encoder, mel), (decoder, latent)):
        exact = module(inputs)
        rounded = module.bfloat16()(inputs)
        assert rounded.dtype == torch.bfloat16
        # About ten layers of 8-bit mantissas in a row: 2^-9 each, in random directions, gives about 1%.
        assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ((*DDCONFIG, "attn_resolutions"), [16], "attn_resolutions"),
        ((*DDCONFIG, "attn_resolutions"), ..., "attn_resolutions"),
        ((*DDCONFIG, "mid_block_add_attention"), True, "mid_block_add_attention"),
        ((*DDCONFIG, "norm_type"), "group", "norm_type"),
        ((*DDCONFIG, "causality_axis"), "width", "causality_axis"),
        ((*DDCONFIG, "downsample_time"), True, "downsample_time"),
        ((*DDCONFIG, "ch"), ..., "ch"),
        ((*DDCONFIG, "z_channels"), "8", "z_channels"),
        ((*DDCONFIG, "ch_mult"), [], "ch_mult"),
        ((*DDCONFIG, "mel_bins"), 66, "mel_bins"),
        ((*DDCONFIG, "mel_bins"), 32, "n_mel_channels"),
        (("model", "params", "sampling_rate"), ..., "sampling_rate"),
        (("preprocessing", "stft", "hop_length"), ..., "hop_length"),
        (("preprocessing", "stft", "win_length"), 512, "win_length"),
        (("preprocessing", "stft", "causal"), False, "causal"),
        (("preprocessing", "mel", "mel_fmax"), 9000, "mel_fmax"),
        (("preprocessing",), ..., "preprocessing"),
    ],
)
def test_unsupported_metadata_names_the_key(path: tuple[str, ...], value: Any, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AudioVAEConfig.from_metadata(changed(path, value))
    assert caught.value.key.startswith("audio_vae.") and caught.value.key.endswith(key)


def test_mel_bins_may_come_from_the_spectrogram_section() -> None:
    assert AudioVAEConfig.from_metadata(changed((*DDCONFIG, "mel_bins"), ...)).mel_bins == 64


def test_wrong_shapes_are_refused() -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match=r"latent must be \(B, 3, T, 4\)"):
        AudioDecoder(config).decode(torch.zeros(1, 3, 5, 16))
    with pytest.raises(ValueError, match=r"mel must be \(B, 2, frames, 16\)"):
        AudioEncoder(config).encode(torch.zeros(1, 1, 5, 16))


# Published values of the scale: librosa's documentation of hz_to_mel, mel_to_hz and mel_frequencies(40).
@pytest.mark.parametrize(("hz", "mel"), [(60, 0.9), (110, 1.65), (220, 3.3), (440, 6.6), (1000, 15.0), (6400, 42.0)])
def test_slaney_scale(hz: float, mel: float) -> None:
    assert hz_to_mel(hz) == pytest.approx(mel, abs=1e-12)
    assert mel_to_hz(mel) == pytest.approx(hz, abs=1e-9)


def test_slaney_band_centres() -> None:
    published = {0: 0.0, 1: 85.317, 11: 938.49, 12: 1024.856, 13: 1119.114, 38: 10096.408, 39: 11025.0}
    top = hz_to_mel(11025.0)
    assert {i: round(mel_to_hz(top * i / 39), 3) for i in published} == published


def test_filterbank_properties() -> None:
    bank = mel_filterbank(16000, 1024, 64, 0.0, 8000.0).double()
    edges = torch.tensor([mel_to_hz(hz_to_mel(8000.0) * i / 65) for i in range(66)], dtype=torch.float64)
    frequencies = torch.arange(513, dtype=torch.float64) * (16000 / 1024)
    assert bank.shape == (64, 513) and (bank >= 0).all()
    for band in range(64):
        outside = (frequencies <= edges[band]) | (frequencies >= edges[band + 2])
        assert (bank[band][outside] == 0).all() and (bank[band][~outside] > 0).all()
    # Between two neighbouring centres the triangles of unit height add up to one (float32 bank: 2^-24 relative).
    heights = bank * (edges[2:] - edges[:-2])[:, None] / 2
    inner = (frequencies >= edges[1]) & (frequencies <= edges[64])
    torch.testing.assert_close(
        heights.sum(0)[inner], torch.ones(int(inner.sum()), dtype=torch.float64), atol=1e-6, rtol=0
    )
    # Unit area: the wide bands, which the 15.6 Hz grid samples well, integrate to one (trapezoid error below 1%).
    areas = bank[40:].sum(1) * (16000 / 1024)
    torch.testing.assert_close(areas, torch.ones_like(areas), atol=0.01, rtol=0)


@pytest.mark.parametrize("fft_bin", [40, 128, 300])
def test_spectrogram_of_a_sine_in_closed_form(fft_bin: int) -> None:
    config = AudioVAEConfig.from_metadata(RELEASED)
    amplitude, samples = 0.5, 16000
    time = torch.arange(samples, dtype=torch.float64) / config.sampling_rate
    sine = amplitude * torch.sin(2 * math.pi * fft_bin * config.sampling_rate / config.n_fft * time)
    clip = torch.stack([sine, torch.zeros_like(sine)])[None].float()
    mel = waveform_to_mel(clip, config)
    assert mel.shape == (1, 2, samples // 160 + 1, 64) and mel.dtype == torch.float32
    # A periodic Hann window turns a sine on a bin into three bins: A n / 4 on it, half of that on its neighbours.
    spectrum = torch.zeros(513, dtype=torch.float64)
    spectrum[fft_bin - 1 : fft_bin + 2] = amplitude * config.n_fft / 4 * torch.tensor([0.5, 1.0, 0.5])
    energy = mel_filterbank(16000, 1024, 64, 0.0, 8000.0).double() @ spectrum
    expected = energy.clamp(min=1e-5).log()
    inner = mel[0, 0, 8:-8].double()  # frames whose window does not touch the reflected edges
    loud = energy > 1e-2
    # Float32 samples and transform: 1e-6 of the peak, which is relative 1e-4 where the band has a hundredth of it.
    torch.testing.assert_close(inner[:, loud], expected[loud].expand(inner.shape[0], -1), atol=1e-4, rtol=0)
    assert (mel[0, 1] == math.log(1e-5)).all()


@pytest.mark.parametrize(("shape", "problem"), [((1, 1, 4000), "shape"), ((2, 4000), "shape"), ((1, 2, 512), "short")])
def test_unusable_clips_are_refused(shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        waveform_to_mel(torch.zeros(shape), AudioVAEConfig.from_metadata(RELEASED))
