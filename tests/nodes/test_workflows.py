"""The example workflows as files: what can be checked without a ComfyUI. tests/host runs them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "workflows").glob("*.json"))
TITLE_BAR = 30  # pixels that a node's title takes above its position


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return loaded


def test_both_ways_of_working_are_shown() -> None:
    assert [path.stem for path in PATHS] == ["ltx2_two_stage_image_to_video", "ltx2_two_stage_text_to_video"]
    kinds = {path.stem: {n["type"] for n in json.loads(path.read_text(encoding="utf-8"))["nodes"]} for path in PATHS}
    assert {"LTX2TwoStageGenerate", "LTX2TwoStageImageCondition"} <= kinds["ltx2_two_stage_image_to_video"]
    stages = {"TextEncode", "Denoise", "LoRASwitch", "Upsample", "Refine", "Decode"}
    assert {f"LTX2TwoStage{stage}" for stage in stages} <= kinds["ltx2_two_stage_text_to_video"]


def test_links_agree_at_both_ends(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        end, start = nodes[target]["inputs"][slot], nodes[source]["outputs"][output]
        assert end["link"] == number and number in start["links"]
        assert end["type"] == start["type"] == kind
    taken = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(taken) == sorted(link[0] for link in workflow["links"])


def test_the_video_is_saved_and_the_files_are_named(workflow: dict[str, Any]) -> None:
    by_type = {node["type"]: node for node in workflow["nodes"]}
    assert by_type["SaveVideo"]["inputs"][0]["link"] is not None
    loader = by_type["LTX2TwoStageLoader"]
    for model in loader["properties"]["models"]:
        assert model["name"] in loader["widgets_values"]
        assert model["url"].endswith(model["name"])
    assert any(node["type"] == "MarkdownNote" for node in workflow["nodes"])


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
