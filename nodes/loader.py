"""Opens the model files."""

from __future__ import annotations

import asyncio
from typing import Any

from comfy_api.latest import io

from ..device_manager.modes import mode_names, mode_tooltip
from ..ltx2_core.types import DTYPES, PRECISIONS
from . import host
from .handle import PIPELINES
from .model_choice import FOLDERS, NONE, file_input, files_of, path_of, problem_when_queued, split_file_input
from .model_sets import file_stamps
from .progress import notes
from .sockets import CATEGORY, pipeline_output

AUTO = "auto"


class Loader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageLoader",
            hidden=[io.Hidden.unique_id],  # for host.queued_inputs
            display_name="LTX-2 Loader",
            category=CATEGORY,
            description="Opens LTX-2 or LTX-2.3 model files and checks that they belong together. Weights are read "
            "when a stage first needs them, and stay loaded between runs and workflows.",
            search_aliases=["LTXV", "LTX-2", "LTX-2.3", "two stage", "audio video"],
            inputs=[
                file_input(
                    "checkpoint",
                    "LTX-2 or LTX-2.3 checkpoint, from models/checkpoints, or the transformer alone, from "
                    "models/diffusion_models.",
                ),
                file_input(
                    "text_encoder",
                    "Gemma 3 12B, from models/text_encoders: one file, or a folder in the Hugging Face layout.",
                ),
                file_input(
                    "distilled_lora",
                    "Distilled LoRA of the checkpoint's generation, from models/loras. The two-stage and hq presets "
                    "need it; a distilled checkpoint does not.",
                    may_be_none=True,
                ),
                file_input(
                    "upsampler",
                    "Spatial x2 upscaler of the checkpoint's generation, from models/latent_upscale_models. Every "
                    "preset of two stages needs it.",
                    may_be_none=True,
                ),
                io.Combo.Input(
                    "dtype",
                    options=[AUTO, *DTYPES],
                    default=AUTO,
                    tooltip="Precision of the models. auto: bfloat16 on a GPU, float32 on a CPU.",
                ),
                io.Combo.Input(
                    "device_mode",
                    options=list(mode_names()),
                    default=AUTO,
                    tooltip="Where the two sets of transformer weights live. auto chooses by what the machine has. "
                    + mode_tooltip(),
                ),
                split_file_input("video_vae", "Video VAE, where the checkpoint has none. From models/vae."),
                split_file_input("audio_vae", "Audio VAE and vocoder, where the checkpoint has none. From models/vae."),
                split_file_input(
                    "text_projection", "Text projection, where the checkpoint has none. From models/text_encoders."
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=AUTO,
                    optional=True,
                    tooltip="Precision of the transformer's weights. auto: as the checkpoint has them, fp8 or dtype. "
                    "fp8: the large layers of another checkpoint are quantised while it is read, which takes about "
                    "14 GB less. full: all in dtype.",
                    extra_dict={"advanced": True},
                ),
            ],
            outputs=[pipeline_output("The models, for every other LTX-2 node.")],
        )

    @classmethod
    async def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        """Files that are not there or do not fit each other are refused when queued. Linked inputs are None."""
        queued = host.queued_inputs(cls)
        chosen = {name: queued.get(name) for name in FOLDERS} | {"checkpoint": checkpoint}
        # The first look at large headers takes a second, which the page's other requests need not wait for
        return await asyncio.to_thread(problem_when_queued, chosen) or True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """A file that changed on disk is opened again."""
        return [file_stamps(path_of(name, inputs.get(name))) for name in FOLDERS]

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        text_encoder: str,
        distilled_lora: str,
        upsampler: str,
        dtype: str,
        device_mode: str,
        video_vae: str = NONE,
        audio_vae: str = NONE,
        text_projection: str = NONE,
        precision: str = AUTO,
    ) -> io.NodeOutput:
        chosen = (checkpoint, text_encoder, distilled_lora, upsampler, video_vae, audio_vae, text_projection)
        files = files_of(dict(zip(FOLDERS, chosen, strict=True)))
        device = host.compute_device()
        number = dtype if dtype != AUTO else "float32" if device.type == "cpu" else "bfloat16"
        memory = host.memory(device)
        handle = PIPELINES.open(files, DTYPES[number], device, device_mode, memory, host.current_run, precision)
        host.tell(notes(handle.pipeline.models.notices))
        return io.NodeOutput(handle)
