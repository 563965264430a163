"""A mode that is no part of the package: layers come over one by one, merged on the way, and go when they computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltx2_two_stage.device_manager.adapters import LayerwiseMerge, Strengths
from ltx2_two_stage.device_manager.base_weights import BaseWeights
from ltx2_two_stage.device_manager.facts import Facts, TextPlacement
from ltx2_two_stage.device_manager.layout import members, unique_tensors
from ltx2_two_stage.device_manager.modes.mode import Acts, Mode
from ltx2_two_stage.device_manager.weights import WeightSet, bind, plain_tensors
from torch import Tensor, nn


class OneByOne(Acts):
    """The base module, whose tensors show the host copy but while their layer computes."""

    def __init__(self, base: BaseWeights) -> None:
        super().__init__(base)
        self._strengths: Strengths = {}
        self._merge: LayerwiseMerge | None = None
        self._passing: WeightSet | None = None
        self._tensors: list[Tensor] = []

    @property
    def device_bytes(self) -> Mapping[str, int]:
        return {"passing": self._passing.nbytes} if self._passing is not None else {}

    def ready(self, strengths: Strengths) -> nn.Module:
        module = self.base.load()
        if self._passing is None:
            self._watch(module)
        self._strengths = strengths
        return module

    def prefetch(self, strengths: Strengths) -> None:
        """Nothing is prepared."""

    def before_layer(self, group: int) -> None:
        with plain_tensors():
            self._bring(group)

    def finish(self) -> None:
        self._end_merge()
        if self._passing is not None:
            for group in range(len(self._passing.memory)):
                self._leave(group)

    def restore(self) -> None:
        """Nothing stays on the device between uses."""

    def _watch(self, module: nn.Module) -> None:
        assert self.base.host is not None
        self._passing = WeightSet(self.base.host.layout, self.base.streams.device, claimed=False)
        self._tensors = [tensor for _, tensor in unique_tensors(module)]
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._after(0), always_call=True)
        for index, layer in enumerate(members(module, self.base.spec.layers)):
            layer.register_forward_hook(self._after(index + 1), always_call=True)

    def _begin(self, _module: nn.Module, _inputs: Any) -> None:
        self._end_merge()
        self.before_layer(0)

    def _after(self, group: int) -> Any:
        return lambda _module, _inputs, _output: self._leave(group)

    def _bring(self, group: int) -> None:
        assert self._passing is not None
        if self._strengths:
            self._merge = self._merge or self.base.begin_merge(self._strengths)
            self._merge.run_to(group, self._passing, before=self._copy, after=lambda _: None)
        else:
            self._copy(group)
        self._show(group, self._passing)

    def _copy(self, group: int) -> None:
        assert self._passing is not None and self.base.host is not None
        self._passing.claim(group)
        self.base.moved(self._passing.copy_group(self.base.host, group), 0)

    def _leave(self, group: int) -> None:
        assert self._passing is not None and self.base.host is not None
        with plain_tensors():
            self._show(group, self.base.host)
            self.base.streams.keep_until_now(self._passing.memory[group])
            self._passing.memory[group].untyped_storage().resize_(0)

    def _show(self, group: int, weights: WeightSet) -> None:
        indices = weights.layout.members[group]
        bind([self._tensors[index] for index in indices], [weights.views[index] for index in indices])

    def _end_merge(self) -> None:
        if self._merge is not None:
            self._merge.end()
            self._merge = None


def _device_bytes(facts: Facts, text_encoder: TextPlacement) -> int:
    return max(facts.encoding(text_encoder), facts.dit_bytes // 16 + facts.lora_window + facts.activation_bytes)


ONE_BY_ONE = Mode(
    name="one-by-one",
    words="blocks come to the GPU one by one",
    tooltip="blocks one by one (9 GB)",
    merged="merged block by block",
    device_bytes=_device_bytes,
    acts=OneByOne,
    keeps_host_copy=True,
    others="visit",
)
