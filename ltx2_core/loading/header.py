"""Reads and checks the header of a safetensors file without touching its data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, is_out_of_memory

_LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000  # the format's own limit
_DOWNLOAD_AGAIN = "Download the file again; its size must equal the one on the model page."

# Bits per element of every dtype that the format defines.
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

# What people load by mistake, by the bytes that it starts with (lower case).
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the weights",
        "Run `git lfs pull` in the clone, or download the file from the model page.",
    ),
    (b"<!doctype", "is a web page, not a model file", "Use the page's download link, not the link to the page."),
    (b"<html", "is a web page, not a model file", "Use the page's download link, not the link to the page."),
    (
        b"pk\x03\x04",
        "is a zip archive, probably a pickled PyTorch checkpoint, which is not opened because it can run code",
        "Use the .safetensors file.",
    ),
    (
        b"\x80",
        "looks like a pickle, which is not opened because it can run code",
        "Use the .safetensors file.",
    ),
    (b"gguf", "is a GGUF file", "Use the bf16 .safetensors file."),
    (b"{", "is a JSON file, not the weights", "Point to the .safetensors file itself."),
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it.

    Attributes:
        dtype: the format's name, such as ``BF16``.
        offset: first byte, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int = 0


def read_header(path: Path, setting: str) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and tensors of a safetensors file, in the order of their data.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated, damaged or of another format.
    """
    if path.is_dir():
        raise CheckpointError(setting, path, "is a folder", "Give the .safetensors file itself.")
    try:
        with path.open("rb") as file:
            return _parse(file, path, setting, path.stat().st_size)
    except FileNotFoundError:
        fix = "Check the path; for a repository of the Hugging Face Hub, --download fetches it."
        raise CheckpointError(
            setting, path, "does not exist", fix if setting == "checkpoint" else "Check the path."
        ) from None
    except OSError as error:
        if is_out_of_memory(error):
            raise
        reason = error.strerror or type(error).__name__
        raise CheckpointError(setting, path, f"cannot be read ({reason})", "Check the file's permissions.") from error


def _parse(file: BinaryIO, path: Path, setting: str, size: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    if size == 0:
        raise CheckpointError(setting, path, "is empty", _DOWNLOAD_AGAIN)
    start = file.read(64)
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    # A valid length can look like another format's first bytes, so the format itself is tried first.
    if len(start) <= _LENGTH_BYTES or start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{" or length > _MAX_HEADER:
        raise _not_safetensors(start, path, setting)
    if _LENGTH_BYTES + length > size:
        problem = f"is truncated: its header alone takes {_LENGTH_BYTES + length:,} bytes, the file has {size:,}"
        raise CheckpointError(setting, path, problem, _DOWNLOAD_AGAIN)
    file.seek(_LENGTH_BYTES)
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise CheckpointError(setting, path, "has a damaged header (not valid JSON)", _DOWNLOAD_AGAIN) from None
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(setting, path, "has damaged metadata (must be text values)", _DOWNLOAD_AGAIN)
    try:
        tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    except ValueError as error:
        raise CheckpointError(setting, path, f"has a damaged header: {error}", _DOWNLOAD_AGAIN) from None
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_layout(tensors, size - _LENGTH_BYTES - length, path, setting)
    return metadata, tensors


def _not_safetensors(start: bytes, path: Path, setting: str) -> CheckpointError:
    text = start.lstrip().lower()
    for beginning, problem, fix in _FOREIGN:
        if text.startswith(beginning):
            return CheckpointError(setting, path, problem, fix)
    return CheckpointError(setting, path, "is not a safetensors file", "Use the official .safetensors file.")


def _tensor(name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the entry of {name} is incomplete") from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has sizes that are not whole numbers")
    if math.prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"{name} takes {end - begin} bytes, which does not fit {dtype} {list(shape)}")
    return TensorInfo(dtype, shape, end - begin, begin)


def _check_layout(tensors: Mapping[str, TensorInfo], available: int, path: Path, setting: str) -> None:
    """The data of the tensors must follow each other without holes and end with the file."""
    end = 0
    for name, info in tensors.items():
        if info.offset != end:
            problem = f"has a damaged header: {name} starts at byte {info.offset}, expected {end}"
            raise CheckpointError(setting, path, problem, _DOWNLOAD_AGAIN)
        end += info.nbytes
    if end > available:
        problem = f"is truncated: {end - available:,} of {end:,} bytes of weights are missing"
        raise CheckpointError(setting, path, problem, _DOWNLOAD_AGAIN)
    if end < available:
        problem = f"has {available - end:,} bytes behind the last tensor"
        raise CheckpointError(setting, path, problem, _DOWNLOAD_AGAIN)
