"""Which batch items a block treats differently, as slices, so that the block loop copies nothing to the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from ...types import Perturbation

Runs = tuple[tuple[slice, bool], ...]
"""Neighbouring batch items that agree, and whether they skip; in order, covering the batch."""

NONE_SKIPPED: Runs = ((slice(None), False),)


class BlockSkips(NamedTuple):
    """What one block leaves out."""

    video_attention: Runs = NONE_SKIPPED
    audio_attention: Runs = NONE_SKIPPED
    exchange: Runs = NONE_SKIPPED


def block_skips(perturbations: Sequence[Perturbation] | None, block: int) -> BlockSkips:
    """The skips of block number ``block``."""
    if perturbations is None:
        return BlockSkips()
    return BlockSkips(
        video_attention=_runs([block in p.video_stg_blocks for p in perturbations]),
        audio_attention=_runs([block in p.audio_stg_blocks for p in perturbations]),
        exchange=_runs([p.skip_cross_modal for p in perturbations]),
    )


def batch_items(tensor: Tensor, items: slice) -> Tensor:
    """Those items of a batched tensor; a batch of 1 serves every item."""
    return tensor if tensor.shape[0] == 1 else tensor[items]


def _runs(skips: Sequence[bool]) -> Runs:
    runs, start = [], 0
    for skipped, group in groupby(skips):
        stop = start + len(list(group))
        runs.append((slice(start, stop), skipped))
        start = stop
    return tuple(runs)
