"""Tiny model files where a ComfyUI looks for models, under the names that the example workflows have."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..ltx2_core.errors import SettingError
from ..ltx2_core.loading.synthetic import Variant, write_tiny
from ..ltx2_core.loading.synthetic_gemma import write_single_file
from ..ltx2_core.whole_file import place_whole, remove

DISTILLED = "ltx-2.3-22b-distilled-1.1.safetensors"
GEMMA = "gemma_3_12B_it.safetensors"
TINY_LORA = "tiny-user-lora.safetensors"


def place_tiny(models: Path, variant: Variant, fp8: bool) -> list[Path]:
    """Writes the files into the subfolders of ``models``; returns where they are.

    Raises:
        SettingError: that is not ComfyUI's models folder, or a file of such a name is there already.
    """
    if not (models / "checkpoints").is_dir():
        fix = "Give the folder that holds checkpoints, loras and text_encoders."
        raise SettingError("directory", models, "is not ComfyUI's models folder", fix)
    with tempfile.TemporaryDirectory(dir=models) as folder:
        files = write_tiny(Path(folder), variant, fp8=fp8)
        gemma = Path(folder) / GEMMA
        write_single_file(files.gemma, gemma)
        places = {
            files.checkpoint: models / "checkpoints" / files.checkpoint.name,
            files.distilled_lora: models / "loras" / files.distilled_lora.name,
            files.upsampler: models / "latent_upscale_models" / files.upsampler.name,
            files.lora: models / "loras" / TINY_LORA,
            gemma: models / "text_encoders" / GEMMA,
        }
        if variant == "2.3" and not fp8:
            distilled = Path(folder) / DISTILLED
            shutil.copyfile(files.checkpoint, distilled)
            places[distilled] = models / "checkpoints" / DISTILLED
        # Their names are the official ones: nobody's real file is replaced
        for place in places.values():
            if place.exists():
                fix = "Move it away first, or give the models folder of another ComfyUI."
                raise SettingError("directory", models, f"holds {place.relative_to(models)} already", fix)
        _place(places)
    return list(places.values())


def _place(places: Mapping[Path, Path]) -> None:
    """Moves files to their places: all of them, or none."""
    placed: list[Path] = []
    try:
        for source, place in places.items():
            place.parent.mkdir(exist_ok=True)
            place_whole(source, place)
            placed.append(place)
    except BaseException:
        for place in placed:
            remove(place)
        raise
