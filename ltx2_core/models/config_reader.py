"""Reads one section of a checkpoint's ``config`` metadata, with errors that name the key."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..errors import ConfigError

T = TypeVar("T")
_REQUIRED: Any = object()
_FIX = "Use an official LTX-2 or LTX-2.3 file, or one converted with its metadata kept."
# Far above every released value, and small enough that no product of a few of them overflows
_LARGEST_WHOLE = 10**6
_LARGEST = 1e9
_SMALLEST = 1e-12  # of what is divided by
_LONGEST_LIST = 64


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
        if not minimum <= value <= _LARGEST_WHOLE:
            raise self.error(key, f"must be at least {minimum} and at most {_LARGEST_WHOLE:,}")
        return int(value)

    def float(self, key: str, default: Any = _REQUIRED) -> float:
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "must be a number")
        if not abs(value) <= _LARGEST:
            raise self.error(key, f"must be a number of at most {_LARGEST:g}")
        return float(value)

    def positive(self, key: str, default: Any = _REQUIRED) -> builtins.float:
        value = self.float(key, default)
        if not value >= _SMALLEST:
            raise self.error(key, f"must be above 0 and at least {_SMALLEST:g}")
        return value

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

    def ints(self, key: builtins.str) -> tuple[builtins.int, ...]:
        value = self.raw(key)
        ok = isinstance(value, Sequence) and not isinstance(value, str)
        if not ok or not all(_is_whole(v) for v in value):
            raise self.error(key, "must be a list of whole numbers")
        if len(value) > _LONGEST_LIST or any(abs(v) > _LARGEST_WHOLE for v in value):
            raise self.error(key, f"must hold at most {_LONGEST_LIST} numbers of at most {_LARGEST_WHOLE:,}")
        return tuple(int(v) for v in value)

    def entries(self, key: builtins.str, kind: builtins.str) -> Sequence[Any]:
        """A list of ``kind``, which is not empty and no longer than a list of sizes may be."""
        value = self.raw(key)
        if not isinstance(value, (list, tuple)) or not value:
            raise self.error(key, f"must be a list of {kind}, and not empty")
        if len(value) > _LONGEST_LIST:
            raise self.error(key, f"has {len(value):,} entries; at most {_LONGEST_LIST} are read")
        return value

    def require(self, key: builtins.str, expected: Any, default: Any = _REQUIRED) -> None:
        """Raises unless the value equals the only one that is supported."""
        value = self.raw(key, default)
        # True equals 1 in Python, and means something else in JSON
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            raise self.error(key, f"is not supported (supported: {expected!r})")


def _is_whole(value: Any) -> bool:
    # JSON as Python reads it knows Infinity and NaN, which are no whole numbers
    return type(value) is int or (isinstance(value, float) and value.is_integer())
