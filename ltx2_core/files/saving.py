"""Tensors into a safetensors file, and what safetensors asks of a path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save, save_file
from torch import Tensor

from ..errors import SettingError
from ..whole_file import whole_file


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a file, whole or not at all, with the mode that new files get here.

    safetensors 0.8 keeps its files for their owner alone.
    """
    with whole_file(path, "file") as part:
        part.touch()
        mode = part.stat().st_mode
        named = None if metadata is None else dict(metadata)
        if _is_utf8(part):
            save_file(dict(tensors), part, named)
        else:
            part.write_bytes(save(dict(tensors), named))
        part.chmod(mode)


def check_path(setting: str, path: Path | str) -> None:
    """Raises :class:`SettingError` for a path that safetensors cannot read: its bytes have to be UTF-8."""
    if not _is_utf8(path):
        problem = "has bytes that are no UTF-8, which model files are not read from"
        raise SettingError(setting, str(path), problem, "Rename the file or its folder.")


def _is_utf8(path: Path | str) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
