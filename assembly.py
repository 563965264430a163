"""Brings model files and the device manager together, for the command line and the nodes alike."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from .device_manager.base_weights import SwitchableSpec
from .device_manager.facts import Facts
from .device_manager.host_memory import PinnedBudget, PinningHost
from .device_manager.manager import DeviceManager
from .device_manager.memory import host_available, pinned_budget, vram
from .device_manager.modes import UnknownMode, requested_mode
from .device_manager.modes.mode import Mode
from .device_manager.placed import ComponentSpec
from .device_manager.policy import Decision, DoesNotFit, choose, without_gpu
from .ltx2_core.components import COMPONENTS
from .ltx2_core.errors import SettingError, is_out_of_memory
from .ltx2_core.loading.lora import merge, set_adapters
from .ltx2_core.protocols import Models
from .ltx2_core.types import Component, VideoSize

# Bytes beside weights at work, as measured on one H200 in bf16: a DiT call takes 90 kB per token and guidance pass
# (stage 1 of 768x512x121 with 4 passes). Decoding takes what a pass of its usual length holds (VideoDecoder's
# PASS_BYTES) and what layers keep of a frame: 1% more at least than the peaks of PyTorch's own kernels, which need the
# most: 1.95 GiB at 768x512, 4.01 at 1536x1024, 4.83 at 1920x1088 and 6.25 at 2560x1440. Fused kernels took 1.50, 3.49
# and 4.27 GiB for the first three.
ACTIVATION_BYTES_PER_TOKEN = 90_000
DECODING_BYTES = 1_400_000_000
DECODING_BYTES_PER_PIXEL = 1_880
# Where no size is known yet (a loader node), what the largest common clip needs
LARGEST_SIZE = VideoSize(121, 1088, 1920)


class LoadableModels(Models, Protocol):
    """What placing the components takes, beside what the stages must know: see ``loading.ModelSet``."""

    def build(self, component: Component, device: torch.device) -> nn.Module: ...

    def skeleton(self, component: Component) -> nn.Module: ...

    def fill(self, component: Component, tensors: Mapping[str, Tensor]) -> None: ...

    def adapt(self, transformer: nn.Module, names: Collection[str]) -> None: ...

    def component_bytes(self, component: Component) -> int: ...

    def adapter_bytes(self) -> int: ...

    def text_states_bytes(self) -> int: ...


def check_device_mode(setting: str | None) -> None:
    """Raises :class:`SettingError` when the setting, or the environment variable, names no mode."""
    _requested(setting)


def open_manager(
    models: LoadableModels,
    device: torch.device,
    setting: str | None,
    size: VideoSize | None = None,
    pinning_host: PinningHost | None = None,
) -> DeviceManager:
    """The device manager for these models. No weight is read yet.

    Args:
        setting: device mode as the user wrote it; None and "auto" choose by what the machine has.
        size: of the clip that will be made, for what it needs beside weights; None plans for a large one.
        pinning_host: a host application with a budget of its own for pinned memory.

    Raises:
        SettingError: the mode is unknown, or nothing fits; the message has the numbers.
    """
    mode, origin = _requested(setting)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    decision, budget = _decide(models, device, mode, origin, setting, size, pinning_host)
    return DeviceManager(
        device,
        decision.mode,
        decision.reason,
        (Component.TRANSFORMER, _transformer(models)),
        _components(models, decision),
        budget,
        planned_bytes=decision.planned_peak_bytes,
    )


def change_device_mode(
    manager: DeviceManager,
    models: LoadableModels,
    setting: str,
    origin: str,
    pinning_host: PinningHost | None = None,
) -> None:
    """Plans the manager anew, with all that it holds of the device given back. Weights come back with their next use.

    Args:
        setting: as for :func:`open_manager`.
        origin: who asked for it, for the report.

    Raises:
        SettingError: the mode is unknown, or nothing fits; the manager goes on as it was.
    """
    mode, said = _requested(setting)
    manager.release()
    decision, _ = _decide(models, manager.device, mode, said if mode is None else origin, setting, None, pinning_host)
    manager.replan(decision.mode, decision.reason, _components(models, decision), decision.planned_peak_bytes)


def _decide(
    models: LoadableModels,
    device: torch.device,
    mode: Mode | None,
    origin: str,
    setting: str | None,
    size: VideoSize | None = None,
    pinning_host: PinningHost | None = None,
) -> tuple[Decision, PinnedBudget]:
    if device.type != "cuda":
        return without_gpu(mode, origin), PinnedBudget(0)
    room = pinning_host.pinning_room() if pinning_host is not None else None
    facts = _facts(models, device, size or LARGEST_SIZE, room)
    try:
        decision = choose(facts, mode)
    except DoesNotFit as error:
        fix = "Choose a smaller clip, or another device mode to try it all the same."
        raise SettingError("device-mode", setting or "auto", str(error).rstrip("."), fix) from error
    return decision, PinnedBudget(facts.pinned_budget, pinning_host)


def _requested(setting: str | None) -> tuple[Mode | None, str]:
    try:
        return requested_mode(setting)
    except UnknownMode as error:
        raise SettingError("device-mode", error.value, str(error).rstrip("."), "auto suits most machines.") from error


def activation_bytes(models: LoadableModels, size: VideoSize) -> int:
    """What making a clip of this size takes beside weights, when it takes the most."""
    # Stage 1 has a quarter of stage 2's tokens and up to four passes: both cost the same memory
    tokens = size.latent(models.latent_channels, models.scale).token_count
    decoding = DECODING_BYTES + size.width * size.height * DECODING_BYTES_PER_PIXEL
    return max(tokens * ACTIVATION_BYTES_PER_TOKEN, decoding)


def _transformer(models: LoadableModels) -> SwitchableSpec:
    return SwitchableSpec(
        skeleton=partial(models.skeleton, Component.TRANSFORMER),
        fill=partial(models.fill, Component.TRANSFORMER),
        layers="transformer_blocks",
        adapt=models.adapt,
        set_adapters=set_adapters,
        merge=merge,
        ran_out=is_out_of_memory,
    )


def _components(models: LoadableModels, decision: Decision) -> dict[Hashable, ComponentSpec]:
    text_stays = decision.text_encoder == "stay"
    specs: dict[Hashable, ComponentSpec] = {
        component: ComponentSpec(partial(models.build, component), decision.mode.others)
        for component in Component
        if component is not Component.TRANSFORMER
    }
    connector, encoder = Component.TEXT_CONNECTOR, Component.TEXT_ENCODER
    specs[connector] = ComponentSpec(partial(models.build, connector), "stay" if text_stays else "visit")
    specs[encoder] = ComponentSpec(partial(models.build, encoder), "stay" if text_stays else "stream", "layers")
    return specs


def _facts(models: LoadableModels, device: torch.device, size: VideoSize, pinning_room: int | None) -> Facts:
    memory, host = vram(device), host_available()
    others = [c for c in _SMALL if c is not Component.UPSAMPLER or models.has_upsampler]
    return Facts(
        total_vram=memory.total,
        free_vram=memory.free,
        host_available=host,
        pinned_budget=pinned_budget(host, pinning_room),
        dit_bytes=models.component_bytes(Component.TRANSFORMER),
        lora_bytes=models.adapter_bytes(),
        activation_bytes=activation_bytes(models, size),
        text_encoder_bytes=models.component_bytes(Component.TEXT_ENCODER),
        text_work_bytes=models.component_bytes(Component.TEXT_CONNECTOR) + models.text_states_bytes(),
        other_bytes=sum(models.component_bytes(c) for c in others),
    )


# VAEs, vocoder and upsampler, as far as every run needs them
_LARGE = (Component.TRANSFORMER, Component.TEXT_CONNECTOR)
_SMALL = tuple(component for component, row in COMPONENTS.items() if component not in _LARGE and not row.optional)
