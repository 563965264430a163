"""Which evaluations of the DiT a step needs, and how they run (docs/model.md 6).

Every pass evaluates both streams, in the order conditional, unconditional, perturbed, isolated. What changes no number
beyond rounding is left out:

- a pass that only a stream compares with which is skipped on this step, or given;
- the perturbed pass where no block is perturbed: it would equal the conditional one;
- in the isolated pass, whose streams do not hear each other, a stream that is not compared there;
- of the perturbed pass, all blocks before the first perturbed one, where it equals the conditional pass.

Block evaluations of each computed stream, for L blocks of which b come before the first perturbed one. A stream that
the isolated pass leaves out has L fewer where that pass runs; one that is skipped has none.

=========================  =======  ========
what guidance compares     batched  separate
=========================  =======  ========
nothing                    L        L
cfg                        2L       2L
stg                        2L - b   2L
modality                   2L       2L
cfg, stg                   3L - b   3L
cfg, modality              3L       3L
stg, modality              3L - b   3L
cfg, stg, modality         4L - b   4L
=========================  =======  ========

The guided 2.3 recipes have L = 48 and b = 28: 164 block evaluations a step instead of 192.

Separate passes need the least memory: one item at a time. To branch there too, the conditional call would have to hand
out both streams' tokens before block b and the perturbed call to begin with them: about one more item's tokens, and a
second way into the DiT. To share the text's keys and values between calls, those of all blocks would have to be kept:
1.2 GB in bfloat16 for the 1024 text tokens. No recipe runs separately unless it is asked to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from ..types import BatchItem, Guidance, Perturbation
from .guidance import Pass, scale_of


class Role(Enum):
    """What a step does with a stream."""

    GUIDED = "guided"  # computed, and guided to a new estimate
    GIVEN = "given"  # known, and computed only because the other stream hears it
    SKIPPED = "skipped"  # not computed; the other stream hears its tokens as they are


@dataclass(frozen=True)
class Call:
    """One call of the DiT."""

    passes: tuple[Pass, ...]
    items: tuple[BatchItem, ...]  # one for each pass
    prompts: slice  # of (positive, negative): the texts that the items read


class BlockEvaluations(NamedTuple):
    """Batch items that the blocks compute of each stream, added up over the blocks."""

    video: int
    audio: int


@lru_cache(maxsize=64)
def plan_calls(guidance: Guidance, video: Role, audio: Role, separate: bool = False) -> tuple[Call, ...]:
    """The calls of one step; none where no stream is guided.

    Args:
        separate: one call for each pass, instead of one for all.
    """
    if Role.GUIDED not in (video, audio):
        return ()
    cond = BatchItem()
    passes = {Pass.COND: cond}
    if any(_compares(guidance, video, audio, Pass.UNCOND)):
        passes[Pass.UNCOND] = BatchItem(context=1)
    perturbation = _stg(guidance, video, audio)
    if any(_compares(guidance, video, audio, Pass.PERTURBED)) and perturbation.first_block is not None:
        passes[Pass.PERTURBED] = BatchItem(perturbation=perturbation, branches_from=0)
    isolated = _compares(guidance, video, audio, Pass.ISOLATED)
    if any(isolated):
        alone = Perturbation(skip_cross_modal=True)
        passes[Pass.ISOLATED] = BatchItem(perturbation=alone, video=isolated[0], audio=isolated[1])
    if not separate:
        prompts = slice(0, 2 if Pass.UNCOND in passes else 1)
        return (Call(tuple(passes), tuple(passes.values()), prompts),)
    return tuple(
        Call((name,), (replace(item, context=0, branches_from=None),), slice(item.context, item.context + 1))
        for name, item in passes.items()
    )


def block_evaluations(
    guidance: Guidance, video: Role, audio: Role, num_layers: int, separate: bool = False
) -> BlockEvaluations:
    """What one step costs; see the table above."""
    items = [item for call in plan_calls(guidance, video, audio, separate) for item in call.items]
    return BlockEvaluations(
        video=sum(num_layers - i.first_block for i in items if i.video) if video is not Role.SKIPPED else 0,
        audio=sum(num_layers - i.first_block for i in items if i.audio) if audio is not Role.SKIPPED else 0,
    )


def _compares(guidance: Guidance, video: Role, audio: Role, name: Pass) -> tuple[bool, bool]:
    """Which streams are guided by a pass on this step."""
    return (
        video is Role.GUIDED and scale_of(guidance.video, name) != 0,
        audio is Role.GUIDED and scale_of(guidance.audio, name) != 0,
    )


def _stg(guidance: Guidance, video: Role, audio: Role) -> Perturbation:
    """The perturbed self attentions of the streams that are computed."""
    video_on = video is not Role.SKIPPED and scale_of(guidance.video, Pass.PERTURBED) != 0
    audio_on = audio is not Role.SKIPPED and scale_of(guidance.audio, Pass.PERTURBED) != 0
    return Perturbation(
        video_stg_blocks=frozenset(guidance.video.blocks if video_on else ()),
        audio_stg_blocks=frozenset(guidance.audio.blocks if audio_on else ()),
    )
