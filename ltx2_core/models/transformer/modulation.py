"""How noise levels modulate a stream, and what the rows of its tables are (docs/model.md 2.3 and 2.4)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...kernels.rows import Affine, Row


class AffineRows(NamedTuple):
    """The rows of what a layer reads: x * (1 + scale) + shift."""

    shift: int
    scale: int


class LayerRows(NamedTuple):
    """The rows of a layer whose result is scaled, too, before it is added."""

    shift: int
    scale: int
    gate: int


# Of a stream's own table. The text attention has rows where the prompt is modulated
SELF_ATTENTION = LayerRows(shift=0, scale=1, gate=2)
FEED_FORWARD = LayerRows(shift=3, scale=4, gate=5)
TEXT_ATTENTION = LayerRows(shift=6, scale=7, gate=8)

PROMPT = AffineRows(shift=0, scale=1)
HEAD = AffineRows(shift=0, scale=1)

# Of the exchange's table, where scale stands before shift. The gate's noise level has an embedding of its own
AUDIO_TO_VIDEO = AffineRows(scale=0, shift=1)
VIDEO_TO_AUDIO = AffineRows(scale=2, shift=3)
EXCHANGE_GATE = 4
EXCHANGE_AFFINES = len(AUDIO_TO_VIDEO) + len(VIDEO_TO_AUDIO)


def stream_rows(prompt_modulation: bool) -> int:
    """How many rows a stream's own table has."""
    layers = (SELF_ATTENTION, FEED_FORWARD, *((TEXT_ATTENTION,) if prompt_modulation else ()))
    return sum(map(len, layers))


class Modulation(NamedTuple):
    """Modulation numbers of a stream's noise levels. Tokens take theirs only where they are used: with few levels, as
    in image to video, nothing of a token's size is kept.

    Attributes:
        vectors: (B, L, rows, D).
        token_levels: (T,) which level each token has; None: there is one level, or one per token, in order.
    """

    vectors: Tensor
    token_levels: Tensor | None = None

    def rows(self, table: Tensor) -> tuple[Tensor, ...]:
        """All rows, with those of ``table`` (rows, D) added: (B, t, D) each.

        Axis t is T, or 1 where one noise level serves all tokens.
        """
        rows = (table + self.vectors).unbind(2)
        if self.token_levels is None:
            return rows
        return tuple(row.index_select(1, self.token_levels) for row in rows)

    def row(self, table: Tensor, row: int, at: int | None = None) -> Row:
        """Row ``row`` of ``table`` (rows, D), with the vectors' row ``at`` added; the same one without ``at``."""
        return Row(table, row, self.vectors, row if at is None else at, self.token_levels)

    def affine(self, table: Tensor, rows: AffineRows | LayerRows) -> Affine:
        """Scale and shift of ``table`` (rows, D)."""
        return Affine(scale=self.row(table, rows.scale), shift=self.row(table, rows.shift))
