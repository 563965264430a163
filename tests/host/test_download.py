"""LTX-2 Download in a real ComfyUI, with a hub on this machine."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

REPOSITORY, NAME = "Lightricks/LTX-2", "ltx-2-19b-distilled.safetensors"
GEMMA_REPOSITORY, GEMMA = "Comfy-Org/ltx-2", "split_files/text_encoders/gemma_3_12B_it.safetensors"
DATA = os.urandom(8_000_000)


def download(accept: bool, **changes: Any) -> dict[str, dict[str, Any]]:
    inputs = {"generation": "LTX-2", "preset": "distilled", "text_encoder": False, "accept_licences": accept}
    return {"download": {"class_type": "LTX2TwoStageDownload", "inputs": {**inputs, **changes}}}


@pytest.fixture
def hub(host: Any, fake_hub: Any) -> Iterator[Any]:
    """With the files; what a test fetches of them goes afterwards."""
    fake_hub.files[REPOSITORY] = {NAME: DATA, "ltx-2-19b-dev.safetensors": b"x"}
    fake_hub.files[GEMMA_REPOSITORY] = {GEMMA: b"gemma"}
    fake_hub.asked.clear()
    accept_here(host)
    yield fake_hub
    fake_hub.pause = 0.0
    fake_hub.gated.clear()
    for path in (checkpoints(host) / NAME, host.base / "models" / "text_encoders" / Path(GEMMA).name):
        path.unlink(missing_ok=True)
    shutil.rmtree(checkpoints(host) / f".{NAME}.download", ignore_errors=True)


def accept_here(host: Any) -> None:
    assert host.post("/ltx2/licences", {"accept": True})["missing"] == []


def forget(host: Any) -> None:
    (host.base / "settings" / "licences.json").unlink()


def checkpoints(host: Any) -> Path:
    folder: Path = host.base / "models" / "checkpoints"
    return folder


def listed(host: Any) -> list[str]:
    loader = host.get("/object_info/LTX2TwoStageLoader")["LTX2TwoStageLoader"]
    names: list[str] = loader["input"]["required"]["checkpoint"][1]["options"]
    return names


@pytest.mark.parametrize("value", [True, False])
def test_what_a_workflow_says_is_no_consent(host: Any, hub: Any, value: bool) -> None:
    forget(host)
    (text,) = host.outputs(download(value))["download"]["text"]
    assert "Nothing was fetched." in text and "press the button of this node, or run ltx2 accept-licences" in text
    assert hub.asked == [] and host.get("/ltx2/licences")["missing"] == [
        "LTX-2 Community License Agreement",
        "Gemma Terms of Use",
    ]


@pytest.mark.parametrize("value", ["False", "true", 0, 1, "0"])
def test_texts_and_numbers_are_no_switch(host: Any, hub: Any, value: Any) -> None:
    assert "must be true or false" in host.refusal(download(value))
    assert hub.asked == []


def test_nothing_is_fetched_before_the_licences_are_accepted(host: Any, hub: Any) -> None:
    inputs = host.get("/object_info/LTX2TwoStageDownload")["LTX2TwoStageDownload"]["input"]["required"]
    assert inputs["accept_licences"][1]["default"] is False
    (text,) = host.outputs(download(False, text_encoder=True))["download"]["text"]
    for words in (
        "Nothing was fetched.",
        f"{NAME} (43.3 GB, from {REPOSITORY}) into models/checkpoints",
        f"gemma_3_12B_it.safetensors (24.4 GB, from {GEMMA_REPOSITORY}) into models/text_encoders",
        "About 67.7 GB, under the LTX-2 Community License Agreement and the Gemma Terms of Use.",
        "turn accept_licences on",
        "MB instead of 1.0 GB: not this model",  # the tiny upsampler
    ):
        assert words in text
    assert hub.asked == [] and NAME not in listed(host)


def test_what_is_missing_is_fetched_to_where_the_loader_finds_it(host: Any, hub: Any) -> None:
    assert NAME not in listed(host)
    (text,) = host.outputs(download(True, text_encoder=True))["download"]["text"]
    assert f"{NAME} was fetched." in text and "ltx-2-spatial-upscaler-x2-1.0.safetensors was there already" in text
    assert (checkpoints(host) / NAME).read_bytes() == DATA and NAME in listed(host)
    assert (host.base / "models" / "text_encoders" / Path(GEMMA).name).read_bytes() == b"gemma"
    assert not list((host.base / "models").rglob("*.download"))
    assert f"fetching {NAME} (0.0 GB) from {REPOSITORY} into" in host.log

    hub.asked.clear()
    (text,) = host.outputs(download(True, text_encoder=True))["download"]["text"]
    assert "was fetched" not in text and hub.asked == [], "what is there is not asked for again"
    (text,) = host.outputs(download(False, text_encoder=True))["download"]["text"]
    assert "Nothing was fetched" not in text, "nothing is missing"


def test_an_interrupt_stops_a_download_and_the_next_one_goes_on(host: Any, hub: Any) -> None:
    hub.pause = 2.0
    before = sorted(checkpoints(host).iterdir())
    running = host.queue(download(True))
    deadline = time.monotonic() + 240
    while not any(path.endswith(f"resolve/{hub.commit}/{NAME}") for path in hub.asked) and time.monotonic() < deadline:
        time.sleep(0.1)
    part = checkpoints(host) / f".{NAME}.download" / "partial"
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sorted(checkpoints(host).iterdir()) != before, "it is under way, beside its place"
    assert NAME not in listed(host)
    host.post("/interrupt", {})
    status = host.wait(running)["status"]
    assert "execution_interrupted" in dict(status["messages"])
    assert part.stat().st_size < len(DATA), "the rest was not waited for"
    assert {path.name for path in checkpoints(host).iterdir()} - {path.name for path in before} == {f".{NAME}.download"}
    assert NAME not in listed(host)
    hub.pause = 0.0
    hub.ranges.clear()
    host.outputs(download(True))
    assert (checkpoints(host) / NAME).read_bytes() == DATA
    assert hub.ranges and hub.ranges[0] > 0, "it goes on where it stopped"


def test_a_gated_repository_fails_with_the_fix(host: Any, hub: Any) -> None:
    hub.gated.add(REPOSITORY)
    before = sorted(checkpoints(host).iterdir())
    assert "accept its licence" in host.failure(download(True))
    assert sorted(checkpoints(host).iterdir()) == before


def test_inputs_that_are_not_offered_are_refused(host: Any) -> None:
    assert "'LTX-1' not in ['LTX-2.3', 'LTX-2']" in host.refusal(download(True, generation="LTX-1"))
    assert "'x' not in" in host.refusal(download(True, preset="x"))
