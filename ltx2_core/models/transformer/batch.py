"""Which evaluations each block of a DiT call computes, as host numbers, so that no index is copied to the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ...types import BatchItem

Rows = tuple[int, ...]
"""Positions in a batch."""

Runs = tuple[tuple[slice, bool], ...]
"""Neighbours in a batch that agree, and whether they skip; in order, covering the batch."""

NONE_SKIPPED: Runs = ((slice(None), False),)


class StreamBatch(NamedTuple):
    """One stream's batch in one block."""

    contexts: Rows  # the prompt that each item reads
    values_only: Runs  # whose self attention is perturbed
    copies: Rows | None  # where items begin: what of the batch so far this one consists of


class ExchangeRun(NamedTuple):
    """Neighbouring items, where they lie in each stream's batch, and whether the streams do not hear each other."""

    video: slice
    audio: slice
    skipped: bool


class BlockBatch(NamedTuple):
    video: StreamBatch
    audio: StreamBatch
    exchange: tuple[ExchangeRun, ...]


@lru_cache(maxsize=64)
def block_batches(items: tuple[BatchItem, ...], num_layers: int) -> tuple[BlockBatch, ...]:
    """The batch of every block. An item joins both streams in the order of ``items``, whenever it begins."""
    batches: list[BlockBatch] = []
    video: Rows | None = None
    audio: Rows | None = None
    for block in range(num_layers):
        begun = [number for number, item in enumerate(items) if item.first_block <= block]
        video_before, audio_before = video, audio
        video = tuple(number for number in begun if items[number].video)
        audio = tuple(number for number in begun if items[number].audio)
        batches.append(
            BlockBatch(
                StreamBatch(
                    tuple(items[n].context for n in video),
                    _runs([block in items[n].perturbation.video_stg_blocks for n in video]),
                    _copies(items, video, video_before),
                ),
                StreamBatch(
                    tuple(items[n].context for n in audio),
                    _runs([block in items[n].perturbation.audio_stg_blocks for n in audio]),
                    _copies(items, audio, audio_before),
                ),
                _exchange([items[n] for n in begun]),
            )
        )
    return tuple(batches)


def take(tensor: Tensor, rows: Rows) -> Tensor:
    """A batch of these rows of another; one of a single row serves every item."""
    if rows == tuple(range(tensor.shape[0])):
        return tensor
    if tensor.shape[0] == 1:
        return torch.cat([tensor] * len(rows))
    return torch.cat([tensor[row : row + 1] for row in rows])


def batch_items(tensor: Tensor, items: slice) -> Tensor:
    """Those items of a batched tensor; a batch of 1 serves every item."""
    return tensor if tensor.shape[0] == 1 else tensor[items]


def _copies(items: Sequence[BatchItem], now: Rows, before: Rows | None) -> Rows | None:
    if before is None:
        return now
    if now == before:
        return None
    sources = [n if n in before else items[n].branches_from for n in now]
    return tuple(before.index(source) for source in sources if source is not None)


def _runs(skips: Sequence[bool]) -> Runs:
    runs, start = [], 0
    for skipped, group in groupby(skips):
        stop = start + len(list(group))
        runs.append((slice(start, stop), skipped))
        start = stop
    return tuple(runs)


def _exchange(items: Sequence[BatchItem]) -> tuple[ExchangeRun, ...]:
    runs, video, audio = [], 0, 0
    for skipped, group in groupby(items, key=lambda item: item.perturbation.skip_cross_modal):
        members = list(group)
        video_stop = video + sum(item.video for item in members)
        audio_stop = audio + sum(item.audio for item in members)
        runs.append(ExchangeRun(slice(video, video_stop), slice(audio, audio_stop), skipped))
        video, audio = video_stop, audio_stop
    return tuple(runs)
