"""Ids: 26 characters behind a prefix that sort in the order of their making, as ULIDs do.

Rules of this module: an id says when it was made, and nothing else. Two are never the same; those of one process never
sort in another order than they were made in, unless the clock has fallen back.
"""

from __future__ import annotations

import functools
import os
import threading

__all__ = ["first_id", "new_id"]

# Crockford's base32 sorts as the number does, and has no letter that is mistaken for a digit.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_MAX_MILLISECONDS = (1 << 48) - 1


class _Ids:
    """What makes ids that sort in the order of their making, also within a millisecond. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By prefix: the latest millisecond that an id was made for, and the number of the last one in it.
        self._last: dict[str, tuple[int, int]] = {}

    def next(self, prefix: str, milliseconds: int) -> int:
        with self._lock:
            latest, last = self._last.get(prefix, (-1, 0))
            if milliseconds == latest:
                # A random step, so that an id does not tell the next one. From a start below 2**79, no number
                # of steps that fits into a millisecond reaches 2**80.
                number = last + 1 + int.from_bytes(os.urandom(4), "big")
            else:
                number = int.from_bytes(os.urandom(10), "big") >> 1
            if milliseconds >= latest:
                self._last[prefix] = milliseconds, number
        return number


_ids = _Ids()


def new_id(prefix: str, now: float) -> str:
    """Return a fresh id: `prefix`, then 26 characters, 48 bits of milliseconds and 80 more, which sort by time.

    Those that one process makes in one millisecond sort in the order of their making. Any thread.

    Args:
        prefix: what the id names, with its underscore: "msg_".
        now: Unix time in seconds; an instant before 1970 counts as 1970.
    """
    milliseconds = _milliseconds(now)
    return prefix + _beginning(milliseconds) + _end(_ids.next(prefix, milliseconds))


def first_id(prefix: str, at: float) -> str:
    """Return what sorts before every id made at `at` (Unix seconds) or later, and behind all earlier milliseconds'."""
    return prefix + _beginning(_milliseconds(at)) + _end(0)


def _milliseconds(now: float) -> int:
    return min(max(int(now * 1000), 0), _MAX_MILLISECONDS)


@functools.lru_cache(maxsize=64)
def _beginning(milliseconds: int) -> str:
    """Return the 48 bits of an instant in ten characters. Kept, for most ids are made in the instant of the last."""
    pairs = _PAIRS
    return "".join([pairs[milliseconds >> shift & 1023] for shift in (40, 30, 20, 10, 0)])


def _end(number: int) -> str:
    """Return 80 bits in sixteen characters, ten bits at a time."""
    pairs = _PAIRS
    return (
        f"{pairs[number >> 70]}{pairs[number >> 60 & 1023]}{pairs[number >> 50 & 1023]}{pairs[number >> 40 & 1023]}"
        f"{pairs[number >> 30 & 1023]}{pairs[number >> 20 & 1023]}{pairs[number >> 10 & 1023]}{pairs[number & 1023]}"
    )
