"""Whether numbers are finite, asked of the device once for a whole stage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .errors import NotFiniteError


class Suspect(NamedTuple):
    """What may hold NaN or infinity.

    Attributes:
        what: its name, for people.
        cause: what makes such numbers there, and what to do, as full sentences.
    """

    what: str
    cause: str
    tensors: tuple[Tensor, ...]


class FiniteWatch:
    """Gathers on the device what was seen of many tensors; the host waits when it is asked, and never before."""

    def __init__(self) -> None:
        self._extremes: list[Tensor] = []

    def see(self, *tensors: Tensor) -> None:
        """Looks at the least and the greatest value of each; NaN is both. One pass, and no memory to speak of."""
        for tensor in tensors:
            if tensor.numel():
                self._extremes += (extreme.float() for extreme in tensor.detach().aminmax())

    def ok(self) -> bool:
        """Whether every value so far was finite. Waits for the device."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for extreme in self._extremes:
            by_device.setdefault(extreme.device, []).append(extreme)
        return all(bool(torch.stack(found).isfinite().all()) for found in by_device.values())


def finite(*tensors: Tensor) -> bool:
    """Whether every value is a number. Waits for the device."""
    watch = FiniteWatch()
    watch.see(*tensors)
    return watch.ok()


def check_finite(stage: str, result: Suspect, *before: Suspect) -> None:
    """Asks once of a stage's result. Only where it is not finite, what went in is looked at too.

    Args:
        stage: its name, for people.
        before: what the result was made of, in the order of making.

    Raises:
        NotFiniteError: about the first of ``before`` that is not finite, else about the result.
    """
    if finite(*result.tensors):
        return
    guilty = next((suspect for suspect in before if not finite(*suspect.tensors)), result)
    raise NotFiniteError(stage, guilty.what, guilty.cause)
