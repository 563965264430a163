"""Multi-head attention with norms over all heads, rotary embeddings and per-head gates (docs/model.md 2.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import attention as kernels
from ...kernels.activation import Activation, Needs
from ...kernels.heads import gate_heads, gate_logits, gates_need, norm_rope
from ...kernels.rope import split_heads
from ...protocols import Attention
from ...types import Rope
from .batch import NONE_SKIPPED, Rows, Runs, take
from .rope import rope_items

sdpa: Attention = kernels.attention


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

    @property
    def query_needs(self) -> Needs:
        """The forms in which the query side's input is read."""
        return gates_need(self.to_gate_logits, Needs.of((self.to_q,)))

    @property
    def context_needs(self) -> Needs:
        """The forms in which keys and values read the context."""
        return Needs.of((self.to_k, self.to_v))

    @property
    def self_needs(self) -> Needs:
        """The forms in which a self attention reads its input."""
        return gates_need(self.to_gate_logits, Needs.of((self.to_q, self.to_k, self.to_v)))

    def forward(
        self,
        x: Tensor | Activation,
        context: Tensor | Activation | None = None,
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
        x = x if isinstance(x, Activation) else Activation(x)
        if context is None:
            context, context_rope = x, rope
        elif not isinstance(context, Activation):
            context = Activation(context)
        value = context.through(self.to_v)
        parts = [
            value[items] if skipped else self._attend(x, context, value, rope, context_rope, items, context_rows)
            for items, skipped in values_only
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        logits = None if self.to_gate_logits is None else gate_logits(x, self.to_gate_logits)
        (to_out,) = self.to_out
        return gate_heads(out, logits, self.heads, Needs.of((to_out,))).through(to_out)

    def _attend(
        self,
        x: Activation,
        context: Activation,
        value: Tensor,
        rope: Rope | None,
        context_rope: Rope | None,
        items: slice,
        context_rows: Rows | None,
    ) -> Tensor:
        own = x.items(items)
        context = own if context is x else context.items(items)
        value = value if value.shape[0] == 1 else value[items]
        rope, context_rope = rope and rope_items(rope, items), context_rope and rope_items(context_rope, items)
        q, k = self._positioned(own.through(self.to_q), context.through(self.to_k), rope, context_rope)
        rows = tuple(range(q.shape[0])) if context_rows is None else context_rows
        out = self.attention(q, _shared(k, rows), split_heads(take(value, rows), self.heads))
        return out.transpose(1, 2).flatten(-2)

    def _positioned(self, q: Tensor, k: Tensor, rope: Rope | None, context_rope: Rope | None) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, T, width), normed, turned and split into heads; they are overwritten."""
        eps, weights = self.q_norm.eps, (self.q_norm.weight, self.k_norm.weight)
        assert eps is not None
        q, k = norm_rope((q, k), weights, eps, (rope, context_rope), self.heads)
        return q, k


def _shared(heads: Tensor, rows: Rows) -> Tensor:
    """A batch of these rows, copied where tokens lie in one piece: a copy by heads takes several times as long."""
    return take(heads.transpose(1, 2), rows).transpose(1, 2)
