"""Opens the model files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..assembly import check_device_mode
from ..device_manager.modes import MODE_NAMES
from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.loading.model_set import ModelFiles
from ..ltx2_core.types import DTYPES, PRECISIONS
from . import host
from .handle import PIPELINES, file_stamps
from .sockets import CATEGORY, pipeline_output

NONE = "none"
AUTO = "auto"

# Input -> kinds of ComfyUI's model folders that it chooses from
FOLDERS = {
    "checkpoint": ("checkpoints", "diffusion_models"),
    "text_encoder": ("text_encoders",),
    "distilled_lora": ("loras",),
    "upsampler": ("latent_upscale_models",),
    "video_vae": ("vae",),
    "audio_vae": ("vae", "checkpoints"),
    "text_projection": ("text_encoders",),
}


class Loader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageLoader",
            display_name="LTX-2 Loader",
            category=CATEGORY,
            description="Opens LTX-2 or LTX-2.3 model files and checks that they belong together. Weights are read "
            "when a stage first needs them, and stay loaded between runs and workflows.",
            search_aliases=["LTXV", "LTX-2", "LTX-2.3", "two stage", "audio video"],
            inputs=[
                _file_input(
                    "checkpoint",
                    "ltx-2",
                    "LTX-2 or LTX-2.3 checkpoint, from models/checkpoints, or the transformer alone, from "
                    "models/diffusion_models.",
                ),
                _file_input(
                    "text_encoder",
                    "gemma",
                    "Gemma 3 12B, from models/text_encoders: one file, or a folder in the Hugging Face layout.",
                ),
                _file_input(
                    "distilled_lora",
                    "distilled-lora",
                    "Distilled LoRA of the checkpoint's generation, from models/loras. The two-stage and hq presets "
                    "need it; a distilled checkpoint does not.",
                    may_be_none=True,
                ),
                _file_input(
                    "upsampler",
                    "spatial-upscaler-x2",
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
                    options=list(MODE_NAMES),
                    default=AUTO,
                    tooltip="Where the two sets of transformer weights live. auto chooses by what the machine has. "
                    "resident: both on the GPU (86 to 111 GB). snapshot: the second one only while it is used. "
                    "snapshot-low: one on the GPU and a copy in host memory (45 GB). original: one, with the "
                    "LoRA applied on the fly (48 GB).",
                ),
                _split_file_input("video_vae", "Video VAE, where the checkpoint has none. From models/vae."),
                _split_file_input(
                    "audio_vae", "Audio VAE and vocoder, where the checkpoint has none. From models/vae."
                ),
                _split_file_input(
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
    def validate_inputs(cls, device_mode: str | None = None) -> bool | str:
        try:
            check_device_mode(device_mode)
        except LTX2Error as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """A file that changed on disk is opened again."""
        return [file_stamps(_path(name, inputs.get(name))) for name in FOLDERS]

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
        files = ModelFiles(
            checkpoint=host.model_path("checkpoint", checkpoint, FOLDERS["checkpoint"]),
            gemma=host.model_path("text_encoder", text_encoder, FOLDERS["text_encoder"]),
            upsampler=_path("upsampler", upsampler),
            distilled_lora=_path("distilled_lora", distilled_lora),
            video_vae=_path("video_vae", video_vae),
            audio_vae=_path("audio_vae", audio_vae),
            text_projection=_path("text_projection", text_projection),
        )
        device = host.compute_device()
        chosen = dtype if dtype != AUTO else "float32" if device.type == "cpu" else "bfloat16"
        memory = host.memory(device)
        handle = PIPELINES.open(files, DTYPES[chosen], device, device_mode, memory, host.current_run, precision)
        return io.NodeOutput(handle)


def _path(setting: str, name: str | None) -> Path | None:
    return None if name in (None, NONE) else host.model_path(setting, name, FOLDERS[setting])


def _file_input(setting: str, preferred: str, tooltip: str, may_be_none: bool = False) -> Any:
    listing = host.model_folders_and_files if setting == "text_encoder" else host.model_files
    names = listing(FOLDERS[setting])
    default = next((name for name in names if preferred in name), None)
    options = [NONE, *names] if may_be_none else names
    return io.Combo.Input(setting, options=options, default=default, tooltip=tooltip)


def _split_file_input(setting: str, tooltip: str) -> Any:
    options = [NONE, *host.model_files(FOLDERS[setting])]
    # "advanced" goes in as an extra: hosts before it was a parameter ignore it
    extra = {"advanced": True}
    return io.Combo.Input(setting, options=options, default=NONE, optional=True, tooltip=tooltip, extra_dict=extra)
