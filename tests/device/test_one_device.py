"""The simple residency: one build per component, adapters per use, records of what stages cost."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from ltx2_two_stage.device_manager.one_device import OneDeviceResidency
from torch import nn

CPU = torch.device("cpu")


class Builder:
    """Makes a new layer per call and notes what was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, torch.device]] = []

    def __call__(self, component: str, device: torch.device) -> nn.Module:
        self.calls.append((component, device))
        return nn.Linear(2, 2)


def test_a_component_is_built_once_and_stays() -> None:
    build = Builder()
    residency = OneDeviceResidency(build, CPU, lambda module, strengths: None)
    with residency.use("dit", "one") as first, residency.use("vae", "one") as other:
        assert first is not other
    with residency.use("dit", "two") as again:
        assert again is first
    assert build.calls == [("dit", CPU), ("vae", CPU)]


def test_release_drops_what_was_built() -> None:
    build = Builder()
    residency = OneDeviceResidency(build, CPU, lambda module, strengths: None)
    with residency.use("dit", "one") as first:
        pass
    residency.release()
    with residency.use("dit", "one") as again:
        assert again is not first


def test_adapters_are_applied_before_the_module_is_handed_out_and_only_when_asked_for() -> None:
    applied: list[dict[str, float]] = []
    residency = OneDeviceResidency(Builder(), CPU, lambda module, strengths: applied.append(dict(strengths)))
    with residency.use("dit", "one", {"distilled": 0.25}):
        assert applied == [{"distilled": 0.25}]
    with residency.use("dit", "decode"):
        assert applied == [{"distilled": 0.25}]


def test_weights_loaded_in_inference_mode_can_be_written_outside_of_it() -> None:
    residency = OneDeviceResidency(Builder(), CPU, lambda module, strengths: None)
    with torch.inference_mode(), residency.use("dit", "one") as module:
        pass
    with torch.no_grad():
        module.weight.zero_()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "interrupt"])
def test_an_exception_inside_leaves_it_usable(error: type[BaseException]) -> None:
    residency = OneDeviceResidency(Builder(), CPU, lambda module, strengths: None)
    with pytest.raises(error), residency.measure("stage"), residency.use("dit", "one"):
        raise error
    with residency.use("dit", "one") as module:
        assert module(torch.zeros(1, 2)).shape == (1, 2)
    assert [record["name"] for record in residency.take_records()] == ["stage"]


def test_another_thread_waits_for_the_module() -> None:
    residency = OneDeviceResidency(Builder(), CPU, lambda module, strengths: None)
    order: list[str] = []

    def other() -> None:
        with residency.use("dit", "two"):
            order.append("second")

    with residency.use("dit", "one"):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_records_tell_time_and_moved_bytes_of_each_stage_once() -> None:
    residency = OneDeviceResidency(Builder(), CPU, lambda module, strengths: None)
    residency.moved(h2d_bytes=99)  # outside any stage: nobody's
    with residency.measure("text"):
        time.sleep(0.02)
        residency.moved(h2d_bytes=5, d2h_bytes=7)
        residency.moved(h2d_bytes=1)
    with residency.measure("decode"):
        pass
    text, decode = residency.take_records()
    assert text["name"] == "text" and text["ms"] >= 20 and (text["h2d_bytes"], text["d2h_bytes"]) == (6, 7)
    assert decode["name"] == "decode" and decode["ms"] < text["ms"] and decode["h2d_bytes"] == 0
    assert text["peak_bytes"] > 2**20  # this process, with torch in it
    assert residency.take_records() == []
