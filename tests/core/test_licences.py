"""Consent is this user's on this machine, and nothing else is consent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ltx2_two_stage import cli
from ltx2_two_stage.ltx2_core.errors import OutputError
from ltx2_two_stage.ltx2_core.loading.licences import ENVIRONMENT, FOLDER, LICENCES, accept, missing_consent
from ltx2_two_stage.ltx2_core.loading.releases import GEMMA_LICENCE, LTX_LICENCE


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path / "settings"))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return tmp_path / "settings" / "licences.json"


def test_what_was_accepted_stays(settings: Path) -> None:
    assert missing_consent([LTX_LICENCE, GEMMA_LICENCE, LTX_LICENCE]) == [LTX_LICENCE, GEMMA_LICENCE]
    assert accept([GEMMA_LICENCE]) == settings and missing_consent(LICENCES) == [LTX_LICENCE]
    accept([LTX_LICENCE])
    assert missing_consent(LICENCES) == [] and list(settings.parent.iterdir()) == [settings]


@pytest.mark.parametrize(
    "kept",
    ["", "true", "null", "[]", '{"accepted": true}', '{"accepted": "LTX"}', '{"accepted": [1, null]}', "{", "[" * 9999],
    ids=range(9),
)
def test_anything_else_in_the_file_is_no_consent(settings: Path, kept: str) -> None:
    settings.parent.mkdir()
    settings.write_text(kept)
    assert missing_consent(LICENCES) == list(LICENCES)
    accept()
    assert json.loads(settings.read_text())["accepted"] == sorted(LICENCES)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [("yes", True), (" YES ", True), ("", False), ("no", False), ("0", False), ("False", False), ("1", False)],
)
def test_one_word_in_the_environment_accepts(monkeypatch: pytest.MonkeyPatch, value: str, accepted: bool) -> None:
    monkeypatch.setenv(ENVIRONMENT, value)
    assert (missing_consent(LICENCES) == []) is accepted


def test_the_command_says_what_is_accepted(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["accept-licences", "--list"]) == 0
    said = capsys.readouterr().out
    assert "(not accepted yet): on the pages of Lightricks/LTX-2.3, Lightricks/LTX-2" in said
    assert not settings.exists()
    assert cli.main(["accept-licences"]) == 0
    assert f"Noted in {settings}" in capsys.readouterr().out and missing_consent(LICENCES) == []


def test_a_folder_that_cannot_be_written_is_named(settings: Path) -> None:
    settings.parent.write_text("a file")
    with pytest.raises(OutputError, match=f"cannot be written.*{FOLDER}"):
        accept()
