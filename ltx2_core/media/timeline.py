"""Pieces of sound at their places on a line of time; where there is none, there is silence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["TimeLine"]


@dataclass
class TimeLine:
    """Collects pieces in the order in which a file has them.

    A piece whose place lies within ``slack`` of the end so far follows it without a seam: time stamps are rounded, to
    milliseconds in Matroska. What overlaps with earlier sound is cut from the later piece. Time stamps that go back by
    more than a second begin a new count (files joined to one, counters that ran over), and follow what there is.

    Attributes:
        rate: samples per second.
        longest: samples that are kept.
        start: samples of silence before the first piece.
        gaps: samples of silence between pieces.
        restarts: how often time stamps began anew.
    """

    rate: int
    longest: int
    start: int = 0
    gaps: int = 0
    restarts: int = 0
    _pieces: list[tuple[int, Tensor]] = field(default_factory=list)
    _end: int = 0
    _shift: int = 0

    @property
    def full(self) -> bool:
        return self._end >= self.longest

    def place(self, piece: Tensor, at: int | None, slack: int) -> None:
        """Adds a piece (channels, n).

        Args:
            at: sample at which it begins; None is the end so far.
            slack: samples.
        """
        place = self._place(at, slack)
        early, late = max(self._end - place, 0), max(place + piece.shape[1] - self.longest, 0)
        kept = piece[:, early : max(piece.shape[1] - late, early)]
        if not kept.shape[1]:
            self._end = max(self._end, min(place, self.longest))
            return
        begin = place + early
        if self._pieces:
            self.gaps += begin - self._end
        else:
            self.start = begin
        self._pieces.append((begin, kept))
        self._end = begin + kept.shape[1]

    def _place(self, at: int | None, slack: int) -> int:
        if at is None:
            return self._end
        if self._pieces and at + self._shift < self._end - max(self.rate, slack):
            self._shift = self._end - at
            self.restarts += 1
        place = at + self._shift
        return self._end if abs(place - self._end) <= slack else place

    def sound(self) -> Tensor:
        """Everything (channels, N) float32; one channel counts for both where other pieces have two."""
        if not self._pieces:
            return torch.zeros(1, 0)
        channels = max(piece.shape[0] for _, piece in self._pieces)
        last, piece = self._pieces[-1]
        joined = torch.zeros(channels, last + piece.shape[1])
        for begin, piece in self._pieces:
            joined[:, begin : begin + piece.shape[1]] = piece
        return joined
