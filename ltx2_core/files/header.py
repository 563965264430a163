"""Reads and checks the header of a safetensors file without touching its data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError
from .json_text import parse_json
from .regular import open_regular, require_stamp, unreadable
from .stamp import Stamp

SUFFIXES = (".safetensors", ".sft")  # of the format, in any case
_LENGTH_BYTES = 8
# The released files' headers have 1 MB, and trainers write some MB of statistics. The format allows 100 MB, which take
# seconds and gigabytes to parse.
_MAX_HEADER = 16 * 2**20
_MAX_TENSORS = 50_000  # the released files have 6,000, LoRAs for all their layers 5,000
_MAX_NAME = 500  # characters
_MAX_DIMENSIONS = 8
_MAX_SIZE = 2**48  # of a dimension, in elements
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
    (b"gguf", "is a GGUF file, not a safetensors file", "Use the bf16 .safetensors file."),
    (b"<?xml", "is a server's answer in XML, not a model file", "Download the file again."),
    (b"{", "is a JSON file, not the weights", "Point to the .safetensors file itself."),
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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


@dataclass(frozen=True)
class Header:
    """What stands in front of the data.

    Attributes:
        tensors: in the order of their data.
        stamp: of the file that was read.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    stamp: Stamp


def read_header(path: Path, setting: str) -> Header:
    """Reads the header of a safetensors file, and checks that its tensors fill the file exactly.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated, damaged or of another format.
    """
    try:
        with open_regular(path) as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
            metadata, tensors = _parse(file, path, setting, stamp.size)
            require_stamp(file, stamp)
            return Header(metadata, tensors, stamp)
    except OSError as error:
        fix = "Check the path; for a repository of the Hugging Face Hub, --download fetches it."
        raise unreadable(setting, path, error, fix if setting == "checkpoint" else "Check the path.") from error


def foreign(start: bytes) -> tuple[str, str] | None:
    """What a file is that begins like this, and what to do; None where it is nothing that people load by mistake."""
    text = start.removeprefix(_BYTE_ORDER_MARK).lstrip().lower()
    return next(((problem, fix) for beginning, problem, fix in _FOREIGN if text.startswith(beginning)), None)


def _parse(file: BinaryIO, path: Path, setting: str, size: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    if size == 0:
        raise CheckpointError(setting, path, "is empty, not a safetensors file", _DOWNLOAD_AGAIN)
    start = file.read(64)
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    # A valid length can look like another format's first bytes, so the format itself is tried first.
    if len(start) <= _LENGTH_BYTES or start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{" or length > 2**40:
        raise _not_safetensors(start, path, setting)
    if _LENGTH_BYTES + length > size:
        problem = f"is truncated: its header alone takes {_LENGTH_BYTES + length:,} bytes, the file has {size:,}"
        raise CheckpointError(setting, path, problem, _DOWNLOAD_AGAIN)
    if length > _MAX_HEADER:
        problem = f"has a header of {length:,} bytes, more than the {_MAX_HEADER:,} that are read"
        raise CheckpointError(setting, path, problem, "Use the official file, or save this one with less metadata.")
    try:
        return _checked(_header_text(file, length), size - _LENGTH_BYTES - length)
    except _Damaged as error:
        raise CheckpointError(setting, path, str(error), _DOWNLOAD_AGAIN) from None


class _Damaged(ValueError):
    """What is wrong with a header, in words."""


def _header_text(file: BinaryIO, length: int) -> bytes:
    file.seek(_LENGTH_BYTES)
    parts, missing = [], length
    while missing and (part := file.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _checked(text: bytes, available: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and tensors, which take exactly the bytes that are there."""
    try:
        header = parse_json(text)
    except ValueError as error:
        why = f": {error}" if type(error) is ValueError else ""
        raise _Damaged(f"has a damaged header (not valid JSON{why})") from None
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Damaged("has damaged metadata (must be text values)")
    if len(header) > _MAX_TENSORS:
        raise _Damaged(f"lists {len(header):,} tensors, more than the {_MAX_TENSORS:,} that are read")
    try:
        tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    except ValueError as error:
        raise _Damaged(f"has a damaged header: {error}") from None
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_layout(tensors, available)
    return metadata, tensors


def _not_safetensors(start: bytes, path: Path, setting: str) -> CheckpointError:
    problem, fix = foreign(start) or ("is not a safetensors file", "Use the official .safetensors file.")
    if start.isascii() and start.decode("ascii").strip().isprintable() and foreign(start) is None and len(start) > 8:
        problem = f"is a text that begins with {start.decode('ascii').strip()[:40]!r}, not a safetensors file"
    return CheckpointError(setting, path, problem, fix)


def _tensor(name: str, entry: Any) -> TensorInfo:
    if len(name) > _MAX_NAME:
        raise ValueError(f"a tensor's name has {len(name):,} characters")
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the entry of {name} is incomplete") from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has sizes that are not whole numbers")
    if len(shape) > _MAX_DIMENSIONS or any(number > _MAX_SIZE for number in shape):
        raise ValueError(f"{name} has {len(shape)} dimensions, or one larger than any file")
    if math.prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"{name} takes {end - begin} bytes, which does not fit {dtype} {list(shape)}")
    return TensorInfo(dtype, shape, end - begin, begin)


def _check_layout(tensors: Mapping[str, TensorInfo], available: int) -> None:
    """The data of the tensors must follow each other without holes and end with the file."""
    end = 0
    for name, info in tensors.items():
        if info.offset != end:
            raise _Damaged(f"has a damaged header: {name} starts at byte {info.offset}, expected {end}")
        end += info.nbytes
    if end > available:
        raise _Damaged(f"is truncated: {end - available:,} of {end:,} bytes of weights are missing")
    if end < available:
        raise _Damaged(f"has {available - end:,} bytes behind the last tensor")
