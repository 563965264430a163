"""What a kernel hands to linear layers: plain numbers, fp8 ones with scales, or both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from .products import through
from .quantise import Quantised, quantise_rows


class Needs(NamedTuple):
    """The forms in which linear layers take their input."""

    plain: bool = True
    quantised: bool = False

    @classmethod
    def of(cls, layers: Iterable[nn.Module | None]) -> Needs:
        """What these layers take together. A layer that takes fp8 says so by a true ``takes_quantised``."""
        taken = {_takes_quantised(layer) for layer in layers if layer is not None}
        return cls(plain=False in taken, quantised=True in taken)


class Activation(NamedTuple):
    """A tensor (B, T, K) in one form or both."""

    plain: Tensor | None
    quantised: Quantised | None = None

    @classmethod
    def of(cls, x: Tensor, needs: Needs) -> Activation:
        """The tensor in the forms that are needed."""
        return cls(x if needs.plain else None, quantise_rows(x) if needs.quantised else None)

    def items(self, items: slice) -> Activation:
        """Those of some batch items; a batch of 1 serves every item."""
        values = self.plain if self.plain is not None else self.quantised and self.quantised.values
        assert values is not None
        if values.shape[0] == 1:
            return self
        return Activation(
            None if self.plain is None else self.plain[items],
            None if self.quantised is None else Quantised(*(_aligned(part[items]) for part in self.quantised)),
        )

    def through(self, layer: nn.Module) -> Tensor:
        """The layer's result."""
        if self.quantised is not None and _takes_quantised(layer):
            return layer(self.quantised)  # type: ignore[no-any-return]
        assert self.plain is not None
        return through(layer, self.plain)


def _takes_quantised(layer: nn.Module) -> bool:
    # The class is asked: a module that lacks an attribute looks for it in three places, and raises
    return hasattr(type(layer), "takes_quantised") and bool(layer.takes_quantised)


def _aligned(part: Tensor) -> Tensor:
    """Matrix products in fp8 want values and scales to begin at a multiple of 16 bytes."""
    return part if part.storage_offset() * part.element_size() % 16 == 0 else part.clone()
