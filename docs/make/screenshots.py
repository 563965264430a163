"""Pictures of the nodes for their help pages, and of ComfyUI's page for the README, taken in a Chromium.

    python -m ltx2_two_stage.docs.make.screenshots --host http://127.0.0.1:8188

The host needs this pack and model files of the official names; tiny ones do (ltx2 make-tiny).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from PIL import Image

from .graphs import WORKFLOWS
from .words import PAGES, PREFIX

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
README_GRAPH = WORKFLOWS / "ltx2_two_stage_text_to_video.json"
SCALE = 1.5  # pixels of a picture for one of the page's: sharp on most screens
MARGIN, TITLE = 14, 50  # around a node, and above it for its title and badge
LEFT, TOP = 90, 140  # of the page, where nothing covers the graph
QUALITY = 82

# Each node at a place of its own: the page remembers a number's widgets when a graph is cleared
_NODE = """((kind, place) => {{
  const node = LiteGraph.createNode(kind)
  app.graph.add(node)
  const least = node.computeSize()
  node.setSize([Math.max(least[0], 340), Math.max(least[1], node.size[1])])
  if (kind.endsWith('Generate')) node.setSize([400, least[1] + 160])
  node.pos = [place, 0]
  app.canvas.deselectAll()
  app.canvas.ds.scale = 1
  app.canvas.ds.offset = [{left} - place, {top}]
  app.canvas.setDirty(true, true)
  return [node.size[0], node.size[1]]
}})({kind}, {place})"""
_GRAPH = """(async graph => {{
  await app.loadGraphData(graph)
  let box = [1e9, 1e9, -1e9, -1e9]
  for (const group of app.graph._groups) {{
    const [x, y, width, height] = group._bounding
    box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + width), Math.max(box[3], y + height)]
  }}
  const scale = ({width} - {left} - 30) / (box[2] - box[0])
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [{left} / scale - box[0], {top} / scale - box[1]]
  app.canvas.setDirty(true, true)
  return [(box[2] - box[0]) * scale, (box[3] - box[1]) * scale]
}})({graph})"""
# The last of the innermost elements that say a text
_CLICK = """(words => {{
  const found = [...document.querySelectorAll('button, span, div')].filter(
    element => element.textContent.trim() === words && !element.querySelector('button, div'))
  found.at(-1)?.click()
  return found.length > 0
}})({words})"""


def _driver() -> Any:
    """The browser tests' driver: tests are no package to import it from."""
    spec = importlib.util.spec_from_file_location("ltx2_chromium", ROOT / "tests" / "browser" / "chromium.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Camera:
    """Takes pictures of an open page."""

    def __init__(self, page: Any, folder: Path) -> None:
        self._page, self._raw = page, folder / "picture.png"

    def take(self, path: Path, box: tuple[float, float, float, float]) -> None:
        time.sleep(1.0)  # fonts, and texts that lie over the canvas, follow it a moment later
        self._page.screenshot(self._raw, dict(zip(("x", "y", "width", "height"), box, strict=True)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(self._raw) as picture:
            picture.convert("RGB").save(path, quality=QUALITY, method=6)

    def nodes(self, kinds: list[str]) -> None:
        self._page.run("app.graph.clear()")
        for number, kind in enumerate(kinds):
            words = _NODE.format(left=LEFT, top=TOP, kind=json.dumps(kind), place=2000 * number)
            width, height = self._page.run(words)
            box = (LEFT - MARGIN, TOP - TITLE, width + 2 * MARGIN, height + TITLE + MARGIN)
            self.take(PAGES / "images" / f"{kind}.webp", box)

    def graph(self, path: Path, width: int) -> None:
        words = _GRAPH.format(left=LEFT, top=TOP, width=width, graph=path.read_text(encoding="utf-8"))
        wide, high = self._page.run(words)
        self.take(IMAGES / "graph.webp", (LEFT - MARGIN, TOP - MARGIN, wide + 2 * MARGIN, high + 2 * MARGIN))

    def templates(self, width: int, height: int) -> None:
        self._page.run("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self._page.wait_for(_CLICK.format(words='"ltx2-two-stage"'))
        time.sleep(2.0)
        self.take(IMAGES / "templates.webp", (0, 0, width, height))


def main() -> None:
    parser = argparse.ArgumentParser(description="Takes the pictures of nodes and pages.")
    parser.add_argument("--host", default="http://127.0.0.1:8188", help="a running ComfyUI with this pack")
    host = parser.parse_args().host
    with urlopen(host + "/object_info") as answer:
        kinds = [kind for kind in json.load(answer) if kind.startswith(PREFIX)]
    driver = _driver()
    program = driver.find_chromium()
    assert program, "no Chromium was found: set CHROMIUM to its program"
    with tempfile.TemporaryDirectory() as folder, driver.browser(program, Path(folder) / "profile") as page:
        page.open(host)
        page.wait_for("window.app?.vueAppReady && !!app.canvas")
        camera = Camera(page, Path(folder))
        page.resize(1100, 1000, SCALE)
        camera.nodes(kinds)
        page.resize(1440, 1000)
        camera.templates(1440, 1000)
        page.press("Escape", 27)
        page.resize(2600, 1500)  # the map at the bottom stays below the graph
        camera.graph(README_GRAPH, 2600)


if __name__ == "__main__":
    main()
