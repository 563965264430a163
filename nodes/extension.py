"""What ComfyUI is given: every node that can be imported, whatever becomes of the others."""

from __future__ import annotations

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io

log = logging.getLogger("ltx2.nodes")

# Module -> class, in the order of a workflow
NODES: tuple[tuple[str, str], ...] = (
    ("loader", "Loader"),
    ("lora", "LoRA"),
    ("recipe", "Recipe"),
    ("text", "TextEncode"),
    ("image", "ImageCondition"),
    ("stages", "Denoise"),
    ("stages", "LoRASwitch"),
    ("stages", "Upsample"),
    ("stages", "Refine"),
    ("stages", "Decode"),
    ("generate", "Generate"),
    ("model", "Model"),
    ("report", "Report"),
    ("download", "Download"),
)


def load_nodes() -> list[type[io.ComfyNode]]:
    """The nodes that can be imported and declare themselves; the others are left out, with a traceback in the log.

    Raises:
        Exception: of the first node, when there is none that works.
    """
    from .guard import guarded

    nodes: list[type[io.ComfyNode]] = []
    first: Exception | None = None
    for module, name in NODES:
        try:
            node: type[io.ComfyNode] = getattr(import_module(f".{module}", __package__), name)
            node.GET_SCHEMA()  # ComfyUI asks for it next, and would drop every node behind one that fails
        except Exception as error:
            log.exception("the node %s is left out, it cannot be imported; the others are there", name)
            first = first or error
        else:
            nodes.append(guarded(node))
    if first is not None and not nodes:
        raise first
    return nodes


class TwoStageExtension(ComfyExtension):
    """What ComfyUI asks for the nodes of this pack."""

    async def on_load(self) -> None:
        try:
            from . import host
            from .panel import PANEL

            PANEL.serve()
            host.follow_queue()
        except Exception:
            log.exception("the device panel is left out; the nodes are there")

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return load_nodes()
