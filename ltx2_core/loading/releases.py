"""Where the released files come from: repository, size and licence of each, as data (docs/model.md 1.1 and 1.4).

Sizes are for people who decide whether to download; what the Hub says when it is asked is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..recipes import RECIPE_NAMES
from .artifact_names import Role

LTX_LICENCE = "LTX-2 Community License Agreement"
GEMMA_LICENCE = "Gemma Terms of Use"


@dataclass(frozen=True)
class Release:
    """One released file.

    Attributes:
        repository: on the Hugging Face Hub.
        path: inside the repository, with slashes.
        gigabytes: 10^9 bytes.
    """

    role: Role
    repository: str
    path: str
    gigabytes: float
    licence: str = LTX_LICENCE

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def __str__(self) -> str:
        return f"{self.name} ({self.gigabytes:.1f} GB, from {self.repository})"


_LTX_2_3, _LTX_2, _SPLIT_2_3 = "Lightricks/LTX-2.3", "Lightricks/LTX-2", "Kijai/LTX2.3_comfy"
_COMFY, _COMFY_GEMMA = "Comfy-Org/ltx-2", "split_files/text_encoders/gemma_3_12B_it"

TEXT_ENCODER = Release(Role.GEMMA, _COMFY, f"{_COMFY_GEMMA}.safetensors", 24.4, GEMMA_LICENCE)
# Generation -> the files of a run: the recipes of the dev checkpoint, the distilled recipe's checkpoint, the others
_DEV: Mapping[str, Release] = {
    "2.3": Release(Role.CHECKPOINT, _LTX_2_3, "ltx-2.3-22b-dev.safetensors", 46.1),
    "2.0": Release(Role.CHECKPOINT, _LTX_2, "ltx-2-19b-dev.safetensors", 43.3),
}
_DISTILLED: Mapping[str, Release] = {
    "2.3": Release(Role.CHECKPOINT, _LTX_2_3, "ltx-2.3-22b-distilled-1.1.safetensors", 46.1),
    "2.0": Release(Role.CHECKPOINT, _LTX_2, "ltx-2-19b-distilled.safetensors", 43.3),
}
_LORA: Mapping[str, Release] = {
    "2.3": Release(Role.DISTILLED_LORA, _LTX_2_3, "ltx-2.3-22b-distilled-lora-384-1.1.safetensors", 7.6),
    "2.0": Release(Role.DISTILLED_LORA, _LTX_2, "ltx-2-19b-distilled-lora-384.safetensors", 7.7),
}
_UPSAMPLER: Mapping[str, Release] = {
    "2.3": Release(Role.UPSAMPLER, _LTX_2_3, "ltx-2.3-spatial-upscaler-x2-1.1.safetensors", 1.0),
    "2.0": Release(Role.UPSAMPLER, _LTX_2, "ltx-2-spatial-upscaler-x2-1.0.safetensors", 1.0),
}
# Files that are chosen by hand in place of the above
_OTHERS: tuple[Release, ...] = (
    Release(Role.CHECKPOINT, _LTX_2, "ltx-2-19b-dev-fp8.safetensors", 27.1),
    Release(Role.CHECKPOINT, _LTX_2, "ltx-2-19b-distilled-fp8.safetensors", 27.1),
    Release(Role.GEMMA, _COMFY, f"{_COMFY_GEMMA}_fp8_scaled.safetensors", 13.2, GEMMA_LICENCE),
    Release(Role.CHECKPOINT, _SPLIT_2_3, "diffusion_models/ltx-2.3-22b-dev_transformer_only_bf16.safetensors", 42.0),
    Release(Role.TEXT_PROJECTION, _SPLIT_2_3, "text_encoders/ltx-2.3_text_projection_bf16.safetensors", 2.3),
)
GENERATIONS = tuple(_DEV)


def released_set(generation: str, recipe: str) -> tuple[Release, ...]:
    """The files that a recipe takes of a generation, without the text encoder.

    Args:
        generation: "2.3" or "2.0".
        recipe: one of the recipes' names.
    """
    assert recipe in RECIPE_NAMES
    if recipe == "distilled":
        return _DISTILLED[generation], _UPSAMPLER[generation]
    if recipe == "one-stage":
        return (_DEV[generation],)
    return _DEV[generation], _LORA[generation], _UPSAMPLER[generation]


def find_release(name: str) -> Release | None:
    """The released file of this name, wherever it lies; None for other names."""
    return _BY_NAME.get(PurePosixPath(name.replace("\\", "/")).name)


def release_for(role: Role, generation: str, distilled: bool = False) -> Release | None:
    """The released file of a role; None where there is none to recommend.

    Args:
        generation: "2.3" or "2.0".
        distilled: the checkpoint of the distilled recipe.
    """
    if role is Role.GEMMA:
        return TEXT_ENCODER
    checkpoints = _DISTILLED if distilled else _DEV
    table = {Role.CHECKPOINT: checkpoints, Role.DISTILLED_LORA: _LORA, Role.UPSAMPLER: _UPSAMPLER}.get(role)
    return None if table is None else table[generation]


_BY_NAME: Mapping[str, Release] = {
    release.name: release
    for release in (
        *(release for table in (_DEV, _DISTILLED, _LORA, _UPSAMPLER) for release in table.values()),
        TEXT_ENCODER,
        *_OTHERS,
    )
}
