"""The vocoders against diffusers' LTX2Vocoder and LTX2VocoderWithBWE, same weights, float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.models.vocoder import BandwidthConfig, GeneratorConfig, VocoderConfig, build_vocoder
from ltx2_two_stage.ltx2_core.models.vocoder.config import BlockKind, FinalActivation
from torch import Tensor, nn

pytest.importorskip("diffusers")
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from diffusers_models import vocoder_key

# docs/model.md 11.3. Waveforms are of order one; sums run in another order through up to a hundred convolutions.
TOLERANCE = 1e-5
# Released topology with narrow layers: 64 mel bands, all kernels, rates and dilations are the released ones.
KERNELS, DILATIONS = (3, 7, 11), ((1, 3, 5),) * 3


def generator_config(
    amp: bool, channels: int, rates: tuple[int, ...], kernels: tuple[int, ...], **more: Any
) -> GeneratorConfig:
    settings: dict[str, Any] = {
        "mel_bins": 64,
        "initial_channels": channels,
        "upsample_rates": rates,
        "upsample_kernels": kernels,
        "block": BlockKind.AMP if amp else BlockKind.LEAKY,
        "block_kernels": KERNELS,
        "block_dilations": DILATIONS,
        "final_activation": FinalActivation.CLAMP if amp else FinalActivation.TANH,
        "final_bias": not amp,
        "sampling_rate": 16000 if amp else 24000,
    }
    return GeneratorConfig(**{**settings, **more})


OLD = VocoderConfig(generator_config(False, 64, (6, 5, 2, 2, 2), (16, 15, 8, 4, 4)))
EXTENSION = generator_config(
    True, 64, (6, 5, 2, 2, 2), (12, 11, 4, 4, 4), final_activation=FinalActivation.NONE, sampling_rate=48000
)
NEW = VocoderConfig(
    generator_config(True, 128, (5, 2, 2, 2, 2, 2), (11, 4, 4, 4, 4, 4)),
    BandwidthConfig(EXTENSION, n_fft=512, hop_length=80, factor=3),
)


def weights(module: nn.Module, loudness: float) -> dict[str, Tensor]:
    """Non-degenerate weights; perturbed filters and bases, so that only the loaded ones can give the right result."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("forward_basis"):
            time = torch.arange(512)
            angle = 2 * math.pi * torch.arange(257)[:, None] * time / 512
            basis = torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(512)
            value = basis.unsqueeze(1).bfloat16().float()
        elif name.endswith("mel_basis"):
            value = noise.abs() * 0.02
        elif name.endswith("filter"):
            value = tensor + 0.01 * noise
        elif name.endswith("weight"):
            value = noise * math.sqrt(0.64 / tensor[0].numel()) * (loudness if "conv_post" in name else 1.0)
        else:
            value = 0.3 * noise
        state[name] = value
    return state


def pair(config: VocoderConfig, theirs: nn.Module, loudness: float = 1.0) -> tuple[nn.Module, nn.Module]:
    ours = build_vocoder(config)
    state = weights(ours, loudness)
    ours.load_state_dict(state, strict=True)
    theirs.load_state_dict({vocoder_key(name): tensor for name, tensor in state.items()}, strict=True)
    return ours.eval(), theirs.eval()


def old_oracle() -> nn.Module:
    oracle: nn.Module = LTX2Vocoder(hidden_channels=64)
    return oracle


def new_oracle(final: str | None) -> nn.Module:
    oracle: nn.Module = LTX2VocoderWithBWE(hidden_channels=128, bwe_hidden_channels=64, final_act_fn=final)
    return oracle


def log_mel(frames: int) -> Tensor:
    return torch.randn(2, 2, frames, 64, generator=torch.Generator().manual_seed(9)) * 2 - 3


@pytest.mark.parametrize("frames", [1, 12])
@torch.no_grad()
def test_vocoder_of_2_0(frames: int) -> None:
    ours, theirs = pair(OLD, old_oracle())
    torch.testing.assert_close(ours(log_mel(frames)), theirs(log_mel(frames)), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("frames", [2, 12])
@torch.no_grad()
def test_vocoder_of_2_3(frames: int) -> None:
    ours, theirs = pair(NEW, new_oracle("clamp"))
    torch.testing.assert_close(ours(log_mel(frames)), theirs(log_mel(frames)), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_saturated_first_stage_needs_the_clamp() -> None:
    loudness = 4.0
    ours, theirs = pair(NEW, new_oracle("clamp"), loudness)
    unclamped = new_oracle(None)
    unclamped.load_state_dict(theirs.state_dict(), strict=True)
    result, expected, other = (module(log_mel(6)) for module in (ours, theirs, unclamped))
    # Rounding grows with the last convolutions' weights.
    torch.testing.assert_close(result, expected, atol=loudness * TOLERANCE, rtol=0)
    # Without the clamp this input gives another sound (docs/model.md 7.4), so the agreement above means something.
    assert (other - expected).abs().max() > 0.1
