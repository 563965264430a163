"""Tensors into a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..whole_file import whole_file


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a file, whole or not at all, with the mode that new files get here.

    safetensors 0.8 keeps its files for their owner alone.
    """
    with whole_file(path, "file") as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(dict(tensors), part, None if metadata is None else dict(metadata))
        part.chmod(mode)
