"""Thumbnails of the example workflows: drawings of what each does, with the numbers that it is saved with.

    python -m ltx2_two_stage.docs.make.cards

writes ``workflows/<name>.jpg``, the file that ComfyUI's template browser shows for ``<name>.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .graphs import API, WORKFLOWS
from .templates import TEMPLATES, Template

SIDE, SMOOTH = 512, 3  # pixels of the card, and for one of them while drawing
QUALITY = 92
BADGE = 76  # height at the top that the browser's own label covers
BACK, EDGE, INK, FAINT = "#171b22", "#2b323d", "#f2f4f8", "#98a2b3"
FRAME, FRAME_EDGE, GIVEN, SOUND, STAGE = "#2f4b66", "#4d7399", "#d9a441", "#5fae7b", "#3f789e"
CELLS, BARS = 9, 46

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Facts:
    """What a card says of its workflow."""

    size: tuple[int, int]
    frames: int
    preset: str
    generation: str
    more: tuple[str, ...]
    given_sound: bool
    foreign_stage_2: bool


def facts(prompt: Mapping[str, Mapping[str, Any]]) -> Facts:
    """Read from a workflow in API format."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for item in prompt.values():
        kinds.setdefault(item["class_type"].removeprefix("LTX2TwoStage"), []).append(item["inputs"])
    (clip,) = kinds.get("Generate", []) + kinds.get("Denoise", [])
    (loader,) = kinds["Loader"]
    more = [f"{len(kinds['LoRA'])} LoRAs"] if "LoRA" in kinds else []
    more += [loader["device_mode"]] if loader["device_mode"] != "auto" else []
    more += ["report"] if "Report" in kinds else []
    return Facts(
        size=(clip["width"], clip["height"]),
        frames=clip["frames"],
        preset=clip["preset"],
        generation="LTX-2.3" if "2.3" in loader["checkpoint"] else "LTX-2",
        more=tuple(more),
        given_sound="LoadAudio" in kinds,
        foreign_stage_2="SamplerCustomAdvanced" in kinds,
    )


class Card:
    """A square drawing; coordinates are pixels of the finished one."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIDE * SMOOTH, SIDE * SMOOTH), BACK)
        self._draw = ImageDraw.Draw(self.image)

    def box(self, box: Box, fill: str | None, edge: str | None = None, round_by: float = 6) -> None:
        scaled = tuple(value * SMOOTH for value in box)
        self._draw.rounded_rectangle(scaled, round_by * SMOOTH, fill, edge, 2 * SMOOTH)

    def text(self, x: float, y: float, words: str, size: float, colour: str = INK, anchor: str = "lm") -> float:
        """Draws a line of text; returns its width."""
        font = ImageFont.load_default(size * SMOOTH)
        self._draw.text((x * SMOOTH, y * SMOOTH), words, colour, font, anchor)
        return float(font.getlength(words)) / SMOOTH

    def shape(self, points: list[tuple[float, float]], fill: str) -> None:
        self._draw.polygon([(x * SMOOTH, y * SMOOTH) for x, y in points], fill)

    def dot(self, x: float, y: float, radius: float, fill: str) -> None:
        self._draw.ellipse([value * SMOOTH for value in (x - radius, y - radius, x + radius, y + radius)], fill)

    def arrow(self, start: float, end: float, y: float) -> None:
        self._draw.line([(start * SMOOTH, y * SMOOTH), ((end - 6) * SMOOTH, y * SMOOTH)], FAINT, 2 * SMOOTH)
        self.shape([(end, y), (end - 9, y - 5), (end - 9, y + 5)], FAINT)

    def save(self, path: Path) -> None:
        small = self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(path, quality=QUALITY, subsampling=0, optimize=True)


def draw(template: Template, found: Facts) -> Card:
    card = Card()
    card.box((0, 0, SIDE - 1, SIDE - 1), None, EDGE, 0)
    card.text(32, BADGE + 34, template.heading, 46)
    card.text(33, BADGE + 76, template.line, 23, FAINT)
    _strip(card, template, 190)
    _sound(card, found, 284)
    _stages(card, found, 372)
    _chips(card, found, 462)
    return card


def _strip(card: Card, template: Template, top: float) -> None:
    """The clip as a strip of frames; those that come from images are marked."""
    left, width, height = 32.0, (SIDE - 64) / CELLS, 58.0
    given = {round(place * (CELLS - 1)) for place in template.shown}
    for number in range(CELLS):
        x = left + number * width
        box = (x + 2, top, x + width - 2, top + height)
        if number in given:
            card.box(box, GIVEN, "#f0c878")
            _picture(card, x + width / 2, top + height / 2)
        else:
            card.box(box, FRAME, FRAME_EDGE)


def _picture(card: Card, x: float, y: float) -> None:
    """The sign for an image: hills and a sun."""
    card.dot(x + 8, y - 10, 4, BACK)
    card.shape([(x - 16, y + 14), (x - 5, y - 6), (x + 6, y + 14)], BACK)
    card.shape([(x - 1, y + 14), (x + 8, y), (x + 16, y + 14)], BACK)


def _sound(card: Card, found: Facts, middle: float) -> None:
    colour = GIVEN if found.given_sound else SOUND
    step = (SIDE - 64) / BARS
    for number in range(BARS):
        swell = math.sin(number * 0.37) * math.sin(number * 0.91 + 0.6) * (0.55 + 0.45 * math.sin(number * 0.13))
        height = 3 + 19 * abs(swell)
        x = 32 + (number + 0.5) * step
        card.box((x - 2.5, middle - height, x + 2.5, middle + height), colour, None, 2.5)


def _stages(card: Card, found: Facts, middle: float) -> None:
    """Half the size, then the whole one, as they are to each other."""
    width, height = found.size
    scale = min(200 / width, 92 / height)
    small, large = (width * scale / 2, height * scale / 2), (width * scale, height * scale)
    left = 60.0
    _frame(card, left, middle, small, f"{width // 2} x {height // 2}", "stage 1", STAGE)
    start = SIDE - 60 - large[0]
    card.arrow(left + small[0] + 34, start - 34, middle)
    card.text((left + small[0] + start) / 2, middle - 16, "x 2", 20, FAINT, "mm")
    _frame(card, start, middle, large, f"{width} x {height}", "stage 2", GIVEN if found.foreign_stage_2 else STAGE)


def _frame(
    card: Card, left: float, middle: float, size: tuple[float, float], words: str, title: str, colour: str
) -> None:
    width, height = size
    card.box((left, middle - height / 2, left + width, middle + height / 2), BACK, colour, 6)
    inside = height > 60
    card.text(left + width / 2, middle - (11 if inside else 0), title, 17, INK, "mm")
    card.text(left + width / 2, middle + (12 if inside else height / 2 + 14), words, 16, FAINT, "mm")


def _chips(card: Card, found: Facts, middle: float) -> None:
    x = 32.0
    for words in (found.generation, found.preset, f"{found.frames} frames", *found.more):
        width = ImageFont.load_default(18).getlength(words) + 20
        if x + width > SIDE - 24:
            break
        card.box((x, middle - 15, x + width, middle + 15), EDGE, None, 15)
        card.text(x + width / 2, middle, words, 18, INK, "mm")
        x += width + 8


def main() -> None:
    for template in TEMPLATES:
        prompt = json.loads((API / f"{template.name}.json").read_text(encoding="utf-8"))
        draw(template, facts(prompt)).save(WORKFLOWS / f"{template.name}.jpg")


if __name__ == "__main__":
    main()
