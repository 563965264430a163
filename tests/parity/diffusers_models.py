"""diffusers' LTX-2 modules: their settings for each generation, and where official names are found in them.

docs/model.md 9.3 and 11.1. Nothing here reads our own configuration classes, so that a size or a switch that those
misread shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

Generation = Literal["2.0", "2.3"]
State = dict[str, Tensor]
Names = tuple[tuple[str, str], ...]

# Whole name parts; the first match wins, so longer names stand first.
_TRANSFORMER_PARTS: Names = (
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
    ("audio_prompt_adaln_single", "audio_prompt_adaln"),
    ("prompt_adaln_single", "prompt_adaln"),
    ("audio_adaln_single", "audio_time_embed"),
    ("adaln_single", "time_embed"),
    ("audio_patchify_proj", "audio_proj_in"),
    ("patchify_proj", "proj_in"),
    ("scale_shift_table_a2v_ca_video", "video_a2v_cross_attn_scale_shift_table"),
    ("scale_shift_table_a2v_ca_audio", "audio_a2v_cross_attn_scale_shift_table"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
)
# Substrings, all of them replaced.
_CONNECTORS: Names = (
    ("text_embedding_projection.aggregate_embed", "text_proj_in"),
    ("text_embedding_projection.video_aggregate_embed", "video_text_proj_in"),
    ("text_embedding_projection.audio_aggregate_embed", "audio_text_proj_in"),
    ("_embeddings_connector.", "_connector."),
    ("transformer_1d_blocks", "transformer_blocks"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
)
_VOCODER: Names = (
    ("resblocks", "resnets"),
    ("conv_pre", "conv_in"),
    ("conv_post", "conv_out"),
    ("act_post", "act_out"),
    ("downsample.lowpass", "downsample"),
    ("ups.", "upsamplers."),
)
_VIDEO_VAE: Mapping[Generation, dict[str, Any]] = {
    "2.0": {"decoder_spatial_padding_mode": "reflect"},
    "2.3": {
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    },
}
# Channels of the stages, as multiples of the base channels: encoder, decoder.
_VIDEO_VAE_WIDTHS: Mapping[Generation, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "2.0": ((2, 4, 8, 16), (2, 4, 8)),
    "2.3": ((2, 4, 8, 8), (2, 4, 4, 8)),
}


def transformer_key(key: str) -> str:
    """diffusers' name of a DiT tensor, or of a DiT module."""

    def rename(part: str) -> str:
        return next((theirs for ours, theirs in _TRANSFORMER_PARTS if part == ours), part)

    return ".".join(rename(part) for part in key.split("."))


def connectors_key(key: str) -> str:
    return replaced(key, _CONNECTORS)


def vocoder_key(key: str) -> str:
    return replaced(key, _VOCODER)


def official_video_vae_key(name: str, half: str) -> str:
    """Official name of a tensor of diffusers' encoder or decoder.

    diffusers groups a stage with the resampling beside it; official files count both in one list.
    """
    last = 8 if half == "encoder" else 0
    name = re.sub(r"^mid_block\.resnets", f"STAGES.{last}.res_blocks", name)
    first = 0 if half == "encoder" else 2
    name = re.sub(r"^\w+_blocks\.(\d)\.resnets", lambda m: f"STAGES.{2 * int(m[1]) + first}.res_blocks", name)
    name = re.sub(r"^\w+_blocks\.(\d)\.\w+samplers\.0", lambda m: f"STAGES.{2 * int(m[1]) + 1}", name)
    return name.replace("STAGES", "down_blocks" if half == "encoder" else "up_blocks")


def transformer(generation: Generation, **sizes: Any) -> LTX2VideoTransformer3DModel:
    """A DiT; ``sizes`` are the constructor's own arguments."""
    new = generation == "2.3"
    switches = {
        "gated_attn": new,
        "cross_attn_mod": new,
        "audio_gated_attn": new,
        "audio_cross_attn_mod": new,
        "use_prompt_embeddings": not new,
        "perturbed_attn": True,  # without it diffusers ignores STG
    }
    return _frozen(LTX2VideoTransformer3DModel(**{"rope_type": "split", **switches, **sizes}))


def connectors(generation: Generation, **sizes: Any) -> LTX2TextConnectors:
    """Text projections and connectors; ``sizes`` are the constructor's own arguments."""
    new = generation == "2.3"
    switches = {"video_gated_attn": new, "audio_gated_attn": new, "per_modality_projections": new, "proj_bias": new}
    return _frozen(
        LTX2TextConnectors(**{"rope_type": "split", "connector_rope_base_seq_len": 4096, **switches, **sizes})
    )


def video_vae(
    generation: Generation,
    latent_channels: int,
    encoder_base: int,
    decoder_base: int,
    encoder_layers: Sequence[int],
    decoder_layers: Sequence[int],
) -> AutoencoderKLLTX2Video:
    """A video VAE with the stages of a generation.

    Args:
        encoder_layers, decoder_layers: res blocks per stage, in the order of the metadata.
    """
    encoder_widths, decoder_widths = _VIDEO_VAE_WIDTHS[generation]

    def build(channels: int) -> AutoencoderKLLTX2Video:
        return AutoencoderKLLTX2Video(
            latent_channels=channels,
            block_out_channels=tuple(width * encoder_base for width in encoder_widths),
            decoder_block_out_channels=tuple(width * decoder_base for width in decoder_widths),
            layers_per_block=tuple(encoder_layers),
            decoder_layers_per_block=tuple(decoder_layers),
            decoder_causal=False,
            encoder_spatial_padding_mode="zeros",
            **_VIDEO_VAE[generation],
        )

    model = build(latent_channels)
    if encoder_base != latent_channels:  # one number in diffusers, as in the released models
        head, model.encoder = model.encoder.conv_out, build(encoder_base).encoder
        model.encoder.conv_out = head
    return _frozen(model)


@dataclass(frozen=True)
class OfficialModels:
    """diffusers' modules with the weights of official-format files, float32.

    Attributes:
        weights: of the DiT, under diffusers' names.
        new_transformer: makes another DiT of the same sizes, without weights that mean anything.
        config: the single file's metadata.
    """

    config: dict[str, Any]
    weights: State
    new_transformer: Callable[[], LTX2VideoTransformer3DModel]
    connectors: LTX2TextConnectors
    video_vae: AutoencoderKLLTX2Video
    audio_vae: AutoencoderKLLTX2Audio
    vocoder: nn.Module
    upsampler: LTX2LatentUpsamplerModel

    @classmethod
    def load(cls, checkpoint: Path, upsampler: Path, generation: Generation) -> OfficialModels:
        config, state = _metadata(checkpoint), _read(checkpoint)
        model = _under(state, "model.diffusion_model.")
        text = {key: tensor for key, tensor in model.items() if "_embeddings_connector." in key}
        text |= {key: tensor for key, tensor in state.items() if key.startswith("text_embedding_projection.")}
        projection = next(tensor for key, tensor in text.items() if key.endswith("aggregate_embed.weight"))
        sizes = config["transformer"]
        return cls(
            config=config,
            weights={transformer_key(key): tensor for key, tensor in model.items() if key not in text},
            new_transformer=lambda: transformer(generation, **transformer_sizes(sizes)),
            connectors=_loaded(
                connectors(generation, **_connectors_sizes(sizes, projection.shape[1])),
                {connectors_key(key): tensor for key, tensor in text.items()},
            ),
            video_vae=_loaded_video_vae(state, config["vae"], generation),
            audio_vae=_audio_vae_of(state, config["audio_vae"]["model"]["params"]["ddconfig"]),
            vocoder=_vocoder_of(_under(state, "vocoder."), config["vocoder"]),
            upsampler=_upsampler_of(upsampler),
        )


def transformer_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`transformer` takes, from ``config["transformer"]`` of an official file."""
    same = (
        "in_channels out_channels num_attention_heads attention_head_dim cross_attention_dim num_layers "
        "audio_out_channels audio_num_attention_heads audio_attention_head_dim "
        "audio_cross_attention_dim caption_channels rope_type timestep_scale_multiplier"
    )
    return {
        **{name: config[name] for name in same.split()},
        # The official files leave it out
        "audio_in_channels": config.get("audio_in_channels", config["audio_out_channels"]),
        "rope_double_precision": config["frequencies_precision"] == "float64",
        "cross_attn_timestep_scale_multiplier": config["av_ca_timestep_scale_multiplier"],
    }


def _connectors_sizes(config: Mapping[str, Any], projection_inputs: int) -> dict[str, Any]:
    video = (config["connector_num_attention_heads"], config["connector_attention_head_dim"])
    audio = (
        config.get("audio_connector_num_attention_heads", video[0]),
        config.get("audio_connector_attention_head_dim", video[1]),
    )
    sizes: dict[str, Any] = {
        "caption_channels": config["caption_channels"],
        "text_proj_in_factor": projection_inputs // config["caption_channels"],
    }
    for name, (heads, head_dim) in (("video", video), ("audio", audio)):
        sizes[f"{name}_connector_num_attention_heads"] = heads
        sizes[f"{name}_connector_attention_head_dim"] = head_dim
        sizes[f"{name}_connector_num_layers"] = config["connector_num_layers"]
        sizes[f"{name}_connector_num_learnable_registers"] = config["connector_num_learnable_registers"]
        sizes[f"{name}_hidden_dim"] = heads * head_dim
    return sizes


def video_vae_of(config: Mapping[str, Any], generation: Generation) -> AutoencoderKLLTX2Video:
    """A video VAE of the sizes in ``config["vae"]`` of an official file, without weights that mean anything."""

    def layers(half: str) -> list[int]:
        return [options["num_layers"] for kind, options in config[f"{half}_blocks"] if kind == "res_x"]

    return video_vae(
        generation,
        config["latent_channels"],
        config["encoder_base_channels"],
        config["decoder_base_channels"],
        layers("encoder"),
        layers("decoder"),
    )


def _loaded_video_vae(state: State, config: Mapping[str, Any], generation: Generation) -> AutoencoderKLLTX2Video:
    model = video_vae_of(config, generation)
    official = {}
    for name in model.state_dict():
        half, _, rest = name.partition(".")
        if rest:
            official[name] = state[f"vae.{half}.{official_video_vae_key(rest, half)}"]
    return _loaded(model, official | _statistics(state, "vae"))


def _audio_vae_of(state: State, config: Mapping[str, Any]) -> AutoencoderKLLTX2Audio:
    model = AutoencoderKLLTX2Audio(
        base_channels=config["ch"],
        ch_mult=tuple(config["ch_mult"]),
        num_res_blocks=config["num_res_blocks"],
        latent_channels=config["z_channels"],
        mel_bins=config["mel_bins"],
    )
    halves = {key: tensor for key, tensor in _under(state, "audio_vae.").items() if "statistics" not in key}
    return _loaded(model, halves | _statistics(state, "audio_vae"))


def _vocoder_of(state: State, config: Mapping[str, Any]) -> nn.Module:
    if "bwe" not in config:
        model: nn.Module = LTX2Vocoder(hidden_channels=config["upsample_initial_channel"])
    else:
        model = LTX2VocoderWithBWE(
            hidden_channels=config["vocoder"]["upsample_initial_channel"],
            bwe_hidden_channels=config["bwe"]["upsample_initial_channel"],
            final_act_fn="clamp",  # the metadata is silent, and the official default is a clamp
            filter_length=config["bwe"]["n_fft"],
            window_length=config["bwe"]["win_size"],
        )
    return _loaded(model, {vocoder_key(key): tensor for key, tensor in state.items()})


def _upsampler_of(path: Path) -> LTX2LatentUpsamplerModel:
    config = _metadata(path)
    model = LTX2LatentUpsamplerModel(
        in_channels=config["in_channels"],
        mid_channels=config["mid_channels"],
        num_blocks_per_stage=config["num_blocks_per_stage"],
        rational_spatial_scale=config["spatial_scale"],
        use_rational_resampler=config["rational_resampler"],
    )
    return _loaded(model, _read(path))


def _statistics(state: State, part: str) -> State:
    return {
        "latents_mean": state[f"{part}.per_channel_statistics.mean-of-means"],
        "latents_std": state[f"{part}.per_channel_statistics.std-of-means"],
    }


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        config: dict[str, Any] = json.loads(file.metadata()["config"])
    return config


def _read(path: Path) -> State:
    return {key: tensor.float() for key, tensor in load_file(path).items()}


def _under(state: State, prefix: str) -> State:
    return {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}


def replaced(key: str, names: Names) -> str:
    for ours, theirs in names:
        key = key.replace(ours, theirs)
    return key


def _loaded(model: Any, state: State) -> Any:
    model.load_state_dict(state, strict=True)
    return _frozen(model)


def _frozen(model: Any) -> Any:
    return model.eval().requires_grad_(False)
