"""What guards and strategies count, and how they show it.

Rules of this module: a snapshot is a frozen value, read without stopping anybody. A counter costs those who count one
step, and whoever reads it the rest.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Statistics", "Tally"]


@attrs.frozen(kw_only=True)
class Statistics:
    """A snapshot of one guard.

    `admitted` and `rejected` count decisions; `succeeded`, `failed`, `ignored` and `cancelled` count how admitted calls
    were settled, where the guard minds; `contended` counts how often the guard's lock was found taken; `waiting` is the
    length of its queue now; `in_use` are the permits that are out now, and `limit` is how many may be, where they are
    counted.
    """

    admitted: int = 0
    rejected: int = 0
    succeeded: int = 0
    failed: int = 0
    ignored: int = 0
    cancelled: int = 0
    contended: int = 0
    waiting: int = 0
    in_use: int = 0
    limit: int = 0


class Tally:
    """A counter that threads share without a lock: `add()` is one step of the interpreter."""

    __slots__ = ("_count", "add")

    def __init__(self) -> None:
        self._count = itertools.count()
        self.add: Callable[[], int] = self._count.__next__

    @property
    def value(self) -> int:
        """How often it was added to. Only the counter's repr tells that without counting."""
        return int(repr(self._count)[len("count(") : -1])
