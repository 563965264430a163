"""The video autoencoder against diffusers' AutoencoderKLLTX2Video, same weights, float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
from diffusers_models import Generation, official_video_vae_key, video_vae
from ltx2_two_stage.ltx2_core.models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig

# docs/model.md 11.3: outputs of order one, a few tens of convolutions summed in another order.
TOLERANCE = 1e-5

LATENT_CHANNELS, ENCODER_BASE, DECODER_BASE = 16, 16, 8


def blocks(*entries: tuple[Any, ...]) -> list[list[Any]]:
    """("res", n) and ("all" or another axis, multiplier, more options) as metadata has them."""
    out: list[list[Any]] = []
    for kind, number, *more in entries:
        if kind == "res":
            out.append(["res_x", {"num_layers": number}])
        else:
            out.append([f"compress_{kind}", {"multiplier": number, **(more[0] if more else {})}])
    return out


RESIDUAL = {"residual": True}
ENCODER_20 = blocks(
    ("res", 1), ("space_res", 2), ("res", 2), ("time_res", 2), ("res", 1), ("all_res", 2), ("res", 1), ("all_res", 2),
    ("res", 1),
)  # fmt: skip
DECODER_20 = blocks(
    ("res", 2), ("all", 2, RESIDUAL), ("res", 1), ("all", 2, RESIDUAL), ("res", 1), ("all", 2, RESIDUAL), ("res", 1)
)
ENCODER_23 = [*ENCODER_20[:7], ["compress_all_res", {"multiplier": 1}], ["res_x", {"num_layers": 1}]]
DECODER_23 = blocks(
    ("res", 2), ("space", 2), ("res", 1), ("time", 2), ("res", 1), ("all", 1), ("res", 1), ("all", 2), ("res", 1)
)  # fmt: skip

COMMON = {
    "latent_channels": LATENT_CHANNELS,
    "patch_size": 4,
    "encoder_base_channels": ENCODER_BASE,
    "decoder_base_channels": DECODER_BASE,
    "timestep_conditioning": False,
}
METADATA: dict[str, dict[str, Any]] = {
    "2.0": {**COMMON, "encoder_blocks": ENCODER_20, "decoder_blocks": DECODER_20},
    "2.3": {
        **COMMON,
        "encoder_blocks": ENCODER_23,
        "decoder_blocks": DECODER_23,
        "spatial_padding_mode": "zeros",
    },
}
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "2.0": ((1, 2, 1, 1, 1), (2, 1, 1, 1)),
    "2.3": ((1, 2, 1, 1, 1), (2, 1, 1, 1, 1)),
}


def oracle(generation: Generation) -> nn.Module:
    model: nn.Module = video_vae(generation, LATENT_CHANNELS, ENCODER_BASE, DECODER_BASE, *LAYERS[generation])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("weight"):
                tensor.normal_(0.0, math.sqrt(0.64 / tensor[0].numel()), generator=generator)
            elif name == "latents_std":
                tensor.uniform_(0.5, 2.0, generator=generator)
            else:
                tensor.normal_(0.0, 0.3, generator=generator)
    return model


def half(model: nn.Module, kind: type[nn.Module], generation: Generation) -> nn.Module:
    name = "encoder" if kind is VideoEncoder else "decoder"
    state = {official_video_vae_key(k, name): v for k, v in model.get_submodule(name).state_dict().items()}
    state["per_channel_statistics.mean-of-means"] = model.latents_mean
    state["per_channel_statistics.std-of-means"] = model.latents_std
    with torch.device("meta"):
        module = kind(VideoVAEConfig.from_metadata({"vae": METADATA[generation]}))
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def columns(*vectors: Tensor) -> list[Tensor]:
    return [vector.view(1, -1, 1, 1, 1) for vector in vectors]


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@pytest.mark.parametrize("frames", [1, 17])
@torch.no_grad()
def test_encoder(generation: Generation, frames: int) -> None:
    reference = oracle(generation)
    encoder = half(reference, VideoEncoder, generation)
    pixels = torch.rand(2, 3, frames, 96, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = columns(reference.latents_mean, reference.latents_std)
    expected = (reference.encode(pixels).latent_dist.mode() - mean) / std
    assert expected.std() > 0.3  # order one, so that the tolerance means something
    torch.testing.assert_close(encoder.encode(pixels), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_decoder(generation: Generation, frames: int) -> None:
    reference = oracle(generation)
    decoder = half(reference, VideoDecoder, generation)
    latent = torch.randn(2, LATENT_CHANNELS, frames, 4, 6, generator=torch.Generator().manual_seed(2))
    mean, std = columns(reference.latents_mean, reference.latents_std)
    expected = reference.decode(latent * std + mean).sample
    assert expected.shape == (2, 3, 8 * frames - 7, 128, 192)
    assert expected.std() > 0.3
    torch.testing.assert_close(decoder.decode(latent), expected, atol=TOLERANCE, rtol=0)
