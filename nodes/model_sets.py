"""Model sets that were opened before, for everyone who asks about the same files: the queue, and the Loader."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import torch

from ..ltx2_core.errors import CheckpointError, LTX2Error
from ..ltx2_core.files.stamp import Stamp, stamp_of
from ..ltx2_core.loading.artifact_names import Role, parse_name
from ..ltx2_core.loading.inspect import inspect_file
from ..ltx2_core.loading.model_set import ModelFiles, ModelSet
from ..ltx2_core.loading.releases import release_for

# What has to be of the checkpoint's generation, though its shapes may fit the other one's too
_OF_ONE_GENERATION = ("upsampler", "video_vae", "audio_vae", "text_projection")
_KEPT = 4


class ModelSets:
    """Opens sets of files, each once as long as no file changes on disk. They take a few MB each, and no weights.

    Opening one reads and checks the headers, about 1 MB: one second for the released files. What was refused is
    refused again without reading. May be asked from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, ModelSet | LTX2Error] = OrderedDict()

    def open(self, files: ModelFiles, dtype: torch.dtype = torch.bfloat16, precision: str = "auto") -> ModelSet:
        """As :meth:`ModelSet.open`, and refuses parts that say that they are of another generation.

        Raises:
            CheckpointError, ConfigError, SettingError: a file cannot be used, or not with the others.
        """
        stamps = tuple(file_stamps(Path(path)) for path in files.by_role().values())
        key = (files, stamps, precision)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = _opened(files, dtype, precision)
        with self._lock:
            self._known[key] = known
            self._known.move_to_end(key)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        if isinstance(known, LTX2Error):
            raise known.with_traceback(None)
        # Each pipeline collects LoRAs of its own
        return replace(known, dtype=dtype, loras=dict(known.loras))


MODEL_SETS = ModelSets()


FileStamps = tuple[tuple[str, Stamp | None], ...]


def file_stamps(path: Path | None) -> FileStamps:
    """Path and stamp of a file, or of every file in a folder; no stamp where there is nothing any more."""
    if path is None:
        return ()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return tuple((str(file), stamp_of(file)) for file in files)


def stated_generation(path: Path) -> str | None:
    """ "2.0" or "2.3" as a released file's name says it, else as its header does; None where neither tells."""
    artifact = parse_name(path.name)
    if artifact is not None and artifact.generation:
        return artifact.generation_text
    return inspect_file(path).generation


def _opened(files: ModelFiles, dtype: torch.dtype, precision: str) -> ModelSet | LTX2Error:
    try:
        models = ModelSet.open(files, dtype, precision)
        for setting in _OF_ONE_GENERATION:
            _check_generation(setting, getattr(files, setting), models.generation)
    except LTX2Error as error:
        return error
    return models


def _check_generation(setting: str, path: Path | None, generation: str) -> None:
    """LTX-2 and LTX-2.3 have other latents: where the shapes are alike, only the file itself says whose it is."""
    found = None if path is None else stated_generation(path)
    if path is None or found in (None, generation):
        return
    release = release_for(Role(setting), generation)
    fix = f"Choose the file of LTX-{generation}" + ("." if release is None else f": {release}.")
    raise CheckpointError(setting, path, f"is of LTX-{found}, the checkpoint is of LTX-{generation}", fix)
