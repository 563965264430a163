"""The audio autoencoder against diffusers' AutoencoderKLLTX2Audio, same weights, float32."""

from __future__ import annotations

import math

import pytest
import torch
from ltx2_two_stage.ltx2_core.models.audio_vae import AudioDecoder, AudioEncoder, AudioVAEConfig
from torch import nn

diffusers = pytest.importorskip("diffusers")

# docs/model.md 11.3: outputs of order one, a few tens of convolutions summed in another order.
TOLERANCE = 1e-5


def config(ch: int, multipliers: tuple[int, ...], res_blocks: int, latent: int, mel_bins: int) -> AudioVAEConfig:
    return AudioVAEConfig(
        base_channels=ch,
        multipliers=multipliers,
        res_blocks=res_blocks,
        in_channels=2,
        out_channels=2,
        latent_channels=latent,
        double_z=True,
        mel_bins=mel_bins,
        sampling_rate=16000,
        hop_length=160,
        n_fft=1024,
        mel_min_hz=0.0,
        mel_max_hz=8000.0,
    )


def oracle(sizes: AudioVAEConfig) -> nn.Module:
    model: nn.Module = diffusers.AutoencoderKLLTX2Audio(
        base_channels=sizes.base_channels,
        ch_mult=sizes.multipliers,
        num_res_blocks=sizes.res_blocks,
        latent_channels=sizes.latent_channels,
        mel_bins=sizes.mel_bins,
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("weight"):
                tensor.normal_(0.0, math.sqrt(0.64 / tensor[0].numel()), generator=generator)
            elif name == "latents_std":
                tensor.uniform_(0.5, 2.0, generator=generator)
            else:
                tensor.normal_(0.0, 0.3, generator=generator)
    return model.eval().requires_grad_(False)


def half(model: nn.Module, kind: type[nn.Module], sizes: AudioVAEConfig) -> nn.Module:
    """Our half with the oracle's weights; the statistics are drawn here, since diffusers' length is ``ch``."""
    prefix = "encoder." if kind is AudioEncoder else "decoder."
    state = {k.removeprefix(prefix): v for k, v in model.state_dict().items() if k.startswith(prefix)}
    generator = torch.Generator().manual_seed(4)
    length = sizes.latent_channels * sizes.latent_mel_bins
    state["per_channel_statistics.mean-of-means"] = torch.randn(length, generator=generator) * 0.3
    state["per_channel_statistics.std-of-means"] = torch.rand(length, generator=generator) + 0.5
    with torch.device("meta"):
        module = kind(sizes)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


CASES = [
    pytest.param(config(128, (1, 2, 4), 1, 8, 64), id="released widths"),
    pytest.param(config(16, (1, 2, 4), 2, 3, 16), id="narrow"),
    pytest.param(config(16, (2, 1), 1, 4, 8), id="two levels, first shortcut"),
]


@pytest.mark.parametrize("sizes", CASES)
@pytest.mark.parametrize("frames", [1, 6])
@torch.no_grad()
def test_decoder(sizes: AudioVAEConfig, frames: int) -> None:
    reference = oracle(sizes)
    decoder = half(reference, AudioDecoder, sizes)
    latent = torch.randn(
        2, sizes.latent_channels, frames, sizes.latent_mel_bins, generator=torch.Generator().manual_seed(1)
    )
    # As diffusers' pipeline does it: un-normalise the packed tokens, feature = channel * bins + bin.
    packed = latent.transpose(1, 2).flatten(2)
    state = decoder.state_dict()
    packed = packed * state["per_channel_statistics.std-of-means"] + state["per_channel_statistics.mean-of-means"]
    raw = packed.unflatten(2, (sizes.latent_channels, -1)).transpose(1, 2)
    expected = reference.decode(raw).sample
    if sizes.downsample != 4:  # diffusers crops to a fixed factor of four
        expected = reference.decoder.conv_out(_before_head(reference.decoder, raw))
    torch.testing.assert_close(decoder.decode(latent), expected, atol=TOLERANCE, rtol=0)


def _before_head(decoder: nn.Module, raw: torch.Tensor) -> torch.Tensor:
    x = decoder.mid.block_2(decoder.mid.block_1(decoder.conv_in(raw)))
    for level in reversed(range(len(decoder.up))):
        for block in decoder.up[level].block:
            x = block(x)
        if level:
            x = decoder.up[level].upsample(x)
    return decoder.non_linearity(decoder.norm_out(x))


@pytest.mark.parametrize("sizes", CASES)
@pytest.mark.parametrize("frames", [1, 22])
@torch.no_grad()
def test_encoder(sizes: AudioVAEConfig, frames: int) -> None:
    reference = oracle(sizes)
    encoder = half(reference, AudioEncoder, sizes)
    mel = torch.randn(2, 2, frames, sizes.mel_bins, generator=torch.Generator().manual_seed(2)) * 3 - 4
    raw = reference.encode(mel).latent_dist.mode()
    packed = raw.transpose(1, 2).flatten(2)
    state = encoder.state_dict()
    packed = (packed - state["per_channel_statistics.mean-of-means"]) / state["per_channel_statistics.std-of-means"]
    expected = packed.unflatten(2, (sizes.latent_channels, -1)).transpose(1, 2)
    torch.testing.assert_close(encoder.encode(mel), expected, atol=TOLERANCE, rtol=0)
