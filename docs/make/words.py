"""The nodes' words: English as the schemas say it, for translators and ComfyUI's page, and the help page of each node.

    python -m ltx2_two_stage.docs.make.words --host http://127.0.0.1:8188

writes ``locales/en/nodeDefs.json`` and, in each page of ``web/docs``, the lists of inputs and outputs. What is above
the lists is written by hand, as are ``locales/<language>`` of other languages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

from .graphs import Info

ROOT = Path(__file__).resolve().parents[2]
LOCALES, PAGES = ROOT / "locales", ROOT / "web" / "docs"
PREFIX = "LTX2TwoStage"

Words = Mapping[str, Any]  # a locale's nodeDefs.json, by node id


class Headings(NamedTuple):
    """Words of a page's lists in one language. They are lists since ComfyUI shows them in a narrow column."""

    inputs: str
    outputs: str
    item: str
    required: str
    optional: str
    first_file: str
    empty: str
    choices: str


HEADINGS = {
    "en": Headings(
        inputs="Inputs",
        outputs="Outputs",
        item="- {name} ({note}): {text}",
        required="to be connected",
        optional="may be connected",
        first_file="a file that fits",
        empty="empty",
        choices="One of: {}.",
    ),
    "zh": Headings(
        inputs="输入",
        outputs="输出",
        item="- {name}（{note}）：{text}",  # noqa: RUF001 - the signs of Chinese
        required="必须连接",
        optional="可以连接",
        first_file="匹配的文件",
        empty="空",
        choices="可选：{}。",  # noqa: RUF001 - the colon of Chinese
    ),
}
# Choices that are files: what there is differs from one installation to the next
_FILES = {
    "LTX2TwoStageLoader": {
        "checkpoint",
        "text_encoder",
        "distilled_lora",
        "upsampler",
        "video_vae",
        "audio_vae",
        "text_projection",
    },
    "LTX2TwoStageLoRA": {"lora"},
}


def own(info: Info) -> Info:
    """The nodes of this pack."""
    return {name: node for name, node in info.items() if name.startswith(PREFIX)}


def english(info: Info) -> dict[str, Any]:
    """The schemas' texts in the form of a locale's nodeDefs.json."""
    return {
        name: {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {key: {"name": key, "tooltip": options["tooltip"]} for key, _, options, _ in inputs(node)},
            "outputs": {
                str(index): {"name": output, "tooltip": tooltip}
                for index, (output, tooltip) in enumerate(
                    zip(node["output_name"], node["output_tooltips"], strict=True)
                )
            },
        }
        for name, node in own(info).items()
    }


def inputs(node: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], bool]]:
    """Name, type, options of every input, and whether it is required."""
    for part in ("required", "optional"):
        for name in node["input_order"].get(part, []):
            kind, options = node["input"][part][name]
            yield name, kind, options, part == "required"


def page(text: str, node: Mapping[str, Any], words: Words, language: str) -> str:
    """A help page with its lists made anew; what is above them stays."""
    headings = HEADINGS[language]
    head = text.partition(f"\n## {headings.inputs}\n")[0].rstrip()
    return "\n".join([head, "", *_lists(node, words, headings)]) + "\n"


def page_path(name: str, language: str) -> Path:
    """Where ComfyUI's page looks for a node's help."""
    return PAGES / f"{name}.md" if language == "en" else PAGES / name / f"{language}.md"


def pages(info: Info) -> Iterator[tuple[Path, str]]:
    """Every page as it has to be."""
    for language in HEADINGS:
        texts = english(info) if language == "en" else read(language)
        for name, node in own(info).items():
            path = page_path(name, language)
            yield path, page(path.read_text(encoding="utf-8"), node, texts[name], language)


def read(language: str) -> Words:
    """A locale's words for the nodes."""
    words: Words = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return words


def _lists(node: Mapping[str, Any], words: Words, headings: Headings) -> Iterator[str]:
    yield f"## {headings.inputs}"
    yield ""
    files = _FILES.get(node["name"], set())
    for name, kind, options, required in inputs(node):
        said = words["inputs"][name]
        tooltip = said["tooltip"]
        if kind == "COMBO" and name not in files:
            tooltip += ("" if tooltip.endswith("。") else " ") + headings.choices.format(
                ", ".join(f"`{option}`" for option in options["options"])
            )
        default = _default(name, kind, options, required, files, headings)
        yield headings.item.format(name=_named(name, said["name"]), note=default, text=tooltip)
    yield ""
    yield f"## {headings.outputs}"
    yield ""
    for index, kind in enumerate(node["output"]):
        said = words["outputs"][str(index)]
        name = _named(node["output_name"][index], said["name"])
        yield headings.item.format(name=name, note=kind, text=said["tooltip"])


def _named(name: str, shown: str) -> str:
    return f"**{name}**" if name == shown else f"**{shown}** `{name}`"


def _default(
    name: str, kind: str, options: Mapping[str, Any], required: bool, files: set[str], headings: Headings
) -> str:
    if name in files and required:
        return headings.first_file
    if "default" not in options and kind not in ("STRING", "COMBO"):
        return headings.required if required else headings.optional
    default = options.get("default", "")
    return f"`{default}`" if default not in ("", None) else headings.empty


def _json(words: Words) -> str:
    return json.dumps(words, indent=2, ensure_ascii=False) + "\n"


def english_file(info: Info) -> tuple[Path, str]:
    return LOCALES / "en" / "nodeDefs.json", _json(english(info))


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the English words and the lists of the help pages.")
    parser.add_argument("--host", default="http://127.0.0.1:8188", help="a running ComfyUI with this pack")
    with urlopen(parser.parse_args().host + "/object_info") as answer:
        info = json.load(answer)
    for path, text in (english_file(info), *pages(info)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
