"""The latent upsampler against diffusers' LTX2LatentUpsamplerModel, same weights, float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.models.upsampler import LatentUpsampler, UpsamplerConfig, UpsamplerKind
from torch import nn

diffusers = pytest.importorskip("diffusers")
latent_upsampler = pytest.importorskip("diffusers.pipelines.ltx2.latent_upsampler")

# docs/model.md 11.3: outputs of order one, a few tens of convolutions summed in another order.
TOLERANCE = 1e-5

CASES: list[Any] = [
    pytest.param(UpsamplerKind.X2, {"use_rational_resampler": False}, (3, 8, 10), id="x2"),
    pytest.param(UpsamplerKind.X2_RATIONAL, {"use_rational_resampler": True}, (3, 8, 10), id="x2 rational"),
    pytest.param(UpsamplerKind.X1_5, {"rational_spatial_scale": 1.5}, (3, 6, 8), id="x1.5"),
    pytest.param(
        UpsamplerKind.TEMPORAL, {"spatial_upsample": False, "temporal_upsample": True}, (5, 4, 5), id="temporal"
    ),
    pytest.param(UpsamplerKind.SPATIO_TEMPORAL, {"temporal_upsample": True}, (5, 8, 10), id="spatio-temporal"),
]


def oracle(options: dict[str, Any]) -> nn.Module:
    model: nn.Module = latent_upsampler.LTX2LatentUpsamplerModel(
        in_channels=16, mid_channels=64, num_blocks_per_stage=2, **options
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("weight") and tensor.ndim > 1:
                tensor.normal_(0.0, math.sqrt(0.64 / tensor[0].numel()), generator=generator)
            elif name.endswith("weight"):
                tensor.normal_(1.0, 0.2, generator=generator)
            else:
                tensor.normal_(0.0, 0.3, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(("kind", "options", "shape"), CASES)
@torch.no_grad()
def test_upsampler(kind: UpsamplerKind, options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    reference = oracle(options)
    state = reference.state_dict()
    config = UpsamplerConfig.from_metadata(None, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert config.kind is kind
    with torch.device("meta"):
        module = LatentUpsampler(config)
    module.load_state_dict(state, strict=True, assign=True)
    latent = torch.randn(2, 16, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = reference(latent)
    assert expected.std() > 0.3  # order one, so that the tolerance means something
    out = module(latent)
    assert out.shape == (2, 16, *shape)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=0)
