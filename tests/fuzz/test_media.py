"""A share of the mutated sound and picture files; the script beside this file tries as many as wanted."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from mutated_media import PICTURES, SOUNDS, attempt, originals, outcomes


@pytest.mark.parametrize("ending", [*SOUNDS, *PICTURES])
def test_the_unchanged_files_are_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"whole.{ending}"
    path.write_bytes(originals()[ending])
    assert attempt(path) == "result"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutated_files_end_in_an_error_or_a_result(tmp_path: Path) -> None:
    found = list(outcomes(330, tmp_path))
    assert max(seconds for _, _, seconds in found) < 2
    assert Counter(outcome for _, outcome, _ in found).keys() == {"error", "result"}
