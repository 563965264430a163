"""The device panel's answers and actions, with a double of the host's server."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage import nodes
from ltx2_two_stage.device_manager import modes
from ltx2_two_stage.device_manager.modes import mode_names
from ltx2_two_stage.ltx2_core.loading.model_set import ModelFiles
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny
from ltx2_two_stage.ltx2_core.types import Component, RunReport, StageRecord

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
OURS = {"1": {"class_type": "LTX2TwoStageDenoise", "inputs": {}}}
OTHERS = {"1": {"class_type": "KSampler", "inputs": {}}}


class Host(types.ModuleType):
    """What the panel asks of the host, and what it announces there."""

    Answer = tuple

    def __init__(self) -> None:
        super().__init__("ltx2_two_stage.nodes.host")
        self.runs: list[tuple[Hashable, Mapping[str, Any]]] = []
        self.announced: list[tuple[str, float, Callable[[], Mapping[str, Any]]]] = []

    def running_graphs(self) -> list[tuple[Hashable, Mapping[str, Any]]]:
        return self.runs

    def anything_queued(self) -> bool:
        return bool(self.runs)

    def current_run(self) -> Hashable:
        return self.runs[0][0] if self.runs else None

    def announce(self, event: str, seconds: float, data: Callable[[], Mapping[str, Any]]) -> None:
        self.announced.append((event, seconds, data))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    double = Host()
    monkeypatch.setitem(sys.modules, "ltx2_two_stage.nodes.host", double)
    monkeypatch.setattr(nodes, "host", double, raising=False)
    return double


@pytest.fixture
def panel(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # noqa: ARG001 - stands in first
    """A panel of its own, told of changes as the host's server would have it."""
    monkeypatch.delitem(sys.modules, "ltx2_two_stage.nodes.panel", raising=False)
    module = importlib.import_module("ltx2_two_stage.nodes.panel")
    handle = importlib.import_module("ltx2_two_stage.nodes.handle")
    registry = handle.PipelineRegistry()
    monkeypatch.setattr(module, "PIPELINES", registry)
    made = module.Panel()
    registry.on_change = made.changed
    made.registry = registry
    yield made
    registry.clear()
    sys.modules.pop("ltx2_two_stage.nodes.panel", None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    tiny = write_tiny(tmp_path_factory.mktemp("tiny"), "2.3")
    return ModelFiles(tiny.checkpoint, tiny.gemma, tiny.upsampler, tiny.distilled_lora)


@pytest.fixture
def manager(panel: Any, host: Host, files: ModelFiles) -> Any:
    """The manager of open models that have run."""
    panel.registry.open(files, torch.float32, CPU, "auto", current_run=host.current_run)
    manager = panel.registry.opened.manager
    use(manager)
    return manager


def use(manager: Any) -> None:
    for component in (Component.TRANSFORMER, Component.VOCODER):
        with manager.use(component):
            pass


def ask(action: Callable[..., Any], **body: Any) -> tuple[int, Mapping[str, Any]]:
    status, answer = asyncio.run(action(body))
    json.dumps(answer)
    return status, answer


def test_without_models_there_is_a_status_and_nothing_to_act_on(panel: Any) -> None:
    status = panel.status()
    assert status["models"] is None and status["runs"] == [] and status["stage"] is None
    assert [mode["name"] for mode in status["modes"]] == list(mode_names()) and all(m["words"] for m in status["modes"])
    for action in (panel.release, panel.restore):
        code, answer = ask(action)
        assert code == 409 and "LTX-2 Loader" in answer["fix"]


def test_the_status_says_what_is_where(panel: Any, manager: Any) -> None:
    models = panel.status()["models"]
    rows = {row["name"]: row for row in models["components"]}
    held = manager.status()["device"]
    assert rows["Base transformer"]["device"] == held["base"] > 0
    assert rows["VAEs and vocoder"]["device"] == held["vocoder"] > 0
    assert rows["Upsampler"] == {"name": "Upsampler", "device": 0, "host": 0, "note": "loaded when first needed"}
    assert rows["Stage-2 transformer"]["note"] == "the base with its LoRA"
    assert sum(row["device"] for row in rows.values()) == models["memory"]["ours"]
    assert models["mode"] == {"name": "original", "reason": manager.mode_reason, "setting": "auto", "wanted": None}


def test_a_registered_mode_is_offered_in_its_own_words(
    panel: Any, manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = replace(modes.WITHOUT_GPU, name="toy", words="a toy stays on the GPU", merged="a toy has none")
    monkeypatch.setattr(modes, "MODES", (*modes.MODES, toy))
    assert panel.status()["modes"][-1] == {"name": "toy", "words": "A toy stays on the GPU."}
    assert ask(panel.change_mode, mode="toy")[0] == 200
    with manager.use(Component.TRANSFORMER):
        pass
    models = panel.status()["models"]
    rows = {row["name"]: row for row in models["components"]}
    assert models["mode"]["name"] == "toy" and rows["Stage-2 transformer"]["note"] == "a toy has none"
    assert "original, toy." in ask(panel.change_mode, mode="nonsense")[1]["fix"]


@pytest.mark.usefixtures("panel")
def test_every_component_of_the_models_is_in_one_row() -> None:
    module = sys.modules["ltx2_two_stage.nodes.panel"]
    parts = [part for row in module.ROWS.values() for part in row]
    assert sorted(parts) == sorted(
        ["base", "merged", "adapters", *(c.value for c in Component if c is not Component.TRANSFORMER)]
    )


def test_release_and_restore(panel: Any, manager: Any) -> None:
    held = manager.device_bytes
    code, answer = ask(panel.release)
    assert (code, answer["freed"]) == (200, held)
    assert answer["models"]["restorable"] and answer["models"]["memory"]["ours"] == 0
    code, answer = ask(panel.restore)
    assert (code, answer["restored"]) == (200, held)
    assert not answer["models"]["restorable"]


@pytest.mark.parametrize("mode", ["original", "snapshot"])
def test_freed_and_restored_are_how_the_memory_bar_moves(panel: Any, manager: Any, mode: str) -> None:
    ask(panel.change_mode, mode=mode)
    with manager.use(Component.TRANSFORMER, {"distilled": 1.0}):
        pass
    assert manager.status()["host"]["adapters"] > 0, "without a GPU they take the same memory"
    held = [panel.status()["models"]["memory"]["ours"]]
    moves = []
    for action, name in ((panel.release, "freed"), (panel.restore, "restored")):
        answer = ask(action)[1]
        held.append(answer["models"]["memory"]["ours"])
        moves.append(answer[name])
    assert moves == [held[0] - held[1], held[2] - held[1]] and min(moves) > 0
    # A host copy is what the next run restores from, and stays
    assert (held[1] == 0) == (mode == "original")


@pytest.mark.usefixtures("manager")
def test_without_a_gpu_memory_is_the_hosts(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["ltx2_two_stage.nodes.panel"]
    monkeypatch.setattr(module, "host_total", lambda: 64 * 10**9)
    monkeypatch.setattr(module, "host_available", lambda: 40 * 10**9)
    memory = panel.status()["models"]["memory"]
    assert memory["total"] == 64 * 10**9 and memory["ours"] > 0
    assert memory["ours"] + memory["other"] == 24 * 10**9
    monkeypatch.setattr(module, "host_available", lambda: 64 * 10**9)
    assert panel.status()["models"]["memory"]["other"] == 0


def test_a_run_with_these_models_is_left_alone_and_others_do_not_matter(panel: Any, manager: Any, host: Host) -> None:
    host.runs = [("a", OURS)]
    assert panel.status()["busy"]
    code, answer = ask(panel.release)
    assert code == 409 and "in progress" in answer["error"] and manager.device_bytes > 0
    host.runs = [("b", OTHERS)]
    assert not panel.status()["busy"]
    code, answer = ask(panel.restore)
    assert code == 409 and "running" in answer["error"], "it could unload what the other workflow uses"
    assert ask(panel.release)[0] == 200 and manager.device_bytes == 0


def test_what_is_in_use_is_not_released(panel: Any, manager: Any) -> None:
    with manager.use(Component.TRANSFORMER):
        assert ask(panel.release)[1]["freed"] == 0
    assert manager.device_bytes > 0


def test_a_restore_that_fails_says_so(panel: Any, manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError("the file went away")

    monkeypatch.setattr(manager, "restore", fail)
    code, answer = ask(panel.restore)
    assert code == 409 and "the file went away" in answer["error"]


@pytest.mark.parametrize("wanted", ["fast", "", None, 3, ["auto"], {"name": "auto"}], ids=str)
@pytest.mark.usefixtures("manager")
def test_a_mode_that_does_not_exist_is_a_bad_request(panel: Any, wanted: Any) -> None:
    code, answer = ask(panel.change_mode, mode=wanted)
    assert code == 400 and repr(wanted) in answer["error"] and "snapshot-low" in answer["fix"]
    assert ask(panel.change_mode)[0] == 400


def test_the_next_run_takes_a_mode_and_the_one_in_progress_does_not(panel: Any, manager: Any, host: Host) -> None:
    host.runs = [("a", OURS)]
    code, answer = ask(panel.change_mode, mode="snapshot")
    assert code == 200 and answer["models"]["mode"]["wanted"] == "snapshot"
    use(manager)
    assert manager.mode == "original"
    host.runs = [("b", OURS)]
    use(manager)
    mode = panel.status()["models"]["mode"]
    assert mode == {"name": "snapshot", "reason": "set in the device panel", "setting": "snapshot", "wanted": None}
    assert manager.status()["host"]["base"] > 0, "the mode's own copy is there"
    ask(panel.change_mode, mode="auto")
    host.runs = [("c", OURS)]
    use(manager)
    assert panel.status()["models"]["mode"]["setting"] == "auto" and manager.mode == "original"


def test_asking_for_the_mode_in_force_takes_a_wish_back(panel: Any, manager: Any) -> None:
    ask(panel.change_mode, mode="snapshot")
    assert ask(panel.change_mode, mode="auto")[1]["models"]["mode"]["wanted"] is None
    use(manager)
    assert manager.mode == "original"


def test_a_mode_that_was_fallen_back_from_can_be_asked_for_again(panel: Any, manager: Any) -> None:
    ask(panel.change_mode, mode="snapshot")
    use(manager)
    manager.fall_back("no memory")
    assert manager.mode == "snapshot-low"
    assert ask(panel.change_mode, mode="snapshot")[1]["models"]["mode"]["wanted"] == "snapshot"
    use(manager)
    assert manager.mode == "snapshot"


def report(ms: float) -> RunReport:
    return RunReport([StageRecord("stage_1", ms, 10**9, 0, 0)], "snapshot", recipe="two-stage")


def test_runs_are_kept_latest_first_and_a_run_grows_stage_by_stage(panel: Any) -> None:
    panel.ran("a", report(1.0))
    panel.ran("a", report(2.0))
    for name in "bcdefg":
        panel.ran(name, report(3.0))
    runs = panel.status()["runs"]
    assert [run["key"] for run in runs] == list("gfedc")
    panel.ran("g", report(9.0))
    latest = panel.status()["runs"][0]
    assert (latest["recipe"], latest["mode"]) == ("two-stage", "snapshot")
    assert [(stage["label"], stage["ms"]) for stage in latest["stages"]] == [("Stage 1", 9.0)]


def test_changes_in_a_row_are_one_event_and_events_are_rare(panel: Any, host: Host) -> None:
    for _ in range(20):
        panel.changed()
    assert len(host.announced) == 1
    event, wait, data = host.announced[0]
    assert (event, wait) == ("ltx2.status", 0.0)
    assert data() == panel.status()
    panel.changed()
    assert len(host.announced) == 2 and 0.3 < host.announced[1][1] <= 0.5
