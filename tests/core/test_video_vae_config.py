from __future__ import annotations

from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import ConfigError
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import full_size_config
from ltx2_two_stage.ltx2_core.models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig
from ltx2_two_stage.ltx2_core.models.video_vae.config import ResampleStage, ResStage
from ltx2_two_stage.ltx2_core.types import ScaleFactors


def read(variant: str = "2.3", **changes: Any) -> VideoVAEConfig:
    """The released metadata with some keys set, or removed where the value is ``...``."""
    section = {**full_size_config(variant)["vae"], **changes}  # type: ignore[arg-type]
    return VideoVAEConfig.from_metadata({"vae": {key: value for key, value in section.items() if value is not ...}})


@pytest.mark.parametrize(
    ("variant", "encoder", "decoder"), [("2.0", 694_098_881, 528_380_720), ("2.3", 318_936_897, 407_169_072)]
)
def test_parameter_counts_of_the_released_models(variant: str, encoder: int, decoder: int) -> None:
    config = read(variant)
    with torch.device("meta"):
        counts = [sum(p.numel() for p in kind(config).parameters()) for kind in (VideoEncoder, VideoDecoder)]
    assert counts == [encoder, decoder]  # docs/model.md 10


def test_scale_comes_from_the_block_lists() -> None:
    assert read().scale == read("2.0").scale == ScaleFactors(8, 32, 32)
    pair = {
        "encoder_blocks": [["res_x", 1], ["compress_time_res", {}], ["compress_space_res", {"multiplier": 2}]],
        "decoder_blocks": [["compress_all", {"multiplier": 2}], ["res_x", {"num_layers": 1}]],
    }
    assert read(**pair, patch_size=8).scale == ScaleFactors(2, 16, 16)


def test_decoder_blocks_are_applied_in_reverse() -> None:
    stages = read().decoder_stages
    assert stages[0] == ResStage(1024, 2)
    assert stages[1] == ResampleStage(1024, 512, (2, 2, 2), residual=False)
    assert stages[-1] == ResStage(128, 4)
    assert read("2.0").decoder_stages[1] == ResampleStage(1024, 512, (2, 2, 2), residual=True)


@pytest.mark.parametrize(
    ("keys", "encoder", "decoder"),
    [
        pytest.param({}, "zeros", "reflect", id="absent"),
        pytest.param({"spatial_padding_mode": "zeros"}, "zeros", "zeros", id="one key for both"),
        pytest.param({"spatial_padding_mode": "reflect"}, "reflect", "reflect", id="one key, reflect"),
        pytest.param({"encoder_spatial_padding_mode": "reflect"}, "reflect", "reflect", id="encoder's key"),
        pytest.param({"decoder_spatial_padding_mode": "zeros"}, "zeros", "zeros", id="decoder's key"),
    ],
)
def test_padding_modes(keys: dict[str, str], encoder: str, decoder: str) -> None:
    config = read("2.0", **keys)
    assert (config.encoder_padding, config.decoder_padding) == (encoder, decoder)


def test_missing_timestep_conditioning_means_none() -> None:
    assert read(timestep_conditioning=...) == read()


ENCODER: list[Any] = full_size_config("2.3")["vae"]["encoder_blocks"]
DECODER: list[Any] = full_size_config("2.3")["vae"]["decoder_blocks"]


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        pytest.param({"timestep_conditioning": True}, "vae.timestep_conditioning", "not supported", id="timesteps"),
        pytest.param({"causal_decoder": True}, "vae.causal_decoder", "not supported", id="causal decoder"),
        pytest.param({"dims": 2}, "vae.dims", "not supported", id="dims"),
        pytest.param({"_class_name": "CausalDiffusionVAE"}, "vae._class_name", "not supported", id="another class"),
        pytest.param({"norm_layer": "group_norm"}, "vae.norm_layer", "not supported", id="norm"),
        pytest.param({"latent_log_var": "per_channel"}, "vae.latent_log_var", "not supported", id="log variance"),
        pytest.param({"spatial_padding_mode": "replicate"}, "vae.spatial_padding_mode", "not supported", id="padding"),
        pytest.param({"latent_channels": ...}, "vae.latent_channels", "missing", id="no latent channels"),
        pytest.param({"encoder_blocks": ...}, "vae.encoder_blocks", "missing", id="no encoder blocks"),
        pytest.param({"decoder_blocks": []}, "vae.decoder_blocks", "list of blocks", id="empty list"),
        pytest.param({"decoder_blocks": "res_x"}, "vae.decoder_blocks", "list of blocks", id="text for a list"),
        pytest.param({"encoder_blocks": [["res_x"]]}, "vae.encoder_blocks", "entry 0", id="no options"),
        pytest.param({"encoder_blocks": [*ENCODER, ["attn", {}]]}, "vae.encoder_blocks", "'attn'", id="attention"),
        pytest.param({"encoder_blocks": [["compress_all", {}]]}, "vae.encoder_blocks", "'compress_all'", id="strided"),
        pytest.param({"decoder_blocks": [*DECODER, ["res_x_y", {}]]}, "vae.decoder_blocks", "'res_x_y'", id="res_x_y"),
        pytest.param(
            {"decoder_blocks": DECODER[:-2]}, "vae.decoder_blocks", "decodes cells of (4, 16, 16)", id="scales"
        ),
        pytest.param({"encoder_base_channels": 3}, "compress_space_res.multiplier", "divide by 4", id="odd width"),
        pytest.param(
            {"encoder_blocks": [["compress_time_res", {"multiplier": 3}]]},
            "vae.encoder_blocks[0].compress_time_res.multiplier",
            "divide 2",
            id="averaging",
        ),
        pytest.param(
            {"decoder_blocks": [["res_x", {"num_layers": 2, "inject_noise": True}]]},
            "vae.decoder_blocks[0].res_x.inject_noise",
            "not supported",
            id="noise",
        ),
        pytest.param(
            {"decoder_blocks": [["compress_time", {"residual": True}]]},
            "vae.decoder_blocks[0].compress_time.residual",
            "not supported",
            id="residual in time",
        ),
        pytest.param(
            {"decoder_blocks": [["compress_all", {"multiplier": 3, "residual": True}]]},
            "vae.decoder_blocks[0].compress_all.multiplier",
            "divide 8",
            id="residual fill",
        ),
        pytest.param(
            {"decoder_blocks": [["compress_all", {"residual": True}]], "decoder_base_channels": 12},
            "vae.decoder_blocks[0].compress_all.residual",
            "12 channels",
            id="residual width",
        ),
    ],
)
def test_unsupported_metadata_names_its_key(changes: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert key in caught.value.key
    assert problem in str(caught.value)


def test_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match="config key vae"):
        VideoVAEConfig.from_metadata({})
