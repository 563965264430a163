"""Our models in the books of the host's memory manager, and the contract with it, against a double of the host's."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.loading.model_set import LoRASource, ModelFiles
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny
from ltx2_two_stage.ltx2_core.types import Component
from ltx2_two_stage.nodes import handle, residency

CPU = torch.device("cpu")


_spec = importlib.util.spec_from_file_location("memory_contract", Path(__file__).with_name("memory_contract.py"))
assert _spec and _spec.loader
contract = sys.modules["memory_contract"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)


class OtherModel:
    """Another pack's model: loaded and unloaded as a whole."""

    load_device, offload_device, parent = CPU, CPU, None

    def __init__(self) -> None:
        self.model, self.loaded = torch.nn.Linear(64, 64), False

    def loaded_size(self) -> int:
        return 1000 if self.loaded else 0

    def detach(self, unpatch_all: bool = True) -> None:
        self.loaded = self.loaded and not unpatch_all

    def partially_load(self, *arguments: Any, **options: Any) -> None:
        self.loaded = True

    def __getattr__(self, name: str) -> Any:
        answers = {
            "model_size": 1000,
            "current_loaded_device": CPU,
            "is_clone": False,
            "partially_unload": 0,
            "model_patches_models": [],
        }
        return lambda *args, **kwargs: answers.get(name)


class Item:
    """One line of the double's books: holds its model weakly, as the host does."""

    def __init__(self, model: Any) -> None:
        self._reference, self.device, self.real, self.watch = weakref.ref(model), model.load_device, None, None
        assert model.parent is None

    @property
    def model(self) -> Any:
        return self._reference()

    def model_loaded_memory(self) -> int:
        return self.model.loaded_size()

    def unload(self, nbytes: float) -> bool:
        """Asks for a part first, and for all of it when that is not enough."""
        model = self.model
        if nbytes < model.loaded_size() and model.partially_unload(model.offload_device, nbytes) >= nbytes:
            return False
        model.detach(True)
        self.watch.detach()
        return True


class Management:
    """A double of ``comfy.model_management``: the same calls in the same order, on a device that is the CPU."""

    def __init__(self) -> None:
        self.current_loaded_models: list[Item] = []
        self.free = 10**12
        self.MAX_PINNED_MEMORY, self.TOTAL_PINNED_MEMORY = -1, 0
        self.unlockable = 0

    def ensure_pin_registerable(self, nbytes: int, evict_active: bool = True) -> bool:
        assert not evict_active, "models at work keep their pins"
        self.TOTAL_PINNED_MEMORY -= self.unlockable
        self.unlockable = 0
        return self.TOTAL_PINNED_MEMORY + nbytes <= self.MAX_PINNED_MEMORY

    def get_free_memory(self, _device: torch.device) -> int:
        return self.free

    def extra_reserved_memory(self) -> int:
        return 1000

    def unload_all_models(self) -> None:
        self.free_memory(1e30, CPU)

    def free_memory(self, required: float, device: torch.device, keep_loaded: Any = ()) -> None:
        for item in list(self.current_loaded_models):
            assert item.real() is None or item.model is not None, "a model outlived its entry"
            kept = any(item.model is other.model for other in keep_loaded)
            assert not item.model.is_dynamic()
            missing = required - self.get_free_memory(device)
            if item.device == device and not kept and missing > 0 and item.unload(missing):
                self.current_loaded_models.remove(item)

    def load_models_gpu(self, models: list[Any]) -> None:
        for model in models:
            assert model.model_patches_models() == []
            for item in list(self.current_loaded_models):
                if item.model is model or model.is_clone(item.model):
                    self.current_loaded_models.remove(item)
                    item.model.detach(unpatch_all=False)
                    item.watch.detach()
            item = Item(model)
            model.model_patches_to(item.device)
            model.model_patches_to(model.model_dtype())
            model.partially_load(item.device, 1e32, force_patch_weights=False)
            item.real = weakref.ref(model.model)
            item.watch = weakref.finalize(model.model, self._forget_the_dead)
            self.current_loaded_models.insert(0, item)

    def _forget_the_dead(self) -> None:
        self.current_loaded_models = [item for item in self.current_loaded_models if item.real() is not None]


@pytest.mark.parametrize("name", contract.CHECKS)
def test_contract_with_a_double(name: str) -> None:
    management = Management()

    def set_free(nbytes: int) -> None:
        management.free = nbytes

    contract.CHECKS[name](contract.Agreement(management, OtherModel, set_free))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFiles, ModelFiles]:
    sets = []
    for variant in ("2.3", "2.0"):
        files = write_tiny(tmp_path_factory.mktemp("tiny") / variant, variant)
        sets.append(ModelFiles(files.checkpoint, files.gemma, files.upsampler, files.distilled_lora))
    return sets[0], sets[1]


@pytest.fixture
def registry() -> Iterator[Any]:
    registry = handle.PipelineRegistry()
    yield registry
    registry.clear()


def _load(opened: Any) -> Any:
    with opened.pipeline.residency.use(Component.TRANSFORMER):
        return opened.pipeline.residency


def test_other_files_release_the_first_ones_and_an_old_handle_loads_again(
    tiny: tuple[ModelFiles, ModelFiles], registry: Any
) -> None:
    management = Management()
    memory = residency.HostMemory(management)
    first = registry.open(tiny[0], torch.float32, CPU, "auto", memory)
    manager = _load(first)
    assert manager.device_bytes > 0
    assert registry.open(tiny[0], torch.float32, CPU, "auto", memory) is first
    second = registry.open(tiny[1], torch.float32, CPU, "auto", memory)
    assert second is not first
    assert manager.device_bytes == 0
    _load(first), _load(second)
    books = [item.model.model_size() for item in management.current_loaded_models]
    assert len(books) == 2 and all(books), "ComfyUI can ask for either"
    registry.clear()
    del first, second, manager
    gc.collect()
    assert management.current_loaded_models == []


def test_room_is_made_before_the_mode_is_chosen(tiny: tuple[ModelFiles, ModelFiles], registry: Any) -> None:
    management, other = Management(), OtherModel()
    management.load_models_gpu([other])
    management.free = 10**6
    opened = registry.open(tiny[0], torch.float32, CPU, "auto", residency.HostMemory(management))
    assert not other.loaded
    models = opened.pipeline.models
    assert residency.most_bytes(models) > 2 * models.component_bytes(Component.TRANSFORMER)


def test_without_books_nothing_is_asked(
    tiny: tuple[ModelFiles, ModelFiles], registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(handle, "HostEntry")
    opened = registry.open(tiny[0], torch.float32, CPU, "auto")
    assert _load(opened).device_bytes > 0


@pytest.mark.parametrize("role", ["checkpoint", "distilled_lora", "lora"])
def test_a_file_that_changed_is_opened_again(
    tiny: tuple[ModelFiles, ModelFiles], registry: Any, role: str, tmp_path: Path
) -> None:
    lora = tmp_path / "own.safetensors"
    assert tiny[0].distilled_lora is not None
    lora.write_bytes(tiny[0].distilled_lora.read_bytes())
    files = ModelFiles(
        tiny[0].checkpoint, tiny[0].gemma, distilled_lora=tiny[0].distilled_lora, loras=(LoRASource(lora),)
    )
    first = registry.open(files, torch.float32, CPU, "auto")
    assert registry.open(files, torch.float32, CPU, "auto") is first
    changed = lora if role == "lora" else getattr(files, role)
    os.utime(changed, ns=(1, changed.stat().st_mtime_ns + 1_000_000_000))
    assert registry.open(files, torch.float32, CPU, "auto") is not first


def test_models_at_rest_make_room_for_page_locked_memory() -> None:
    management = Management()
    memory = residency.HostMemory(management)
    management.MAX_PINNED_MEMORY, management.TOTAL_PINNED_MEMORY, management.unlockable = 1000, 900, 500
    assert not memory.allow_pinning(700), "not even then"
    management.TOTAL_PINNED_MEMORY, management.unlockable = 900, 500
    assert memory.allow_pinning(500) and management.TOTAL_PINNED_MEMORY == 400
    assert memory.pinning_room() == 600


def test_a_host_that_never_heard_of_page_locking_sets_no_limit() -> None:
    memory = residency.HostMemory(types.SimpleNamespace())
    assert memory.pinning_room() is None and memory.allow_pinning(10**15)
    memory.pinning_changed(10)


def test_a_host_without_a_way_to_unlock_is_taken_by_its_word() -> None:
    memory = residency.HostMemory(types.SimpleNamespace(MAX_PINNED_MEMORY=10.9, TOTAL_PINNED_MEMORY=5))
    assert memory.pinning_room() == 5 and memory.allow_pinning(5) and not memory.allow_pinning(6)


def test_pins_of_the_models_are_in_the_hosts_books(
    tiny: tuple[ModelFiles, ModelFiles], registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry passes the host's budget on: what is planned and what is pinned both heed it."""
    management = Management()
    management.MAX_PINNED_MEMORY = 1000
    memory = residency.HostMemory(management)
    given: list[Any] = []
    real = handle.open_manager

    def spy(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs["pinning_host"])
        return real(*args, **kwargs)

    monkeypatch.setattr(handle, "open_manager", spy)
    registry.open(tiny[0], torch.float32, CPU, "auto", memory)
    assert given == [memory]


def test_stages_of_one_workflow_run_are_reported_together(tiny: tuple[ModelFiles, ModelFiles], registry: Any) -> None:
    runs = iter(["one", "one", "two"])
    manager = registry.open(tiny[0], torch.float32, CPU, "auto", None, lambda: next(runs)).pipeline.residency
    for name, expected in (("a", ["a"]), ("b", ["a", "b"]), ("c", ["c"])):
        with manager.recorder.measure(name):
            pass
        assert [record["name"] for record in manager.recorder.last_records()] == expected


def test_a_plan_counts_on_no_more_pinned_memory_than_the_host_allows(
    tiny: tuple[ModelFiles, ModelFiles], registry: Any
) -> None:
    assembly = importlib.import_module("ltx2_two_stage.assembly")
    models = registry.open(tiny[0], torch.float32, CPU, "auto").pipeline.models
    facts = [assembly._facts(models, CPU, assembly.LARGEST_SIZE, room).pinned_budget for room in (None, 1000, 0)]
    assert facts[0] > 1000 and facts[1:] == [1000, 0]
