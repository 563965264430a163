"""The example workflows in a real ComfyUI: listed, in step with what makes them, and run to the end through the API."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from ltx2_two_stage.docs.make import graphs
from ltx2_two_stage.docs.make.templates import DISTILLED, DOLLY_IN, JIB_UP, TEMPLATES
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

NAMES = [template.name for template in TEMPLATES]
SCRIPT = graphs.API / "queue_workflow.py"
# The smallest clip that still has two latent frames
WIDTH, HEIGHT, FRAMES, FPS = 128, 64, 9, 24.0
SOUND_RATE = 24000
OFFICIAL_FRAMES = 121
OFFICIAL = {"width": 768, "height": 512, "frames": OFFICIAL_FRAMES, "fps": 24, "seed": 10, "steps": 0}
OWN_OFFICIAL: dict[str, dict[str, Any]] = {
    "ltx2_two_stage_hq": {"preset": "hq", "width": 1920, "height": 1088},
    "ltx2_two_stage_distilled": {"preset": "distilled"},
}


@pytest.fixture(scope="module")
def info(host: Any) -> dict[str, Any]:
    declared: dict[str, Any] = host.get("/object_info")
    return declared


@pytest.fixture(scope="module")
def placed(host: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The files that the workflows name and the other tests do not need."""
    models = host.base / "models"
    shutil.copy(models / "checkpoints" / "ltx-2.3-22b-dev.safetensors", models / "checkpoints" / DISTILLED["name"])
    lora = write_tiny(tmp_path_factory.mktemp("lora"), "2.0").lora
    for file in (DOLLY_IN, JIB_UP):
        shutil.copy(lora, models / "loras" / file["name"])
    tone = np.sin(2 * np.pi * 440 * np.arange(SOUND_RATE // 2) / SOUND_RATE) * 0.5
    with wave.open(str(host.base / "input" / "speech.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SOUND_RATE)
        sound.writeframes((tone * 32767).astype("<i2").tobytes())


def served(host: Any, path: str) -> bytes | None:
    """What the host answers; None where it has nothing there."""
    try:
        with urllib.request.urlopen(host.url + path, timeout=120) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError:
        return None


def script(host: Any, *words: str) -> subprocess.CompletedProcess[str]:
    """The documented way of running a workflow without a page, with nothing but the standard library (-I -S)."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--host", host.url, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_template_browser_lists_the_workflows_and_not_their_api_form(host: Any) -> None:
    templates = host.get("/api/workflow_templates")
    assert sorted(templates["ltx2-two-stage"]) == sorted(NAMES)
    for name in NAMES:
        for suffix in (".json", ".jpg"):
            file = graphs.WORKFLOWS / (name + suffix)
            assert served(host, f"/api/workflow_templates/ltx2-two-stage/{file.name}") == file.read_bytes()


def test_the_files_are_what_their_maker_writes(info: dict[str, Any]) -> None:
    for path, text in graphs.files(info):
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m ltx2_two_stage.docs.make.graphs"


def tiny(prompt: dict[str, dict[str, Any]]) -> list[str]:
    """The changes that make a workflow of official files and sizes a run of seconds."""
    changes = []
    for key, item in prompt.items():
        kind, inputs = item["class_type"], item["inputs"]
        if kind == "LTX2TwoStageLoader":
            generation = "2.3" if "2.3" in inputs["checkpoint"] else "2.0"
            changes.append(f"{kind}.text_encoder=gemma-{generation}")
        if kind in ("LTX2TwoStageDenoise", "LTX2TwoStageGenerate"):
            steps = 0 if inputs["preset"] == "distilled" else 2
            small = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "steps": steps}
            changes += [f"{kind}.{name}={value}" for name, value in small.items()]
        if inputs.get("frame", 0) > 0:
            changes.append(f"{key}.frame={inputs['frame'] * FRAMES // OFFICIAL_FRAMES}")
    return changes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("placed")
def test_every_workflow_runs_to_a_video_through_the_script(host: Any, tmp_path: Path, name: str) -> None:
    file = graphs.API / f"{name}.json"
    prompt = json.loads(file.read_text(encoding="utf-8"))
    (clip,) = (item["inputs"] for item in prompt.values() if "width" in item["inputs"])
    expected = {**OFFICIAL, "preset": "two-stage", **OWN_OFFICIAL.get(name, {})}
    assert {key: clip[key] for key in expected} == expected

    done = script(host, str(file), *tiny(prompt), "--output", str(tmp_path), "--texts")
    assert done.returncode == 0, done.stderr
    (video,) = (path for path in map(Path, done.stdout.splitlines()) if path.suffix == ".mp4")
    assert video.parent == tmp_path
    with av.open(str(video)) as container:
        stream, sound = container.streams.video[0], container.streams.audio[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (WIDTH, HEIGHT, FPS)
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(pictures) == FRAMES and pictures[0].std() > 2
        container.seek(0)
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(sound)], axis=-1)
        assert abs(samples).max() > 1e-3
    if any(item["class_type"] == "LTX2TwoStageReport" for item in prompt.values()):
        assert "what is where" in done.stdout and "stage_2" in done.stdout


def test_the_script_says_what_is_wrong(host: Any) -> None:
    file = str(graphs.API / f"{NAMES[0]}.json")
    for words, message in (
        (["nobody.width=1"], "'nobody' names 0 nodes, not one. The workflow has 1 (LTX2TwoStageLoader)"),
        (["LTX2TwoStageDenoise.size=1"], "has no input 'size'. It has preset, width"),
        (["width"], "'width' is not of the form NODE.INPUT=VALUE."),
        ([], "1 (LTX2TwoStageLoader): text_encoder = 'gemma_3_12B_it.safetensors': there is no such file"),
        (
            ["LTX2TwoStageLoader.text_encoder=gemma-2.3", "LTX2TwoStageDenoise.width=100"],
            "(LTX2TwoStageDenoise): width = 100: must be a multiple of 64",
        ),
    ):
        done = script(host, file, *words)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    nowhere = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), file, "--host", "http://127.0.0.1:1"], capture_output=True, text=True
    )
    assert nowhere.returncode == 1 and "Is ComfyUI running there?" in nowhere.stderr


@pytest.mark.usefixtures("placed")
def test_the_script_uploads_inputs(host: Any, tmp_path: Path) -> None:
    picture = tmp_path / "my first.png"
    shutil.copy(host.base / "input" / "example.png", picture)
    file = graphs.API / "ltx2_two_stage_image_to_video.json"
    changes = tiny(json.loads(file.read_text(encoding="utf-8")))
    done = script(host, str(file), "--upload", str(picture), "LoadImage.image=my first.png", *changes)
    assert done.returncode == 0, done.stderr
    assert (host.base / "input" / picture.name).read_bytes() == picture.read_bytes()
    assert "uploaded my first.png" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_stopping_the_script_stops_the_run(host: Any) -> None:
    file = graphs.API / "ltx2_two_stage_text_to_video.json"
    changes = [*tiny(json.loads(file.read_text(encoding="utf-8"))), "LTX2TwoStageDenoise.steps=1000"]
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--host", host.url, str(file), *changes]
    # A test run in the background of a shell ignores Ctrl-C, and so would what it starts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with running:
        assert running.stdout and running.stderr
        number = running.stdout.readline().removeprefix("queued ").strip()
        limit = time.monotonic() + 240
        while not host.get("/queue")["queue_running"] and time.monotonic() < limit:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(240) == 1
        assert running.stderr.read() == "Stopped.\n"
    assert "execution_interrupted" in dict(host.wait(number)["status"]["messages"])
