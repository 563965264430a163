"""One transformer block: both streams attend to themselves, to the text, to each other (fact sheet 2.2 and 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...protocols import Attention
from ...types import StreamRope
from .adaln import Modulation, modulate
from .attention import MultiHeadAttention
from .batch import BlockBatch, ExchangeRun, StreamBatch, batch_items, take
from .config import StreamConfig, TransformerConfig
from .rope import rope_items

FEED_FORWARD_FACTOR = 4


@dataclass(frozen=True)
class Stream:
    """One stream between blocks. All but ``x`` is the same for every block; modulations of batch 1 serve all items."""

    x: Tensor  # (B, T, D)
    context: Tensor  # (P, S, D) texts of the distinct prompts
    rope: StreamRope
    enabled: bool
    modulation: Modulation  # 6 or 9 rows
    head_modulation: Modulation  # 2 rows, of the output head
    prompt_modulation: Modulation | None = None  # 2 rows, 2.3
    # 4 rows: scale and shift of A2V, then of V2A; None, like the gate, when the other stream is left out
    cross_modulation: Modulation | None = None
    cross_gate: Modulation | None = None  # 1 row

    def begun(self, batch: StreamBatch) -> Stream:
        """The stream with the items that begin at a block, each as a copy of another. One that is not enabled stays
        as it is for all of them."""
        if batch.copies is None or (not self.enabled and self.x.shape[0] == 1):
            return self
        return replace(self, x=take(self.x, batch.copies))

    def exchanging(self, items: slice) -> Stream:
        """What the audio-video cross attention reads of some batch items."""
        assert self.cross_modulation is not None and self.cross_gate is not None
        rope = replace(self.rope, cross_attention=rope_items(self.rope.cross_attention, items))
        return replace(
            self,
            # One that is not enabled may have batch 1 for all items; any other has no more than its own
            x=self.x[items] if self.enabled else batch_items(self.x, items),
            rope=rope,
            cross_modulation=self.cross_modulation.items(items),
            cross_gate=self.cross_gate.items(items),
        )

    def across(self, x: Tensor, table: Tensor, start: int) -> Tensor:
        """The normed tokens ``x`` as one direction of the exchange reads them, with a block's table (5, D).

        Unlike in the other tables, scale stands before shift here.
        """
        assert self.cross_modulation is not None
        scale, shift = self.cross_modulation.rows(table[start : start + 2], start)
        return modulate(x, shift, scale)

    def plus_gated(self, update: Tensor, table: Tensor) -> Tensor:
        """The tokens after an update by the exchange."""
        assert self.cross_gate is not None
        (gate,) = self.cross_gate.rows(table[4:])
        return torch.addcmul(self.x, update, gate)


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
        self, video: Stream | None, audio: Stream | None, batch: BlockBatch
    ) -> tuple[Stream | None, Stream | None]:
        """Both streams after the block; a stream that is not enabled passes unchanged and still serves the other."""
        run_video, run_audio = video is not None and video.enabled, audio is not None and audio.enabled
        if video is not None and run_video:
            video = self._attend(video, self.video_layers, batch.video)
        if audio is not None and run_audio:
            audio = self._attend(audio, self.audio_layers, batch.audio)
        if video is not None and audio is not None:
            video, audio = self._exchange(video, audio, batch.exchange)
        if video is not None and run_video:
            video = self._feed_forward(video, self.video_layers)
        if audio is not None and run_audio:
            audio = self._feed_forward(audio, self.audio_layers)
        return video, audio

    def _attend(self, stream: Stream, layers: StreamLayers, batch: StreamBatch) -> Stream:
        """Self attention, then attention to the text."""
        shift, scale, gate = stream.modulation.rows(layers.table[:3])
        query = modulate(self._norm(stream.x), shift, scale)
        update = layers.self_attention(query, rope=stream.rope.self_attention, values_only=batch.values_only)
        x = torch.addcmul(stream.x, update, gate)

        query, context = self._norm(x), stream.context
        if layers.prompt_table is None or stream.prompt_modulation is None:
            return replace(stream, x=x + layers.text_attention(query, context, context_rows=batch.contexts))
        shift, scale, gate = stream.modulation.rows(layers.table[6:], 6)
        context_shift, context_scale = stream.prompt_modulation.rows(layers.prompt_table)
        context = modulate(context, context_shift, context_scale)
        update = layers.text_attention(modulate(query, shift, scale), context, context_rows=batch.contexts)
        return replace(stream, x=torch.addcmul(x, update, gate))

    def _exchange(self, video: Stream, audio: Stream, runs: Sequence[ExchangeRun]) -> tuple[Stream, Stream]:
        """Audio to video and video to audio, for the batch items that do not skip it."""
        x_video, x_audio = [], []
        for video_items, audio_items, skipped in runs:
            some_video, some_audio = video.exchanging(video_items), audio.exchanging(audio_items)
            updated = (some_video.x, some_audio.x) if skipped else self._exchange_items(some_video, some_audio)
            x_video.append(updated[0])
            x_audio.append(updated[1])
        if video.enabled:
            video = replace(video, x=_joined(x_video))
        if audio.enabled:
            audio = replace(audio, x=_joined(x_audio))
        return video, audio

    def _exchange_items(self, video: Stream, audio: Stream) -> tuple[Tensor, Tensor]:
        v_table, a_table = self.scale_shift_table_a2v_ca_video, self.scale_shift_table_a2v_ca_audio
        v_rope, a_rope = video.rope.cross_attention, audio.rope.cross_attention
        # Both directions read the streams as they were before either update
        v_norm, a_norm = self._norm(video.x), self._norm(audio.x)
        x_video, x_audio = video.x, audio.x
        if video.enabled:
            query, context = video.across(v_norm, v_table, 0), audio.across(a_norm, a_table, 0)
            x_video = video.plus_gated(self.audio_to_video_attn(query, context, v_rope, a_rope), v_table)
        if audio.enabled:
            query, context = audio.across(a_norm, a_table, 2), video.across(v_norm, v_table, 2)
            x_audio = audio.plus_gated(self.video_to_audio_attn(query, context, a_rope, v_rope), a_table)
        return x_video, x_audio

    def _feed_forward(self, stream: Stream, layers: StreamLayers) -> Stream:
        shift, scale, gate = stream.modulation.rows(layers.table[3:6], 3)
        update = layers.feed_forward(modulate(self._norm(stream.x), shift, scale))
        return replace(stream, x=torch.addcmul(stream.x, update, gate))

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
