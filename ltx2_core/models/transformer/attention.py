"""Multi-head attention with norms over all heads, rotary embeddings and per-head gates (fact sheet 2.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...protocols import Attention
from ...types import Rope
from .batch import NONE_SKIPPED, Rows, Runs, batch_items, take
from .rope import rope_items, rotate


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """PyTorch's own choice of attention kernel."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class MultiHeadAttention(nn.Module):
    """Queries from one sequence, keys and values from the same or another one.

    Args:
        query_width, context_width: of the two sequences; the result has ``query_width``.
        gated: scale every head's result by twice a sigmoid of the query side's input (2.3).
    """

    def __init__(
        self,
        query_width: int,
        context_width: int,
        heads: int,
        head_dim: int,
        eps: float,
        gated: bool,
        attention: Attention,
    ) -> None:
        super().__init__()
        width = heads * head_dim
        self.heads, self.attention = heads, attention
        self.to_q = nn.Linear(query_width, width)
        self.to_k = nn.Linear(context_width, width)
        self.to_v = nn.Linear(context_width, width)
        self.q_norm = nn.RMSNorm(width, eps=eps)
        self.k_norm = nn.RMSNorm(width, eps=eps)
        self.to_out = nn.ModuleList([nn.Linear(width, query_width)])
        self.to_gate_logits = nn.Linear(query_width, heads) if gated else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rope: Rope | None = None,
        context_rope: Rope | None = None,
        values_only: Runs = NONE_SKIPPED,
        context_rows: Rows | None = None,
    ) -> Tensor:
        """(B, T, query_width) -> the same shape.

        Args:
            context: (P, S, context_width); None attends to ``x`` itself, with ``rope`` on both sides.
            context_rows: for each of the B items, which of the P contexts it reads; None: its own, or the only one.
                Keys and values are computed once per context.
            values_only: batch items whose softmax result is replaced by their value projection, as spatio-temporal
                guidance perturbs a self attention. Their queries and keys are not computed.
        """
        if context is None:
            context, context_rope = x, rope
        value = self.to_v(context)
        parts = [
            value[items] if skipped else self._attend(x, context, value, rope, context_rope, items, context_rows)
            for items, skipped in values_only
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(self.to_gate_logits(x))
            out = (out.unflatten(-1, (self.heads, -1)) * gates[..., None]).flatten(-2)
        return self.to_out[0](out)  # type: ignore[no-any-return]

    def _attend(
        self,
        x: Tensor,
        context: Tensor,
        value: Tensor,
        rope: Rope | None,
        context_rope: Rope | None,
        items: slice,
        context_rows: Rows | None,
    ) -> Tensor:
        context, value = batch_items(context, items), batch_items(value, items)
        q = rotate(self.q_norm(self.to_q(x[items])), rope and rope_items(rope, items), self.heads)
        k = rotate(self.k_norm(self.to_k(context)), context_rope and rope_items(context_rope, items), self.heads)
        v = rotate(value, None, self.heads)
        rows = tuple(range(q.shape[0])) if context_rows is None else context_rows
        return self.attention(q, take(k, rows), take(v, rows)).transpose(1, 2).flatten(-2)
