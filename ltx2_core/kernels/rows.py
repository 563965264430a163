"""Modulation vectors by the rows that they are made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Row(NamedTuple):
    """One modulation vector of every noise level: a block's table plus what the level's embedding gives.

    Attributes:
        table: (rows, D), and which of its rows.
        vectors: (b, L, rows, D), and which of its rows; b is 1 or B.
        token_levels: (T,) which of the L levels each token has; None: there is one level, or one per token, in order.
    """

    table: Tensor
    row: int
    vectors: Tensor
    at: int
    token_levels: Tensor | None

    def values(self) -> Tensor:
        """(b, t, D), where t is T, or 1 where one noise level serves all tokens."""
        values = self.table[self.row] + self.vectors[:, :, self.at]
        return values if self.token_levels is None else values.index_select(1, self.token_levels)


class Affine(NamedTuple):
    """x * (1 + scale) + shift."""

    scale: Row
    shift: Row
