"""Files that a run writes beside the clip: complete under their name, or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ..ltx2_core.errors import OutputError, SettingError
from ..ltx2_core.plain_text import json_text
from ..ltx2_core.types import RunReport
from ..ltx2_core.whole_file import check_writable, followed, whole_file

_SUFFIXES: Mapping[str, str] = {"output": ".mp4", "report": ".json", "save-latents": ".safetensors"}


def check_targets(targets: Mapping[str, Path | None], inputs: Iterable[tuple[str, Path]] = ()) -> None:
    """Proves, before anything is computed, that every result can be written and replaces nothing that is read.

    Args:
        targets: setting to the file it writes, None where none is asked for.
        inputs: setting and file, for every file that the run reads.

    Raises:
        SettingError: another kind of file than the setting writes, or a path that is used twice.
        OutputError: the folder is missing or not writable.
    """
    taken = {Path(os.path.realpath(path)): setting for setting, path in inputs}
    for setting, path in targets.items():
        if path is None:
            continue
        if path.suffix.lower() != _SUFFIXES[setting]:
            raise SettingError(setting, path, f"must end in {_SUFFIXES[setting]}", "Change the file's ending.")
        other = taken.setdefault(followed(path, setting), setting)
        if other != setting:
            raise SettingError(setting, path, f"is the file of {other} too", "Give each its own name.")
        check_writable(path, setting)


def check_folder(setting: str, path: Path) -> None:
    """Makes a folder for results, unless it is there.

    Raises:
        OutputError: it cannot be made, or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be made ({error.strerror})"
        raise OutputError(setting, path, problem, "Choose another folder.") from error
    check_writable(path / "probe", setting)


def write_report(path: Path, report: RunReport) -> None:
    """The report as JSON.

    Raises:
        OutputError: writing failed; nothing is left behind.
    """
    text = json_text(asdict(report), indent=2, default=str) + "\n"
    with whole_file(path, "report") as part:
        part.write_text(text, encoding="utf-8")


def write_latents(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The tensors of a run as safetensors; raises as :func:`write_report`."""
    from ..ltx2_core.files.saving import save_tensors

    with whole_file(path, "save-latents") as part:
        save_tensors(part, tensors)
