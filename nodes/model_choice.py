"""What LTX-2 Loader offers, and whether the chosen files are there and fit each other, by names and headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from comfy_api.latest import io

from ..ltx2_core.errors import LTX2Error, SettingError
from ..ltx2_core.loading.artifact_names import Role, parse_name
from ..ltx2_core.loading.artifacts import newest
from ..ltx2_core.loading.model_set import ModelFiles
from ..ltx2_core.loading.releases import Release, find_release, release_for
from . import host
from .model_sets import MODEL_SETS

NONE = "none"

# Input -> kinds of ComfyUI's model folders that it chooses from
FOLDERS: Mapping[str, tuple[str, ...]] = {
    "checkpoint": ("checkpoints", "diffusion_models"),
    "text_encoder": ("text_encoders",),
    "distilled_lora": ("loras",),
    "upsampler": ("latent_upscale_models",),
    "video_vae": ("vae",),
    "audio_vae": ("vae", "checkpoints"),
    "text_projection": ("text_encoders",),
}
# Input -> what the engine calls it
ROLES: Mapping[str, Role] = {name: Role.GEMMA if name == "text_encoder" else Role(name) for name in FOLDERS}
_NEEDED = ("checkpoint", "text_encoder")


def file_input(setting: str, tooltip: str, may_be_none: bool = False) -> Any:
    """A list of files, the newest release's in front of the others when it is there."""
    names = _names(setting)
    options = host.FileNames([NONE, *names]) if may_be_none else names
    return io.Combo.Input(setting, options=options, default=_default(setting, names), tooltip=tooltip)


def split_file_input(setting: str, tooltip: str) -> Any:
    """A list of files with parts that a checkpoint may lack, where most people choose none."""
    # "advanced" goes in as an extra: hosts before it was a parameter ignore it
    extra = {"advanced": True}
    options = host.FileNames([NONE, *_names(setting)])
    return io.Combo.Input(setting, options=options, default=NONE, optional=True, tooltip=tooltip, extra_dict=extra)


def path_of(setting: str, name: str | None) -> Path | None:
    """Where a file that the Loader chose lies; None where none is chosen.

    Raises:
        SettingError: it is not there; says where it comes from.
    """
    if name is None or name == NONE:
        return None
    return existing(setting, name, FOLDERS[setting], ROLES[setting])


def existing(setting: str, name: str, folders: tuple[str, ...], role: Role | None = None) -> Path:
    """Where a file of ComfyUI's folders of these kinds lies.

    Raises:
        SettingError: it is not there; says where it comes from.
    """
    if not isinstance(name, str):
        raise SettingError(setting, name, "must be a file's name", "Choose it from the node's list.")
    found = host.find_model(name, folders)
    if found is None:
        raise missing(setting, name, folders, role)
    return found


def missing(setting: str, name: str, folders: tuple[str, ...], role: Role | None = None) -> SettingError:
    """The error for a file that is in none of ComfyUI's folders of these kinds, with where to get it."""
    places = " or ".join(f"models/{folder}" for folder in folders)
    release = find_release(name)
    if release is not None:
        size = f"about {release.gigabytes:.1f} GB, {release.licence}"
        get = f"Get it from {release.repository} on Hugging Face ({size}), by LTX-2 Download or by hand"
        fix = f"{get}, put it into models/{folders[0]} and press R to refresh."
    else:
        like = None if role is None else _released_like(name, role)
        instead = "" if like is None else f" The released file is {like}."
        fix = f"Put it there and press R to refresh, or choose one that is there.{instead}"
    return SettingError(setting, name, f"there is no such file in {places}", fix)


def files_of(chosen: Mapping[str, str | None]) -> ModelFiles:
    """The chosen files.

    Args:
        chosen: by input; the checkpoint and the text encoder are among them.

    Raises:
        SettingError: one is not there.
    """
    for name in _NEEDED:
        if chosen.get(name) in (None, NONE):
            raise missing(name, NONE, FOLDERS[name], ROLES[name])
    paths = {ROLES[name].value: path_of(name, chosen.get(name)) for name in FOLDERS}
    return ModelFiles(**cast(dict[str, Any], paths))


def problem_when_queued(chosen: Mapping[str, str | None]) -> str | None:
    """What is wrong with the chosen files, in words, or None. Reads headers, and none of them twice.

    Args:
        chosen: by input. What comes over a link is None: not known yet.
    """
    try:
        for name in FOLDERS:
            path_of(name, chosen.get(name))
        if all(chosen.get(name) for name in _NEEDED):
            MODEL_SETS.open(files_of(chosen))
    except LTX2Error as error:
        return str(error)
    return None


def _names(setting: str) -> host.FileNames:
    listing = host.model_folders_and_files if setting == "text_encoder" else host.model_files
    return listing(FOLDERS[setting])


def _default(setting: str, names: list[str]) -> str | None:
    """The file that is ranked first by its name, with the separators that ComfyUI has in it."""
    role = ROLES[setting]
    shown = {name.replace("\\", "/"): name for name in names}
    best = newest(shown, role)
    gemma = (name for name in names if role is Role.GEMMA and "gemma" in name.lower())
    return shown[best] if best in shown else next(gemma, None)


def _released_like(name: str, role: Role) -> Release | None:
    """The released file that does the work of one that is called like this."""
    known = parse_name(name)
    generation = "2.0" if known is not None and known.generation == (2, 0) else "2.3"
    return release_for(role, generation, known is not None and known.variant == "distilled")
