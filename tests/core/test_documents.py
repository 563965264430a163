"""Links and paths that the documents name are there, and the README stays short."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from ltx2_two_stage import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_WORDS = 1300


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [path for path, _ in links if path and not (page.parent / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_a_heading_find_it(page: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]*)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / path if path else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_paths_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w./]+/[\w./]*|[\w/]+\.(?:py|md|json|js))`", text)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
    tree = re.search(r"```\n(.*?)```", text, re.DOTALL)
    assert tree
    folder = ""
    for line in tree[1].splitlines():
        for name in line[:23].replace(",", " ").split():
            folder = "" if not line.startswith(" ") else folder
            assert (ROOT / folder / name).exists(), name
            if name.endswith("/") and not line.startswith(" "):
                folder = name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def test_the_page_of_the_command_line_names_every_command() -> None:
    commands = next(a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("docs/cli.md", "README.md"))
    assert [name for name in commands if name not in text] == []
