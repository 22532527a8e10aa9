"""What calls leave behind in a layer, as plain values that can stand for it while nobody uses it.

Rules of this module:

* A part of a layer tells its `Remains`, or that nothing remains (None), or that nothing less than itself will do
  (EVERYTHING). They are instants as its clock counts, and counts; whatever takes them up decides as it would have.
* The first of them is the instant from which on nothing is left, without anybody's doing; None in its place where only
  further calls change that.
* `pack` makes of the remains of a layer's parts the smallest thing that Python has for them, since a million of these
  may lie in a dict: one integer where one part has left one instant, as nearly always, or else one bytes object. (A
  tuple of two integers takes four times as much as one of them.)

It knows no layer, and no clock.
"""

from __future__ import annotations

import enum
import marshal
from typing import TYPE_CHECKING, Final, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EVERYTHING", "NEVER", "Everything", "Memory", "Packed", "Remains", "pack", "unpack", "until_ns"]

Memory: TypeAlias = "int | float | tuple[Memory, ...] | None"
"""What a part may note down."""

Remains: TypeAlias = "int | tuple[Memory, ...]"
"""What calls have left behind in a part, small enough to be kept in its stead: an instant, alone or before other notes.

The instant is the reading of the part's clock from which on nothing is left, without anybody's doing. None in its
place says that nothing goes by itself.
"""


class Everything(enum.Enum):
    """The type of EVERYTHING."""

    EVERYTHING = "everything"


EVERYTHING: Final = Everything.EVERYTHING
"""The remains of a part that nothing less than the part itself could stand for."""

NEVER: Final = 2**63 - 1
"""An instant that no clock reaches: three centuries from when it began to count."""

Packed: TypeAlias = int | bytes
"""The remains of all parts of a layer, at least one of which has any."""

# Which part of how many has left the instant that an integer stands for: 15 cases, so that they fit into 4 bits. An
# integer below 2**60 takes 28 bytes; so the clock may have counted two years before any of them takes 32.
_CASES = tuple((parts, index) for parts in range(1, 6) for index in range(parts))
_NUMBERS = {case: number for number, case in enumerate(_CASES)}
_BITS = 4
_MASK = (1 << _BITS) - 1

_INSTANT = 8
# The version of marshal's format that looks for nothing that occurs twice: quicker, and smaller.
_VERSION = 2


def pack(found: Sequence[Remains | None]) -> Packed | None:
    """Return what stands for the remains of the parts, in their order; None if there are none."""
    left = [index for index, remains in enumerate(found) if remains is not None]
    if not left:
        return None
    only = found[left[0]]
    if len(left) == 1 and isinstance(only, int) and len(found) in range(1, 6):
        return only << _BITS | _NUMBERS[len(found), left[0]]
    firsts = [remains[0] if isinstance(remains, tuple) else remains for remains in found if remains is not None]
    until = NEVER if None in firsts else min(NEVER, max(cast("list[int]", firsts)))
    return until.to_bytes(_INSTANT, "big", signed=True) + marshal.dumps(tuple(found), _VERSION)


def unpack(packed: Packed) -> tuple[Remains | None, ...]:
    """Return the remains of the parts, in their order."""
    if isinstance(packed, bytes):
        return marshal.loads(packed[_INSTANT:])  # type: ignore[no-any-return]  # noqa: S302 - made by `pack`, never read from anywhere
    parts, index = _CASES[packed & _MASK]
    return (*(None,) * index, packed >> _BITS, *(None,) * (parts - index - 1))


def until_ns(packed: Packed) -> int:
    """Return the instant from which on nothing is left, or NEVER."""
    if isinstance(packed, bytes):
        return int.from_bytes(packed[:_INSTANT], "big", signed=True)
    return packed >> _BITS
