"""The device modes, and which one was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum


class Mode(str, Enum):
    """Where the two sets of DiT weights live."""

    RESIDENT = "resident"
    SNAPSHOT = "snapshot"
    SNAPSHOT_LOW = "snapshot-low"
    ORIGINAL = "original"

    def __str__(self) -> str:  # Python 3.10 and 3.11 differ in what a str enum prints
        return self.value


AUTO = "auto"
MODE_NAMES = ("auto", "resident", "snapshot", "snapshot-low", "original")
ENVIRONMENT_VARIABLE = "LTX2_TWO_STAGE_DEVICE_MODE"


class UnknownMode(ValueError):
    """A device mode that does not exist.

    Attributes:
        setting: where the value stands: the node's input and option, or the environment variable.
        value: what stands there.
        choices: what may stand there.
    """

    def __init__(self, setting: str, value: str, choices: tuple[str, ...] = MODE_NAMES) -> None:
        super().__init__(f"{setting} is {value!r}, which is no device mode. Choose one of: {', '.join(choices)}.")
        self.setting, self.value, self.choices = setting, value, choices


def requested_mode(setting: str | None, environ: Mapping[str, str] = os.environ) -> tuple[Mode | None, str]:
    """The mode asked for, None for auto, and where it was asked for, in words.

    Args:
        setting: the node's input or ``--device-mode``; None and "auto" leave the word to the environment.
        environ: the process's environment.

    Raises:
        UnknownMode: the setting, or the variable where it has the word, holds none of ``MODE_NAMES``.
    """
    if (mode := _parse("The device mode (node input or --device-mode)", setting)) is not None:
        return mode, "set by the node or --device-mode"
    if (mode := _parse(ENVIRONMENT_VARIABLE, environ.get(ENVIRONMENT_VARIABLE))) is not None:
        return mode, f"set by {ENVIRONMENT_VARIABLE}"
    return None, AUTO


def needs_snapshot(mode: Mode) -> bool:
    """Whether the mode keeps a copy of the base weights in host memory."""
    return mode in (Mode.SNAPSHOT, Mode.SNAPSHOT_LOW)


def _parse(where: str, value: str | None) -> Mode | None:
    name = (value or AUTO).strip().lower() or AUTO  # an empty variable is an unset one
    if name not in MODE_NAMES:
        raise UnknownMode(where, value or "")
    return None if name == AUTO else Mode(name)
