"""What a device mode is: a row of words and bytes, and what it does with the weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ..adapters import Strengths
from ..base_weights import BaseWeights
from ..facts import Facts, Plan, TextPlacement
from ..placed import Placement


class Acts(Protocol):
    """What a mode does with one module, from its loading to its end. A mode subclasses it for what is the same in most.

    All is called inside :func:`~device_manager.weights.plain_tensors`, but :meth:`before_layer`. ``strengths`` are
    those of the adapters that act: none of them is 0.
    """

    base: BaseWeights

    def __init__(self, base: BaseWeights) -> None:
        self.base = base

    @property
    def device_bytes(self) -> Mapping[str, int]:
        """What the mode holds of the device beside the base weights and the adapters, by name."""
        return {}

    @abstractmethod
    def ready(self, strengths: Strengths) -> nn.Module:
        """The module whose forward has these strengths, or the clean weights where there are none; a use begins."""

    @abstractmethod
    def prefetch(self, strengths: Strengths) -> None:
        """Begins what :meth:`ready` will need, beside the current stream; returns at once.

        There is at least one strength. A use may be under way.
        """

    def before_layer(self, group: int) -> None:
        """A layer of the base module, the group's, is about to compute; its clean weights are there."""

    @abstractmethod
    def finish(self) -> None:
        """The use has ended, well or not; the base weights, where they were changed, are brought back after this."""

    def abandon(self) -> None:
        """Ends what was begun for later: a use has failed, or other adapters are wanted."""

    def give_back(self) -> None:
        """Gives the device memory of the mode's own back, while no use is under way."""
        self.abandon()

    def restore(self) -> None:
        """Brings what stays on the device between uses back to it, as the next use would."""
        self.base.ensure()


def _streamed(_facts: Facts) -> tuple[TextPlacement, ...]:
    return ("stream",)


def _always(_plan: Plan, _facts: Facts) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Mode:
    """A device mode: where the two sets of weights are. Everything that differs between modes is here.

    Attributes:
        name: as the user writes it.
        words: what is where, as the end of a sentence; for the panel and the reason of a choice.
        tooltip: the same in a few words, with what it takes of the GPU, for a list of all modes.
        merged: why there are no merged weights yet, or never, for the panel.
        device_bytes: of a run on the device at the worst moment: encoding, merging, computing a stage, or decoding.
        acts: makes what the mode does with a module.
        falls_back_to: the mode to try once after running out of memory in this one; None where there is none.
        keeps_host_copy: whether a copy of the base weights stays in host memory.
        others: where components that never change are: "visit" where they come over for each use only.
        text_placements: where the text encoder may be, the better place first.
        preferred: whether auto takes it before every mode has been looked at.
        pageable: what a host copy that is not page-locked costs, as a clause.
    """

    name: str
    words: str
    tooltip: str
    merged: str
    device_bytes: Callable[[Facts, TextPlacement], int]
    acts: Callable[[BaseWeights], Acts]
    falls_back_to: Mode | None = None
    keeps_host_copy: bool = False
    others: Placement = "stay"
    text_placements: Callable[[Facts], tuple[TextPlacement, ...]] = _streamed
    preferred: Callable[[Plan, Facts], bool] = _always
    pageable: str = "copies from it are slower"

    def __str__(self) -> str:
        return self.name

    @property
    def sentence(self) -> str:
        """The words as a sentence of their own."""
        return f"{self.words[0].upper()}{self.words[1:]}."

    def plan(self, facts: Facts, text_encoder: TextPlacement) -> Plan:
        """What a run takes with the text encoder in this place."""
        host = facts.lora_bytes + (facts.text_encoder_bytes if text_encoder == "stream" else 0)
        if self.keeps_host_copy:
            host += facts.dit_bytes
        return Plan(text_encoder, self.device_bytes(facts, text_encoder), host)

    def plans(self, facts: Facts) -> tuple[Plan, ...]:
        """What a run takes with the text encoder in each of its places, the better place first."""
        return tuple(self.plan(facts, placement) for placement in self.text_placements(facts))
