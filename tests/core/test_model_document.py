"""``docs/model.md`` has every section that is cited, and nothing points to a document outside the repository."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "model.md"
HERE = Path(__file__).resolve()
TEXTS = frozenset({".py", ".md", ".toml", ".js", ".css", ".json", ".txt", ".svg", ""})
# Folders of the root that git ignores
IGNORED = frozenset({"build", "dist", "output", "models"})
# Long enough to say what is cited, short enough to be read
LINES = range(300, 451)
GENERATIONS = {"2.0", "2.3"}

NUMBER = r"\d{1,2}(?:\.\d{1,2})?(?![\d-])"
# Between numbers may be a line's end, and the sign of a comment
CITATION = re.compile(rf"docs/model\.md[\s#]+({NUMBER}(?:(?:,? (?:and|to) |,\s+){NUMBER})*)")
HEADING = re.compile(rf"^#{{2,3}} ({NUMBER})\.? ", re.MULTILINE)
INSIDE = re.compile(rf"\((?:section )?({NUMBER}(?:, {NUMBER})*)\)")
OTHER_DOCUMENT = re.compile(r"\bfact[ -]?sheet|LTX\d+_FACTS", re.IGNORECASE)
OTHER_PLACES = re.compile(r"\bthe issue (?:asks|says|wants)|\bissue \d|\b(?:another|this) session\b", re.IGNORECASE)


def sections(document: str) -> list[str]:
    return HEADING.findall(document)


def cited(text: str) -> list[str]:
    """The numbers of all sections that a text cites."""
    return [number for match in CITATION.finditer(text) for number in re.findall(NUMBER, match[1])]


def committed_texts() -> Iterator[tuple[Path, str]]:
    for folder, folders, names in os.walk(ROOT):
        ignored = IGNORED if Path(folder) == ROOT else frozenset[str]()
        folders[:] = [name for name in folders if name not in ignored and not name.startswith((".", "__pycache__"))]
        for path in (Path(folder, name) for name in names):
            if path.suffix in TEXTS and path != HERE and not path.is_symlink():
                yield path.relative_to(ROOT), path.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    return dict(committed_texts())


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("as in docs/model.md 2.4.", ["2.4"]),
        ("(docs/model.md 1.2 and 10)", ["1.2", "10"]),
        ("docs/model.md 2.7, 2.8, 4 to 6, 8.1, one pass", ["2.7", "2.8", "4", "6", "8.1"]),
        ("docs/model.md\n    # 11.2: weights", ["11.2"]),
        ("docs/model.md 10 counts 547,627 numbers", ["10"]),
        ("see docs/model.md, 3 files", []),
    ],
)
def test_citations_are_found(text: str, numbers: list[str]) -> None:
    assert cited(text) == numbers


def test_every_cited_section_exists(texts: dict[Path, str]) -> None:
    known = set(sections(texts[DOCUMENT.relative_to(ROOT)]))
    citing = {path: cited(text) for path, text in texts.items() if "docs/model.md" in text}
    assert sum(map(len, citing.values())) > 100, "citations are found"
    unknown = {str(path): missing for path, numbers in citing.items() if (missing := sorted(set(numbers) - known))}
    assert not unknown


def test_sections_are_numbered_in_order() -> None:
    numbers = [tuple(map(int, number.split("."))) for number in sections(DOCUMENT.read_text(encoding="utf-8"))]
    assert numbers == sorted(set(numbers))
    gaps = [n for n in numbers if n[-1] > 1 and (*n[:-1], n[-1] - 1) not in numbers]
    assert numbers[0] == (0,) and not gaps


def test_the_page_refers_to_sections_that_it_has() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    # Whole numbers in brackets are shapes and factors
    referred = {number for match in INSIDE.finditer(document) for number in match[1].split(", ") if "." in number}
    assert "2.8" in referred
    assert referred - GENERATIONS <= set(sections(document))


def test_the_page_can_be_read_in_one_go() -> None:
    assert len(DOCUMENT.read_text(encoding="utf-8").splitlines()) in LINES


def test_no_text_cites_a_document_outside_the_repository(texts: dict[Path, str]) -> None:
    found = {str(path): match[0] for path, text in texts.items() if (match := OTHER_DOCUMENT.search(text))}
    assert not found


def test_no_code_speaks_of_where_it_was_written(texts: dict[Path, str]) -> None:
    code = {path: text for path, text in texts.items() if path.suffix in (".py", ".js")}
    found = {str(path): match[0] for path, text in code.items() if (match := OTHER_PLACES.search(text))}
    assert not found
