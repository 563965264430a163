"""Device modes: names, and who has the word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ltx2_two_stage.device_manager.modes import (
    ENVIRONMENT_VARIABLE,
    MODES,
    ORIGINAL,
    RESIDENT,
    SNAPSHOT,
    SNAPSHOT_LOW,
    UnknownMode,
    mode_names,
    requested_mode,
)
from ltx2_two_stage.device_manager.modes.mode import Mode

ROOT = Path(__file__).resolve().parents[2]
BY_SETTING = "set by the node or --device-mode"
BY_VARIABLE = "set by LTX2_TWO_STAGE_DEVICE_MODE"


@pytest.mark.parametrize(
    ("setting", "variable", "expected"),
    [
        pytest.param(None, None, (None, "auto"), id="nothing-is-auto"),
        pytest.param("auto", None, (None, "auto"), id="auto"),
        pytest.param(None, "", (None, "auto"), id="empty-variable-is-unset"),
        pytest.param("resident", "original", (RESIDENT, BY_SETTING), id="setting-wins"),
        pytest.param("auto", "snapshot-low", (SNAPSHOT_LOW, BY_VARIABLE), id="variable-before-auto"),
        pytest.param(None, "snapshot", (SNAPSHOT, BY_VARIABLE), id="variable-alone"),
        pytest.param(None, "auto", (None, "auto"), id="variable-auto"),
        pytest.param(" Original ", None, (ORIGINAL, BY_SETTING), id="case-and-blanks"),
        pytest.param("resident", "nonsense", (RESIDENT, BY_SETTING), id="variable-not-read-when-overruled"),
    ],
)
def test_requested_mode(setting: str | None, variable: str | None, expected: tuple[Mode | None, str]) -> None:
    environ = {} if variable is None else {ENVIRONMENT_VARIABLE: variable}
    assert requested_mode(setting, environ) == expected


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "original")
    assert requested_mode(None) == (ORIGINAL, BY_VARIABLE)


@pytest.mark.parametrize(
    ("setting", "variable", "where"),
    [
        pytest.param("fast", None, "--device-mode", id="setting"),
        pytest.param(None, "fast", ENVIRONMENT_VARIABLE, id="variable"),
    ],
)
def test_an_unknown_mode_names_its_place_and_the_choices(setting: str | None, variable: str | None, where: str) -> None:
    with pytest.raises(UnknownMode) as caught:
        requested_mode(setting, {} if variable is None else {ENVIRONMENT_VARIABLE: variable})
    assert where in caught.value.setting and where in str(caught.value)
    assert caught.value.value == "fast" and "'fast'" in str(caught.value)
    assert caught.value.choices == mode_names()
    assert ", ".join(mode_names()) in str(caught.value)


def test_names_are_auto_and_the_modes_and_print_as_written() -> None:
    assert ("auto", *(str(mode) for mode in MODES)) == mode_names()
    assert f"{SNAPSHOT_LOW}" == "snapshot-low"


def test_only_snapshots_need_a_host_copy() -> None:
    assert [mode for mode in MODES if mode.keeps_host_copy] == [SNAPSHOT, SNAPSHOT_LOW]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_documents_and_translations_know_every_mode(mode: Mode) -> None:
    """They say what the registry says; who adds a mode is told what to write."""
    words = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    tooltip = words["LTX2TwoStageLoader"]["inputs"]["device_mode"]["tooltip"]
    page = (ROOT / "web/docs/LTX2TwoStageLoader.md").read_text(encoding="utf-8")
    assert f" {mode.name}: {mode.tooltip}." in tooltip and tooltip in page
    chinese = (ROOT / "web/panel/words/zh.js").read_text(encoding="utf-8")
    assert f"'{mode.sentence}'" in chinese and f"'{mode.merged}'" in chinese
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"| `{mode.name}` |" in path.read_text(encoding="utf-8") for path in documents)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_words_fit_the_sentences_that_they_end_up_in(mode: Mode) -> None:
    assert mode.sentence.endswith(".") and mode.sentence[0].isupper() and mode.sentence[1:-1] == mode.words[1:]
    for words in (mode.words, mode.tooltip, mode.merged, mode.pageable):
        assert words and words[0].islower() and words[-1] not in ".;,"
