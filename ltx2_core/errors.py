"""Errors that users read. Each names the setting, its value and what to do about it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from .plain_text import LONGEST_LINE, plain


class LTX2Error(Exception):
    """Base of every error that this package raises on purpose. Its text is cleaned here (:func:`.plain_text.plain`)."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Shown before the message; in ComfyUI the package's own name begins with the path of its folder
        cls.__module__ = "ltx2"


class SettingError(LTX2Error, ValueError):
    """A setting has a value that cannot work.

    Args:
        setting: name of the setting as the user typed or sees it (``width``, ``--image``).
        value: the offending value; a path is shown as text.
        problem: what is wrong with it, as the rest of a sentence ("must be a multiple of 64").
        fix: what to do instead, as a full sentence.
    """

    def __init__(self, setting: str, value: Any, problem: str, fix: str) -> None:
        value = str(value) if isinstance(value, PurePath) else value
        self.setting, self.value, self.problem, self.fix = setting, value, problem, fix
        super().__init__(f"{setting} = {_shown(value)}: {problem}. {fix}")


class ConfigError(LTX2Error, ValueError):
    """A model description in a file's metadata is missing a key, or holds one that is not supported."""

    def __init__(self, key: str, value: Any, problem: str, fix: str) -> None:
        self.key, self.value, self.problem, self.fix = key, value, problem, fix
        super().__init__(f"config key {key} = {_shown(value)}: {problem}. {fix}")


class CheckpointError(LTX2Error):
    """A file is missing, truncated, of another format or of another model."""

    def __init__(self, setting: str, path: Any, problem: str, fix: str) -> None:
        self.setting, self.path, self.problem, self.fix = setting, path, problem, fix
        super().__init__(f"{setting} = {str(path)!r}: {problem}. {fix}")


class OutputError(LTX2Error, OSError):
    """Writing a result failed; nothing half-written is left behind."""

    def __init__(self, setting: str, path: Any, problem: str, fix: str) -> None:
        self.setting, self.path, self.problem, self.fix = setting, path, problem, fix
        super().__init__(f"{setting} = {str(path)!r}: {problem}. {fix}")

    def __str__(self) -> str:
        return str(self.args[0])


class DeviceMemoryError(LTX2Error, RuntimeError):
    """The device has too little memory for what was asked, in every placement that there is."""


def _shown(value: Any) -> str:
    """A value as Python writes it, cut to a line; a number of more digits than Python writes is described."""
    try:
        return plain(repr(value), LONGEST_LINE)
    except ValueError:
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
