"""Reads one section of a checkpoint's ``config`` metadata, with errors that name the key."""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..errors import ConfigError

T = TypeVar("T")
_REQUIRED: Any = object()
_FIX = "Use an official LTX-2 or LTX-2.3 file, or one converted with its metadata kept."


class ConfigReader:
    """Typed access to one JSON object.

    Args:
        section: dotted path shown in errors, such as ``transformer`` or ``vocoder.bwe``.
        values: the JSON object.

    Every getter raises :class:`ConfigError` naming ``section.key`` when the key is missing without a default,
    has another type, or is out of range.
    """

    def __init__(self, section: str, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(section, values, "must be a JSON object", _FIX)
        self.section, self.values = section, values

    @classmethod
    def of(cls, config: Mapping[str, Any], section: str) -> ConfigReader:
        """The reader of ``config[section]``; raises when the section is missing."""
        if section not in config:
            raise ConfigError(section, None, "the section is missing from the file's metadata", _FIX)
        return cls(section, config[section])

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def child(self, key: str) -> ConfigReader:
        if key not in self:
            raise self.error(key, "is missing")
        return ConfigReader(f"{self.section}.{key}", self.values[key])

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.section}.{key}", self.values.get(key), problem, _FIX)

    def raw(self, key: str, default: Any = _REQUIRED) -> Any:
        if key in self:
            return self.values[key]
        if default is _REQUIRED:
            raise self.error(key, "is missing")
        return default

    def int(self, key: str, default: Any = _REQUIRED, minimum: int = 1) -> int:
        value = self.raw(key, default)
        if not _is_whole(value):
            raise self.error(key, "must be a whole number")
        if value < minimum:
            raise self.error(key, f"must be at least {minimum}")
        return int(value)

    def float(self, key: str, default: Any = _REQUIRED) -> float:
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(key, "must be a number")
        return float(value)

    def bool(self, key: str, default: Any = _REQUIRED) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def str(self, key: str, default: Any = _REQUIRED, choices: Iterable[str] | None = None) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.error(key, "must be text")
        if choices is not None and value not in (known := tuple(choices)):
            raise self.error(key, f"is not supported (supported: {', '.join(known)})")
        return value

    def ints(self, key: builtins.str, default: Any = _REQUIRED) -> tuple[builtins.int, ...]:
        value = self.raw(key, default)
        ok = isinstance(value, Sequence) and not isinstance(value, str)
        if not ok or not all(_is_whole(v) for v in value):
            raise self.error(key, "must be a list of whole numbers")
        return tuple(int(v) for v in value)

    def require(self, key: builtins.str, expected: Any, default: Any = _REQUIRED) -> None:
        """Raises unless the value equals the only one that is supported."""
        if self.raw(key, default) != expected:
            raise self.error(key, f"is not supported (supported: {expected!r})")


def _is_whole(value: Any) -> bool:
    # JSON as Python reads it knows Infinity and NaN, which are no whole numbers
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and int(value) == value
