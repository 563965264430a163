"""Numbers of a description that say how often a module is there: compared with a file before any is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Count(NamedTuple):
    """One such number.

    Attributes:
        key: that states it, with its section.
        value: what it states.
        parent: path of the module whose numbered children these are.
        more: children that are there besides.
    """

    key: str
    value: int
    parent: str
    more: int = 0

    def found_in(self, names: Iterable[str]) -> int:
        """How many there are among tensors of these names."""
        start = f"{self.parent}."
        return len({name[len(start) :].partition(".")[0] for name in names if name.startswith(start)})
