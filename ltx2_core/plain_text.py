"""The one place where text that a file or a user brought is made harmless before somebody reads it.

Names, metadata and prompts can hold escape sequences for a terminal, markup for a page, characters that turn the
reading direction around, halves of an emoji, and megabytes. Errors, notices, log lines and metadata pass through here.
"""

from __future__ import annotations

import json
import logging
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

__all__ = ["AREAS", "LONGEST_LINE", "LONGEST_REPORT", "LONGEST_TEXT", "is_plain", "json_text", "plain", "plain_trace"]

LONGEST_TEXT = 4000  # characters: what an error dialog shows without being scrolled for long
LONGEST_LINE = 200
LONGEST_REPORT = 40_000  # tables, tracebacks, what a file holds

# Cc controls (escape sequences begin with one), Cf formats (the reading direction), Cs halves of a pair, Zl and Zp line
# ends that only some programs know
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t\u200c\u200d")  # the last two shape letters of some scripts, and emoji
# Front ends of ComfyUI put an error's text into the page as markup (1.35.9 does)
_ANGLES = str.maketrans({"<": "\u2039", ">": "\u203a"})


def plain(text: object, longest: int = LONGEST_TEXT) -> str:
    """The text without anything that a terminal, a page or a log would act on.

    Args:
        text: anything; ``str()`` of it is taken.
        longest: characters that are kept; what is cut out of the middle shows as an ellipsis.

    Returns:
        Text that encodes in UTF-8, angle brackets as the quotation marks that look like them.
    """
    whole = str(text)
    if len(whole) > longest:  # before anything is looked at: a name can have megabytes
        head = (longest - 1) * 2 // 3
        whole = f"{whole[:head]}…{whole[len(whole) - (longest - 1 - head) :]}"
    if whole.isascii() and whole.isprintable():
        return whole.translate(_ANGLES)
    return "".join(_shown(character) for character in whole).translate(_ANGLES)


def _shown(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _HIDDEN:
        return character
    return "\N{REPLACEMENT CHARACTER}"


def json_text(
    value: Any, indent: int | None = None, default: Callable[[Any], str] | None = None, ascii_only: bool = False
) -> str:
    """JSON for programs, exact: what :func:`plain` would replace is escaped, and all other text is as it is.

    Args:
        default: what a value that JSON does not know is written as; None refuses it.
        ascii_only: for a stream of any encoding.
    """
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent, default=default)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    # Outside its strings JSON has line ends alone of these characters
    if character == "\n" or unicodedata.category(character) not in _HIDDEN:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def plain_trace(error: BaseException) -> str:
    """An error as Python's traceback shows it."""
    return plain("".join(traceback.format_exception(error)), LONGEST_REPORT)


def is_plain(error: BaseException | None) -> bool:
    """Whether nothing of an error, nor of those that led to it, has to be cleaned: tracebacks show all of them."""
    while error is not None:
        if plain(error) != str(error):
            return False
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return True


AREAS = (
    "benchmarks",
    "cli",
    "device",
    "kernels",
    "loading",
    "media",
    "nodes",
    "prompt",
    "text",
    "video_vae",
)
"""Names of this package's loggers, below "ltx2"."""


def _clean(record: logging.LogRecord) -> bool:
    """Cleans a record before any handler has it, whosever that is. File names cannot begin lines of their own."""
    if isinstance(record.args, tuple):
        record.args = tuple(map(_one_line, record.args))
    try:
        record.msg, record.args = plain(record.getMessage()), ()
    except (TypeError, ValueError) as error:  # as logging itself does with a message that does not fit its values
        record.msg, record.args = plain(f"{record.msg} ({error})"), ()
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = plain_trace(record.exc_info[1])
    return True


def _one_line(value: object) -> object:
    return " ".join(str(value).splitlines()) if isinstance(value, (str, PurePath)) else value


# A filter of "ltx2" itself would not see what its children log
for _area in ("", *(f".{area}" for area in AREAS)):
    logging.getLogger(f"ltx2{_area}").addFilter(_clean)
