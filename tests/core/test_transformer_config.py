"""What the transformer takes from a checkpoint's metadata, and the sizes that follow."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, Literal

import pytest
import torch
from ltx2_two_stage.ltx2_core.errors import ConfigError
from ltx2_two_stage.ltx2_core.loading.synthetic_configs import full_size_config, tiny_config
from ltx2_two_stage.ltx2_core.models.transformer.config import TransformerConfig
from ltx2_two_stage.ltx2_core.models.transformer.model import LTXTransformer
from torch import nn

Variant = Literal["2.0", "2.3"]

# Keys that a file has to state; the released ones all do, except caption_channels, which only 2.0 needs.
STATED = (
    "activation_fn",
    "attention_head_dim",
    "audio_attention_head_dim",
    "audio_cross_attention_dim",
    "audio_num_attention_heads",
    "audio_out_channels",
    "audio_positional_embedding_max_pos",
    "av_ca_timestep_scale_multiplier",
    "av_cross_ada_norm",
    "causal_temporal_positioning",
    "cross_attention_dim",
    "cross_attention_norm",
    "frequencies_precision",
    "in_channels",
    "norm_eps",
    "num_attention_heads",
    "num_layers",
    "out_channels",
    "positional_embedding_max_pos",
    "positional_embedding_theta",
    "positional_embedding_type",
    "qk_norm",
    "rope_type",
    "standardization_norm",
    "timestep_scale_multiplier",
    "use_audio_video_cross_attention",
    "use_middle_indices_grid",
)
UNSUPPORTED: tuple[tuple[str, Any], ...] = (
    ("_class_name", "LTXVideoTransformer3DModel"),
    ("activation_fn", "geglu"),
    ("apply_gated_attention", False),
    ("attention_bias", False),
    ("attention_head_dim", 0),
    ("attention_head_dim", 33),
    ("attention_type", "sliding"),
    ("audio_cross_attention_dim", 4096),
    ("audio_ff_bias", False),
    ("audio_out_channels", 0),
    ("audio_positional_embedding_max_pos", [20, 20]),
    ("av_ca_timestep_scale_multiplier", 0),
    ("caption_proj_before_connector", False),
    ("caption_proj_input_norm", True),
    ("caption_projection_second_linear", True),
    ("causal_temporal_positioning", False),
    ("cross_attention_adaln", "yes"),
    ("cross_attention_dim", 2048),
    ("double_self_attention", True),
    ("ff_bias", False),
    ("frequencies_precision", "bfloat16"),
    ("norm_elementwise_affine", True),
    ("norm_eps", -1e-6),
    ("norm_eps", float("inf")),
    ("num_layers", 0),
    ("num_layers", "48"),
    ("num_layers", float("inf")),
    ("num_vector_embeds", 8),
    ("out_channels", 256),
    ("positional_embedding_max_pos", [20, 2048]),
    ("positional_embedding_max_pos", [20, 0, 2048]),
    ("positional_embedding_max_pos", [20, float("inf"), 2048]),
    ("positional_embedding_type", "learned"),
    ("qk_norm", "layer_norm"),
    ("rope_type", "spiral"),
    ("share_ff", True),
    ("standardization_norm", "layer_norm"),
    ("timestep_scale_multiplier", 0),
    ("upcast_attention", True),
    ("use_keyframes_abs_pos_embedding", True),
    ("use_middle_indices_grid", False),
    ("use_prompt_adaln_single", False),
)


@cache
def meta_model(variant: Variant) -> LTXTransformer:
    with torch.device("meta"):
        return LTXTransformer(TransformerConfig.from_metadata(full_size_config(variant)))


@pytest.mark.parametrize(
    ("variant", "parameters", "tensors", "linears"),
    [("2.0", 18_876_174_592, 3_510, 1_370), ("2.3", 18_988_838_144, 4_186, 1_660)],
)
def test_released_sizes(variant: Variant, parameters: int, tensors: int, linears: int) -> None:
    """docs/model.md 1.2, 9.1 and 10; the connectors that share the file's prefix are not counted."""
    model = meta_model(variant)
    state = model.state_dict()
    assert sum(t.numel() for t in state.values()) == parameters
    assert len(state) == tensors
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == linears
    assert not list(model.buffers())  # nothing would stay on the meta device after a load


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("adaln_single.emb.timestep_embedder.linear_1.weight", (4096, 256)),
        ("adaln_single.linear.weight", (9 * 4096, 4096)),
        ("audio_prompt_adaln_single.linear.weight", (2 * 2048, 2048)),
        ("av_ca_video_scale_shift_adaln_single.linear.weight", (4 * 4096, 4096)),
        ("av_ca_v2a_gate_adaln_single.linear.bias", (2048,)),
        ("scale_shift_table", (2, 4096)),
        ("audio_proj_out.weight", (128, 2048)),
        ("transformer_blocks.47.attn1.q_norm.weight", (4096,)),
        ("transformer_blocks.0.attn2.to_gate_logits.weight", (32, 4096)),
        ("transformer_blocks.0.audio_to_video_attn.to_q.weight", (2048, 4096)),
        ("transformer_blocks.0.audio_to_video_attn.to_out.0.weight", (4096, 2048)),
        ("transformer_blocks.0.video_to_audio_attn.to_v.weight", (2048, 4096)),
        ("transformer_blocks.0.ff.net.0.proj.weight", (16384, 4096)),
        ("transformer_blocks.0.audio_ff.net.2.weight", (2048, 8192)),
        ("transformer_blocks.0.scale_shift_table", (9, 4096)),
        ("transformer_blocks.0.prompt_scale_shift_table", (2, 4096)),
        ("transformer_blocks.0.scale_shift_table_a2v_ca_audio", (5, 2048)),
    ],
)
def test_released_keys(key: str, shape: tuple[int, ...]) -> None:
    assert tuple(meta_model("2.3").state_dict()[key].shape) == shape


def test_caption_projection_belongs_to_2_0() -> None:
    old, new = meta_model("2.0").state_dict(), meta_model("2.3").state_dict()
    assert tuple(old["audio_caption_projection.linear_1.weight"].shape) == (2048, 3840)
    assert not any("caption" in key for key in new)
    assert not any("gate_logits" in key or "prompt" in key for key in old)


@pytest.mark.parametrize("variant", ["2.0", "2.3"])
def test_generation_follows_the_features(variant: Variant) -> None:
    config = TransformerConfig.from_metadata(tiny_config(variant))
    assert config.generation == variant
    assert config.gated_attention == (variant == "2.3")
    assert (config.caption_channels is None) == (variant == "2.3")


@pytest.mark.parametrize("key", STATED)
def test_a_missing_key_is_named(key: str) -> None:
    config = full_size_config("2.3")
    del config["transformer"][key]
    with pytest.raises(ConfigError, match=rf"transformer\.{key}\b.*missing"):
        TransformerConfig.from_metadata(config)


def test_2_0_has_to_state_the_caption_width() -> None:
    config = full_size_config("2.0")
    del config["transformer"]["caption_channels"]
    with pytest.raises(ConfigError, match=r"transformer\.caption_channels"):
        TransformerConfig.from_metadata(config)


@pytest.mark.parametrize(("key", "value"), UNSUPPORTED, ids=[f"{k}={v}" for k, v in UNSUPPORTED])
def test_an_unsupported_value_is_named(key: str, value: Any) -> None:
    config = full_size_config("2.3")
    config["transformer"][key] = value
    with pytest.raises(ConfigError) as caught:
        TransformerConfig.from_metadata(config)
    assert caught.value.key == f"transformer.{key}"
    assert caught.value.value == value


def test_widths_have_to_agree() -> None:
    config = full_size_config("2.3")
    config["transformer"]["audio_attention_head_dim"] = 32
    with pytest.raises(ConfigError, match=r"audio_cross_attention_dim = 2048: must equal heads x head width, 1024"):
        TransformerConfig.from_metadata(config)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match="transformer"):
        TransformerConfig.from_metadata({"vae": {}})


def test_sizes_come_from_the_metadata() -> None:
    """No size is that of the released models unless the file says so."""
    config = TransformerConfig.from_metadata(tiny_config("2.3"))
    released = TransformerConfig.from_metadata(full_size_config("2.3"))
    assert config.video.width != released.video.width
    assert config.num_layers != released.num_layers
    shorter = dataclasses.replace(config, num_layers=1)
    with torch.device("meta"):
        assert len(LTXTransformer(shorter).transformer_blocks) == 1
