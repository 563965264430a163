"""What the user should read reaches the report, whatever it is about and whoever has said it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_stacks import open_pipeline, request_for
from ltx2_two_stage.device_manager.host_memory import PinnedBudget
from ltx2_two_stage.device_manager.manager import DeviceManager
from ltx2_two_stage.device_manager.modes import RESIDENT
from ltx2_two_stage.ltx2_core.loading.synthetic import write_tiny
from ltx2_two_stage.ltx2_core.pipeline import Pipeline
from ltx2_two_stage.ltx2_core.types import PromptContext


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return open_pipeline(write_tiny(tmp_path), "resident")


def test_a_smaller_mode_is_said_until_another_is_taken(pipeline: Pipeline) -> None:
    manager = pipeline.residency
    assert isinstance(manager, DeviceManager) and pipeline.last_report().notices == []
    assert manager.fall_back("no room for 2 GiB")
    (notice,) = pipeline.last_report().notices
    assert notice == "Memory ran out, the device mode fell back from resident to snapshot: no room for 2 GiB"
    manager.change_mode(RESIDENT, "asked for")
    assert pipeline.last_report().notices == []
    manager.note_mode("The device mode stays resident: it does not fit")
    assert pipeline.last_report().notices == ["The device mode stays resident: it does not fit"]


@pytest.mark.usefixtures("pipeline")
def test_memory_that_is_not_page_locked_is_said_once() -> None:
    budget = PinnedBudget(limit=0)
    budget._warn(3_000_000_000, "the budget does not allow it")
    budget._warn(1, "again")
    assert budget.problem.startswith("3.0 GB of host memory stay pageable")


def test_what_is_known_of_a_prompt_comes_with_its_embedding(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another run has encoded it, and of the negative prompt, whose text a stage alone does not know."""
    given: list[PromptContext] = []
    monkeypatch.setattr("ltx2_two_stage.ltx2_core.pipeline.denoise_stage", lambda *arguments: given)
    context = PromptContext(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), ("The prompt is cut",))
    other, request = replace(context, notices=("The negative prompt is cut",)), request_for("two-stage")
    pipeline.denoise(request, context, other)
    assert pipeline.last_report().notices == ["The prompt is cut", "The negative prompt is cut"]
    pipeline.refine(request, None, context)  # type: ignore[arg-type]
    assert pipeline.last_report().notices == ["The prompt is cut", "The negative prompt is cut"]
    pipeline.denoise(replace(request, seed=7), replace(context, notices=()), None)
    assert pipeline.last_report().notices == []
