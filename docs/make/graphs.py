"""The example workflows: what is in each, laid out as a graph and converted to ComfyUI's API format.

Widgets, sockets and defaults are those that a running ComfyUI declares:

    python -m ltx2_two_stage.docs.make.graphs --host http://127.0.0.1:8188

writes ``workflows/*.json``, which the template browser lists, and ``workflows/api/*.json``, which it does not.
"""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from .templates import TEMPLATES, Column, Node, Note, Template

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
API = WORKFLOWS / "api"

Info = Mapping[str, Mapping[str, Any]]  # what /object_info answers
Graph = dict[str, Any]
Prompt = dict[str, dict[str, Any]]

TITLE_BAR, GAP, MARGIN, GROUP_TITLE = 30, 30, 20, 60
# Width, and height for what a node has beside its sockets and widgets: texts and pictures, also those that a run brings
# (58 and 220 at least in ComfyUI's page)
WIDTHS = {"LTX2TwoStageLoader": 400, "LTX2TwoStageGenerate": 420, "LTX2TwoStageTextEncode": 400, "SaveVideo": 400}
MORE_HEIGHT = {
    "LTX2TwoStageGenerate": 400,
    "LTX2TwoStageDenoise": 310,
    "LTX2TwoStageUpsample": 100,
    "LTX2TwoStageRefine": 310,
    "LTX2TwoStageTextEncode": 240,
    "LTX2TwoStageReport": 320,
    "LTX2TwoStageDecode": 160,
    "SaveVideo": 250,
    "LoadImage": 230,
    "LoadAudio": 90,
    "SamplerCustomAdvanced": 240,
    "PreviewAny": 60,
}
NODE_WIDTH, SLOT, WIDGET, TEXT_WIDGET = 290, 20, 24, 60
NOTE_COLOURS = {"color": "#332922", "bgcolor": "#593930"}
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
_DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
_NAMESPACE = uuid.UUID("b0a4c7d2-83c5-4f4e-8f6e-0d3e9a6c2b00")


@dataclass
class _Placed:
    """A node or note of a template with its number and place."""

    item: Node | Note
    number: int
    pos: tuple[int, int]
    size: tuple[int, int]
    links_in: dict[str, int] = field(default_factory=dict)
    links_out: dict[str, list[int]] = field(default_factory=dict)


def graph(template: Template, info: Info) -> Graph:
    """The saved form of a template, as ComfyUI's page writes it."""
    placed, groups = _layout(template, info)
    nodes = {entry.item.key: entry for entry in placed if isinstance(entry.item, Node)}
    links = []
    for entry in nodes.values():
        for slot, (name, kind) in enumerate(_sockets(info[entry.item.type])):
            if name not in entry.item.links:
                continue
            source, output = entry.item.links[name]
            start = nodes[source]
            index = info[start.item.type]["output_name"].index(output)
            number = len(links) + 1
            entry.links_in[name] = number
            start.links_out.setdefault(output, []).append(number)
            kind = info[start.item.type]["output"][index] if kind == "*" else kind
            links.append([number, start.number, index, entry.number, slot, kind])
        unknown = entry.item.links.keys() - entry.links_in.keys()
        assert not unknown, f"{template.name}: {entry.item.type} has no socket {unknown}"
    return {
        "id": str(uuid.uuid5(_NAMESPACE, template.name)),
        "revision": 0,
        "last_node_id": len(placed),
        "last_link_id": len(links),
        "nodes": [_saved(entry, info) for entry in placed],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.75, "offset": [60, 160]}},
        "version": 0.4,
    }


def api_format(saved: Graph, info: Info) -> Prompt:
    """A saved graph as the page queues it: links by slot, widget values in the order of the declared inputs."""
    links = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    prompt: Prompt = {}
    for item in saved["nodes"]:
        if item["type"] == "MarkdownNote":
            continue
        slots = {slot["name"]: slot["link"] for slot in item["inputs"]}
        values, inputs = iter(item.get("widgets_values", [])), {}
        for name, options in _widgets(info[item["type"]]):
            inputs[name] = value = next(values)
            for nested in _chosen(options, value):
                inputs[f"{name}.{nested}"] = next(values)
            if _has_control(name, options):
                next(values)
        rest = list(values)
        assert not rest, f"{item['type']} has values for widgets that it does not have: {rest}"
        inputs |= {name: links[number] for name, number in slots.items() if number is not None}
        prompt[str(item["id"])] = {
            "class_type": item["type"],
            "inputs": inputs,
            "_meta": {"title": item.get("title") or info[item["type"]]["display_name"] or item["type"]},
        }
    return prompt


def files(info: Info) -> Iterator[tuple[Path, str]]:
    """Every file that this makes, with its text."""
    for template in TEMPLATES:
        saved = graph(template, info)
        yield WORKFLOWS / f"{template.name}.json", _text(saved)
        yield API / f"{template.name}.json", _text(api_format(saved, info))


def _text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _declared(node: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, type and options of every input, in the declared order."""
    for part in ("required", "optional"):
        for name in node["input_order"].get(part, []):
            kind, *options = node["input"][part][name]
            listed = {"options": kind} if isinstance(kind, list) else {}
            yield name, "COMBO" if listed else kind, {**listed, **(options[0] if options else {})}


def _sockets(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Inputs that only a link can fill: the required ones first, as the page adds them."""
    return [(name, kind) for name, kind, options in _declared(node) if options.get("widgetType", kind) not in _WIDGETS]


def _widgets(node: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (name, {**options, "kind": kind})
        for name, kind, options in _declared(node)
        if options.get("widgetType", kind) in _WIDGETS
    ]


def _chosen(options: Mapping[str, Any], value: Any) -> list[str]:
    """Inputs that a dynamic combo brings with the choice that it has."""
    if options["kind"] != _DYNAMIC:
        return []
    inputs = next(option["inputs"] for option in options["options"] if option["key"] == value)
    return [name for part in inputs.values() for name in part]


def _has_control(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the page adds a widget that changes this one after every run, or one to upload a file."""
    if options.get("image_upload") or options.get("audio_upload"):
        return True
    default = options["kind"] == "INT" and name in ("seed", "noise_seed")
    return bool(options.get("control_after_generate", default))


def _widget_values(item: Node, info: Info) -> list[Any]:
    left = dict(item.values)
    values: list[Any] = []
    for name, options in _widgets(info[item.type]):
        value = left.pop(name, _default(options))
        values.append(value)
        values += ["auto" for _ in _chosen(options, value)]
        if options.get("image_upload"):
            values.append("image")
        elif options.get("audio_upload"):
            values.append(None)
        elif _has_control(name, options):
            values.append("fixed")
    assert not left, f"{item.type} has no widgets {list(left)}"
    return values


def _default(options: Mapping[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    if not options.get("options"):
        return ""  # a text, or a combo of files of which there are none
    first = options["options"][0]
    return first["key"] if isinstance(first, dict) else first


def _saved(entry: _Placed, info: Info) -> dict[str, Any]:
    item = entry.item
    shape = {"pos": list(entry.pos), "size": list(entry.size), "flags": {}, "order": entry.number - 1, "mode": 0}
    if isinstance(item, Note):
        note = {"inputs": [], "outputs": [], "properties": {}, "widgets_values": [item.text], "title": item.title}
        return {"id": entry.number, "type": "MarkdownNote", **shape, **note, **NOTE_COLOURS}
    declared = info[item.type]
    inputs = [{"name": n, "type": kind, "link": entry.links_in.get(n)} for n, kind in _sockets(declared)]
    outputs = [
        {"name": name, "type": kind, "links": entry.links_out.get(name, [])}
        for name, kind in zip(declared["output_name"], declared["output"], strict=True)
    ]
    properties: dict[str, Any] = {"Node name for S&R": item.type}
    if item.files:
        properties["models"] = [dict(file) for file in item.files]
    saved = {"id": entry.number, "type": item.type, **shape, "inputs": inputs, "outputs": outputs}
    saved |= {"properties": properties, "widgets_values": _widget_values(item, info)}
    return saved | ({"title": item.title} if item.title else {})


def _size(item: Node | Note, info: Info) -> tuple[int, int]:
    if isinstance(item, Note):
        return item.size
    declared = info[item.type]
    widgets = _widgets(declared)
    rows = max(len(_sockets(declared)), len(declared["output"]))
    height = rows * SLOT + 10 + MORE_HEIGHT.get(item.type, 0)
    for name, options in widgets:
        nested = len(_chosen(options, item.values.get(name, _default(options))))
        count = 1 + nested + _has_control(name, options)
        height += TEXT_WIDGET if options.get("multiline") else WIDGET * count
    return WIDTHS.get(item.type, NODE_WIDTH), -(-height // 10) * 10


def _layout(template: Template, info: Info) -> tuple[list[_Placed], list[dict[str, Any]]]:
    """Columns side by side, each in a group of its own; all groups are as high as the highest."""
    placed: list[_Placed] = []
    groups = []
    left = 0
    lowest = 0
    for number, column in enumerate(template.columns, 1):
        top, width = 0, _width(column, info)
        for item in column.items:
            size = (width, _size(item, info)[1])
            placed.append(_Placed(item, len(placed) + 1, (left, top), size))
            top += size[1] + TITLE_BAR + GAP
        lowest = max(lowest, top - TITLE_BAR - GAP)
        bounding = [left - MARGIN, -TITLE_BAR - GROUP_TITLE, width + 2 * MARGIN, 0]
        groups.append(
            {
                "id": number,
                "title": f"{number}  {column.title}",
                "bounding": bounding,
                "color": column.colour,
                "font_size": 24,
                "flags": {},
            }
        )
        left += width + 2 * MARGIN + GAP
    for group in groups:
        group["bounding"][3] = lowest + TITLE_BAR + GROUP_TITLE + MARGIN
    return placed, groups


def _width(column: Column, info: Info) -> int:
    return max(_size(item, info)[0] for item in column.items)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the example workflows.")
    parser.add_argument("--host", default="http://127.0.0.1:8188", help="a running ComfyUI with this pack")
    with urlopen(parser.parse_args().host + "/object_info") as answer:
        info = json.load(answer)
    API.mkdir(exist_ok=True)
    for path, text in files(info):
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
