"""One transformer block: both streams attend to themselves, to the text, to each other (fact sheet 2.2 and 2.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...protocols import Attention
from ...types import StreamRope
from .adaln import modulate
from .attention import MultiHeadAttention
from .config import StreamConfig, TransformerConfig
from .perturbation import BlockSkips, Runs, batch_items
from .rope import rope_items

FEED_FORWARD_FACTOR = 4


@dataclass(frozen=True)
class Stream:
    """One stream between blocks. All but ``x`` is the same for every block.

    Axis t is T, or 1 where one noise level serves all tokens; modulations have batch 1 where it serves all items.
    """

    x: Tensor  # (B, T, D)
    context: Tensor  # (B, S, D) text
    rope: StreamRope
    enabled: bool
    modulation: Tensor  # (B, t, 6 or 9, D)
    embedded_timestep: Tensor  # (B, t, D), for the output head
    prompt_modulation: Tensor | None = None  # (B, 1, 2, D), 2.3
    # (B, t, 4, D): scale and shift of A2V, then of V2A; None, like the gate, when the other stream is left out
    cross_modulation: Tensor | None = None
    cross_gate: Tensor | None = None  # (B, t, 1, D)

    def cross_rows(self, table: Tensor) -> tuple[Tensor, ...]:
        """Modulation of the audio-video cross attention, with a block's table (5, D): 4 scales and shifts, the gate."""
        assert self.cross_modulation is not None and self.cross_gate is not None
        return (*(table[:4] + self.cross_modulation).unbind(2), *(table[4:] + self.cross_gate).unbind(2))

    def exchanging(self, items: slice) -> Stream:
        """What the audio-video cross attention reads of some batch items."""
        assert self.cross_modulation is not None and self.cross_gate is not None
        rope = replace(self.rope, cross_attention=rope_items(self.rope.cross_attention, items))
        return replace(
            self,
            x=self.x[items],
            rope=rope,
            cross_modulation=batch_items(self.cross_modulation, items),
            cross_gate=batch_items(self.cross_gate, items),
        )


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear, under the checkpoint's names ``net.0.proj`` and ``net.2``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = FEED_FORWARD_FACTOR * width
        expand = nn.Module()
        expand.proj = nn.Linear(width, inner)
        self.net = nn.ModuleList([expand, nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))  # type: ignore[no-any-return, operator]


class StreamLayers(NamedTuple):
    """The layers of a block that belong to one stream alone."""

    self_attention: MultiHeadAttention
    text_attention: MultiHeadAttention
    feed_forward: FeedForward
    table: Tensor  # (6 or 9, D)
    prompt_table: Tensor | None  # (2, D)


class TransformerBlock(nn.Module):
    prompt_scale_shift_table: nn.Parameter | None
    audio_prompt_scale_shift_table: nn.Parameter | None

    def __init__(self, config: TransformerConfig, attention: Attention) -> None:
        super().__init__()
        self.eps = config.norm_eps
        video, audio = config.video.width, config.audio.width

        def layer(query: int, context: int, stream: StreamConfig) -> MultiHeadAttention:
            heads, head_dim = stream.heads, stream.head_dim
            return MultiHeadAttention(query, context, heads, head_dim, self.eps, config.gated_attention, attention)

        self.attn1 = layer(video, video, config.video)
        self.attn2 = layer(video, video, config.video)
        self.ff = FeedForward(video)
        self.audio_attn1 = layer(audio, audio, config.audio)
        self.audio_attn2 = layer(audio, audio, config.audio)
        self.audio_ff = FeedForward(audio)
        # Both directions work in the audio stream's heads
        self.audio_to_video_attn = layer(video, audio, config.audio)
        self.video_to_audio_attn = layer(audio, video, config.audio)

        rows = 9 if config.prompt_modulation else 6
        self.scale_shift_table = nn.Parameter(torch.empty(rows, video))
        self.audio_scale_shift_table = nn.Parameter(torch.empty(rows, audio))
        self.scale_shift_table_a2v_ca_video = nn.Parameter(torch.empty(5, video))
        self.scale_shift_table_a2v_ca_audio = nn.Parameter(torch.empty(5, audio))
        modulated = config.prompt_modulation
        self.prompt_scale_shift_table = nn.Parameter(torch.empty(2, video)) if modulated else None
        self.audio_prompt_scale_shift_table = nn.Parameter(torch.empty(2, audio)) if modulated else None

    @property
    def video_layers(self) -> StreamLayers:
        return StreamLayers(self.attn1, self.attn2, self.ff, self.scale_shift_table, self.prompt_scale_shift_table)

    @property
    def audio_layers(self) -> StreamLayers:
        return StreamLayers(
            self.audio_attn1,
            self.audio_attn2,
            self.audio_ff,
            self.audio_scale_shift_table,
            self.audio_prompt_scale_shift_table,
        )

    def forward(
        self, video: Stream | None, audio: Stream | None, skips: BlockSkips
    ) -> tuple[Stream | None, Stream | None]:
        """Both streams after the block; a stream that is not enabled passes unchanged and still serves the other."""
        run_video, run_audio = video is not None and video.enabled, audio is not None and audio.enabled
        if video is not None and run_video:
            video = self._attend(video, self.video_layers, skips.video_attention)
        if audio is not None and run_audio:
            audio = self._attend(audio, self.audio_layers, skips.audio_attention)
        if video is not None and audio is not None:
            video, audio = self._exchange(video, audio, skips.exchange)
        if video is not None and run_video:
            video = self._feed_forward(video, self.video_layers)
        if audio is not None and run_audio:
            audio = self._feed_forward(audio, self.audio_layers)
        return video, audio

    def _attend(self, stream: Stream, layers: StreamLayers, values_only: Runs) -> Stream:
        """Self attention, then attention to the text."""
        shift, scale, gate = _rows(layers.table, stream.modulation, 0)
        query = modulate(self._norm(stream.x), shift, scale)
        update = layers.self_attention(query, rope=stream.rope.self_attention, values_only=values_only)
        x = torch.addcmul(stream.x, update, gate)

        query, context = self._norm(x), stream.context
        if layers.prompt_table is None or stream.prompt_modulation is None:
            return replace(stream, x=x + layers.text_attention(query, context))
        shift, scale, gate = _rows(layers.table, stream.modulation, 6)
        context_shift, context_scale = (layers.prompt_table + stream.prompt_modulation).unbind(2)
        context = modulate(context, context_shift, context_scale)
        update = layers.text_attention(modulate(query, shift, scale), context)
        return replace(stream, x=torch.addcmul(x, update, gate))

    def _exchange(self, video: Stream, audio: Stream, skips: Runs) -> tuple[Stream, Stream]:
        """Audio to video and video to audio, for the batch items that do not skip it."""
        parts = [
            (video.x[items], audio.x[items])
            if skipped
            else self._exchange_items(video.exchanging(items), audio.exchanging(items))
            for items, skipped in skips
        ]
        x_video, x_audio = (torch.cat(xs) if len(xs) > 1 else xs[0] for xs in zip(*parts, strict=True))
        return replace(video, x=x_video), replace(audio, x=x_audio)

    def _exchange_items(self, video: Stream, audio: Stream) -> tuple[Tensor, Tensor]:
        # Unlike in the other tables, scale stands before shift here
        v_scale, v_shift, v_scale_back, v_shift_back, v_gate = video.cross_rows(self.scale_shift_table_a2v_ca_video)
        a_scale, a_shift, a_scale_back, a_shift_back, a_gate = audio.cross_rows(self.scale_shift_table_a2v_ca_audio)
        v_rope, a_rope = video.rope.cross_attention, audio.rope.cross_attention
        # Both directions read the streams as they were before either update
        v_norm, a_norm = self._norm(video.x), self._norm(audio.x)
        x_video, x_audio = video.x, audio.x
        if video.enabled:
            query, context = modulate(v_norm, v_shift, v_scale), modulate(a_norm, a_shift, a_scale)
            x_video = torch.addcmul(x_video, self.audio_to_video_attn(query, context, v_rope, a_rope), v_gate)
        if audio.enabled:
            query, context = modulate(a_norm, a_shift_back, a_scale_back), modulate(v_norm, v_shift_back, v_scale_back)
            x_audio = torch.addcmul(x_audio, self.video_to_audio_attn(query, context, a_rope, v_rope), a_gate)
        return x_video, x_audio

    def _feed_forward(self, stream: Stream, layers: StreamLayers) -> Stream:
        shift, scale, gate = _rows(layers.table, stream.modulation, 3)
        update = layers.feed_forward(modulate(self._norm(stream.x), shift, scale))
        return replace(stream, x=torch.addcmul(stream.x, update, gate))

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)


def _rows(table: Tensor, modulation: Tensor, start: int) -> tuple[Tensor, ...]:
    """Shift, scale and gate from row ``start`` on, (B, t, D) each.

    Made where they are used: with a noise level per token, all nine of them are larger than the stream itself.
    """
    rows = slice(start, start + 3)
    return (table[rows] + modulation[:, :, rows]).unbind(2)
