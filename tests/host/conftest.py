"""A running ComfyUI with this pack and tiny model files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny
from ltx2_two_stage.ltx2_core.loading.synthetic_gemma import write_tiny_gemma

# Test modules in importlib mode have no package to import host_graphs from
sys.path.append(str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parents[2]
PACK = "ltx2-two-stage"
DEVICE = os.environ.get("COMFYUI_DEVICE", "cpu")  # "gpu": whatever the host finds
START_LIMIT, RUN_LIMIT = 600.0, 600.0  # seconds, on two cores that do much else

Prompt = dict[str, dict[str, Any]]

# The host's own video VAE is fixed to 128 latent channels, so the tiny files cannot go through it: this node hands out
# an object with the one method that nodes call, and the host's layout of what it returns.
STAND_IN_VAE = """
import torch

class StandInVAE:
    RETURN_TYPES, FUNCTION, CATEGORY = ("VAE",), "make", "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (self,)

    def decode(self, latent):
        gray = latent.float().mean(1).sigmoid()
        gray = gray.repeat_interleave(8, 1)[:, 7:].repeat_interleave(32, 2).repeat_interleave(32, 3)
        return gray.unsqueeze(-1).expand(-1, -1, -1, -1, 3)

NODE_CLASS_MAPPINGS = {"StandInVAE": StandInVAE}
"""

# On a CPU the pack keeps out of the host's memory manager. This node makes it take part all the same ("keep"), or ends
# that ("end"), and says what is on the device and how often we are in the books.
HOST_BOOKS = """
import sys

def part(name):
    return next(module for key, module in sys.modules.items() if key.endswith("ltx2-two-stage.nodes." + name))

class HostBooks:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "act", "testing", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"action": (["keep", "end", "look"],)}}

    @classmethod
    def IS_CHANGED(cls, action):
        return float("nan")

    def act(self, action):
        host, registry = part("host"), part("handle").PIPELINES
        HostMemory, HostEntry = part("residency").HostMemory, part("residency").HostEntry
        if action != "look":
            registry.clear()
            host.memory = lambda device: HostMemory(host.management) if action == "keep" else None
        held = registry._handle.pipeline.residency.device_bytes if registry._handle else 0
        entries = [item for item in host.management.current_loaded_models if isinstance(item.model, HostEntry)]
        return {"ui": {"held": [held], "entries": [len(entries)]}}

NODE_CLASS_MAPPINGS = {"HostBooks": HostBooks}
"""

# Makes a later call of a kind of module fail as a full GPU does, and says how many there were since it was last asked.
OUT_OF_MEMORY = """
import torch

class OutOfMemory:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "act", "testing", True
    calls = failing = 0
    kind = ""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ("STRING",), "first": ("INT",), "last": ("INT",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")

    def act(self, kind, first, last):
        seen = OutOfMemory.calls
        OutOfMemory.calls, OutOfMemory.failing, OutOfMemory.kind = 0, range(first, last + 1), kind
        return {"ui": {"calls": [seen]}}

def count(module, inputs):
    if type(module).__name__ == OutOfMemory.kind:
        OutOfMemory.calls += 1
        if OutOfMemory.calls in OutOfMemory.failing:
            raise torch.OutOfMemoryError("CUDA out of memory (a test says so). Tried to allocate 1 GiB.")

torch.nn.modules.module.register_module_forward_pre_hook(count)
NODE_CLASS_MAPPINGS = {"OutOfMemory": OutOfMemory}
"""

# ComfyUI takes either --cpu or --lowvram. Before it looks for a GPU, and after it has looked:
LOW_VRAM_BEFORE = """
import os
from comfy.cli_args import args
if os.environ.get("COMFYUI_DEVICE", "cpu") == "cpu":
    args.cpu = args.cpu or args.lowvram
"""
LOW_VRAM_AFTER = """
from comfy import model_management
from comfy.cli_args import args
if args.lowvram:
    model_management.vram_state = model_management.VRAMState.LOW_VRAM
NODE_CLASS_MAPPINGS = {}
"""


class Host:
    """One ComfyUI process on a free port, with a base folder of its own."""

    def __init__(self, folder: Path, python: Path, base: Path, *options: str, **variables: str) -> None:
        self.base, self.log_file, self.start_log = base, base / "log.txt", ""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [str(python), "main.py", "--base-directory", str(base), "--port", str(port)]
        command += ["--cpu"] if DEVICE == "cpu" and "--lowvram" not in options else []
        command += shlex.split(os.environ.get("COMFYUI_OPTIONS", ""))
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch", *options]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "LTX2_SETTINGS": str(base / "settings"), **variables},
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait_until_up(self) -> None:
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit:
            assert self.process.poll() is None, f"ComfyUI ended at once:\n{self.log}"
            try:
                self.get("/system_stats")
                self.start_log = self.log
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError(f"ComfyUI did not start in {START_LIMIT} s:\n{self.log}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return json.load(answer)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer's JSON, also of a refusal."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refusal:
            text = refusal.read()
        return json.loads(text) if text else None

    def queue(self, prompt: Prompt) -> str:
        answer = self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        assert "prompt_id" in answer, json.dumps(answer, indent=1)
        return str(answer["prompt_id"])

    def refusal(self, prompt: Prompt) -> str:
        """What ComfyUI says about a prompt that it does not queue."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        assert answer.get("error"), "the prompt was queued"
        return json.dumps(answer["node_errors"])

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt that has ended."""
        limit = time.monotonic() + RUN_LIMIT
        while time.monotonic() < limit:
            assert self.process.poll() is None, f"ComfyUI ended:\n{self.log[-4000:]}"
            history: dict[str, dict[str, Any]] = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise AssertionError(f"the prompt did not end in {RUN_LIMIT} s:\n{self.log[-4000:]}")

    def run(self, prompt: Prompt) -> dict[str, list[Path]]:
        """Runs a prompt that must succeed; the files that each node saved, by node id."""
        return {node: list(self._files(output)) for node, output in self.outputs(prompt).items()}

    def outputs(self, prompt: Prompt) -> dict[str, dict[str, Any]]:
        """What the nodes of a prompt that must succeed show, by node id."""
        entry = self.wait(self.queue(prompt))
        assert entry["status"]["status_str"] == "success", json.dumps(entry["status"], indent=1)
        outputs: dict[str, dict[str, Any]] = entry["outputs"]
        return outputs

    def failure(self, prompt: Prompt) -> str:
        """Message of the node that fails in a prompt."""
        return str(self.failed(prompt)["exception_message"])

    def failed(self, prompt: Prompt) -> dict[str, Any]:
        """Of a prompt that must fail: node_id, exception_message, and executed, the nodes that ran before."""
        entry = self.wait(self.queue(prompt))
        assert entry["status"]["status_str"] == "error", json.dumps(entry["status"], indent=1)
        details: dict[str, Any] = dict(entry["status"]["messages"])["execution_error"]
        return details

    def ran(self, prompt: Prompt) -> tuple[set[str], dict[str, list[Path]]]:
        """Nodes of a prompt that must succeed which did not come from the cache, and what all of them saved."""
        entry = self.wait(self.queue(prompt))
        assert entry["status"]["status_str"] == "success", json.dumps(entry["status"], indent=1)
        cached = dict(entry["status"]["messages"])["execution_cached"]["nodes"]
        files = {node: list(self._files(output)) for node, output in entry["outputs"].items()}
        return prompt.keys() - set(cached), files

    def _files(self, output: Mapping[str, Any]) -> Iterator[Path]:
        for items in output.values():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict) and "filename" in item:
                    yield self.base / item["type"] / item["subfolder"] / item["filename"]


def _place_files(base: Path, tiny: Path) -> None:
    """Puts tiny files of both generations where users put the official ones."""
    for variant in ("2.3", "2.0"):
        files = write_tiny(tiny / variant, variant)
        for folder, path in (
            ("checkpoints", files.checkpoint),
            ("loras", files.distilled_lora),
            ("latent_upscale_models", files.upsampler),
        ):
            target = base / "models" / folder
            target.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target / path.name)
        shutil.copytree(files.gemma, base / "models" / "text_encoders" / f"gemma-{variant}")
        if variant == "2.3":
            shutil.move(files.lora, base / "models" / "loras" / "style.safetensors")
    _place_wrong_files(base / "models")


def _place_wrong_files(models: Path) -> None:
    """What users choose by mistake: another kind of model, half a download, another text encoder."""
    lora = next((models / "loras").glob("*.safetensors"))
    shutil.copy(lora, models / "latent_upscale_models" / "a-lora.safetensors")
    shutil.copy(next((models / "latent_upscale_models").glob("ltx*")), models / "loras" / "no-lora.safetensors")
    checkpoint = (models / "checkpoints" / "ltx-2.3-22b-dev.safetensors").read_bytes()
    (models / "checkpoints" / "cut.safetensors").write_bytes(checkpoint[: len(checkpoint) // 2])
    write_tiny_gemma(models / "text_encoders" / "gemma-wide", 96, 4, torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def chosen_mode() -> str:
    """The device mode that ``auto`` chooses where the host runs."""
    return "original" if DEVICE == "cpu" else "resident"


@pytest.fixture(scope="session")
def host(comfyui: Any, fake_hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
    (base / "custom_nodes" / "stand_in_vae.py").write_text(STAND_IN_VAE)
    (base / "custom_nodes" / "host_books.py").write_text(HOST_BOOKS)
    (base / "custom_nodes" / "out_of_memory.py").write_text(OUT_OF_MEMORY)
    low_vram = base / "custom_nodes" / "low_vram_on_a_cpu"
    low_vram.mkdir()
    (low_vram / "prestartup_script.py").write_text(LOW_VRAM_BEFORE)
    (low_vram / "__init__.py").write_text(LOW_VRAM_AFTER)
    (base / "input").mkdir()
    shutil.copy(comfyui.folder / "input" / "example.png", base / "input")
    _place_files(base, tmp_path_factory.mktemp("tiny"))
    hub = {"HF_ENDPOINT": fake_hub.url, "HF_HOME": str(base / "hub"), "HF_HUB_OFFLINE": "0"}
    running = Host(comfyui.folder, comfyui.python, base, **hub)
    try:
        running.wait_until_up()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def start_host(comfyui: Any, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Host]]:
    """Starts one more ComfyUI with options, on the same models; it may be still on its way up.

    It has the same custom nodes, other ``packs`` by the name that their folder gets, and environment variables.
    """
    started: list[Host] = []

    def start(*options: str, packs: Mapping[str, Path] | None = None, **variables: str) -> Host:
        base = tmp_path_factory.mktemp("another")
        for name in ("models", "input"):
            (base / name).symlink_to(host.base / name, target_is_directory=True)
        (base / "custom_nodes").mkdir()
        same = {path.name: path for path in (host.base / "custom_nodes").iterdir() if path.name != "__pycache__"}
        for name, path in {**same, **(packs or {})}.items():
            (base / "custom_nodes" / name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
        started.append(Host(comfyui.folder, comfyui.python, base, *options, **variables))
        return started[-1]

    yield start
    for running in started:
        running.stop()
