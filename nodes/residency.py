"""Our models in the books of ComfyUI's memory manager. Knows what that manager calls, and not the manager itself.

It holds its models weakly and talks to each through the methods of its ``ModelPatcher``. :class:`HostEntry` has those
that it calls (read from ComfyUI 0.33.0), for a device manager as a whole:

- asked to load, it does nothing: a component is loaded when a stage uses it;
- asked for memory, it gives back everything that the device manager holds, or nothing while a stage computes; the
  next run brings it back;
- asked to detach without giving memory back, which comes with every repeated load, it moves nothing.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..assembly import LARGEST_SIZE, LoadableModels, activation_bytes
from ..device_manager.manager import DeviceManager
from ..ltx2_core.types import Component

log = logging.getLogger("ltx2.nodes")


class HostMemory:
    """ComfyUI's memory manager as we use it. ComfyUI runs one node at a time, and all of this in its thread.

    Args:
        management: the module ``comfy.model_management``.
    """

    def __init__(self, management: Any) -> None:
        self._management = management

    def make_room(self, nbytes: int, device: torch.device, keep: HostEntry | None = None) -> None:
        """Unloads other models until so many bytes are free; ``keep`` stays as it is."""
        host = self._management
        wanted = nbytes + host.extra_reserved_memory()
        if host.get_free_memory(device) >= wanted:
            return
        loaded = [item for item in host.current_loaded_models if item.model is not None and item.device == device]
        # Asked in vain, free_memory would still empty torch's cache, and wait for the device
        if any(item.model is not keep and item.model_loaded_memory() for item in loaded):
            host.free_memory(wanted, device, keep_loaded=[item for item in loaded if item.model is keep])

    # Its budget for page-locked memory (device_manager.host_memory.PinningHost)

    def pinning_room(self) -> int | None:
        """Bytes that may still be page-locked; None where this host keeps no such budget, 0 where it pins nothing."""
        most = getattr(self._management, "MAX_PINNED_MEMORY", None)
        return None if most is None else max(0, int(most) - self._management.TOTAL_PINNED_MEMORY)

    def allow_pinning(self, nbytes: int) -> bool:
        """Whether so many bytes still fit in, if need be after the host has unlocked memory of models at rest."""
        room = self.pinning_room()
        unlock = getattr(self._management, "ensure_pin_registerable", None)
        if room is not None and room < nbytes and unlock is not None:
            ask(lambda: unlock(nbytes, evict_active=False))
            room = self.pinning_room()
        return room is None or nbytes <= room

    def pinning_changed(self, nbytes: int) -> None:
        """Counts our memory in the host's books, so that what it locks itself stays within the budget too."""
        if self.pinning_room() is not None:
            self._management.TOTAL_PINNED_MEMORY += nbytes

    def register(self, entry: HostEntry) -> None:
        """Puts the entry into the books, where it is not there."""
        if not any(item.model is entry for item in self._management.current_loaded_models):
            self._management.load_models_gpu([entry])


class LTX2TwoStageModels(nn.Module):
    """What the host takes for the model: it logs the name of its class, and watches whether it is still alive."""


class HostEntry:
    """A device manager, to the host's memory manager one model that can be unloaded.

    The host holds it weakly: ``before_use`` is the device manager's hook, so that both live as long.

    Args:
        manager: what is on the device.
        memory: the host's memory manager.
        dtype: of the models, for whom it may concern.
        most_bytes: what a run takes of the device at most, where the device manager has no plan.
    """

    # What the host reads of a model beside its methods
    parent = None
    model_options: dict[str, Any] = {}  # noqa: RUF012 - nobody writes it
    offload_device = torch.device("cpu")

    def __init__(self, manager: DeviceManager, memory: HostMemory, dtype: torch.dtype, most_bytes: int) -> None:
        self.model = LTX2TwoStageModels()
        self.load_device = manager.device
        self.clone_base_uuid = uuid.uuid4()
        self._manager, self._memory, self._dtype, self._most_bytes = manager, memory, dtype, most_bytes

    # What we ask of the host

    def before_use(self) -> None:
        """Asks for room for what the plan has beside what is on the device already, and to be asked for it later."""
        missing = (self._manager.planned_bytes or self._most_bytes) - self._manager.device_bytes
        if missing > 0:
            ask(lambda: self._memory.make_room(missing, self.load_device, self))
        ask(lambda: self._memory.register(self))

    # What the host asks of us: sizes and places

    def model_size(self) -> int:
        return self._manager.device_bytes

    def loaded_size(self) -> int:
        return self._manager.device_bytes

    def current_loaded_device(self) -> torch.device:
        return self.load_device if self._manager.device_bytes else self.offload_device

    def model_dtype(self) -> torch.dtype:
        return self._dtype

    def lowvram_patch_counter(self) -> int:
        return 0

    def is_dynamic(self) -> bool:
        """Whether the host's own streaming of weights serves this model."""
        return False

    def is_clone(self, other: object) -> bool:
        return getattr(other, "model", None) is self.model

    # Moves

    def model_patches_to(self, device_or_dtype: object) -> None:
        return None

    def model_patches_models(self) -> list[Any]:
        return []

    def get_nested_additional_models(self) -> list[Any]:
        return []

    def partially_load(self, device_to: object, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
        """Bytes that were loaded: the stages load what they need themselves."""
        return 0

    def partially_unload(self, device_to: object, memory_to_free: float = 0, force_patch_weights: bool = False) -> int:
        """Bytes that were given back."""
        return self._give_back() if memory_to_free > 0 else 0

    def patch_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.model

    def unpatch_model(self, device_to: object = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            self._give_back()

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        """The host forgets this entry; ``unpatch_all`` says that it also wants the memory."""
        self.unpatch_model(self.offload_device, unpatch_all)
        return self.model

    def _give_back(self) -> int:
        freed = self._manager.release_if_idle()
        if freed:
            log.info("gave %.2f GB back to ComfyUI; the next run loads them again", freed / 1e9)
        return freed


def ask(request: Callable[[], None]) -> None:
    """Calls into the host's memory manager. It calls other packs' models, and none of their errors stops our run."""
    try:
        request()
    except Exception:
        log.warning("ComfyUI's memory manager could not do what it was asked for", exc_info=True)


def most_bytes(models: LoadableModels) -> int:
    """What the fastest device mode takes for the largest common clip: two transformers and everything else at once."""
    others = [c for c in Component if c is not Component.UPSAMPLER or models.has_upsampler]
    weights = sum(map(models.component_bytes, others)) + models.component_bytes(Component.TRANSFORMER)
    return weights + models.adapter_bytes() + activation_bytes(models, LARGEST_SIZE)
