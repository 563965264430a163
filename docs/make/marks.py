"""The pack's icon and banner for the ComfyUI registry.

    python -m ltx2_two_stage.docs.make.marks

draws ``docs/images/icon.png`` (400 x 400) and ``docs/images/banner.png`` (1260 x 540, 21:9): a small picture that
becomes one of twice the size, and the sound under both.
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .cards import BACK, EDGE, FAINT, FRAME, FRAME_EDGE, GIVEN, INK, SOUND, STAGE

IMAGES = Path(__file__).resolve().parents[1] / "images"
ICON, BANNER = (400, 400), (1260, 540)
SMOOTH = 3  # pixels drawn for one of the file
BARS = 21
TITLE, SUBTITLE = "LTX-2 Two-Stage", "Video with sound, in two stages, in ComfyUI"


class Drawing:
    """A canvas in the file's pixels, drawn finer and scaled down once."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._image = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), BACK)
        self._draw = ImageDraw.Draw(self._image)

    def box(
        self, left: float, top: float, width: float, height: float, fill: str, edge: str = "", line: int = 6
    ) -> None:
        corners = [value * SMOOTH for value in (left, top, left + width, top + height)]
        radius = min(width, height) * 0.12 * SMOOTH
        self._draw.rounded_rectangle(corners, radius, fill, edge or None, line * SMOOTH if edge else 0)

    def polygon(self, points: list[tuple[float, float]], fill: str) -> None:
        self._draw.polygon([(x * SMOOTH, y * SMOOTH) for x, y in points], fill)

    def text(self, left: float, middle: float, words: str, size: float, fill: str) -> None:
        font = ImageFont.load_default(size * SMOOTH)
        self._draw.text((left * SMOOTH, middle * SMOOTH), words, fill, font, anchor="lm")

    def save(self, path: Path) -> None:
        self._image.resize(self._size, Image.Resampling.LANCZOS).quantize(128).save(path, optimize=True)


def mark(drawing: Drawing, left: float, top: float, side: float) -> None:
    """The two pictures and their sound in a square."""
    unit = side / 100
    drawing.box(left + 4 * unit, top + 35 * unit, 30 * unit, 21 * unit, FRAME, FRAME_EDGE)
    drawing.box(left + 46 * unit, top + 14 * unit, 50 * unit, 42 * unit, STAGE, GIVEN)
    x, y = left + 37 * unit, top + 45.5 * unit
    drawing.polygon([(x, y - 4 * unit), (x + 6 * unit, y), (x, y + 4 * unit)], INK)
    for x, y, size in ((9, 51.5, 1), (53, 49, 2)):  # the same hill in both, twice as large
        points = [(x, y), (x + 6 * size, y - 9 * size), (x + 11 * size, y - 3 * size), (x + 14 * size, y - 6 * size)]
        points += [(x + 18 * size, y)]
        drawing.polygon([(left + a * unit, top + b * unit) for a, b in points], INK)
    step = 92 * unit / BARS
    for bar in range(BARS):
        height = (3 + 17 * abs(math.sin(bar * 0.9)) * math.sin(math.pi * (bar + 0.5) / BARS)) * unit
        drawing.box(left + 4 * unit + bar * step, top + 75 * unit - height / 2, step * 0.6, height, SOUND)


def main() -> None:
    icon = Drawing(ICON)
    mark(icon, 24, 24, ICON[0] - 48)
    icon.save(IMAGES / "icon.png")
    banner = Drawing(BANNER)
    banner.box(40, 40, BANNER[0] - 80, BANNER[1] - 80, BACK, EDGE, 3)
    mark(banner, 90, 100, 340)
    banner.text(490, 235, TITLE, 84, INK)
    banner.text(494, 320, SUBTITLE, 34, FAINT)
    banner.save(IMAGES / "banner.png")


if __name__ == "__main__":
    main()
