"""JSON of model files: one meaning, and numbers of bounded length."""

from __future__ import annotations

import json
from typing import Any

# Digits of a whole number that can mean a size; arithmetic with longer ones takes as long as somebody likes
_LONGEST_NUMBER = 19


def parse_json(text: str | bytes) -> Any:
    """Parses a text in which every object names each of its keys once.

    Whole numbers that are too long to be a size come back as floats, infinite ones where they are longer still: who
    wants a whole number refuses those by name.

    Raises:
        ValueError: it is no JSON, nested too deeply, or names a key twice.
    """
    content = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        return json.loads(content, object_pairs_hook=_unique, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice} is named twice")
    return found


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_NUMBER else float(digits)
