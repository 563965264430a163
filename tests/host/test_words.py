"""The nodes' words in every language, and their help pages, as ComfyUI's page gets them."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import pytest
from ltx2_two_stage.docs.make import words
from PIL import Image

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

AGAIN = "run python -m ltx2_two_stage.docs.make.words"
TRANSLATED = [language for language in words.HEADINGS if language != "en"]
SMALL = 150_000  # bytes


@pytest.fixture(scope="module")
def info(host: Any) -> dict[str, Any]:
    declared: dict[str, Any] = host.get("/object_info")
    return declared


def texts(tree: Any, path: str = "") -> dict[str, str]:
    """The leaves of a locale's tree by their place in it."""
    if isinstance(tree, str):
        return {path: tree}
    return {key: text for name, part in tree.items() for key, text in texts(part, f"{path}/{name}").items()}


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+(?:\.\d+)*", text))


def test_english_is_what_the_schemas_say(info: dict[str, Any]) -> None:
    path, text = words.english_file(info)
    assert path.read_text(encoding="utf-8") == text, AGAIN


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_node_input_and_output_is_translated(info: dict[str, Any], language: str) -> None:
    here, there = texts(words.english(info)), texts(words.read(language))
    assert there.keys() == here.keys()
    for place, text in there.items():
        tooltip = place.endswith(("/tooltip", "/description"))
        assert not tooltip or (text != here[place] and text.endswith("。")), (place, text)
        # Signs that the page's messages give a meaning of their own
        assert not set("{}@|") & set(text + here[place]), place
        missing = numbers(here[place]) - numbers(text)
        # "stage 1" and "second" may be said without a digit, and only they
        assert set(missing) <= {"1", "2"} or not tooltip, (place, missing)


def test_help_pages_say_what_the_schemas_say(info: dict[str, Any]) -> None:
    for path, text in words.pages(info):
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: {AGAIN}"
        assert len(text.partition("\n## ")[0]) > 60, f"{path}: no more than lists"
        assert "\n|" not in text, f"{path}: a table is cut off in ComfyUI's narrow column"


def fetched(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=120) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError:
        return None


def test_the_page_finds_help_and_pictures_where_it_looks(host: Any, info: dict[str, Any]) -> None:
    base = f"{host.url}/extensions/ltx2-two-stage/docs"
    for name in words.own(info):
        for place in (f"{name}.md", *(f"{name}/{language}.md" for language in TRANSLATED)):
            page = fetched(f"{base}/{place}")
            assert page is not None, place
            (picture,) = re.findall(r"!\[.*?\]\((.*?)\)", page.decode())
            assert fetched(f"{base}/{picture}") is not None, picture
    for path in (words.PAGES / "images").iterdir():
        assert path.stem in info and path.stat().st_size < SMALL
        with Image.open(path) as picture:
            assert picture.width > 300 and picture.height > 100


def test_the_host_hands_out_the_translations(host: Any, info: dict[str, Any]) -> None:
    served = host.get("/i18n")
    for language in words.HEADINGS:
        found = served[language]
        assert {name: found["nodeDefs"][name] for name in words.own(info)} == words.read(language)
        assert "LTX-2 Two-Stage" in found["nodeCategories"]
        types = {kind for node in words.own(info).values() for kind in node["output"] if kind.startswith("LTX2_")}
        assert types <= found["dataTypes"].keys()


def test_every_node_is_found_by_the_models_name(info: dict[str, Any]) -> None:
    for name, node in words.own(info).items():
        assert "LTX-2" in node["search_aliases"] and len(node["search_aliases"]) > 2, name
