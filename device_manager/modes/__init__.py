"""The device modes, and which one was asked for.

A mode is a file here and its line in ``MODES``: policy, manager, panel, errors, tooltips and command line read them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .mode import Mode
from .original import ORIGINAL
from .resident import RESIDENT
from .snapshot import SNAPSHOT
from .snapshot_low import SNAPSHOT_LOW

# The fastest first: auto takes the first that fits
MODES: tuple[Mode, ...] = (RESIDENT, SNAPSHOT, SNAPSHOT_LOW, ORIGINAL)
# Without a GPU one copy of the weights serves both stages
WITHOUT_GPU = ORIGINAL

AUTO = "auto"
AUTO_SENTENCE = "Chosen by what the machine has."
ENVIRONMENT_VARIABLE = "LTX2_TWO_STAGE_DEVICE_MODE"


def mode_names() -> tuple[str, ...]:
    """What a user may ask for: auto, and every mode by its name."""
    return (AUTO, *(mode.name for mode in MODES))


def mode_named(name: str) -> Mode:
    """The mode of this name.

    Raises:
        KeyError: there is none.
    """
    return {mode.name: mode for mode in MODES}[name]


def lightest() -> Mapping[str, str]:
    """Names of the modes that take the least memory: of the device, and of the host where there is no GPU."""
    mode = MODES[0]
    while mode.falls_back_to is not None:
        mode = mode.falls_back_to
    return {"device": mode.name, "host": WITHOUT_GPU.name}


def mode_tooltip() -> str:
    """What each mode takes, in a sentence each."""
    return " ".join(f"{mode.name}: {mode.tooltip}." for mode in MODES)


class UnknownMode(ValueError):
    """A device mode that does not exist.

    Attributes:
        setting: where the value stands: the node's input and option, or the environment variable.
        value: what stands there.
        choices: what may stand there.
    """

    def __init__(self, setting: str, value: str) -> None:
        self.setting, self.value, self.choices = setting, value, mode_names()
        choices = ", ".join(self.choices)
        super().__init__(f"{setting} is {value!r}, which is no device mode. Choose one of: {choices}.")


def requested_mode(setting: str | None, environ: Mapping[str, str] = os.environ) -> tuple[Mode | None, str]:
    """The mode asked for, None for auto, and where it was asked for, in words.

    Args:
        setting: the node's input or ``--device-mode``; None and "auto" leave the word to the environment.
        environ: the process's environment.

    Raises:
        UnknownMode: the setting, or the variable where it has the word, holds none of :func:`mode_names`.
    """
    if (mode := _parse("The device mode (node input or --device-mode)", setting)) is not None:
        return mode, "set by the node or --device-mode"
    if (mode := _parse(ENVIRONMENT_VARIABLE, environ.get(ENVIRONMENT_VARIABLE))) is not None:
        return mode, f"set by {ENVIRONMENT_VARIABLE}"
    return None, AUTO


def _parse(where: str, value: str | None) -> Mode | None:
    name = (value or AUTO).strip().lower() or AUTO  # an empty variable is an unset one
    if name not in mode_names():
        raise UnknownMode(where, value or "")
    return None if name == AUTO else mode_named(name)
