"""Guards that let calls wait for a permit, and adaptive limiters whose limit a test sets and whose samples it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from resilience import AIMD, AdaptiveLimiter, Bulkhead
from resilience.queueing import QueueingGuard

if TYPE_CHECKING:
    from resilience import Permit

__all__ = ["KINDS", "Kind", "Notebook", "every_kind", "fixed", "make", "noted", "take"]

Kind: TypeAlias = type[QueueingGuard]

KINDS: tuple[Kind, ...] = (Bulkhead, AdaptiveLimiter)
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: Kind, limit: int, **options: Any) -> QueueingGuard:  # noqa: ANN401 - whatever both take
    """Make a guard of so many permits."""
    first: Any = fixed(limit) if issubclass(kind, AdaptiveLimiter) else limit
    return kind(first, **options)


def take(guard: QueueingGuard) -> Permit:
    """Take a permit, which is there."""
    permit = guard.try_admit()
    assert permit is not None
    return permit


def fixed(limit: int) -> AIMD:
    """Return an algorithm that stays where it is, unless a call fails."""
    return AIMD(initial_limit=limit, max_limit=limit)


class Notebook:
    """A machine that writes down its samples, and whose limit the test moves."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.samples: list[tuple[int, int, int, bool]] = []

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        """Write a sample down; return the limit that is set."""
        self.samples.append((started_ns, ended_ns, in_flight, dropped))
        return self.limit

    def notes(self) -> None:
        """Tell nothing: only the notebook itself will do."""

    def resume(self, notes: object, now_ns: int) -> None:
        """Take up nothing, as nothing is ever told."""


def noted(limiter: AdaptiveLimiter) -> Notebook:
    """Put a notebook in the place of the limiter's machine."""
    notebook = Notebook(limiter.limit)
    limiter._machine = notebook
    return notebook
