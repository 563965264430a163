"""The diffusion transformer's sizes and features, as a checkpoint's metadata states them (docs/model.md 1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..config_reader import ConfigReader
from ..counts import Count

Generation = Literal["2.0", "2.3"]
RopeLayout = Literal["split", "interleaved"]

# Settings that the numbers depend on and that no tensor shows: the file has to state them.
_STATED: Mapping[str, Any] = {
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "cross_attention_norm": True,
    "positional_embedding_type": "rope",
    "use_middle_indices_grid": True,
    "causal_temporal_positioning": True,
    "use_audio_video_cross_attention": True,
    "av_cross_ada_norm": True,
}
# Settings that do not matter at inference, or whose other values come with other tensors, which the strict load
# refuses. Silence means the supported value.
_ASSUMED: Mapping[str, Any] = {
    "_class_name": "AVTransformer3DModel",
    "attention_type": "default",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "num_embeds_ada_norm": 1000,
    "num_vector_embeds": None,
    "dropout": 0.0,
    "double_self_attention": False,
    "only_cross_attention": False,
    "upcast_attention": False,
    "use_linear_projection": False,
    "share_ff": False,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
    # Later official revisions know these; no released 2.0 or 2.3 file sets them.
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
}


@dataclass(frozen=True)
class StreamConfig:
    """Sizes of one stream.

    Attributes:
        channels: of a latent token, in and out.
        max_positions: per position axis, what a rotary position is measured against; seconds, then pixels.
    """

    channels: int
    heads: int
    head_dim: int
    max_positions: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides the transformer's modules and arithmetic.

    Attributes:
        timestep_scale: what noise levels in [0, 1] are multiplied by before they are embedded.
        cross_gate_timestep_scale: the same for the gates of the audio-video cross attention.
        gated_attention: every attention has per-head gates (2.3).
        prompt_modulation: the text cross attention is modulated by the noise level (2.3).
        caption_channels: width of the text embeddings that the caption projections take (2.0), or None: they arrive in
            the streams' widths (2.3).
    """

    video: StreamConfig
    audio: StreamConfig
    num_layers: int
    norm_eps: float
    timestep_scale: float
    cross_gate_timestep_scale: float
    rope_theta: float
    rope_layout: RopeLayout
    rope_float64: bool
    gated_attention: bool
    prompt_modulation: bool
    caption_channels: int | None

    @property
    def generation(self) -> Generation:
        """Which released generation these features belong to."""
        return "2.3" if self.prompt_modulation else "2.0"

    @property
    def counts(self) -> tuple[Count, ...]:
        return (Count("transformer.num_layers", self.num_layers, "transformer_blocks"),)

    @property
    def latent_channels(self) -> int:
        """Channels of the video latent."""
        return self.video.channels

    @property
    def cross_max_positions(self) -> tuple[int]:
        """Time scale, in seconds, that both sides of the audio-video cross attention share."""
        return (max(self.video.max_positions[0], self.audio.max_positions[0]),)

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Reads ``config["transformer"]``.

        Raises:
            ConfigError: a key is missing that has no safe value, is not supported, or contradicts another.
        """
        reader = ConfigReader.of(config, "transformer")
        for key, value in _STATED.items():
            reader.require(key, value)
        for key, value in _ASSUMED.items():
            reader.require(key, value, default=value)
        gated, prompt_modulation, projected_before = _features(reader)
        video = _stream(reader, "", 3, reader.int("in_channels"))
        audio = _stream(
            reader,
            "audio_",
            1,
            reader.int("audio_in_channels" if "audio_in_channels" in reader else "audio_out_channels"),
        )
        layout = _rope_layout(reader)
        if layout == "split" and audio.width % (2 * video.heads):
            problem = f"must divide {audio.width / 2:g}, half of the audio stream's width, which both streams turn"
            raise reader.error("num_attention_heads", problem)
        return cls(
            video=video,
            audio=audio,
            num_layers=reader.int("num_layers"),
            norm_eps=reader.positive("norm_eps"),
            timestep_scale=reader.positive("timestep_scale_multiplier"),
            cross_gate_timestep_scale=reader.positive("av_ca_timestep_scale_multiplier"),
            rope_theta=reader.positive("positional_embedding_theta"),
            rope_layout=layout,
            rope_float64=reader.str("frequencies_precision", choices=("float64", "float32")) == "float64",
            gated_attention=gated,
            prompt_modulation=prompt_modulation,
            caption_channels=None if projected_before else reader.int("caption_channels"),
        )


def _features(reader: ConfigReader) -> tuple[bool, bool, bool]:
    """The switches that came with 2.3; absent means off, as in every 2.0 file."""
    keys = ("apply_gated_attention", "cross_attention_adaln", "caption_proj_before_connector")
    gated, modulated, projected_before = (reader.bool(key, False) for key in keys)
    for key, value in zip(keys, (gated, modulated, projected_before), strict=True):
        if value != modulated:
            raise reader.error(key, f"does not go with cross_attention_adaln = {modulated} in any known generation")
    return gated, modulated, projected_before


def _stream(reader: ConfigReader, prefix: str, axes: int, channels: int) -> StreamConfig:
    stream = StreamConfig(
        channels=channels,
        heads=reader.int(f"{prefix}num_attention_heads"),
        head_dim=reader.int(f"{prefix}attention_head_dim", minimum=2),
        max_positions=reader.ints(f"{prefix}positional_embedding_max_pos"),
    )
    if stream.head_dim % 2:
        raise reader.error(f"{prefix}attention_head_dim", "must be even, rotary embeddings turn pairs")
    if stream.width < 2 * axes:
        raise reader.error(f"{prefix}attention_head_dim", f"leaves no rotary frequency for each of {axes} axes")
    if len(stream.max_positions) != axes or min(stream.max_positions) < 1:
        raise reader.error(f"{prefix}positional_embedding_max_pos", f"must hold {axes} positive numbers")
    if reader.int(f"{prefix}out_channels") != channels:
        raise reader.error(f"{prefix}out_channels", f"must equal the stream's input channels, {channels}")
    if reader.int(f"{prefix}cross_attention_dim") != stream.width:
        raise reader.error(f"{prefix}cross_attention_dim", f"must equal heads x head width, {stream.width}")
    return stream


def _rope_layout(reader: ConfigReader) -> RopeLayout:
    return "split" if reader.str("rope_type", choices=get_args(RopeLayout)) == "split" else "interleaved"
