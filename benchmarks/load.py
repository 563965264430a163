"""``ltx2 bench load``: a full-size checkpoint from disk into a host snapshot, against reading the file alone."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..device_manager.base_weights import BaseWeights, SwitchableSpec
from ..device_manager.host_memory import PinnedBudget
from ..device_manager.streams import Streams
from ..ltx2_core.errors import SettingError
from ..ltx2_core.files.safetensors_file import SafetensorsFile
from ..ltx2_core.loading.synthetic import Variant
from ..ltx2_core.types import Component
from .measure import machine
from .synthetic_models import SyntheticModels

logger = logging.getLogger("ltx2.benchmarks")

_BLOCK = 64 * 2**20
_THREADS = 4  # as many as the loader reads with


def check_room(generation: Variant, path: Path) -> None:
    """Raises :class:`SettingError` where the disk has no room for the checkpoint."""
    needed = SyntheticModels(generation).component_bytes(Component.TRANSFORMER)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        problem = f"needs {needed / 1e9:.0f} GB of the disk, and {free / 1e9:.0f} GB are free"
        raise SettingError("file", path, problem, "Name a file on a larger disk.")


def run(generation: Variant, path: Path) -> dict[str, Any]:
    """Writes the checkpoint to ``path``, reads it alone and loads it, each from the disk and from the page cache.

    Raises:
        FileExistsError: ``path`` is there already.
    """
    models = SyntheticModels(generation)
    shapes = {name: tuple(t.shape) for name, t in models.skeleton(Component.TRANSFORMER).state_dict().items()}
    nbytes = _write(path, shapes)
    times: dict[str, float] = {}
    for place in ("disk", "page cache"):
        for what, action in (("read", partial(_read, path)), ("load", partial(_load, models, path))):
            if place == "disk":
                _forget(path)
            begin = time.perf_counter()
            action()
            times[f"{what} from the {place}"] = round(time.perf_counter() - begin, 3)
            logger.info("%s from the %s: %.2f s", what, place, times[f"{what} from the {place}"])
    ratios = {
        place: round(times[f"load from the {place}"] / times[f"read from the {place}"], 3)
        for place in ("disk", "page cache")
    }
    return {"machine": machine(), "bytes": nbytes, "seconds": times, "load_against_read": ratios}


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A bfloat16 safetensors file; every block of it holds the same random bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    block = os.urandom(_BLOCK)
    with path.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for at in range(0, end, _BLOCK):
            stream.write(block[: min(_BLOCK, end - at)])
        stream.flush()
        os.fsync(stream.fileno())
    return end


def _forget(path: Path) -> None:
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> None:
    """Every byte once, into memory that is used again."""
    size = path.stat().st_size

    def share(first: int) -> None:
        memory = bytearray(_BLOCK)
        with path.open("rb", buffering=0) as stream:
            for at in range(first * _BLOCK, size, _THREADS * _BLOCK):
                stream.seek(at)
                stream.readinto(memory)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(share, range(_THREADS)))


def _load(models: SyntheticModels, path: Path) -> None:
    file = SafetensorsFile.open(path, "checkpoint")

    def nothing(*arguments: Any) -> None:
        raise AssertionError("loading uses no adapters")

    spec = SwitchableSpec(
        lambda: models.skeleton(Component.TRANSFORMER), file.read_into, "transformer_blocks", nothing, nothing, nothing
    )
    budget = PinnedBudget()
    weights = BaseWeights(spec, True, Streams(torch.device("cuda")), budget, lambda _h2d, _d2h: None)
    weights.load()
    if budget.pinned < weights.host_bytes["base"]:
        logger.warning("only %.1f GB are page-locked", budget.pinned / 1e9)
    weights.streams.settle()
    weights.forget()
