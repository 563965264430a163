from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import ConfigError
from ltx2_two_stage.ltx2_core.kernels.snake import doubled_rate, halved_rate, snake
from ltx2_two_stage.ltx2_core.models.vocoder import BandwidthExtendedVocoder, Generator, VocoderConfig, build_vocoder
from ltx2_two_stage.ltx2_core.models.vocoder.activation import SNAKE_EPS, AntiAliasedSnake, LowPass, kaiser_sinc_taps
from ltx2_two_stage.ltx2_core.models.vocoder.bandwidth import resample, resampling_taps
from ltx2_two_stage.ltx2_core.models.vocoder.config import FinalActivation
from torch import Tensor, nn

AUDIO_VAE: dict[str, Any] = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 128,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160}},
}
BLOCKS: dict[str, Any] = {
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
}
AMP: dict[str, Any] = {
    **BLOCKS,
    "resblock": "AMP1",
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}
RELEASED: dict[str, dict[str, Any]] = {
    # Without the keys that 2.0 files may lack.
    "2.0": {
        "audio_vae": AUDIO_VAE,
        "vocoder": {
            **BLOCKS,
            "resblock": "1",
            "upsample_initial_channel": 1024,
            "upsample_rates": [6, 5, 2, 2, 2],
            "upsample_kernel_sizes": [16, 15, 8, 4, 4],
        },
    },
    "2.3": {
        "audio_vae": AUDIO_VAE,
        "vocoder": {
            "vocoder": {
                **AMP,
                "upsample_initial_channel": 1536,
                "upsample_rates": [5, 2, 2, 2, 2, 2],
                "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
            },
            "bwe": {
                **AMP,
                "upsample_initial_channel": 512,
                "upsample_rates": [6, 5, 2, 2, 2],
                "upsample_kernel_sizes": [12, 11, 4, 4, 4],
                "apply_final_activation": False,
                "input_sampling_rate": 16000,
                "output_sampling_rate": 48000,
                "hop_length": 80,
                "n_fft": 512,
                "win_size": 512,
                "num_mels": 64,
            },
        },
    },
}


def changed(variant: str, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Released metadata with one key of ``vocoder`` set, or removed when the value is ``...``."""
    config = copy.deepcopy(RELEASED[variant])
    node = config["vocoder"]
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return config


def tiny_config(variant: str) -> VocoderConfig:
    """The released topology, narrow, with fewer stages and 8 mel bands; 20 Hz of spectrogram frames."""
    blocks = {"resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 2]], "num_mels": 8}
    config = {key: value for key, value in copy.deepcopy(RELEASED[variant]).items() if key != "audio_vae"}
    if variant == "2.0":
        sizes = {"upsample_initial_channel": 16, "upsample_rates": [3, 2], "upsample_kernel_sizes": [7, 4]}
        config["vocoder"].update(blocks, **sizes, output_sampling_rate=120)
    else:
        sizes = {"upsample_initial_channel": 16, "upsample_rates": [5, 2], "upsample_kernel_sizes": [11, 4]}
        config["vocoder"]["vocoder"].update(blocks, **sizes)
        extension = {"input_sampling_rate": 200, "output_sampling_rate": 600, "hop_length": 4}
        extension |= {"n_fft": 16, "win_size": 16, "upsample_rates": [6, 2], "upsample_kernel_sizes": [12, 4]}
        config["vocoder"]["bwe"].update(blocks, upsample_initial_channel=8, **extension)
    return VocoderConfig.from_metadata(config)


def randomise(module: nn.Module, seed: int = 0, loudness: float = 1.0) -> nn.Module:
    """Non-degenerate weights, a real Fourier basis under a Hann window and a positive mel bank (docs/model.md 11.2)."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("forward_basis"):
            tensor.copy_(fourier_basis(tensor.shape[-1]))
        elif name.endswith("mel_basis"):
            tensor.uniform_(0.0, 0.2, generator=generator)
        elif name.endswith("filter"):
            continue
        elif name.endswith("weight"):
            tensor.normal_(0.0, math.sqrt(0.64 / tensor[0].numel()), generator=generator)
            if "conv_post" in name:
                tensor.mul_(loudness)
        else:
            tensor.normal_(0.0, 0.3, generator=generator)
    return module.eval().requires_grad_(False)


def fourier_basis(n_fft: int) -> Tensor:
    """Windowed cosines, then windowed negative sines, (2 * (n_fft // 2 + 1), 1, n_fft)."""
    time = torch.arange(n_fft, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * time / n_fft
    window = torch.hann_window(n_fft, dtype=torch.float64)
    return (torch.cat([angle.cos(), -angle.sin()]) * window).float().unsqueeze(1)


def mel_input(config: VocoderConfig, frames: int = 7, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 2, frames, config.generator.mel_bins, generator=generator)


def test_released_metadata() -> None:
    old, new = (VocoderConfig.from_metadata(RELEASED[variant]) for variant in ("2.0", "2.3"))
    assert old.bandwidth is None
    assert (old.sampling_rate, old.samples_per_frame) == (24000, 240)
    assert (old.generator.final_activation, old.generator.final_bias) == (FinalActivation.TANH, True)
    assert new.bandwidth is not None
    assert (new.generator.sampling_rate, new.sampling_rate, new.samples_per_frame) == (16000, 48000, 480)
    assert (new.generator.final_activation, new.generator.final_bias) == (FinalActivation.CLAMP, False)
    assert new.bandwidth.generator.final_activation is FinalActivation.NONE


@pytest.mark.parametrize(("variant", "parameters"), [("2.0", 55_592_802), ("2.3", 128_537_448)])
def test_parameter_count_of_the_released_model(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        module = build_vocoder(VocoderConfig.from_metadata(RELEASED[variant]))
    assert sum(p.numel() for p in module.parameters()) == parameters
    # docs/model.md 10 counts 547,627 numbers in buffers: the 43 taps of the skip resampler are ours to compute.
    buffers = {"2.0": 0, "2.3": 547_627 - 43}[variant]
    assert sum(b.numel() for b in module.buffers()) == buffers


@pytest.mark.parametrize(("variant", "samples"), [("2.0", 120_240), ("2.3", 240_480)])
def test_length_of_the_released_model(variant: str, samples: int) -> None:
    config = VocoderConfig.from_metadata(RELEASED[variant])
    with torch.device("meta"):
        module = build_vocoder(config)
        assert module(torch.empty(1, 2, 501, 64)).shape == (1, 2, samples)
    assert samples == 501 * config.samples_per_frame


def test_official_key_names() -> None:
    with torch.device("meta"):
        old, new = (set(build_vocoder(VocoderConfig.from_metadata(RELEASED[v])).state_dict()) for v in ("2.0", "2.3"))
    assert {"conv_pre.weight", "ups.4.bias", "resblocks.14.convs2.2.weight", "conv_post.bias"} <= old
    assert not any("act" in key for key in old)
    assert {
        "vocoder.conv_pre.weight",
        "vocoder.resblocks.17.acts1.2.act.alpha",
        "vocoder.resblocks.0.acts2.0.act.beta",
        "vocoder.resblocks.0.acts1.0.upsample.filter",
        "vocoder.resblocks.0.acts1.0.downsample.lowpass.filter",
        "vocoder.act_post.downsample.lowpass.filter",
        "bwe_generator.ups.0.weight",
        "mel_stft.mel_basis",
        "mel_stft.stft_fn.forward_basis",
        "mel_stft.stft_fn.inverse_basis",
    } <= new
    assert "vocoder.conv_post.bias" not in new and not any("resampler" in key for key in new)


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
def test_meta_build_loads_strictly_and_leaves_nothing_on_meta(variant: str) -> None:
    config = tiny_config(variant)
    source = randomise(build_vocoder(config))
    with torch.device("meta"):
        module = build_vocoder(config)
    module.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
    assert torch.equal(module(mel_input(config)), source(mel_input(config)))


@pytest.mark.parametrize(("variant", "bound"), [("2.0", 0.02), ("2.3", 0.05)])
def test_bfloat16_weights(variant: str, bound: float) -> None:
    config = tiny_config(variant)
    module = randomise(build_vocoder(config))
    exact = module(mel_input(config))
    rounded = module.bfloat16()(mel_input(config))
    assert rounded.dtype == exact.dtype == torch.float32
    # One layer rounds by 2^-9; ten to twenty of them in a row give a few percent (2.3 is twice as deep).
    assert (rounded - exact).norm() < bound * exact.norm()


def test_filter_is_the_published_one() -> None:
    taps = kaiser_sinc_taps(12, 0.25, 0.3)
    published = [0.0020290, 0.0093895, -0.0255435, -0.0576574, 0.1285726, 0.4432098]  # docs/model.md 7.4
    assert taps == pytest.approx(published + published[::-1], abs=5e-8)
    module = AntiAliasedSnake(3)
    for buffer in (module.upsample.filter, module.downsample.lowpass.filter):
        assert torch.equal(buffer, torch.tensor(taps).view(1, 1, 12))


def test_rate_changes_pass_low_frequencies_and_stop_high_ones() -> None:
    time = torch.arange(400, dtype=torch.float32)
    low = torch.sin(0.05 * math.pi * time).view(1, 1, -1)
    twice = torch.sin(0.05 * math.pi * (torch.arange(800) / 2 - 0.25)).view(1, 1, -1)
    # The even length of the filter shifts by a quarter sample up, and back down. The window is 12 taps short, so the
    # pass band ripples: 1% is its published design, not rounding.
    taps = LowPass().filter
    torch.testing.assert_close(doubled_rate(low, taps)[..., 20:-20], twice[..., 20:-20], atol=0.01, rtol=0)
    there_and_back = halved_rate(doubled_rate(low, taps), taps)
    torch.testing.assert_close(there_and_back[..., 20:-20], low[..., 20:-20], atol=0.01, rtol=0)
    above_band = torch.sin(0.95 * math.pi * torch.arange(800)).view(1, 1, -1)
    assert halved_rate(above_band, taps)[..., 20:-20].abs().max() < 0.01


def test_rate_changes_at_the_edges_equal_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    taps = torch.randn(12, generator=generator)  # any filter, not a symmetric one: the direction matters
    low_pass = taps.view(1, 1, -1)
    x = torch.randn(1, 1, 9, generator=generator)
    padded = [float(x[0, 0, min(max(i - 5, 0), 8)]) for i in range(9 + 10)]
    full = [sum(padded[i] * float(taps[n - 2 * i]) for i in range(19) if 0 <= n - 2 * i < 12) for n in range(48)]
    torch.testing.assert_close(doubled_rate(x, low_pass)[0, 0], 2 * torch.tensor(full[15:-15]), atol=1e-5, rtol=0)
    signal = torch.randn(1, 1, 18, generator=generator)
    padded = [float(signal[0, 0, min(max(i - 5, 0), 17)]) for i in range(18 + 11)]
    expected = [sum(padded[2 * n + k] * float(taps[k]) for k in range(12)) for n in range(9)]
    torch.testing.assert_close(halved_rate(signal, low_pass)[0, 0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_snake_is_its_formula() -> None:
    alphas, betas = torch.tensor([-0.5, 0.0, 0.7]), torch.tensor([0.3, -0.2, 0.0])
    x = torch.randn(2, 3, 5)
    found = snake(x, alphas, betas, SNAKE_EPS)
    for channel, (alpha, beta) in enumerate(zip(alphas.tolist(), betas.tolist(), strict=True)):
        row = x[:, channel]
        expected = row + torch.sin(math.exp(alpha) * row) ** 2 / (math.exp(beta) + 1e-9)
        torch.testing.assert_close(found[:, channel], expected, atol=1e-6, rtol=0)


def test_resampler_taps() -> None:
    taps = resampling_taps(3)
    assert len(taps) == 43
    assert taps == pytest.approx(taps[::-1], abs=1e-12)
    assert taps[21] == pytest.approx(0.99)  # the cut-off, at the centre of the sinc
    assert taps[:3] == pytest.approx([0.0] * 3, abs=1e-30)  # from -6.93 to -6.27: outside the window of six zeros


@pytest.mark.parametrize("factor", [2, 3])
def test_resampler_interpolates(factor: int) -> None:
    samples = 300
    slow = torch.sin(0.1 * math.pi * torch.arange(samples, dtype=torch.float32)).expand(1, 2, -1)
    fast = torch.sin(0.1 * math.pi * torch.arange(samples * factor) / factor).expand(1, 2, -1)
    result = resample(slow, factor)
    assert result.shape == (1, 2, samples * factor)
    # Six zeros of a windowed sinc interpolate a tone at a tenth of the band to about 1e-3.
    torch.testing.assert_close(result[..., 30:-30], fast[..., 30:-30], atol=2e-3, rtol=0)
    # Replicated edges keep a constant constant up to the filter's ripple.
    torch.testing.assert_close(resample(torch.ones(1, 1, 20), factor), torch.ones(1, 1, 20 * factor), atol=5e-3, rtol=0)


def test_log_mel_between_the_stages_is_causal_and_equals_a_transform() -> None:
    config = tiny_config("2.3")
    module = randomise(build_vocoder(config)).get_submodule("mel_stft")
    waveform = torch.randn(1, 2, 40)
    mel = module(waveform)
    assert mel.shape == (1, 2, 10, 8)
    padded = torch.cat([torch.zeros(1, 2, 12), waveform], -1)
    for frame in range(10):
        window = padded[..., 4 * frame : 4 * frame + 16] * torch.hann_window(16)
        expected = (torch.fft.rfft(window).abs() @ module.get_buffer("mel_basis").T).clamp(min=1e-5).log()
        torch.testing.assert_close(mel[:, :, frame], expected, atol=1e-5, rtol=0)
    assert (module(torch.zeros(1, 2, 8)) == math.log(1e-5)).all()


def test_first_stage_is_clamped_before_the_second_hears_it() -> None:
    config = tiny_config("2.3")
    loud = randomise(build_vocoder(config), loudness=8.0)
    assert isinstance(loud, BandwidthExtendedVocoder)
    mel = mel_input(config)
    heard: list[Tensor] = []
    hook = loud.mel_stft.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    waveform = loud(mel)
    hook.remove()
    assert heard[0].abs().max() == 1.0  # saturates: the test would not see a missing clamp otherwise
    assert (heard[0].abs() == 1.0).float().mean() > 0.05
    assert waveform.abs().max() <= 1.0


def test_waveform_shorter_than_a_hop_is_padded_and_cut() -> None:
    config = tiny_config("2.3")  # 10 samples per frame, hops of 4: three frames need two samples of padding
    assert build_vocoder(config)(mel_input(config, frames=3)).shape == (2, 2, 3 * 30)


def test_leaky_slopes() -> None:
    config = tiny_config("2.0")
    module = randomise(build_vocoder(config))
    assert isinstance(module, Generator)
    inputs: dict[str, Tensor] = {}
    for name in ("ups.1", "conv_post"):
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    stage: list[Tensor] = []
    module.act_post.register_forward_pre_hook(lambda _, args: stage.append(args[0]))
    module(mel_input(config))
    negative = stage[0] < 0
    assert negative.any()
    torch.testing.assert_close(inputs["conv_post"][negative], 0.01 * stage[0][negative], atol=0, rtol=1e-6)


@pytest.mark.parametrize(
    ("variant", "path", "value", "key"),
    [
        ("2.0", ("resblock",), "2", "vocoder.resblock"),
        ("2.0", ("resblock",), ..., "vocoder.resblock"),
        ("2.0", ("stereo",), False, "vocoder.stereo"),
        ("2.0", ("stereo",), ..., "vocoder.stereo"),
        ("2.0", ("activation",), "snakebeta", "vocoder.activation"),
        ("2.0", ("upsample_rates",), ..., "vocoder.upsample_rates"),
        ("2.0", ("upsample_kernel_sizes",), [16, 15, 8, 4], "vocoder.upsample_kernel_sizes"),
        ("2.0", ("upsample_kernel_sizes",), [15, 15, 8, 4, 4], "vocoder.upsample_kernel_sizes"),
        ("2.0", ("upsample_initial_channel",), 1000, "vocoder.upsample_initial_channel"),
        ("2.0", ("resblock_kernel_sizes",), [3, 7, 10], "vocoder.resblock_kernel_sizes"),
        ("2.0", ("resblock_dilation_sizes",), [[1, 3, 5]], "vocoder.resblock_dilation_sizes"),
        ("2.0", ("resblock_dilation_sizes",), [1, 3, 5], "vocoder.resblock_dilation_sizes.0"),
        ("2.0", ("output_sampling_rate",), 44100, "vocoder.output_sampling_rate"),
        ("2.0", ("num_mels",), 80, "vocoder.num_mels"),
        ("2.3", ("vocoder",), ..., "vocoder.vocoder"),
        ("2.3", ("vocoder", "activation"), "snake", "vocoder.vocoder.activation"),
        ("2.3", ("vocoder", "resblock"), "1", "vocoder.vocoder.resblock"),
        ("2.3", ("vocoder", "use_bias_at_final"), ..., "vocoder.vocoder.use_bias_at_final"),
        ("2.3", ("vocoder", "use_tanh_at_final"), ..., "vocoder.vocoder.use_tanh_at_final"),
        ("2.3", ("bwe", "activation"), ..., "vocoder.bwe.activation"),
        ("2.3", ("bwe", "apply_final_activation"), True, "vocoder.bwe.apply_final_activation"),
        ("2.3", ("bwe", "input_sampling_rate"), 12000, "vocoder.bwe.input_sampling_rate"),
        ("2.3", ("bwe", "output_sampling_rate"), 44100, "vocoder.bwe.output_sampling_rate"),
        ("2.3", ("bwe", "n_fft"), ..., "vocoder.bwe.n_fft"),
        ("2.3", ("bwe", "win_size"), 256, "vocoder.bwe.win_size"),
        ("2.3", ("bwe", "hop_length"), 160, "vocoder.bwe.upsample_rates"),
    ],
)
def test_unsupported_metadata_names_the_key(variant: str, path: tuple[str, ...], value: Any, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VocoderConfig.from_metadata(changed(variant, path, value))
    assert caught.value.key == key


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError, match="vocoder = None"):
        VocoderConfig.from_metadata({})
    without_audio_vae = {"vocoder": RELEASED["2.0"]["vocoder"]}
    with pytest.raises(ConfigError, match="output_sampling_rate"):
        VocoderConfig.from_metadata(without_audio_vae)


def test_final_activation_follows_the_metadata() -> None:
    silent = VocoderConfig.from_metadata(changed("2.3", ("vocoder", "apply_final_activation"), False))
    tanh = VocoderConfig.from_metadata(changed("2.3", ("vocoder", "use_tanh_at_final"), True))
    assert silent.generator.final_activation is FinalActivation.NONE
    assert tanh.generator.final_activation is FinalActivation.TANH


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mel must be \(B, 2, frames, 8\)"):
        build_vocoder(tiny_config("2.0"))(torch.zeros(1, 2, 5, 64))
