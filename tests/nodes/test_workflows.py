"""The example workflows as files: what can be checked without a ComfyUI. tests/host runs them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ltx2_two_stage.docs.make import cards
from ltx2_two_stage.docs.make.templates import TEMPLATES
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "workflows").glob("*.json"))
TITLE_BAR = 30  # pixels that a node's title takes above its position


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return loaded


def kinds(path: Path) -> set[str]:
    return {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}


def test_every_way_of_working_is_shown() -> None:
    assert [path.stem for path in PATHS] == sorted(template.name for template in TEMPLATES)
    shown = {path.stem.removeprefix("ltx2_two_stage_"): kinds(path) for path in PATHS}
    wanted = "text_to_video image_to_video hq distilled first_last_frame keyframes user_loras low_vram"
    assert set(wanted.split()) <= shown.keys()
    stages = {"TextEncode", "Denoise", "LoRASwitch", "Upsample", "Refine", "Decode"}
    assert {f"LTX2TwoStage{stage}" for stage in stages} <= shown["text_to_video"]
    assert {"LTX2TwoStageLoRA"} <= shown["user_loras"] and {"LTX2TwoStageRecipe"} <= shown["low_vram"]
    everywhere = set.union(*shown.values())
    assert {name for name in everywhere if name.startswith("LTX2TwoStage")} == {
        f"LTX2TwoStage{name}"
        for name in (*stages, "Loader", "LoRA", "Recipe", "ImageCondition", "Generate", "Model", "Report")
    }


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_has_a_thumbnail_of_its_own_numbers_and_an_api_form(path: Path) -> None:
    prompt = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    assert {node["class_type"] for node in prompt.values()} == kinds(path) - {"MarkdownNote"}
    for node in prompt.values():
        links = [value for value in node["inputs"].values() if isinstance(value, list)]
        assert all(source in prompt for source, _ in links)
    template = next(template for template in TEMPLATES if template.name == path.stem)
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.size == (cards.SIDE, cards.SIDE)
        shown = np.asarray(thumbnail, dtype=np.float32)
    drawn = cards.draw(template, cards.facts(prompt)).image.resize(thumbnail.size, Image.Resampling.LANCZOS)
    off = np.abs(shown - np.asarray(drawn, dtype=np.float32)).mean(-1)
    blocks = off.reshape(cards.SIDE // 16, 16, cards.SIDE // 16, 16).mean((1, 3))
    # In a block of 16 pixels JPEG rounds by less than 5; one digit that changes is 16 and more
    assert blocks.max() < 8, "run python -m ltx2_two_stage.docs.make.cards"


def test_links_agree_at_both_ends(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        end, start = nodes[target]["inputs"][slot], nodes[source]["outputs"][output]
        assert end["link"] == number and number in start["links"]
        assert end["type"] in (kind, "*") and start["type"] == kind
    taken = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(taken) == sorted(link[0] for link in workflow["links"])


def test_the_video_is_saved_and_the_files_are_named(workflow: dict[str, Any]) -> None:
    by_type = {node["type"]: node for node in workflow["nodes"]}
    assert by_type["SaveVideo"]["inputs"][0]["link"] is not None
    notes = " ".join(n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    holders = [node for node in workflow["nodes"] if "models" in node["properties"]]
    assert by_type["LTX2TwoStageLoader"] in holders
    for holder in holders:
        for model in holder["properties"]["models"]:
            assert model["name"] in holder["widgets_values"]
            assert model["url"].endswith(model["name"]) and model["url"] in notes
    named = {value for value in by_type["LTX2TwoStageLoader"]["widgets_values"] if str(value).endswith(".safetensors")}
    assert named == {model["name"] for model in by_type["LTX2TwoStageLoader"]["properties"]["models"]}


def test_nodes_do_not_cover_each_other_and_lie_inside_a_group(workflow: dict[str, Any]) -> None:
    boxes = [
        (n["pos"][0], n["pos"][1] - TITLE_BAR, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
        for n in workflow["nodes"]
    ]
    for (a, one), (b, other) in itertools.combinations(enumerate(boxes), 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (workflow["nodes"][a]["type"], workflow["nodes"][b]["type"])
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    for box in boxes:
        assert any(g[0] <= box[0] and g[1] <= box[1] and box[2] <= g[2] and box[3] <= g[3] for g in groups), box
