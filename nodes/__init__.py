"""ComfyUI nodes: each converts its inputs, calls the engine and wraps what comes back."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .generate import Generate
from .image import ImageCondition
from .loader import Loader
from .lora import LoRA
from .model import Model
from .panel import PANEL
from .recipe import Recipe
from .report import Report
from .stages import Decode, Denoise, LoRASwitch, Refine, Upsample
from .text import TextEncode

NODES: tuple[type[io.ComfyNode], ...] = (
    Loader,
    LoRA,
    Recipe,
    TextEncode,
    ImageCondition,
    Denoise,
    LoRASwitch,
    Upsample,
    Refine,
    Decode,
    Generate,
    Model,
    Report,
)


class TwoStageExtension(ComfyExtension):
    """What ComfyUI asks for the nodes of this pack."""

    async def on_load(self) -> None:
        PANEL.serve()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
