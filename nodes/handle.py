"""What travels on an LTX2_PIPELINE link, and the models behind it."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..assembly import change_device_mode, open_manager
from ..device_manager.manager import DeviceManager
from ..device_manager.modes import AUTO
from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.loading.model_set import LoRASource, ModelFiles, ModelSet
from ..ltx2_core.pipeline import Pipeline
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.recipes import Recipe
from .model_sets import MODEL_SETS, file_stamps
from .residency import HostEntry, HostMemory, ask, most_bytes

log = logging.getLogger("ltx2.nodes")


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class PipelineHandle:
    """Loaded models with the LoRA strengths that a graph asked for.

    Attributes:
        context_widths: of the video and of the audio text embeddings.
        distilled_strength: strength of the distilled LoRA in stage 1 and 2; None leaves it to the recipe.
    """

    pipeline: Pipeline
    context_widths: tuple[int, int]
    distilled_strength: tuple[float | None, float | None] = (None, None)

    def recipe(self, preset: str) -> Recipe:
        """The official recipe of these models, with this handle's strengths."""
        return self.chosen(RecipeChoice(preset))

    def chosen(self, choice: RecipeChoice) -> Recipe:
        """The recipe that was chosen, for these models and with this handle's strengths.

        Raises:
            SettingError: the preset is unknown, or a value would be ignored.
        """
        return self.adjusted(choice.recipe_for(self.pipeline.models))

    def with_lora(self, lora: LoRASource) -> PipelineHandle:
        """The same loaded models with one LoRA more.

        Raises:
            CheckpointError: the file is no LoRA for these models.
            SettingError: its strength or stage cannot work.
        """
        models = self.pipeline.models
        assert isinstance(models, ModelSet)
        return replace(self, pipeline=self.pipeline.with_models(models.with_lora(lora)))

    def adjusted(self, recipe: Recipe) -> Recipe:
        """The recipe with this handle's strengths of the distilled LoRA."""
        first, second = (
            own if own is not None else official
            for own, official in zip(self.distilled_strength, recipe.distilled_strength, strict=True)
        )
        return replace(recipe, distilled_strength=(first, second))


class ModeChange:
    """A device mode that was asked for while the models are open. The next run takes it, never one in progress.

    ComfyUI does not run the loader again for it: the models stay open, and their manager is planned anew in that run.

    Attributes:
        setting: the mode in force as it was asked for, "auto" or one mode's name.
        wanted: what the next run takes in its place.
    """

    ORIGIN = "set in the device panel"

    def __init__(self, manager: DeviceManager, models: ModelSet, setting: str, memory: HostMemory | None) -> None:
        self.setting = setting
        self.wanted: str | None = None
        self._manager, self._models, self._memory = manager, models, memory
        self._not_in: Hashable = None

    def ask(self, setting: str, run: Hashable) -> None:
        """Takes the mode with the first run after ``run``, the one in progress; None where nothing runs."""
        in_force = setting == self.setting and setting in (AUTO, self._manager.mode)  # it may have fallen back
        self.wanted, self._not_in = (None if in_force else setting), run

    def apply(self) -> None:
        """Called before a component is used, while none is."""
        wanted = self.wanted
        if wanted is None or (self._not_in is not None and self._manager.current_run() == self._not_in):
            return
        self.wanted = None
        try:
            change_device_mode(self._manager, self._models, wanted, self.ORIGIN, self._memory)
        except LTX2Error as error:
            stays = f"The device mode stays {self._manager.mode}: {error}"
            self._manager.note_mode(stays)
            log.warning("%s", stays)
        else:
            self.setting = wanted


@dataclass(frozen=True)
class Opened:
    """The models that are open, for the device panel."""

    handle: PipelineHandle
    manager: DeviceManager
    mode: ModeChange


class PipelineRegistry:
    """The models of this process, one set at a time.

    ComfyUI drops node outputs when another workflow runs; what is held here stays loaded all the same. Another set of
    files takes the place of the one before. A handle to that one still works: its models load again when used.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Hashable = None
        self._handle: PipelineHandle | None = None
        self._release: Callable[[], None] = _nothing
        self._opened: Opened | None = None
        self.on_change: Callable[[], None] = _nothing

    @property
    def opened(self) -> Opened | None:
        """What is open now; may be asked from any thread."""
        return self._opened

    def open(
        self,
        files: ModelFiles,
        dtype: torch.dtype,
        device: torch.device,
        mode: str,
        memory: HostMemory | None = None,
        current_run: Callable[[], Hashable] = _nothing,
        precision: str = "auto",
    ) -> PipelineHandle:
        """The handle of these files; the same one as long as no file changed.

        Args:
            memory: the host's memory manager, which shares the device; None where it keeps no books of that device.
            current_run: names what the host is running now, for the report.
            precision: of the transformer's linear layers, see :meth:`ModelSet.open`.

        Raises:
            SettingError: the mode is not available.
            CheckpointError: a file cannot be used; no weight was read.
        """
        stamps = tuple(file_stamps(Path(path)) for path in files.by_role().values())
        key = (files, stamps, dtype, device, mode, precision)
        with self._lock:
            if self._handle is None or key != self._key:
                models = MODEL_SETS.open(files, dtype, precision)
                # What is loaded goes first: the new plan is made from the memory that is free then
                self.clear()
                manager = _open_manager(models, device, mode, memory)
                manager.current_run = current_run
                change = ModeChange(manager, models, mode, memory)
                manager.before_use = _one_by_one(change.apply, manager.before_use)
                manager.on_change = lambda: self.on_change()
                log.info("opened the models of %s (LTX-%s, %s)", files.checkpoint.name, models.generation, dtype)
                self._key, self._release = key, manager.drop
                self._handle = PipelineHandle(Pipeline(models, manager), context_widths(models))
                self._opened = Opened(self._handle, manager, change)
                self.on_change()
            return self._handle

    def clear(self) -> None:
        """Frees every model."""
        self._release()
        if self._handle is not None:
            log.info("released the models of %s", self._handle.pipeline.models.file_names["checkpoint"])
        self._key, self._handle, self._release, self._opened = None, None, _nothing, None
        gc.collect()
        self.on_change()


def _one_by_one(first: Callable[[], None], second: Callable[[], None] | None) -> Callable[[], None]:
    def both() -> None:
        first()
        if second is not None:
            second()

    return both


def _open_manager(models: ModelSet, device: torch.device, mode: str, memory: HostMemory | None) -> DeviceManager:
    if memory is None:
        return open_manager(models, device, mode)
    # The mode is chosen by the memory that is free, and what other models could give is not free before they are asked
    wanted = most_bytes(models)
    ask(lambda: memory.make_room(wanted, device, None))
    manager = open_manager(models, device, mode, pinning_host=memory)
    manager.before_use = HostEntry(manager, memory, models.dtype, wanted).before_use
    return manager


def context_widths(models: Any) -> tuple[int, int]:
    """Widths of the two text embeddings that the transformer takes (docs/model.md 3)."""
    transformer = models.transformer
    if transformer.caption_channels is not None:
        return transformer.caption_channels, transformer.caption_channels
    return transformer.video.width, transformer.audio.width


PIPELINES = PipelineRegistry()
