"""Which guards' blocks the current task or thread is in, and their permits: what `with guard:` remembers.

A block belongs to the task or thread that entered it. A task inherits the blocks that its parent was in when it began;
it may enter more, and leaves those alone. So they are a linked list in a ContextVar, to which everybody adds at the
front: nothing that others can see is ever changed.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from resilience.fusing import Deciding, Permit

__all__ = ["enter", "leave"]


class _Entered(NamedTuple):
    """A guard whose block is entered, and the blocks around that one."""

    guard: Deciding
    permit: Permit
    outer: _Entered | None


_ENTERED: ContextVar[_Entered | None] = ContextVar("resilience_entered", default=None)


def enter(guard: Deciding, permit: Permit) -> None:
    """Note that a block of this guard begins, with this permit."""
    _ENTERED.set(_Entered(guard, permit, _ENTERED.get()))


def leave(guard: Deciding) -> Permit:
    """Return the permit of the guard's innermost block, which ends; RuntimeError if it was not entered here."""
    passed: list[_Entered] = []
    entry = _ENTERED.get()
    while entry is not None and entry.guard is not guard:
        passed.append(entry)
        entry = entry.outer
    if entry is None:
        msg = f"{guard.label} was left by another task or context than the one that entered it"
        raise RuntimeError(msg)
    rest = entry.outer
    for inner in reversed(passed):
        rest = _Entered(inner.guard, inner.permit, rest)
    _ENTERED.set(rest)
    return entry.permit
