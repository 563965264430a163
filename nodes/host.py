"""The one place that touches ComfyUI's internals: model folders, device, progress, interrupts, nested latents."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import torch
from comfy.nested_tensor import NestedTensor
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..ltx2_core.errors import SettingError
from .residency import HostMemory

_SUFFIXES = (".safetensors", ".sft")
_FOLDER_MARK = "config.json"  # a folder that holds one is a model in transformers' layout


def model_files(folders: Sequence[str]) -> list[str]:
    """Names of the safetensors files in ComfyUI's model folders of these kinds, without doubles."""
    names: dict[str, None] = {}
    for folder in _known(folders):
        names.update(dict.fromkeys(n for n in folder_paths.get_filename_list(folder) if n.endswith(_SUFFIXES)))
    return list(names)


def model_folders_and_files(folders: Sequence[str]) -> list[str]:
    """Folders in transformers' layout first, then single files that do not lie in one of these."""
    inside = [name for root in _roots(folders) for name in _layout_folders(root)]
    single = [name for name in model_files(folders) if not any(Path(name).is_relative_to(parent) for parent in inside)]
    return [*dict.fromkeys(inside), *single]


def model_path(setting: str, name: str, folders: Sequence[str]) -> Path:
    """Where a file or folder of :func:`model_folders_and_files` lies.

    Raises:
        SettingError: there is no such name any more.
    """
    for folder in _known(folders):
        if (found := folder_paths.get_full_path(folder, name)) is not None:
            return Path(found)
    for root in _roots(folders):
        if name in _layout_folders(root):
            return root / name
    places = " or ".join(f"models/{folder}" for folder in folders)
    raise SettingError(setting, name, f"there is no such file in {places}", "Put it there and press R to refresh.")


def _known(folders: Sequence[str]) -> list[str]:
    # Older hosts lack some kinds of folder
    return [folder for folder in folders if folder in folder_paths.folder_names_and_paths]


def _roots(folders: Sequence[str]) -> list[Path]:
    return [Path(root) for folder in _known(folders) for root in folder_paths.get_folder_paths(folder)]


def _layout_folders(root: Path) -> list[str]:
    found = []
    above: dict[str, tuple[str, ...]] = {
        str(root): (os.path.realpath(root),)
    }  # real paths of a folder and of those that the walk came through
    for folder, inner, files in os.walk(root, followlinks=True):
        chain = above.pop(folder)
        if _FOLDER_MARK in files and Path(folder) != root:
            found.append(Path(folder).relative_to(root).as_posix())
            inner.clear()
        for name in list(inner):
            path = os.path.join(folder, name)  # noqa: PTH118 - as os.walk spells it
            real = os.path.realpath(path)
            if real in chain:
                inner.remove(name)  # a link back to where the walk came from
            else:
                above[path] = (*chain, real)
    return sorted(found)


def compute_device() -> torch.device:
    """The device that ComfyUI computes on."""
    device: torch.device = management.get_torch_device()
    return device


def memory(device: torch.device) -> HostMemory | None:
    """ComfyUI's memory manager, where others use the device too; host memory is nothing to ask it for."""
    return None if device.type == "cpu" else HostMemory(management)


def current_run() -> Hashable:
    """Names the workflow run that the calling node belongs to; None outside of any."""
    context = get_executing_context()
    return context.prompt_id if context is not None else None


def outgoing(tensor: Tensor) -> Tensor:
    """As ComfyUI's nodes pass latents and conditioning on: float32 on the intermediate device.

    Exact for float32 and bfloat16, so that handing a latent from node to node changes no bit of it.
    """
    return tensor.to(device=management.intermediate_device(), dtype=torch.float32)


def nested(streams: Sequence[Tensor]) -> Any:
    """Tensors of several streams as ComfyUI's one nested latent."""
    return NestedTensor(streams)


class NodeProgress:
    """The engine's progress on the bar of the node that is running; every report is a chance to interrupt."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, stage: str, total: int) -> None:
        management.throw_exception_if_processing_interrupted()
        self._bar = comfy.utils.ProgressBar(total)
        self._bar.update_absolute(0)

    def step(self, stage: str, done: int) -> None:
        management.throw_exception_if_processing_interrupted()
        if self._bar is not None:
            self._bar.update_absolute(done)

    def finish(self, stage: str) -> None:
        self._bar = None
