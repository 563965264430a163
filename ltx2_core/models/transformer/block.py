"""One transformer block: both streams attend to themselves, to the text, to each other (docs/model.md 2.2 and 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels.activation import Activation, Needs
from ...kernels.gelu import linear_gelu
from ...kernels.lanes import Lanes
from ...kernels.modulation import modulate, residual_norm
from ...kernels.rows import Affine, Row
from ...protocols import Attention
from ...types import StreamRope
from .attention import MultiHeadAttention
from .batch import BlockBatch, ExchangeRun, StreamBatch, take
from .config import StreamConfig, TransformerConfig
from .modulation import (
    AUDIO_TO_VIDEO,
    EXCHANGE_AFFINES,
    EXCHANGE_GATE,
    FEED_FORWARD,
    PROMPT,
    SELF_ATTENTION,
    TEXT_ATTENTION,
    VIDEO_TO_AUDIO,
    AffineRows,
    Modulation,
    stream_rows,
)
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
    # What the block before adds to ``x``, which the next norm does, and what scales it
    update: Tensor | None = None
    gate: Row | None = None

    def begun(self, batch: StreamBatch) -> Stream:
        """The stream with the items that begin at a block, each as a copy of another. One that is not enabled stays
        as it is for all of them."""
        if batch.copies is None or (not self.enabled and self.x.shape[0] == 1):
            return self
        update = None if self.update is None else take(self.update, batch.copies)
        return replace(self, x=take(self.x, batch.copies), update=update)

    @property
    def step(self) -> Step:
        """The tokens as a block begins with them."""
        return Step(self.x, self.update, self.gate)

    def across(self, table: Tensor, rows: AffineRows) -> Affine:
        """How one direction of the exchange reads the normed tokens, with a block's table (5, D)."""
        assert self.cross_modulation is not None
        return self.cross_modulation.affine(table, rows)

    def exchange_gate(self, table: Tensor) -> Row:
        """What scales an update by the exchange."""
        assert self.cross_gate is not None
        return self.cross_gate.row(table, EXCHANGE_GATE, 0)


class Step(NamedTuple):
    """A stream's tokens inside a block, and what the next norm adds to them."""

    x: Tensor
    update: Tensor | None = None
    gate: Row | None = None  # None is 1
    items: slice = slice(None)  # of the batch, which the update is for

    def normed(
        self, outputs: Sequence[Affine | None], eps: float, needs: Sequence[Needs]
    ) -> tuple[Step, tuple[Activation, ...]]:
        """The tokens after the update, and their norm, modulated in several ways; see :func:`residual_norm`."""
        x, results = residual_norm(self.x, self.update, self.gate, outputs, eps, needs, self.items)
        return Step(x), results


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear, under the checkpoint's names ``net.0.proj`` and ``net.2``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = FEED_FORWARD_FACTOR * width
        expand = nn.Module()
        expand.proj = nn.Linear(width, inner)
        self.net = nn.ModuleList([expand, nn.Identity(), nn.Linear(inner, width)])

    @property
    def needs(self) -> Needs:
        """The forms in which the input is read."""
        expand, _, _ = self.net
        return Needs.of((expand.proj,))  # type: ignore[arg-type]

    def forward(self, x: Tensor | Activation) -> Tensor:
        """(B, T, width) -> the same shape."""
        x = x if isinstance(x, Activation) else Activation(x)
        first, _, contract = self.net
        return linear_gelu(x, first.proj, contract).through(contract)  # type: ignore[arg-type]


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

        modulated = config.prompt_modulation
        rows, exchange = stream_rows(modulated), EXCHANGE_AFFINES + 1
        self.scale_shift_table = nn.Parameter(torch.empty(rows, video))
        self.audio_scale_shift_table = nn.Parameter(torch.empty(rows, audio))
        self.scale_shift_table_a2v_ca_video = nn.Parameter(torch.empty(exchange, video))
        self.scale_shift_table_a2v_ca_audio = nn.Parameter(torch.empty(exchange, audio))
        self.prompt_scale_shift_table = nn.Parameter(torch.empty(len(PROMPT), video)) if modulated else None
        self.audio_prompt_scale_shift_table = nn.Parameter(torch.empty(len(PROMPT), audio)) if modulated else None

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
        self, video: Stream | None, audio: Stream | None, batch: BlockBatch, lanes: Lanes
    ) -> tuple[Stream | None, Stream | None]:
        """Both streams after the block; a stream that is not enabled passes unchanged and still serves the other.

        Args:
            lanes: where the streams' work runs; after the last block someone must :meth:`Lanes.end` them.
        """
        lanes.begin()
        run_video, run_audio = video is not None and video.enabled, audio is not None and audio.enabled
        v = a = None
        if video is not None:
            video = video.begun(batch.video)
            v = self._attend(video, self.video_layers, batch.video) if run_video else Step(video.x)
        with lanes.audio():
            if audio is not None:
                audio = audio.begun(batch.audio)
                a = self._attend(audio, self.audio_layers, batch.audio) if run_audio else Step(audio.x)
        if video is not None and audio is not None and v is not None and a is not None:
            v, a = self._exchange(video, audio, v, a, [run for run in batch.exchange if not run.skipped], lanes)
        if video is not None and v is not None and run_video:
            video = self._feed_forward(video, v, self.video_layers)
        with lanes.audio():
            if audio is not None and a is not None and run_audio:
                audio = self._feed_forward(audio, a, self.audio_layers)
        return video, audio

    def _attend(self, stream: Stream, layers: StreamLayers, batch: StreamBatch) -> Step:
        """Self attention, then attention to the text."""
        own, text, levels = layers.self_attention, layers.text_attention, stream.modulation
        step, (query,) = stream.step.normed([levels.affine(layers.table, SELF_ATTENTION)], self.eps, [own.self_needs])
        update = own(query, rope=stream.rope.self_attention, values_only=batch.values_only)
        step = Step(step.x, update, levels.row(layers.table, SELF_ATTENTION.gate))
        if layers.prompt_table is None or stream.prompt_modulation is None:
            step, (query,) = step.normed([None], self.eps, [text.query_needs])
            return Step(step.x, text(query, stream.context, context_rows=batch.contexts))
        step, (query,) = step.normed([levels.affine(layers.table, TEXT_ATTENTION)], self.eps, [text.query_needs])
        context = modulate(
            stream.context, stream.prompt_modulation.affine(layers.prompt_table, PROMPT), text.context_needs
        )
        update = text(query, context, context_rows=batch.contexts)
        return Step(step.x, update, levels.row(layers.table, TEXT_ATTENTION.gate))

    def _exchange(
        self, video: Stream, audio: Stream, v: Step, a: Step, runs: Sequence[ExchangeRun], lanes: Lanes
    ) -> tuple[Step, Step]:
        """Audio to video and video to audio, for the batch items of these runs."""
        if not runs:
            return v, a
        v_table, a_table = self.scale_shift_table_a2v_ca_video, self.scale_shift_table_a2v_ca_audio
        to_video, to_audio = self.audio_to_video_attn, self.video_to_audio_attn
        # Both directions read the streams as they were before either update
        v, (v_query, v_context) = v.normed(
            [video.across(v_table, AUDIO_TO_VIDEO), video.across(v_table, VIDEO_TO_AUDIO)],
            self.eps,
            [to_video.query_needs, to_audio.context_needs],
        )
        with lanes.audio():
            a, (a_context, a_query) = a.normed(
                [audio.across(a_table, AUDIO_TO_VIDEO), audio.across(a_table, VIDEO_TO_AUDIO)],
                self.eps,
                [to_video.context_needs, to_audio.query_needs],
            )
        lanes.meet(v_context, a_context)
        v_updates, a_updates = [], []
        for run in runs:
            v_rope = rope_items(video.rope.cross_attention, run.video)
            a_rope = rope_items(audio.rope.cross_attention, run.audio)
            if video.enabled:
                update = to_video(v_query.items(run.video), a_context.items(run.audio), v_rope, a_rope)
                v_updates.append((run.video, update))
            if audio.enabled:
                with lanes.audio():
                    update = to_audio(a_query.items(run.audio), v_context.items(run.video), a_rope, v_rope)
                    a_updates.append((run.audio, update))
        v = _updated(v, v_updates, video, v_table)
        with lanes.audio():
            a = _updated(a, a_updates, audio, a_table)
        return v, a

    def _feed_forward(self, stream: Stream, step: Step, layers: StreamLayers) -> Stream:
        feed, levels = layers.feed_forward, stream.modulation
        step, (y,) = step.normed([levels.affine(layers.table, FEED_FORWARD)], self.eps, [feed.needs])
        return replace(stream, x=step.x, update=feed(y), gate=levels.row(layers.table, FEED_FORWARD.gate))


def _updated(step: Step, updates: Sequence[tuple[slice, Tensor]], stream: Stream, table: Tensor) -> Step:
    """The step with what the exchange adds to some of its batch items."""
    if not updates:
        return step
    items, update = updates[0]
    if len(updates) > 1:
        items, update = slice(None), torch.zeros_like(step.x)
        for some, values in updates:
            update[some] = values
    return Step(step.x, update, stream.exchange_gate(table), items)
