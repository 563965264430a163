"""From the text encoder's states to the embeddings that the transformer attends to (docs/model.md 3.2 and 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...protocols import Attention
from ...types import PromptContext, Rope
from ..transformer.attention import MultiHeadAttention, sdpa
from ..transformer.block import FeedForward
from ..transformer.rope import rope_table
from .config import TEXT_TOKENS, ConnectorConfig, TextConfig, check_length
from .features import SharedProjection, StreamProjections

__all__ = ["TEXT_TOKENS", "TextConnector"]

# Neither is in the metadata; official code has these values.
NORM_EPS = 1e-6
ROPE_THETA = 10000.0


class TextConnector(nn.Module):
    """Feature projections, then a connector for each stream. Names are those of the checkpoint.

    Args:
        attention: how the connectors attend; all tokens attend to all.
    """

    def __init__(self, config: TextConfig, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        projection = StreamProjections if config.projection_per_stream else SharedProjection
        self.text_embedding_projection = projection(config)
        self.video_embeddings_connector = EmbeddingsConnector(config.video, attention)
        self.audio_embeddings_connector = EmbeddingsConnector(config.audio, attention)

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, length: int = TEXT_TOKENS) -> PromptContext:
        """Embeddings of one prompt.

        Args:
            hidden_states: (n, D, L) all states of the n real tokens, without padding; converted to the dtype of the
                weights.
            length: of the result; a multiple of the number of registers, at least n.

        Returns:
            Video (1, length, Dv) and audio (1, length, Da).

        Raises:
            ConfigError: the registers do not divide ``length``.
            ValueError: the states have another shape than the weights ask for.
        """
        tokens, *rest = hidden_states.shape
        if rest != [self.config.text_width, self.config.num_states] or not 0 < tokens <= length:
            expected = f"(1..{length}, {self.config.text_width}, {self.config.num_states})"
            raise ValueError(f"text states have the shape {tuple(hidden_states.shape)}, expected {expected}")
        dtype = self.video_embeddings_connector.learnable_registers.dtype
        video, audio = self.text_embedding_projection(hidden_states.to(dtype))
        return self.connect(video, audio, length)

    @torch.no_grad()
    def connect(self, video: Tensor, audio: Tensor, length: int = TEXT_TOKENS) -> PromptContext:
        """Embeddings of one prompt whose states are projected already.

        Args:
            video, audio: (n, Dv) and (n, Da), what the projections give for the n real tokens.
            length: of the result, as for :meth:`forward`.
        """
        for connector in (self.config.video, self.config.audio):
            check_length(length, connector.registers)
        dtype = self.video_embeddings_connector.learnable_registers.dtype
        return PromptContext(
            video=self.video_embeddings_connector(video.to(dtype), length),
            audio=self.audio_embeddings_connector(audio.to(dtype), length),
        )


class EmbeddingsConnector(nn.Module):
    """Transformer over one prompt's tokens and the registers behind them."""

    def __init__(self, config: ConnectorConfig, attention: Attention) -> None:
        super().__init__()
        self.config = config
        self.learnable_registers = nn.Parameter(torch.empty(config.registers, config.width))
        self.transformer_1d_blocks = nn.ModuleList(
            [ConnectorBlock(config, attention) for _ in range(config.num_layers)]
        )

    def forward(self, features: Tensor, length: int) -> Tensor:
        """(n, width) -> (1, length, width)."""
        # A register's index is its absolute position, not its distance from the prompt
        registers = self.learnable_registers.repeat(length // self.config.registers, 1)
        x = torch.cat((features, registers[len(features) :]))[None]
        rope = self._rope(length, x)
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return _norm(x)

    def _rope(self, length: int, x: Tensor) -> Rope:
        index = torch.arange(length, dtype=torch.float32, device=x.device)
        return rope_table(
            index[None, None, :, None].expand(-1, -1, -1, 2),  # (1, 1, T, 2): a token starts and ends at its index
            self.config.width,
            self.config.heads,
            (self.config.max_position,),
            ROPE_THETA,
            self.config.rope_layout,
            self.config.rope_float64,
            x.dtype,
        )


class ConnectorBlock(nn.Module):
    def __init__(self, config: ConnectorConfig, attention: Attention) -> None:
        super().__init__()
        width = config.width
        self.attn1 = MultiHeadAttention(
            width, width, config.heads, config.head_dim, NORM_EPS, config.gated_attention, attention
        )
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        x = x + self.attn1(_norm(x), rope=rope)
        return x + self.ff(_norm(x))  # type: ignore[no-any-return]


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS)
