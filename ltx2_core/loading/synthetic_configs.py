"""The model descriptions that official files carry in their metadata (docs/model.md 1.3), and the same ones shrunk.

Everything here is data: JSON objects as they stand under the metadata key ``config``. A shrunk description keeps every
key, feature switch and block type of the released one and changes sizes only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

Variant = Literal["2.3", "2.0"]
JSON = dict[str, Any]

MODEL_VERSION: Mapping[Variant, str] = {"2.3": "2.3.0", "2.0": "2.0.0"}

_TRANSFORMER: JSON = {
    "_class_name": "AVTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 128,
    "attention_type": "default",
    "num_attention_heads": 32,
    "num_layers": 48,
    "in_channels": 128,
    "out_channels": 128,
    "caption_channels": 3840,
    "cross_attention_dim": 4096,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "num_embeds_ada_norm": 1000,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "upcast_attention": False,
    "use_linear_projection": False,
    "positional_embedding_type": "rope",
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "causal_temporal_positioning": True,
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_out_channels": 128,
    "audio_cross_attention_dim": 2048,
    "audio_positional_embedding_max_pos": [20],
    "use_audio_video_cross_attention": True,
    "av_cross_ada_norm": True,
    "share_ff": False,
    "use_middle_indices_grid": True,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "use_embeddings_connector": True,
    "connector_attention_head_dim": 128,
    "connector_num_learnable_registers": 128,
    "connector_positional_embedding_max_pos": [4096],
    "connector_norm_output": True,
}

_TRANSFORMER_OF: Mapping[Variant, JSON] = {
    "2.0": {"_diffusers_version": "0.25.1", "connector_num_attention_heads": 30, "connector_num_layers": 2},
    "2.3": {
        "connector_num_attention_heads": 32,
        "connector_num_layers": 8,
        "audio_connector_num_attention_heads": 32,
        "audio_connector_attention_head_dim": 64,
        "apply_gated_attention": True,
        "connector_apply_gated_attention": True,
        "cross_attention_adaln": True,
        "caption_proj_before_connector": True,
        "caption_projection_first_linear": False,
        "caption_projection_second_linear": False,
        "caption_proj_input_norm": False,
        "text_encoder_norm_type": "per_token_rms",
        "connector_learnable_registers_std": 1,
    },
}

_VAE: JSON = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "patch_size": 4,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "normalize_latent_channels": False,
    "scaling_factor": 1,
    "causal_decoder": False,
    "timestep_conditioning": False,
    "encoder_base_channels": 128,
    "decoder_base_channels": 128,
}


def _res(count: int) -> list[Any]:
    return ["res_x", {"num_layers": count}]


def _compress(axes: str, multiplier: int, **more: Any) -> list[Any]:
    return [f"compress_{axes}", {"multiplier": multiplier, **more}]


_VAE_OF: Mapping[Variant, JSON] = {
    "2.0": {
        "encoder_blocks": [
            _res(4),
            _compress("space_res", 2),
            _res(6),
            _compress("time_res", 2),
            _res(6),
            _compress("all_res", 2),
            _res(2),
            _compress("all_res", 2),
            _res(2),
        ],
        "decoder_blocks": [  # output side first: applied in reverse
            _res(5),
            _compress("all", 2, residual=True),
            _res(5),
            _compress("all", 2, residual=True),
            _res(5),
            _compress("all", 2, residual=True),
            _res(5),
        ],
    },
    "2.3": {
        "spatial_padding_mode": "zeros",
        "encoder_blocks": [
            _res(4),
            _compress("space_res", 2),
            _res(6),
            _compress("time_res", 2),
            _res(4),
            _compress("all_res", 2),
            _res(2),
            _compress("all_res", 1),
            _res(2),
        ],
        "decoder_blocks": [  # output side first: applied in reverse
            _res(4),
            _compress("space", 2),
            _res(6),
            _compress("time", 2),
            _res(4),
            _compress("all", 1),
            _res(2),
            _compress("all", 2),
            _res(2),
        ],
    },
}

_AUDIO_VAE: JSON = {
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
        "audio": {"sampling_rate": 16000, "stereo": True},
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}

_RESBLOCKS: JSON = {
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
}

_VOCODER_OF: Mapping[Variant, JSON] = {
    "2.0": {
        **_RESBLOCKS,
        "upsample_initial_channel": 1024,
        "resblock": "1",
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [16, 15, 8, 4, 4],
        "use_tanh_at_final": True,
        "use_bias_at_final": True,
        "output_sampling_rate": 24000,
    },
    "2.3": {
        "vocoder": {
            **_RESBLOCKS,
            "upsample_initial_channel": 1536,
            "resblock": "AMP1",
            "activation": "snakebeta",
            "upsample_rates": [5, 2, 2, 2, 2, 2],
            "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
            "use_tanh_at_final": False,
            "use_bias_at_final": False,
        },
        "bwe": {
            **_RESBLOCKS,
            "upsample_initial_channel": 512,
            "resblock": "AMP1",
            "activation": "snakebeta",
            "upsample_rates": [6, 5, 2, 2, 2],
            "upsample_kernel_sizes": [12, 11, 4, 4, 4],
            "use_tanh_at_final": False,
            "use_bias_at_final": False,
            "apply_final_activation": False,
            "input_sampling_rate": 16000,
            "output_sampling_rate": 48000,
            "hop_length": 80,
            "n_fft": 512,
            "win_size": 512,
            "num_mels": 64,
        },
    },
}

_UPSAMPLER: JSON = {
    "_class_name": "LatentUpsampler",
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "spatial_scale": 2.0,
}

# Sizes of the tiny models. Heads keep the 2:1 width ratio of the streams. The audio latent is 2 channels x 16 bins, and
# the audio VAE's first width is the same 32, as official code sizes the statistics by that width (docs/model.md 7.2).
_TINY_TRANSFORMER: JSON = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "num_layers": 3,
    "in_channels": 16,
    "out_channels": 16,
    "caption_channels": 48,
    "cross_attention_dim": 128,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 16,
    "audio_in_channels": 32,
    "audio_out_channels": 32,
    "audio_cross_attention_dim": 64,
}
_TINY_TRANSFORMER_OF: Mapping[Variant, JSON] = {
    "2.0": {"connector_num_attention_heads": 3, "connector_attention_head_dim": 16, "connector_num_layers": 2},
    "2.3": {
        "connector_num_attention_heads": 4,
        "connector_attention_head_dim": 32,
        "connector_num_layers": 2,
        "audio_connector_num_attention_heads": 4,
        "audio_connector_attention_head_dim": 16,
    },
}
_TINY_BASE_CHANNELS = 8
_TINY_DDCONFIG: JSON = {"z_channels": 2, "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1}


def full_size_config(variant: Variant = "2.3") -> JSON:
    """The ``config`` metadata of the released model, ``transformer``, ``vae``, ``audio_vae`` and ``vocoder``."""
    return copy.deepcopy(
        {
            "transformer": {**_TRANSFORMER, **_TRANSFORMER_OF[variant]},
            "vae": {**_VAE, **_VAE_OF[variant]},
            "audio_vae": _AUDIO_VAE,
            "vocoder": _VOCODER_OF[variant],
        }
    )


def full_size_upsampler_config(variant: Variant = "2.3") -> JSON:
    """The ``config`` metadata of the released spatial x2 upsampler: rational for 2.0, plain for 2.3."""
    return {**_UPSAMPLER, "rational_resampler": variant == "2.0"}


def tiny_config(variant: Variant = "2.3") -> JSON:
    """:func:`full_size_config` with sizes that run in milliseconds; the pixel scale stays (8, 32, 32)."""
    config = full_size_config(variant)
    config["transformer"].update(_TINY_TRANSFORMER, **_TINY_TRANSFORMER_OF[variant])
    config["vae"].update(
        latent_channels=16, encoder_base_channels=_TINY_BASE_CHANNELS, decoder_base_channels=_TINY_BASE_CHANNELS
    )
    for kind, options in [*config["vae"]["encoder_blocks"], *config["vae"]["decoder_blocks"]]:
        if kind == "res_x":
            options["num_layers"] = 1
    config["audio_vae"]["model"]["params"]["ddconfig"].update(_TINY_DDCONFIG)
    if variant == "2.3":
        config["vocoder"]["vocoder"]["upsample_initial_channel"] = 128
        config["vocoder"]["bwe"].update(upsample_initial_channel=64, n_fft=256, win_size=256)
    else:
        config["vocoder"]["upsample_initial_channel"] = 64
    return config


def tiny_upsampler_config(variant: Variant = "2.3") -> JSON:
    """:func:`full_size_upsampler_config` shrunk; 64 channels, so that each of the 32 norm groups holds two."""
    return {
        **full_size_upsampler_config(variant),
        "in_channels": 16,
        "mid_channels": 64,
        "num_blocks_per_stage": 1,
    }
