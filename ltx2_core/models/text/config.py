"""Sizes and features of the text connectors, as a checkpoint's metadata and one tensor's shape state them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ..config_reader import ConfigReader
from ..counts import Count
from ..transformer.config import RopeLayout

TEXT_TOKENS = 1024  # length of every prompt's embeddings: the prompt first, registers after it
RELEASED_TEXT_STATES = 49  # Gemma 3 12B: its embeddings and 48 layers


@dataclass(frozen=True)
class ConnectorConfig:
    """One stream's connector, a small transformer over the prompt's tokens.

    Attributes:
        registers: learned rows that fill the positions after the prompt.
        max_position: token index that the rotary positions are measured against.
    """

    heads: int
    head_dim: int
    num_layers: int
    registers: int
    max_position: int
    rope_layout: RopeLayout
    rope_float64: bool
    gated_attention: bool

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class TextConfig:
    """Everything that decides the connector's modules and arithmetic.

    Attributes:
        text_width: D, width of the text encoder's states.
        num_states: L, how many of its states a token brings.
        projection_per_stream: one projection and a norm per token for each stream (2.3), or a single projection and a
            norm over the whole prompt (2.0).
    """

    text_width: int
    num_states: int
    projection_per_stream: bool
    video: ConnectorConfig
    audio: ConnectorConfig

    @property
    def counts(self) -> tuple[Count, ...]:
        shared, own = "transformer.connector_num_layers", "transformer.audio_connector_num_layers"
        audio_key = shared if self.audio.num_layers == self.video.num_layers else own
        return (
            Count(shared, self.video.num_layers, "video_embeddings_connector.transformer_1d_blocks"),
            Count(audio_key, self.audio.num_layers, "audio_embeddings_connector.transformer_1d_blocks"),
        )

    @property
    def longest_pair(self) -> int:
        """Numbers in the states of a prompt and a negative one, both as long as can be."""
        return 2 * TEXT_TOKENS * self.text_width * self.num_states

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any], projection_inputs: int | None = None) -> TextConfig:
        """Reads the ``connector_*`` and ``caption_*`` keys of ``config["transformer"]`` (docs/model.md 1.3 and 3.3).

        Args:
            projection_inputs: second dimension of the projection's weight, D * L: the metadata names D only. None
                takes the released models' 49 states.

        Raises:
            ConfigError: a key is missing that has no safe value, is not supported, or contradicts another.
        """
        reader = ConfigReader.of(config, "transformer")
        reader.require("use_embeddings_connector", True, default=True)
        reader.require("connector_ff_bias", True, default=True)
        per_stream = _projection_per_stream(reader)
        text_width = reader.int("caption_channels")
        result = cls(
            text_width=text_width,
            num_states=_num_states(text_width, projection_inputs),
            projection_per_stream=per_stream,
            video=_connector(reader, ""),
            audio=_connector(reader, "audio_"),
        )
        for prefix, connector in (("", result.video), ("audio_", result.audio)):
            if not per_stream and connector.width != text_width:
                key = f"{prefix}connector_num_attention_heads"
                raise reader.error(
                    key if key in reader else "connector_num_attention_heads",
                    f"makes a connector {connector.width} wide; without caption_proj_before_connector it must be as "
                    f"wide as caption_channels, {text_width}",
                )
        return result


def check_length(length: int, registers: int) -> None:
    """Raises :class:`ConfigError` unless whole sets of registers fill ``length`` tokens (docs/model.md 3.3)."""
    if length % registers:
        raise ConfigError(
            "transformer.connector_num_learnable_registers",
            registers,
            f"must divide the length of the text embeddings, {length}",
            "Use an official LTX-2 or LTX-2.3 file.",
        )


def _projection_per_stream(reader: ConfigReader) -> bool:
    """Absent means 2.0. The other caption keys have one supported value each."""
    per_stream = reader.bool("caption_proj_before_connector", False)
    for key in ("caption_projection_first_linear", "caption_projection_second_linear", "caption_proj_input_norm"):
        reader.require(key, False, default=False)
    norm = "per_token_rms" if per_stream else None
    reader.require("text_encoder_norm_type", norm, default=norm)
    return per_stream


def _num_states(text_width: int, projection_inputs: int | None) -> int:
    if projection_inputs is None:
        return RELEASED_TEXT_STATES
    states, rest = divmod(projection_inputs, text_width)
    if rest or states < 2:
        raise ConfigError(
            "transformer.caption_channels",
            text_width,
            f"must divide the text projection's {projection_inputs} inputs into two or more states",
            "The text projection belongs to another checkpoint; use the files of one release.",
        )
    return states


def _connector_key(reader: ConfigReader, prefix: str, name: str) -> str:
    """The key that states a connector's number: its own, else the video stream's."""
    own = f"{prefix}connector_{name}"
    return own if own in reader else f"connector_{name}"


def _connector(reader: ConfigReader, prefix: str) -> ConnectorConfig:
    # What a stream does not state is as in the video stream; positions, registers and gates are always shared.
    # The flag connector_norm_output is not read: official code always norms.
    max_position = reader.ints("connector_positional_embedding_max_pos")
    if len(max_position) != 1 or max_position[0] < 1:
        raise reader.error("connector_positional_embedding_max_pos", "must hold one positive number")
    result = ConnectorConfig(
        heads=reader.int(_connector_key(reader, prefix, "num_attention_heads")),
        head_dim=reader.int(_connector_key(reader, prefix, "attention_head_dim")),
        num_layers=reader.int(_connector_key(reader, prefix, "num_layers")),
        registers=reader.int("connector_num_learnable_registers"),
        max_position=max_position[0],
        rope_layout="split" if reader.str("rope_type", choices=("split", "interleaved")) == "split" else "interleaved",
        rope_float64=reader.str("frequencies_precision", choices=("float64", "float32")) == "float64",
        gated_attention=reader.bool("connector_apply_gated_attention", False),
    )
    if result.head_dim % 2 or result.width < 4:
        raise reader.error(f"{prefix}connector_attention_head_dim", "must be even, rotary embeddings turn pairs")
    check_length(TEXT_TOKENS, result.registers)
    return result
