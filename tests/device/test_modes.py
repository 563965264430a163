"""Device modes: names, and who has the word."""

from __future__ import annotations

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
