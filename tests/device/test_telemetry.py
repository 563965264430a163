"""Which stages belong to one run, and who may read them."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from ltx2_two_stage.device_manager.telemetry import Telemetry

CPU = torch.device("cpu")


def stage(telemetry: Telemetry, *names: str) -> None:
    for name in names:
        with telemetry.measure(name):
            pass


def last(telemetry: Telemetry) -> list[str]:
    return [record["name"] for record in telemetry.last_records()]


def taken(telemetry: Telemetry) -> list[str]:
    return [record["name"] for record in telemetry.take_records()]


def test_reading_the_last_run_takes_nothing_from_anybody() -> None:
    telemetry = Telemetry(CPU)
    stage(telemetry, "text", "stage_1")
    assert last(telemetry) == last(telemetry) == ["text", "stage_1"]
    assert taken(telemetry) == ["text", "stage_1"] and taken(telemetry) == []
    assert last(telemetry) == ["text", "stage_1"], "they were taken, and are still those of the last run"


def test_without_a_host_a_run_ends_when_its_records_are_taken() -> None:
    telemetry = Telemetry(CPU)
    stage(telemetry, "text")
    telemetry.take_records()
    stage(telemetry, "stage_1", "decode")
    assert last(telemetry) == ["stage_1", "decode"]
    assert taken(telemetry) == ["stage_1", "decode"]


def test_the_host_says_which_run_a_stage_belongs_to() -> None:
    run: list[Hashable] = ["one"]
    telemetry = Telemetry(CPU, lambda: run[0])
    stage(telemetry, "text", "stage_1")
    telemetry.take_records()
    stage(telemetry, "decode")
    assert last(telemetry) == ["text", "stage_1", "decode"], "of one prompt, though some were taken on the way"
    assert taken(telemetry) == ["decode"]
    run[0] = "two"
    assert last(telemetry) == ["text", "stage_1", "decode"], "until a stage of the next one begins"
    stage(telemetry, "stage_2")
    assert last(telemetry) == taken(telemetry) == ["stage_2"]


def test_many_runs_that_nobody_asks_about_are_not_kept() -> None:
    run = [0]
    telemetry = Telemetry(CPU, lambda: run[0])
    for run[0] in range(100):
        stage(telemetry, "stage_1", "decode")
    assert len(telemetry._stages) == 2


def test_a_stage_inside_another_ends_no_run() -> None:
    run: list[Hashable] = ["one"]
    telemetry = Telemetry(CPU, lambda: run[0])
    with telemetry.measure("outer"):
        run[0] = "two"
        stage(telemetry, "inner")
    assert last(telemetry) == ["inner", "outer"]
