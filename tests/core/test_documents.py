"""README and docs: links lead somewhere, named files exist, and every option of the command line is described."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ltx2_two_stage.cli import BAD_INPUT, INTERRUPTED, NOBODY_READS
from ltx2_two_stage.ltx2_core.recipes import RECIPE_NAMES, REVISIONS, SAMPLERS
from ltx2_two_stage.terminal.arguments import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "LOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that Markdown viewers give to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """Links of a page that lead to no file, or to no heading."""
    text = page.read_text(encoding="utf-8")
    found = []
    for link in LINK.findall(CODE_BLOCK.sub("", text)):
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target.read_text("utf-8")))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](page.md#a-heading) [b](#b) [c](c.md) [d](https://example.org/d)\n", "utf-8")
    assert broken(page) == ["#b", "c.md"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_the_readme_leads_to_every_page_and_workflow() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"]
    workflows = [path.stem.removeprefix("ltx2_two_stage_") for path in (ROOT / "workflows").glob("*.json")]
    assert [page for page in pages if f"]({page})" not in text] == []
    assert workflows and [name for name in workflows if f"`{name}`" not in text] == []


NAMED = re.compile(r"`([\w./*-]+(?:/|\.(?:py|md)))`")


def named_paths(text: str) -> list[str]:
    """Files and folders that a page names; patterns and files of others are none."""
    return [path for path in NAMED.findall(text) if "*" not in path and path != "zh.md"]


def test_every_path_of_the_architecture_exists() -> None:
    named = named_paths((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(named) > 80 and [path for path in named if not (ROOT / path).exists()] == []


def test_the_architecture_names_every_room() -> None:
    named = named_paths((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    files = [*ROOT.glob("*.py"), *(ROOT / "ltx2_core").rglob("__init__.py")]
    files += [ROOT / room / "__init__.py" for room in ("device_manager", "nodes", "terminal", "benchmarks")]
    rooms = [f"{path.parent.relative_to(ROOT)}/" if path.parent != ROOT else path.name for path in files]
    assert [room for room in rooms if room not in named] == []


def test_the_architecture_says_where_to_add() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for kind in ("node", "recipe", "condition", "device mode", "weight format", "component", "generation"):
        assert f"\n### A {kind}\n" in text


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command and benchmark, by the words that call it."""
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from commands(sub)


def test_every_command_and_option_is_described() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    found = dict(commands(build_parser()))
    options = {option for parser in found.values() for action in parser._actions for option in action.option_strings}
    missing = [word for word in (*found, *options) if not re.search(rf"`{re.escape(word)}(?![\w-])", text)]
    assert "ltx2 bench peers" in found and len(options) > 50 and missing == []


def test_no_option_is_described_that_does_not_exist() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    found = dict(commands(build_parser()))
    options = {option for parser in found.values() for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= options


def test_every_choice_is_described() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    names = [*RECIPE_NAMES, *REVISIONS, *SAMPLERS]
    assert [name for name in names if f"`{name}`" not in text] == []
    for status in (BAD_INPUT, INTERRUPTED, NOBODY_READS, 128 + signal.SIGTERM):
        assert re.search(rf"^\| {status}\b", text, re.MULTILINE)


def test_every_variable_of_the_environment_is_described() -> None:
    code = [path for room in ("ltx2_core", "device_manager", "nodes") for path in (ROOT / room).rglob("*.py")]
    named = {name for path in code for name in re.findall(r'"(LTX2_[A-Z_]+)"', path.read_text(encoding="utf-8"))}
    links = {"LTX2_IMAGES", "LTX2_PIPELINE", "LTX2_RECIPE"}  # types of ComfyUI's links
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert {"LTX2_KERNELS"} < named and [name for name in named - links if f"`{name}`" not in text] == []
