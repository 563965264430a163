"""Turning queries and keys by rotary tables, as PyTorch does it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Rope


def rotate(x: Tensor, rope: Rope, heads: int) -> Tensor:
    """(B, T, width) queries or keys, turned and split into heads, (B, heads, T, head_dim).

    The table's rank tells its layout, see :class:`Rope`; a table of batch 1 serves every batch item. A split table may
    be made for another number of heads: channels are turned in its grouping, and attend in the other.
    """
    if rope.cos.ndim == 3:
        return split_heads(_rotate_pairs(x, rope), heads)
    groups = rope.cos.shape[1]
    turned = _rotate_halves(split_heads(x, groups), rope)
    return turned if groups == heads else split_heads(turned.transpose(1, 2).flatten(2), heads)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, width) -> (B, heads, T, head_dim), as a view."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def _rotate_halves(x: Tensor, rope: Rope) -> Tensor:
    halves = torch.unflatten(x, -1, (2, -1))
    first, second = halves.unbind(-2)
    turned = halves * rope.cos[..., None, :]
    turned[..., 0, :].addcmul_(second, rope.sin, value=-1)
    turned[..., 1, :].addcmul_(first, rope.sin)
    return turned.flatten(-2)


def _rotate_pairs(x: Tensor, rope: Rope) -> Tensor:
    even, odd = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    quarter_turn = torch.stack((-odd, even), dim=-1).flatten(-2)
    return x * rope.cos + quarter_turn * rope.sin
