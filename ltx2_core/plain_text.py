"""The one place where text that a file or a user brought is made harmless before somebody reads it.

Names, metadata and prompts can hold escape sequences for a terminal, markup for a page, characters that turn the
reading direction around, halves of an emoji, and megabytes. Errors, notices, log lines and metadata pass through here.
"""

from __future__ import annotations

import unicodedata

__all__ = ["LONGEST_LINE", "LONGEST_TEXT", "plain"]

LONGEST_TEXT = 4000  # characters: what an error dialog shows without being scrolled for long
LONGEST_LINE = 200

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
