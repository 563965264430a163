"""A large module that runs with its base weights, or with adapters on top of them, in one device mode.

The base weights are never written where no host copy can bring them back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from torch import nn

from .adapters import Strengths
from .base_weights import BaseWeights, SwitchableSpec
from .host_memory import PinnedBudget
from .modes.mode import Mode
from .streams import Streams
from .weights import plain_tensors


class SwitchableModule:
    """The module in one mode; the mode's acts decide what each use does with the weights.

    ``moved(h2d, d2h)`` hears how many bytes were copied; nothing is ever copied down.
    """

    def __init__(
        self,
        spec: SwitchableSpec,
        mode: Mode,
        streams: Streams,
        budget: PinnedBudget,
        moved: Callable[[int, int], None],
    ) -> None:
        self.mode = mode
        self.base = BaseWeights(spec, mode.keeps_host_copy, streams, budget, moved)
        self._begin()

    def _begin(self) -> None:
        """Acts that know of no earlier use."""
        self._acts = self.mode.acts(self.base)
        self.base.before_layer = self._acts.before_layer

    # What is where

    @property
    def device_bytes(self) -> dict[str, int]:
        base = self.base.device.nbytes if self.base.device is not None else 0
        sets = {"base": base, **self._acts.device_bytes, "adapters": self.base.adapter_bytes}
        return {name: nbytes for name, nbytes in sets.items() if nbytes}

    @property
    def host_bytes(self) -> dict[str, int]:
        return self.base.host_bytes

    # Use

    def prefetch(self, strengths: Strengths) -> None:
        """Begins what :meth:`use` will need, beside the current stream; returns at once."""
        active = _active(strengths)
        if not self.base.loaded or not active:
            return
        if self.base.wrapped and not self.base.has_adapters(strengths):
            return  # the wrapped module may be in use
        with plain_tensors():
            self._want(strengths)
            self._acts.prefetch(active)

    @contextmanager
    def use(self, strengths: Strengths) -> Iterator[nn.Module]:
        """The module whose forward has these adapter strengths."""
        try:
            with plain_tensors():
                self._want(strengths)
                module = self._acts.ready(_active(strengths))
            yield module
        except BaseException:
            with plain_tensors():
                self._acts.abandon()
            raise
        finally:
            with plain_tensors():
                self._acts.finish()
                self.base.clean()

    def _want(self, names: Collection[str]) -> None:
        if not self.base.has_adapters(names):
            self._acts.abandon()
            self.base.want_adapters(names)

    def release(self) -> int:
        """Gives all device memory back; returns the bytes. Without a host copy the next use reads the files again."""
        freed = sum(self.device_bytes.values())
        with plain_tensors():
            self._acts.give_back()
            self.base.release()
        if not self.base.loaded:
            self._begin()
        return freed

    def restore(self) -> None:
        """Brings what stays on the device back to it, as the next use would."""
        with plain_tensors():
            self._acts.restore()

    def drop(self) -> None:
        """Forgets everything, the host copy too."""
        self.release()
        self.base.streams.settle()
        self.base.forget()
        self._begin()


def _active(strengths: Strengths) -> Strengths:
    return {name: strength for name, strength in strengths.items() if strength}
