"""One safetensors file: its header at once, its tensors when they are asked for. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, is_out_of_memory
from ..models.scaled_weights import ScaledWeights, ScaledWeightsError
from .header import TensorInfo, read_header

__all__ = ["SafetensorsFile", "TensorInfo"]

PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_USE_BF16 = "Use the bf16 file of the same model."


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header was read and found sound.

    Attributes:
        setting: name of the setting that named the file; errors repeat it.
        tensors: in the order of their data in the file.
        config: the model description under the metadata key ``config``, or None.
    """

    path: Path
    setting: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] | None
    stamp: tuple[int, int]  # size and modification time in ns, when the header was read

    @classmethod
    def open(cls, path: Path, setting: str) -> SafetensorsFile:
        """Reads the header only.

        Raises:
            CheckpointError: the file is missing, truncated, damaged or no safetensors file.
        """
        path = Path(path)
        metadata, tensors = read_header(path, setting)
        return cls(path, setting, metadata, tensors, _config(metadata, path, setting), _stamp(path))

    @property
    def model_version(self) -> str | None:
        """Such as ``2.3.0``."""
        return self.metadata.get("model_version")

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def scaled(self) -> ScaledWeights:
        """The fp8 tensors.

        Raises:
            CheckpointError: weights are quantised in another way, or scales and markers do not fit the weights.
        """
        try:
            return ScaledWeights.find(self.tensors, self.metadata, self._bytes)
        except ScaledWeightsError as error:
            raise self.error(error.problem, error.fix) from error

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
        if _stamp(self.path) != self.stamp:
            raise self.error("changed on disk since it was opened", "Load the models again.")

    def read(
        self, names: Iterable[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """Tensors by name, on ``device``, floating-point ones cast to ``dtype`` when one is given.

        Each is read once and in file order. On the CPU a tensor that needs no cast is a private mapping of the file.

        Raises:
            CheckpointError: a tensor is not in the file or quantised, or the file changed since it was opened.
        """
        wanted = list(dict.fromkeys(names))
        missing = [name for name in wanted if name not in self.tensors]
        if missing:
            raise self.error(f"has no tensor {missing[0]}", "Use the official file.")
        self.require_plain(wanted)
        target = torch.device(device)
        return {name: tensor.to(device=target, dtype=dtype) for name, tensor in self.each(wanted, device)}

    def each(self, names: Iterable[str], device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Tensors as they are stored, fp8 ones without their scales, one after the other and in file order.

        Raises:
            CheckpointError: the file changed since it was opened, or cannot be read.
        """
        self.check_unchanged()
        target = torch.device(device)
        # Only these two are read into without a detour through another tensor.
        direct = target if target.type in ("cpu", "cuda") else torch.device("cpu")
        wanted = sorted(names, key=lambda name: self.tensors[name].offset)
        if not wanted:
            return
        try:
            with safe_open(self.path, framework="pt", device=str(direct)) as file:
                for name in wanted:
                    yield name, file.get_tensor(name).to(target)
        except (SafetensorError, OSError) as error:
            if is_out_of_memory(error):
                raise
            raise self.error(f"cannot be read ({error})", "Download the file again.") from error

    def _bytes(self, name: str) -> bytes:
        """Of a small tensor."""
        info = self.tensors[name]
        try:
            with self.path.open("rb") as file:
                file.seek(self.stamp[0] - self.nbytes + info.offset)
                return file.read(info.nbytes)
        except OSError as error:
            if is_out_of_memory(error):
                raise
            raise self.error(f"cannot be read ({error})", "Download the file again.") from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)


def _config(metadata: Mapping[str, str], path: Path, setting: str) -> Mapping[str, Any] | None:
    text = metadata.get("config")
    if text is None:
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        fix = "Use the official file, or one converted with its metadata kept."
        raise CheckpointError(setting, path, "has damaged metadata: 'config' is not a JSON object", fix)
    return config
