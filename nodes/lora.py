"""LoRAs of the user, one node each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.loading.lora_file import LoRAFile
from ..ltx2_core.loading.model_set import LoRASource, Stage
from . import host
from .handle import PipelineHandle
from .model_choice import existing
from .model_sets import FileStamps, file_stamps
from .progress import notes
from .sockets import CATEGORY, bounds, pipeline_input, pipeline_output

FOLDERS = ("loras",)
STAGES: Mapping[str, Stage] = {"both": "both", "stage 1": "1", "stage 2": "2"}


class LoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageLoRA",
            hidden=[io.Hidden.unique_id],  # for host.queued_literals
            display_name="LTX-2 LoRA",
            category=CATEGORY,
            description="Adds a LoRA to the transformer, in one stage or in both. Chain several for several LoRAs. The "
            "loaded checkpoint stays: another LoRA or strength does not read it again.",
            search_aliases=["LTX-2", "LoRA", "Load LoRA", "style"],
            inputs=[
                pipeline_input(),
                io.Combo.Input(
                    "lora",
                    options=host.model_files(FOLDERS),
                    tooltip="LoRA for the checkpoint's generation, from models/loras. Not the distilled one, which "
                    "LTX-2 Loader takes.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    **bounds("lora strength"),
                    step=0.01,
                    tooltip="How strongly it acts: 1 as it was made, 0 not at all.",
                ),
                io.Combo.Input(
                    "stage",
                    options=list(STAGES),
                    default="both",
                    tooltip="Where it acts: stage 1 decides about content and motion, stage 2 about detail.",
                ),
            ],
            outputs=[pipeline_output("The models with this LoRA, for every other LTX-2 node.")],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        """An input that comes over a link is None: not known yet. Whose LoRA it is, shows with the pipeline."""
        if lora is not None:
            try:
                _check(file_stamps(existing("lora", lora, FOLDERS)))
            except LTX2Error as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """A file that changed on disk is opened again."""
        return file_stamps(existing("lora", inputs["lora"], FOLDERS)) if inputs.get("lora") else None

    @classmethod
    def execute(cls, pipeline: PipelineHandle, lora: str, strength: float, stage: str) -> io.NodeOutput:
        path = existing("lora", lora, FOLDERS)
        added = pipeline.with_lora(LoRASource(path, strength, STAGES[stage]))
        known = pipeline.pipeline.models.notices
        host.tell(notes([notice for notice in added.pipeline.models.notices if notice not in known]))
        return io.NodeOutput(added)


@lru_cache(maxsize=32)
def _check(stamps: FileStamps) -> None:
    """Whether a file is a LoRA, from its header; a file that did not change is not read again.

    Raises:
        CheckpointError: it is none.
    """
    LoRAFile.open(Path(stamps[0][0]), "lora")
