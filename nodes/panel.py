"""The device panel's other half: what is where, what the last runs cost, and what the panel's buttons do.

Routes: GET ``/ltx2/status``; POST ``/ltx2/release``, ``/ltx2/restore`` and ``/ltx2/mode`` ({"mode": name}). Every
answer is the status or, with status 400 or 409, {"error", "fix"}. The event ``ltx2.status`` brings the same status to
every open page when it changes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import torch

from ..device_manager import modes
from ..device_manager.memory import host_available, host_total, vram
from ..ltx2_core.errors import LTX2Error, is_out_of_memory
from ..ltx2_core.types import RunReport
from . import host
from .handle import PIPELINES, Opened, PipelineHandle
from .licences import accept_licences, licences
from .progress import NodeProgress, StageProgress, label, summary

log = logging.getLogger("ltx2.nodes")

EVENT = "ltx2.status"
# The panel is read by people: more often is of no use, and steps may come many times a second
EVENT_SECONDS = 0.5
RUNS_KEPT = 5
NODE_PREFIX = "LTX2TwoStage"

# Row -> the components that it sums, by the device manager's names for what it holds
ROWS: Mapping[str, tuple[str, ...]] = {
    "Base transformer": ("base",),
    "Stage-2 transformer": ("merged",),
    "LoRAs": ("adapters",),
    "Text encoder": ("text_encoder", "text_connector"),
    "VAEs and vocoder": ("video_encoder", "video_decoder", "audio_encoder", "audio_decoder", "vocoder"),
    "Upsampler": ("upsampler",),
}


@dataclass
class Run:
    """The stages of one workflow run.

    Attributes:
        key: names the run.
        ended: seconds since 1970 when its last stage ended.
    """

    key: Hashable
    recipe: str
    mode: str
    ended: float
    stages: list[dict[str, Any]] = field(default_factory=list)


class Panel:
    """What the panel shows, and the actions that it offers. Asked from the server's thread and told from the nodes'."""

    def __init__(self) -> None:
        self._runs: deque[Run] = deque(maxlen=RUNS_KEPT)
        self._stage: StageProgress | None = None
        self._announced = False
        self._sent = float("-inf")
        self._lock = threading.Lock()
        self._acting = asyncio.Lock()  # one action at a time

    # Told by the nodes

    def stage(self, progress: StageProgress | None) -> None:
        self._stage = progress
        self.changed()

    def ran(self, key: Hashable, report: RunReport) -> None:
        """What a run has cost so far."""
        stages = [{**asdict(stage), "label": label(stage.name)} for stage in report.stages]
        run = Run(key, report.recipe, report.mode, time.time(), stages)
        if self._runs and key is not None and self._runs[-1].key == key:
            self._runs.pop()
        self._runs.append(run)
        self.changed()

    def changed(self) -> None:
        """Sends the status to every page soon: at once, or when the last one is old enough."""
        with self._lock:
            if self._announced:
                return
            self._announced = True
            wait = max(0.0, self._sent + EVENT_SECONDS - time.monotonic())
        host.announce(EVENT, wait, self._announcement)

    def _announcement(self) -> dict[str, Any]:
        with self._lock:
            self._announced, self._sent = False, time.monotonic()
        return self.status()

    # Asked by the page

    def status(self) -> dict[str, Any]:
        """Everything that the panel shows, in bytes and milliseconds."""
        stage = self._stage
        return {
            "models": _models(opened) if (opened := PIPELINES.opened) is not None else None,
            "modes": _modes(),
            "stage": None if stage is None else {**asdict(stage), "label": label(stage.stage), "unit": stage.unit},
            "busy": _running_here() is not None,
            "runs": [asdict(run) for run in reversed(self._runs)],
        }

    async def read(self) -> host.Answer:
        return 200, self.status()

    async def release(self, _body: Mapping[str, Any]) -> host.Answer:
        async with self._acting:
            opened = PIPELINES.opened
            if opened is None:
                return _no_models()
            if _running_here() is not None:
                return _refusal(
                    "A run with these models is in progress.", "Release them when it has ended, or stop it."
                )
            freed = -await asyncio.to_thread(_change, opened.manager.release_if_idle, opened)
            log.info("released %.2f GB from the device panel; the next run restores them", freed / 1e9)
            return 200, {**self.status(), "freed": freed}

    async def restore(self, _body: Mapping[str, Any]) -> host.Answer:
        async with self._acting:
            opened = PIPELINES.opened
            if opened is None:
                return _no_models()
            # It may unload other models, which is for the host to do while nothing runs
            if host.anything_queued():
                problem = "A workflow is running or waiting."
                return _refusal(problem, "Nothing is lost: a run restores what it needs by itself.")
            try:
                restored = await asyncio.to_thread(_change, opened.manager.restore, opened)
            except Exception as error:
                if not isinstance(error, OSError) and not is_out_of_memory(error):
                    raise
                return _refusal(f"Not restored: {error}", "Free memory, or check that the model files are still there.")
            return 200, {**self.status(), "restored": restored}

    async def change_mode(self, body: Mapping[str, Any]) -> host.Answer:
        wanted = body.get("mode")
        names = modes.mode_names()
        if not isinstance(wanted, str) or wanted not in names:
            return 400, {"error": f"mode = {wanted!r} is no device mode.", "fix": f"Choose one of: {', '.join(names)}."}
        opened = PIPELINES.opened
        if opened is None:
            return _no_models()
        opened.mode.ask(wanted, _running_here())
        self.changed()
        return 200, self.status()

    def serve(self) -> None:
        """Adds the routes to ComfyUI's server, and begins to tell its pages of changes."""
        PIPELINES.on_change = self.changed
        host.serve(
            {"/ltx2/status": self.read, "/ltx2/licences": licences},
            {
                "/ltx2/release": self.release,
                "/ltx2/restore": self.restore,
                "/ltx2/mode": self.change_mode,
                "/ltx2/licences": accept_licences,
            },
        )


def _modes() -> list[dict[str, str]]:
    """Every mode that the panel offers, with its words."""
    offered = {modes.AUTO: modes.AUTO_SENTENCE, **{mode.name: mode.sentence for mode in modes.MODES}}
    return [{"name": name, "words": words} for name, words in offered.items()]


def _running_here() -> Hashable:
    """The run in progress that has nodes of this pack; None where there is none."""
    for key, graph in host.running_graphs():
        if any(str(node.get("class_type", "")).startswith(NODE_PREFIX) for node in graph.values()):
            return key
    return None


def _change(act: Callable[[], object], opened: Opened) -> int:
    """Bytes that the models hold more after the action than before, as the memory bar shows them.

    In a thread of its own, whose current GPU would be the first one.
    """
    device = opened.manager.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        before = _ours(device, opened.manager.status())
        act()
        return _ours(device, opened.manager.status()) - before


def _no_models() -> host.Answer:
    return _refusal("No models are open.", "Queue a workflow with LTX-2 Loader first.")


def _refusal(error: str, fix: str) -> host.Answer:
    return 409, {"error": error, "fix": fix}


def _ours(device: torch.device, held: Mapping[str, Mapping[str, int]]) -> int:
    """Bytes that the models hold of the device's memory."""
    # Without a GPU there is one memory, and what is held twice takes it twice
    places = ("device",) if device.type == "cuda" else ("device", "host")
    return sum(sum(held[place].values()) for place in places)


def _models(opened: Opened) -> dict[str, Any]:
    models, manager = opened.handle.pipeline.models, opened.manager
    on_gpu = manager.device.type == "cuda"
    held = manager.status()
    pinned = sum(held["pinned"].values())
    return {
        "checkpoint": models.file_names["checkpoint"],
        "generation": models.generation,
        "dtype": str(models.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(manager.device) if on_gpu else "CPU",
        "place": "GPU" if on_gpu else "memory",
        "mode": {
            "name": manager.mode,
            "reason": manager.mode_reason,
            "setting": opened.mode.setting,
            "wanted": opened.mode.wanted,
        },
        "restorable": manager.restorable,
        "components": [_row(name, parts, held, opened, on_gpu) for name, parts in ROWS.items()],
        "memory": _memory(manager.device, _ours(manager.device, held)),
        "pinned": {"held": pinned, "limit": manager.pinned_limit if on_gpu else 0},
    }


def _row(
    name: str, parts: tuple[str, ...], held: Mapping[str, Mapping[str, int]], opened: Opened, on_gpu: bool
) -> dict[str, Any]:
    device, on_host = (sum(held[place].get(part, 0) for part in parts) for place in ("device", "host"))
    note = "" if device or on_host else _note(parts, opened)
    return {"name": name, "device": device if on_gpu else device + on_host, "host": on_host, "note": note}


def _note(parts: tuple[str, ...], opened: Opened) -> str:
    """Why a component is not loaded."""
    if parts == ("upsampler",) and not opened.handle.pipeline.models.has_upsampler:
        return "not chosen in LTX-2 Loader"
    if parts == ("merged",):
        return modes.mode_named(opened.manager.mode).merged
    return "loaded when first needed"


def _memory(device: torch.device, ours: int) -> dict[str, int]:
    """Bytes of the device's memory: ours, other use, all."""
    if device.type == "cuda":
        memory = vram(device)
        total, free = memory.total, memory.free
    else:
        total, free = host_total(), host_available()
    return {"ours": ours, "other": max(0, total - free - ours), "total": total}


PANEL = Panel()


class Watched:
    """The progress of one node with a pipeline, as a context: shown on the node and in the panel, and, when the node
    has ended, replaced by what its stages cost.

    Args:
        stages: that the node will go through, see :class:`.progress.NodeProgress`.

    Attributes:
        notices: what the user should read beside what the report says.
    """

    def __init__(self, pipeline: PipelineHandle, stages: tuple[str, ...] = ()) -> None:
        self._pipeline, self._surface = pipeline, host.NodeSurface()
        self.notices: list[str] = []
        self._progress = NodeProgress(self._surface, stages, PANEL.stage)

    def __enter__(self) -> NodeProgress:
        return self._progress

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        PANEL.stage(None)
        if error is not None:
            if isinstance(error, LTX2Error):
                self._surface.write(str(error))
            elif (now := self._progress.now) is not None:
                self._surface.write(f"Stopped: {now.ended()}")
            return
        report = self._pipeline.pipeline.last_report()
        PANEL.ran(host.current_run(), report)
        seen = {stage.name: (stage.ms, stage.peak_bytes) for stage in report.stages}
        mine = {name: seen[name] for name in self._progress.seen if name in seen}
        notices = list(dict.fromkeys([*report.notices, *self.notices]))
        if mine or notices:
            self._surface.write(summary(mine, report.mode, notices))
