"""Every file of a run, opened: whether each is there and of the kind that its setting asks for.

Told from headers alone, before a module is made for any of them: a wrong text encoder is refused as soon as a wrong
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..files.saving import check_path
from ..models.text.gemma import GemmaSource
from ..models.weights_file import WeightsFile
from .identify import FileKind, identify
from .lora_file import LoRAFile
from .model_files import ModelFiles
from .model_parts import ModelParts

USE_UPSAMPLER = "Use the spatial x2 upsampler of the checkpoint's release, such as ltx-2.3-spatial-upscaler-x2-1.1."


@dataclass(frozen=True)
class OpenedFiles:
    """The fields of :class:`ModelFiles`; ``parts`` are the checkpoint and the files that bring what it lacks."""

    parts: ModelParts
    gemma: GemmaSource
    upsampler: WeightsFile | None
    distilled_lora: LoRAFile | None
    loras: tuple[LoRAFile, ...]

    @classmethod
    def open(cls, files: ModelFiles) -> OpenedFiles:
        """Reads headers only.

        Raises:
            CheckpointError: a file is missing, damaged, or holds something else.
            SettingError: a path cannot be used.
        """
        _check_names(files)
        return cls(
            parts=ModelParts.open(files.checkpoint, files.video_vae, files.audio_vae, files.text_projection),
            gemma=GemmaSource.open(files.gemma, "gemma"),
            upsampler=None if files.upsampler is None else _open_upsampler(files.upsampler),
            distilled_lora=None
            if files.distilled_lora is None
            else LoRAFile.open(files.distilled_lora, "distilled-lora"),
            loras=tuple(LoRAFile.open(source.path, "lora") for source in files.loras),
        )


def _check_names(files: ModelFiles) -> None:
    for role, path in files.by_role().items():
        check_path("lora" if role.startswith("lora_") else role.replace("_", "-"), path)


def _open_upsampler(path: Path) -> WeightsFile:
    file = WeightsFile.open(path, "upsampler")
    found = identify(file)
    if found.kind is not FileKind.UPSAMPLER:
        raise file.error(f"is no latent upsampler ({found})", USE_UPSAMPLER)
    return file
