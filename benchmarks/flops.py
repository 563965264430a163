"""Floating-point operations of the DiT, counted from its configuration and from the calls that a step makes.

Two for each multiply-add of every linear layer, 4 * queries * keys * width for each attention; nothing else is
counted. What a call shares between its items is counted once, so that every exact saving shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ltx2_core.models.transformer.adaln import SINUSOID_CHANNELS
from ..ltx2_core.models.transformer.block import FEED_FORWARD_FACTOR
from ..ltx2_core.models.transformer.config import StreamConfig, TransformerConfig
from ..ltx2_core.sampling.guidance import Pass
from ..ltx2_core.sampling.passes import Call
from ..ltx2_core.types import BatchItem


@dataclass(frozen=True)
class Tokens:
    """Lengths of the sequences of one evaluation."""

    video: int
    audio: int
    text: int


@dataclass(frozen=True)
class Flops:
    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)


def one_pass(config: TransformerConfig, tokens: Tokens) -> Flops:
    """A plain evaluation of both streams with one prompt, as anyone computes it."""
    return dit_flops(config, tokens, [Call((Pass.COND,), (BatchItem(),), slice(0, 1))])


def dit_flops(config: TransformerConfig, tokens: Tokens, calls: Sequence[Call]) -> Flops:
    """What the DiT computes for these calls, each with its text keys and values once per prompt."""
    return sum((_call(config, tokens, call) for call in calls), Flops())


def _call(config: TransformerConfig, tokens: Tokens, call: Call) -> Flops:
    prompts = call.prompts.stop - call.prompts.start
    streams = [(config.video, tokens.video, [i for i in call.items if i.video])]
    streams.append((config.audio, tokens.audio, [i for i in call.items if i.audio]))
    total = Flops()
    for stream, length, items in streams:
        if items:
            total += _ends(
                config, stream, length, tokens.text, len(items), prompts, with_other=all(s[2] for s in streams)
            )
    for block in range(config.num_layers):
        begun = [item for item in call.items if item.first_block <= block]
        video, audio = ([i for i in begun if i.video], [i for i in begun if i.audio])
        perturbed = sum(block in i.perturbation.video_stg_blocks for i in video)
        total += _stream(config, config.video, tokens.video, tokens.text, len(video), perturbed, prompts)
        perturbed = sum(block in i.perturbation.audio_stg_blocks for i in audio)
        total += _stream(config, config.audio, tokens.audio, tokens.text, len(audio), perturbed, prompts)
        hearing = sum(i.video and i.audio and not i.perturbation.skip_cross_modal for i in begun)
        total += _exchange(config, config.video, config.audio, tokens.video, tokens.audio, hearing)
        total += _exchange(config, config.audio, config.video, tokens.audio, tokens.video, hearing)
    return total


def _stream(
    config: TransformerConfig, stream: StreamConfig, length: int, text: int, items: int, perturbed: int, prompts: int
) -> Flops:
    """One stream's self attention, text attention and feed-forward in one block."""
    if not items:
        return Flops()
    width, rows = stream.width, items * length
    gates = 2 * rows * width * stream.heads if config.gated_attention else 0
    attending = items - perturbed
    self_linear = 2 * width * width * (2 * rows + 2 * attending * length) + gates
    self_attention = 4 * attending * length * length * width
    text_linear = 2 * width * width * (2 * rows + 2 * prompts * text) + gates
    text_attention = 4 * rows * text * width
    feed_forward = 2 * 2 * rows * width * FEED_FORWARD_FACTOR * width
    return Flops(self_linear + text_linear + feed_forward, self_attention + text_attention)


def _exchange(
    config: TransformerConfig, own: StreamConfig, other: StreamConfig, length: int, other_length: int, items: int
) -> Flops:
    """What a stream hears of the other one; both directions work in the audio stream's heads."""
    inner, rows = config.audio.width, items * length
    linear = 2 * 2 * rows * own.width * inner + 2 * 2 * items * other_length * other.width * inner
    if config.gated_attention:
        linear += 2 * rows * own.width * config.audio.heads
    return Flops(linear, 4 * rows * other_length * inner)


def _ends(
    config: TransformerConfig,
    stream: StreamConfig,
    length: int,
    text: int,
    items: int,
    prompts: int,
    with_other: bool,
) -> Flops:
    """What comes before and after the blocks; one noise level serves all tokens, and the latent is embedded once."""
    width = stream.width
    embedders = [9 if config.prompt_modulation else 6, *([2] if config.prompt_modulation else [])]
    embedders += [4, 1] if with_other else []
    linear = sum(2 * width * (SINUSOID_CHANNELS + width + rows * width) for rows in embedders)
    linear += 2 * length * stream.channels * width * (1 + items)
    if config.caption_channels is not None:
        linear += 2 * prompts * text * width * (config.caption_channels + width)
    return Flops(linear)
