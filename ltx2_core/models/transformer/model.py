"""The diffusion transformer of LTX-2 and LTX-2.3: noisy tokens of both streams in, velocities out (docs/model.md 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.lanes import Lanes, lanes_for
from ...protocols import Attention
from ...types import BatchItem, CrossTimestepRule, Perturbation, StreamInput, StreamRope, VelocityPair
from .adaln import AdaLayerNormSingle
from .attention import sdpa
from .batch import block_batches
from .block import Stream, TransformerBlock
from .config import TransformerConfig
from .modulation import EXCHANGE_AFFINES, HEAD, PROMPT, Modulation, stream_rows
from .rope import rope_table


class CaptionProjection(nn.Module):
    """Linear, tanh-GELU, linear from the text embeddings' width to a stream's (2.0)."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))  # type: ignore[no-any-return]


class InputLayers(NamedTuple):
    """What prepares one stream for the blocks."""

    patchify: nn.Linear
    adaln: AdaLayerNormSingle
    prompt_adaln: AdaLayerNormSingle | None
    cross_adaln: AdaLayerNormSingle
    cross_gate_adaln: AdaLayerNormSingle
    caption_projection: CaptionProjection | None


class LTXTransformer(nn.Module):
    """Module paths equal the official checkpoint's keys without ``model.diffusion_model.``, connectors excluded.

    Args:
        attention: kernel of every attention, see :class:`Attention`.
    """

    def __init__(self, config: TransformerConfig, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        video, audio = config.video.width, config.audio.width
        rows = stream_rows(config.prompt_modulation)

        self.patchify_proj = nn.Linear(config.video.channels, video)
        self.adaln_single = AdaLayerNormSingle(video, rows)
        self.prompt_adaln_single = AdaLayerNormSingle(video, len(PROMPT)) if config.prompt_modulation else None
        self.av_ca_video_scale_shift_adaln_single = AdaLayerNormSingle(video, EXCHANGE_AFFINES)
        self.av_ca_a2v_gate_adaln_single = AdaLayerNormSingle(video, 1)
        self.scale_shift_table = nn.Parameter(torch.empty(len(HEAD), video))
        self.proj_out = nn.Linear(video, config.video.channels)

        self.audio_patchify_proj = nn.Linear(config.audio.channels, audio)
        self.audio_adaln_single = AdaLayerNormSingle(audio, rows)
        self.audio_prompt_adaln_single = AdaLayerNormSingle(audio, len(PROMPT)) if config.prompt_modulation else None
        self.av_ca_audio_scale_shift_adaln_single = AdaLayerNormSingle(audio, EXCHANGE_AFFINES)
        self.av_ca_v2a_gate_adaln_single = AdaLayerNormSingle(audio, 1)
        self.audio_scale_shift_table = nn.Parameter(torch.empty(len(HEAD), audio))
        self.audio_proj_out = nn.Linear(audio, config.audio.channels)

        captions = config.caption_channels
        self.caption_projection = CaptionProjection(captions, video) if captions else None
        self.audio_caption_projection = CaptionProjection(captions, audio) if captions else None
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config, attention) for _ in range(config.num_layers))

    @property
    def video_layers(self) -> InputLayers:
        return InputLayers(
            self.patchify_proj,
            self.adaln_single,
            self.prompt_adaln_single,
            self.av_ca_video_scale_shift_adaln_single,
            self.av_ca_a2v_gate_adaln_single,
            self.caption_projection,
        )

    @property
    def audio_layers(self) -> InputLayers:
        return InputLayers(
            self.audio_patchify_proj,
            self.audio_adaln_single,
            self.audio_prompt_adaln_single,
            self.av_ca_audio_scale_shift_adaln_single,
            self.av_ca_v2a_gate_adaln_single,
            self.audio_caption_projection,
        )

    def stream_rope(self, positions: Tensor, stream: Literal["video", "audio"], dtype: torch.dtype) -> StreamRope:
        """Rotary tables of one stream; they depend on positions only, so one serves all steps of a stage.

        Args:
            positions: (B, axes, T, 2), see :mod:`.positions`; float32, or bfloat16 for the revisions that rounded them.
            dtype: the model's.
        """
        config = self.config
        own = config.video if stream == "video" else config.audio
        settings = (config.rope_theta, config.rope_layout, config.rope_float64, dtype)
        return StreamRope(
            self_attention=rope_table(positions, own.width, own.heads, own.max_positions, *settings),
            # Each side is grouped as its own stream's heads, though the attention has the audio stream's
            cross_attention=rope_table(
                positions[:, :1], config.audio.width, own.heads, config.cross_max_positions, *settings
            ),
        )

    def forward(
        self,
        video: StreamInput | None,
        audio: StreamInput | None,
        items: Sequence[BatchItem] | None = None,
        cross_rule: CrossTimestepRule = CrossTimestepRule.SPLIT,
    ) -> VelocityPair:
        """Velocities of both streams, (B, T, C) in the latents' dtype, where B counts the items that compute it.

        What is equal for several items is computed once: latents and noise levels of batch 1, the text's keys and
        values of each prompt, the blocks before an item branches off.

        Args:
            video, audio: None leaves a stream out; one that is not ``enabled`` returns None.
            items: None evaluates each latent once, with the text of the same number.
            cross_rule: noise level behind the audio-video exchange; it matters when levels differ between tokens or
                streams.

        Raises:
            ValueError: both streams are missing, or ``items`` do not fit the streams or the number of blocks.
        """
        batch = self._items(video, audio, items)
        v = None if video is None else self._prepare(video, audio, self.video_layers, cross_rule)
        a = None if audio is None else self._prepare(audio, video, self.audio_layers, cross_rule)
        lanes = lanes_for(v.x, len(batch)) if v and a and v.enabled and a.enabled else Lanes()
        for block, work in zip(self.transformer_blocks, block_batches(batch, self.config.num_layers), strict=True):
            v, a = block(v, a, work, lanes)
        lanes.end()
        return (
            self._velocity(v, self.scale_shift_table, self.proj_out) if v and v.enabled else None,
            self._velocity(a, self.audio_scale_shift_table, self.audio_proj_out) if a and a.enabled else None,
        )

    def _prepare(
        self, stream: StreamInput, other: StreamInput | None, layers: InputLayers, rule: CrossTimestepRule
    ) -> Stream:
        """Embeds a stream's tokens, text and noise levels; nothing here depends on a block."""
        dtype, scale = stream.latent.dtype, self.config.timestep_scale
        own, token_levels = stream.timesteps * scale, stream.token_levels
        vectors, embedded = layers.adaln(own, dtype)
        prompt_modulation = cross_modulation = cross_gate = None
        if layers.prompt_adaln is not None:
            prompt_modulation = Modulation(layers.prompt_adaln(stream.sigma[:, None] * scale, dtype)[0])
        if other is not None:
            across = other.sigma[:, None] * scale
            level, index = (across, None) if rule is CrossTimestepRule.OTHER else (own, token_levels)
            cross_modulation = Modulation(layers.cross_adaln(level, dtype)[0], index)
            level, index = (own, token_levels) if rule is CrossTimestepRule.OWN else (across, None)
            gate_scale = self.config.cross_gate_timestep_scale / scale
            cross_gate = Modulation(layers.cross_gate_adaln(level * gate_scale, dtype)[0], index)
        projection = layers.caption_projection
        return Stream(
            x=layers.patchify(stream.latent),
            context=stream.context if projection is None else projection(stream.context),
            rope=stream.rope,
            enabled=stream.enabled,
            modulation=Modulation(vectors, token_levels),
            # The output head takes the embedded timestep itself, for both of its rows
            head_modulation=Modulation(embedded[:, :, None].expand(-1, -1, len(HEAD), -1), token_levels),
            prompt_modulation=prompt_modulation,
            cross_modulation=cross_modulation,
            cross_gate=cross_gate,
        )

    def _velocity(self, stream: Stream, table: Tensor, projection: nn.Linear) -> Tensor:
        """The output head, with the one norm that subtracts the mean."""
        shift, scale = stream.head_modulation.rows(table)
        last, _ = stream.step.normed([], self.config.norm_eps, [])
        normed = F.layer_norm(last.x, last.x.shape[-1:], eps=self.config.norm_eps)
        return projection(torch.addcmul(shift, normed, 1 + scale))  # type: ignore[no-any-return]

    def _items(
        self, video: StreamInput | None, audio: StreamInput | None, items: Sequence[BatchItem] | None
    ) -> tuple[BatchItem, ...]:
        """What the call evaluates, checked against the streams and the number of blocks."""
        streams = [stream for stream in (video, audio) if stream is not None]
        if not streams:
            raise ValueError("the transformer needs a video stream, an audio stream or both")
        sizes = {t.shape[0] for s in streams for t in (s.latent, s.timesteps, s.sigma, s.rope.self_attention.cos)}
        plain = tuple(BatchItem(context=number) for number in range(max(sizes)))
        if items is None:
            return plain
        if len(plain) > 1 and tuple(replace(item, perturbation=Perturbation()) for item in items) != plain:
            raise ValueError(f"{len(items)} items for a batch of {len(plain)}: each must take its own latent and text")
        for item in items:
            self._check(item, items, streams)
        blocks = frozenset().union(*(i.perturbation.video_stg_blocks | i.perturbation.audio_stg_blocks for i in items))
        if blocks and not 0 <= min(blocks) <= max(blocks) < self.config.num_layers:
            raise ValueError(f"STG blocks {sorted(blocks)}: this model has blocks 0 to {self.config.num_layers - 1}")
        return tuple(items)

    def _check(self, item: BatchItem, items: Sequence[BatchItem], streams: Sequence[StreamInput]) -> None:
        prompts = {stream.context.shape[0] for stream in streams} - {1}
        if not all(0 <= item.context < count for count in prompts):
            raise ValueError(f"an item reads prompt {item.context}, and the streams carry {min(prompts)}")
        if not (item.video and item.audio) and not item.perturbation.skip_cross_modal:
            raise ValueError("an item leaves a stream out that the other one hears")
        if item.branches_from is not None:
            origin = items[item.branches_from]
            if origin != replace(item, perturbation=origin.perturbation, branches_from=None) or origin.perturbation != (
                Perturbation(skip_cross_modal=item.perturbation.skip_cross_modal)
            ):
                raise ValueError("an item branches from one that it does not equal before its first perturbed block")
