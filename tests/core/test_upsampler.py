from __future__ import annotations

from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import ConfigError
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import full_size_upsampler_config, tiny_upsampler_config
from ltx2_two_stage.ltx2_core.loading.synthetic_weights import fill_random_
from ltx2_two_stage.ltx2_core.models.upsampler import LatentUpsampler, UpsamplerConfig, UpsamplerKind

K = UpsamplerKind
Shapes = dict[str, tuple[int, ...]]


def build(config: UpsamplerConfig) -> LatentUpsampler:
    with torch.device("meta"):
        return LatentUpsampler(config)


def shapes(kind: UpsamplerKind, channels: int = 64, blocks: int = 1) -> Shapes:
    module = build(UpsamplerConfig(kind, 16, channels, blocks))
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("kind", list(K))
def test_the_kind_is_read_off_the_tensors(kind: UpsamplerKind) -> None:
    assert UpsamplerConfig.from_metadata(None, shapes(kind, 96, 3)) == UpsamplerConfig(kind, 16, 96, 3)


@pytest.mark.parametrize(
    ("kind", "channels", "count"),
    [
        (K.X2, 1024, 497_867_904),
        (K.X2_RATIONAL, 1024, 497_867_904),
        (K.X1_5, 1024, 545_058_944),
        (K.TEMPORAL, 512, 130_968_192),
    ],
)
def test_parameter_counts_of_the_released_models(kind: UpsamplerKind, channels: int, count: int) -> None:
    module = build(UpsamplerConfig(kind, 128, channels, 4))
    assert sum(p.numel() for p in module.parameters()) == count  # docs/model.md 10


@pytest.mark.parametrize(
    ("kind", "spatial", "temporal", "shape"),
    [
        (K.X2, 2.0, 1, (3, 8, 10)),
        (K.X2_RATIONAL, 2.0, 1, (3, 8, 10)),
        (K.X1_5, 1.5, 1, (3, 6, 8)),
        (K.TEMPORAL, 1.0, 2, (5, 4, 5)),
        (K.SPATIO_TEMPORAL, 2.0, 2, (5, 8, 10)),
    ],
)
def test_factors_and_sizes(kind: UpsamplerKind, spatial: float, temporal: int, shape: tuple[int, int, int]) -> None:
    module = build(UpsamplerConfig(kind, 16, 64, 1))
    fill_random_(module, torch.Generator().manual_seed(0), "cpu")
    assert (module.spatial_factor, module.temporal_factor) == (spatial, temporal)
    out = module.bfloat16()(torch.randn(1, 16, 3, 4, 5))
    assert out.shape == (1, 16, *shape)
    assert out.dtype == torch.bfloat16
    assert not out.requires_grad


def test_metadata_of_the_released_models_agrees() -> None:
    for variant, kind in (("2.0", K.X2_RATIONAL), ("2.3", K.X2)):
        config = tiny_upsampler_config(variant)  # type: ignore[arg-type]
        assert UpsamplerConfig.from_metadata(config, shapes(kind)).kind is kind
        full = full_size_upsampler_config(variant)  # type: ignore[arg-type]
        module = build(UpsamplerConfig(kind, full["in_channels"], full["mid_channels"], full["num_blocks_per_stage"]))
        found = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        assert UpsamplerConfig.from_metadata(full, found) == module.config


@pytest.mark.parametrize(
    ("kind", "metadata"),
    [
        (K.X1_5, {"spatial_scale": 1.5, "rational_resampler": True}),
        (K.X1_5, {}),
        # Official code has these two keys' defaults in files of every kind.
        (K.TEMPORAL, {"temporal_upsample": True, "spatial_upsample": False, "spatial_scale": 2.0}),
        (K.SPATIO_TEMPORAL, {"temporal_upsample": True, "spatial_upsample": True, "rational_resampler": True}),
    ],
)
def test_metadata_of_other_kinds_agrees(kind: UpsamplerKind, metadata: dict[str, Any]) -> None:
    assert UpsamplerConfig.from_metadata(metadata, shapes(kind)).kind is kind


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (K.X2, "in_channels", 128),
        (K.X2, "mid_channels", 512),
        (K.X2, "num_blocks_per_stage", 4),
        (K.X2, "dims", 2),
        (K.X2, "spatial_upsample", False),
        (K.X2, "temporal_upsample", True),
        (K.X2, "rational_resampler", True),
        (K.X2_RATIONAL, "rational_resampler", False),
        (K.X1_5, "spatial_scale", 0.75),  # the same tensors, another stride
        (K.TEMPORAL, "temporal_upsample", False),
    ],
)
def test_metadata_that_disagrees_is_named(kind: UpsamplerKind, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="differs from the file's tensors") as caught:
        UpsamplerConfig.from_metadata({key: value}, shapes(kind))
    assert caught.value.key == f"upsampler.{key}"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({"initial_conv.weight": None}, "initial_conv.weight", id="another model"),
        pytest.param({"initial_conv.weight": (64, 16, 3, 3)}, "initial_conv.weight", id="two dimensions"),
        pytest.param({"initial_conv.weight": (48, 16, 3, 3, 3)}, "initial_conv.weight", id="norm groups"),
        pytest.param({"res_blocks.0.conv1.weight": None}, "res_blocks", id="no blocks"),
        pytest.param({"post_upsample_res_blocks.1.conv1.weight": (64, 64, 3, 3, 3)}, "res_blocks", id="uneven"),
        pytest.param({"upsampler.0.weight": None}, "upsampler.0.weight", id="no resampling"),
        pytest.param({"upsampler.0.weight": (64 * 16, 64, 3, 3)}, "upsampler.0.weight", id="x4"),
        pytest.param({"upsampler.0.weight": (256, 64, 3, 3, 3)}, "upsampler.0.weight", id="of no kind"),
        pytest.param({"upsampler.blur_down.kernel": (1, 1, 5, 5)}, "upsampler.conv.weight", id="half rational"),
    ],
)
def test_unknown_files_are_refused(changes: dict[str, Any], key: str) -> None:
    found = {name: shape for name, shape in {**shapes(K.X2), **changes}.items() if shape is not None}
    with pytest.raises(ConfigError) as caught:
        UpsamplerConfig.from_metadata(None, found)
    assert caught.value.key == key


def test_a_latent_of_another_model_is_refused() -> None:
    module = build(UpsamplerConfig(K.X2, 16, 64, 1))
    with pytest.raises(ValueError, match=r"\(B, 16, F, H, W\)"):
        module(torch.zeros(1, 8, 1, 2, 2))
