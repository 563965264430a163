"""What is checked when a graph is queued, before any file is open."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _request() -> Any:
    package = types.ModuleType("ltx2_two_stage.nodes")
    package.__path__ = [str(ROOT / "nodes")]  # the package itself needs ComfyUI
    sys.modules.setdefault("ltx2_two_stage.nodes", package)
    return importlib.import_module("ltx2_two_stage.nodes.request")


@pytest.mark.parametrize("clip", [(None,) * 5, ("one-stage", 24, 40, 6, 0.5), ("hq", 1, 1, 1, 1000.0)])
def test_what_some_model_may_make_is_queued(clip: tuple[Any, ...]) -> None:
    assert _request().problem_when_queued(*clip) is None


@pytest.mark.parametrize(
    ("clip", "problem"),
    [
        (("three-stage", 64, 64, 9, 24.0), "preset = 'three-stage'"),
        (("hq", 0, 64, 9, 24.0), "width = 0"),
        (("hq", None, -1, 9, 24.0), "height = -1"),
        (("hq", 64, 64, 0, 24.0), "frames = 0"),
        (("hq", 64, 64, 9, float("nan")), "fps = nan"),
        (("hq", 64, 64, 9, float("inf")), "fps = inf"),
        (("hq", 64, 64, 9, -1.0), "fps = -1.0"),
    ],
)
def test_what_no_model_can_make_is_refused(clip: tuple[Any, ...], problem: str) -> None:
    assert problem in _request().problem_when_queued(*clip)
