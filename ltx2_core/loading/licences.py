"""Which licences of model files this user has accepted: kept on this machine, never in a workflow.

A workflow travels from one user to another, and what it says is nobody's consent. Consent is a file in the user's own
settings, written by ``ltx2 accept-licences`` or by the button of LTX-2 Download, or an environment variable.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .releases import GEMMA_LICENCE, LTX_LICENCE, TEXT_ENCODER, released_set

ENVIRONMENT = "LTX2_ACCEPT_LICENCES"  # "yes" accepts all of them, for machines that nobody sits at
FOLDER = "LTX2_SETTINGS"  # another folder for the file
LICENCES: Mapping[str, tuple[str, ...]] = {
    LTX_LICENCE: tuple(released_set(generation, "one-stage")[0].repository for generation in ("2.3", "2.0")),
    GEMMA_LICENCE: (TEXT_ENCODER.repository,),
}
"""Licence -> the repositories whose pages have it."""


def settings_file() -> Path:
    """Where acceptance is kept for this user."""
    if folder := os.environ.get(FOLDER):
        return Path(folder) / "licences.json"
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return base / "ltx2-two-stage" / "licences.json"


def missing_consent(licences: Iterable[str]) -> list[str]:
    """Those of the licences that nobody has accepted here, without doubles."""
    if os.environ.get(ENVIRONMENT, "").strip().lower() == "yes":
        return []
    accepted = _accepted()
    return [name for name in dict.fromkeys(licences) if name not in accepted]


def accept(licences: Iterable[str] = tuple(LICENCES)) -> Path:
    """Notes that the user accepts these licences; returns the file.

    Raises:
        OutputError: it cannot be written.
    """
    path = settings_file()
    names = sorted({*_accepted(), *licences})
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"accepted": names}, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        fix = f"Set {FOLDER} to a folder that you may write to, or {ENVIRONMENT}=yes."
        raise OutputError("licences", path, f"cannot be written ({error.strerror or error})", fix) from error
    return path


def _accepted() -> frozenset[str]:
    """Names in the file; anything else than a list of texts is no consent."""
    try:
        kept: Any = json.loads(settings_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return frozenset()
    names = kept.get("accepted") if isinstance(kept, dict) else None
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()
