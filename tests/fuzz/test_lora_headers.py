"""Some of the mutants that ``lora_headers.py`` makes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from lora_headers import run


def test_mutated_loras_end_in_an_error_or_a_sound_file(tmp_path: Path) -> None:
    ends = run(300, 0, tmp_path)
    assert ends["error"] > 150 and ends["sound"] > 15
