"""One safetensors file: its header at once, its tensors when they are asked for. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError
from .byte_reader import ByteReader, Piece
from .header import TensorInfo, read_header
from .json_text import parse_json
from .regular import FileChanged, unreadable
from .stamp import Stamp, stamp_of

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
F = TypeVar("F", bound="SafetensorsFile")
_USE_BF16 = "Use the bf16 file of the same model."
_MOST_BYTES = 2**16  # of a tensor that is read while a header is checked


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header was read and found sound.

    Attributes:
        setting: name of the setting that named the file; errors repeat it.
        tensors: in the order of their data in the file.
        config: the model description under the metadata key ``config``, or None.
        stamp: of the file whose header was read.
    """

    path: Path
    setting: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] | None
    stamp: Stamp

    @classmethod
    def open(cls: type[F], path: Path, setting: str) -> F:
        """Reads the header only.

        Raises:
            CheckpointError: the file is missing, truncated, damaged or no safetensors file.
        """
        path = Path(path)
        header = read_header(path, setting)
        config = _config(header.metadata, path, setting)
        return cls(path, setting, header.metadata, header.tensors, config, header.stamp)

    @property
    def model_version(self) -> str | None:
        """Such as ``2.3.0``."""
        return self.metadata.get("model_version")

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def error(self, problem: str, fix: str) -> CheckpointError:
        """An error about this file."""
        return CheckpointError(self.setting, self.path, problem, fix)

    def require_plain(self, names: Iterable[str]) -> None:
        """Raises :class:`CheckpointError` when one of these tensors is quantised."""
        found = [self.tensors[name].dtype for name in names]
        quantised = [dtype for dtype in found if dtype not in PLAIN_DTYPES]
        if quantised:
            kinds = ", ".join(sorted(set(quantised)))
            raise self.error(f"holds quantised weights ({len(quantised)} of {len(found)} are {kinds})", _USE_BF16)

    def check_unchanged(self) -> None:
        """Raises :class:`CheckpointError` when the file is not the one whose header was read."""
        if stamp_of(self.path) != self.stamp:
            raise unreadable(self.setting, self.path, FileChanged())

    def read(
        self, names: Iterable[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """Tensors by name, on ``device``, floating-point ones cast to ``dtype`` when one is given.

        Each is read once and in file order, into memory of its own.

        Raises:
            CheckpointError: a tensor is not in the file or quantised, or the file changed since it was opened.
        """
        wanted = list(dict.fromkeys(names))
        missing = [name for name in wanted if name not in self.tensors]
        if missing:
            raise self.error(f"has no tensor {missing[0]}", "Use the official file.")
        self.require_plain(wanted)
        return {name: tensor.to(dtype=dtype) for name, tensor in self.each(wanted, device)}

    def each(self, names: Iterable[str], device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Tensors as they are stored, fp8 ones without their scales, one after the other and in file order.

        Raises:
            CheckpointError: the file changed since it was opened, or cannot be read.
        """
        with self._reader() as reader:
            for name in sorted(names, key=lambda name: self.tensors[name].offset):
                info = self.tensors[name]
                tensor = torch.empty(info.shape, dtype=self._dtype(name), device=device)
                reader.read(self._pieces({name: tensor}))
                yield name, tensor

    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Fills ``targets`` with the tensors of these names; fp8 numbers come without their scales.

        Contiguous memory of the stored dtype is read into without any copy in between; other targets get theirs
        through one tensor at a time.

        Raises:
            CheckpointError: the file changed since it was opened, or cannot be read.
        """
        direct = {name: target for name, target in targets.items() if self._fits(name, target)}
        if direct:
            with self._reader() as reader:
                reader.read(self._pieces(direct))
        for name, tensor in self.each(targets.keys() - direct.keys()):
            targets[name].copy_(tensor)

    def read_bytes(self, name: str) -> bytes:
        """The bytes of a small tensor, such as a marker that says how weights are stored.

        Raises:
            CheckpointError: it is larger than any such marker, the file changed since it was opened, or cannot be read.
        """
        info = self.tensors[name]
        if info.nbytes > _MOST_BYTES:
            problem = f"has a marker of {info.nbytes:,} bytes ({name}), more than any can have"
            raise self.error(problem, "Use the official file.")
        memory = torch.empty(info.nbytes, dtype=torch.uint8)
        with self._reader() as reader:
            reader.read(self._pieces({name: memory}))
        return memory.numpy().tobytes()

    def _fits(self, name: str, target: Tensor) -> bool:
        shape, dtype = self.tensors[name].shape, TORCH_DTYPES.get(self.tensors[name].dtype)
        return target.is_contiguous() and target.dtype is dtype and tuple(target.shape) == shape

    def _dtype(self, name: str) -> torch.dtype:
        kind = self.tensors[name].dtype
        if kind not in TORCH_DTYPES:
            raise self.error(f"holds {name} in {kind}, which is not read", _USE_BF16)
        return TORCH_DTYPES[kind]

    def _pieces(self, targets: Mapping[str, Tensor]) -> Iterator[Piece]:
        base = self.stamp.size - self.nbytes
        for name, target in targets.items():
            if target.numel():
                yield base + self.tensors[name].offset, target.detach().view(-1).view(torch.uint8)

    @contextmanager
    def _reader(self) -> Iterator[ByteReader]:
        try:
            with ByteReader(self.path, self.stamp) as reader:
                yield reader
        except OSError as error:
            raise unreadable(self.setting, self.path, error) from error


def _config(metadata: Mapping[str, str], path: Path, setting: str) -> Mapping[str, Any] | None:
    text = metadata.get("config")
    if text is None:
        return None
    try:
        config = parse_json(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        fix = "Use the official file, or one converted with its metadata kept."
        raise CheckpointError(setting, path, "has damaged metadata: 'config' is not a JSON object", fix)
    return config
