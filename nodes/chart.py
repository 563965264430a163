"""The report's chart as pixels, for links of type IMAGE."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..device_manager.report import Chart

# Pixels for one of the chart's: sharp on a screen of high density, and where a node shows it enlarged
SCALE = 2
# From the chart's words for where a line of text is held to Pillow's; "s" is the base line
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def draw(chart: Chart) -> Tensor:
    """IMAGE (1, H, W, 3) of a chart, float32 in 0..1."""
    image = Image.new("RGB", (chart.width * SCALE, chart.height * SCALE), chart.panel)
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 0, image.width - 1, image.height - 1), outline=chart.edge, width=SCALE)
    for box in chart.boxes:
        left, top = round(box.x * SCALE), round(box.y * SCALE)
        right, bottom = round((box.x + box.width) * SCALE) - 1, round((box.y + box.height) * SCALE) - 1
        if left <= right and top <= bottom:
            canvas.rectangle((left, top, right, bottom), fill=box.colour)
    font = ImageFont.load_default(chart.font_size * SCALE)
    for words in chart.words:
        place = (words.x * SCALE, words.y * SCALE)
        # The one font that Pillow brings has no bold cut
        canvas.text(
            place,
            words.text,
            words.colour,
            font,
            _ANCHORS[words.anchor],
            stroke_width=1 if words.bold else 0,
        )
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]
