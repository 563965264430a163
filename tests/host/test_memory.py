"""The contract of tests/nodes/memory_contract.py with the real memory manager, and a real host's memory over runs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from host_graphs import Prompt, loader, node
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

CHECK = """
import importlib.util, sys, types
root, host = sys.argv[1:]
sys.path.insert(0, host)
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch, traceback
import comfy.model_management as management
from comfy.model_patcher import ModelPatcher

def load(name, path, **kwargs):
    spec = importlib.util.spec_from_file_location(name, path, **kwargs)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

load("ltx2_two_stage", root + "/__init__.py", submodule_search_locations=[root])
contract = load("memory_contract", root + "/tests/nodes/memory_contract.py")
cpu = torch.device("cpu")
real_free = management.get_free_memory

def other():
    return ModelPatcher(torch.nn.Linear(64, 64), load_device=cpu, offload_device=cpu)

def set_free(nbytes):
    management.get_free_memory = lambda dev=None, torch_free_too=False: (nbytes, nbytes) if torch_free_too else nbytes

for name, check in contract.CHECKS.items():
    management.get_free_memory = real_free
    management.current_loaded_models.clear()
    try:
        check(contract.Agreement(management, other, set_free))
    except Exception:
        print("FAILED", name, traceback.format_exc())
    else:
        print("PASSED", name)
"""


def test_the_contract_holds_with_the_real_memory_manager(comfyui: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(comfyui.python), "-c", CHECK, str(ROOT), str(comfyui.folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout, done.stdout + done.stderr
    source = (ROOT / "tests" / "nodes" / "memory_contract.py").read_text(encoding="utf-8")
    assert done.stdout.count("PASSED") == source.count("\ndef check_") > 10


def generate(version: str, seed: int, mode: str = "auto") -> Prompt:
    inputs = {"prompt": "A kite over a beach.", "negative_prompt": "blurry", "preset": "two-stage", "width": 128}
    inputs |= {"height": 64, "frames": 9, "fps": 24.0, "seed": seed, "steps": 2}
    return {
        "loader": loader(version, device_mode=mode),
        "all": node("LTX2TwoStageGenerate", pipeline=["loader", 0], **inputs),
        "split": node("LTXVSeparateAVLatent", av_latent=["all", 3]),
        "video": node("SaveLatent", samples=["split", 0], filename_prefix="memory"),
    }


def latent(host: Any, version: str, seed: int) -> torch.Tensor:
    return load_file(host.run(generate(version, seed))["video"][0])["latent_tensor"]


def books(host: Any, action: str = "look") -> tuple[int, int]:
    """Bytes on the device, and how often we are in the books."""
    shown = host.outputs({"books": node("HostBooks", action=action)})["books"]
    return shown["held"][0], shown["entries"][0]


@pytest.fixture
def registered(host: Any) -> Iterator[Any]:
    """The host, its memory manager in charge of a device that is the CPU."""
    books(host, "keep")
    yield host
    books(host, "end")


def test_on_a_cpu_nothing_is_registered(host: Any, chosen_mode: str) -> None:
    if chosen_mode != "original":
        pytest.skip("this host has a GPU")
    latent(host, "2.3", 40)
    held, entries = books(host)
    assert held > 0 and entries == 0


@pytest.mark.parametrize(
    "body", [{"unload_models": True, "free_memory": True}, {"unload_models": True}], ids=["all", "models"]
)
def test_free_takes_our_memory_between_runs_and_the_next_run_is_the_same(
    registered: Any, body: dict[str, bool]
) -> None:
    host = registered
    before = latent(host, "2.3", 41)
    held, entries = books(host)
    assert held > 0 and entries == 1
    opened = host.log.count("opened the models")
    host.post("/free", body)
    deadline = time.monotonic() + 120
    while books(host)[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert books(host) == (0, 0)
    after = latent(host, "2.3", 41)
    assert before.std() > 0.05 and torch.equal(before, after)
    again, entries = books(host)
    # The prompt's embeddings were kept, so that the text encoder need not come back
    assert 0 < again <= held and entries == 1
    assert host.log.count("opened the models") == opened, "the registry keeps what is known of the files"


def test_a_workflow_with_other_files_releases_the_first_ones(registered: Any) -> None:
    host = registered
    before = latent(host, "2.3", 42)
    alone = books(host)[0]
    released = host.log.count("released the models of")
    latent(host, "2.0", 42)
    assert host.log.count("released the models of") == released + 1
    assert books(host)[1] == 1
    assert torch.equal(latent(host, "2.3", 42), before)
    assert books(host) == (alone, 1)


def fill(host: Any, kind: str = "", first: int = 0, last: int = -1) -> int:
    """Calls ``first`` to ``last`` of a kind of module find the memory full; how many there were of the one before."""
    outputs = host.outputs({"fill": node("OutOfMemory", kind=kind, first=first, last=last)})
    return int(outputs["fill"]["calls"][0])


@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_out_of_memory_once_takes_the_next_lower_mode(host: Any, stage: str) -> None:
    seed = {"stage 1": 52, "stage 2": 53}[stage]
    prompt = generate("2.3", seed, "snapshot")
    fill(host, "TransformerBlock")
    expected = load_file(host.run(prompt)["video"][0])["latent_tensor"]
    blocks = fill(host)
    assert blocks > 10
    latent(host, "2.0", seed)  # another workflow takes the models' place
    call = 2 if stage == "stage 1" else blocks - 1
    fill(host, "TransformerBlock", call, call)
    outputs = host.outputs(prompt)
    assert fill(host) > blocks, "the stage ran again"
    assert (
        "mode: snapshot-low (fell back from snapshot to snapshot-low: CUDA out of memory" in outputs["all"]["text"][0]
    )
    found = load_file(host.base / "output" / outputs["video"]["latents"][0]["filename"])["latent_tensor"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["TransformerBlock", "SpaceTimeConv"])
def test_out_of_memory_in_every_mode_says_what_to_do_and_the_next_run_is_the_same(host: Any, kind: str) -> None:
    seed = {"TransformerBlock": 54, "SpaceTimeConv": 55}[kind]
    prompt = generate("2.3", seed, "snapshot-low")
    before = load_file(host.run(prompt)["video"][0])["latent_tensor"]
    fill(host, kind, 1, 10**6)
    try:
        message = host.failure(generate("2.3", seed + 10, "snapshot-low"))
    finally:
        assert fill(host) > 0
    assert message.startswith("the device ran out of memory (device mode snapshot-low): CUDA out of memory")
    assert "Choose a smaller width, height or number of frames, or close other programs." in message
    ran, files = host.ran(prompt)
    assert {"all", "video"} <= ran
    assert torch.equal(load_file(files["video"][0])["latent_tensor"], before)


def test_generate_shows_the_stage_table(host: Any, chosen_mode: str) -> None:
    (text,) = host.outputs(generate("2.3", 43))["all"]["text"]
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["stage", "seconds"]
    assert any(line.startswith("total") for line in lines)
    assert lines[-1].startswith(f"mode: {chosen_mode} (")
