"""Coalescer between threads, one instruction at a time: SG2, no event lost whoever merges and whoever takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest

from resilience import Coalescer, StormGuard, coalescing, events, storm_guard
from resilience.coalescing import Fate
from resilience.events import Section
from tests.proof.threaded import NoLock, World, acting, holds
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

WATCHED = [coalescing, storm_guard, events]
WINDOW = 10


class Sums(World):
    """A guard that lets one event pass in ten seconds; the events are numbers, which are merged by adding them."""

    def __init__(self, kind: type[Coalescer[str, int]]) -> None:
        super().__init__()
        self.coalescer = kind(
            StormGuard(WINDOW, 1, clock=self.clock), merge=lambda held, event: held + event, max_keys=1
        )
        self.gone: list[int] = []
        self.dropped: list[int] = []

    def submit(self, key: str, event: int) -> None:
        """Submit a number."""
        fate = self.coalescer.submit(event, key)
        if fate is Fate.PASSED:
            self.gone.append(event)
        elif fate is Fate.DROPPED:
            self.dropped.append(event)

    def take(self) -> None:
        """Let the window pass, and take what is held."""
        self.clock.advance(WINDOW + 1)
        if (taken := self.coalescer.take()) is not None:
            self.gone.append(taken.event)

    def nothing_is_lost(self) -> None:
        """SG2: every number went, was merged into one that went, was dropped, or is held still."""
        seen = self.coalescer.statistics()
        assert seen.received == seen.passed + seen.released + seen.merged + seen.dropped + seen.held == EVENTS
        assert seen.dropped == len(self.dropped)
        rest = [each.event for each in self.coalescer.drain()]
        assert len(rest) == seen.held
        assert sum(self.gone) + sum(self.dropped) + sum(rest) == TOTAL


Act: TypeAlias = "Callable[[Sums], None]"


def submit(key: str, event: int) -> Act:
    """Return the act that submits a number."""
    return lambda sums: sums.submit(key, event)


PROGRAMS: list[list[Act]] = [
    [submit("a", 1), submit("a", 2)],
    [submit("a", 4), Sums.take],
    [submit("a", 8), submit("b", 16)],
]
EVENTS, TOTAL = 5, 31


def loses_nothing(kind: type[Coalescer[str, int]]) -> Callable[[], None]:
    """Make the property that the numbers that went, were dropped and are held come to all that were submitted."""
    scenario = acting(lambda: Sums(kind), PROGRAMS, Sums.nothing_is_lost)
    return lambda: holds(scenario, watch=[*WATCHED, kind], limit=700)


def test_no_event_is_lost() -> None:
    """SG2: whoever merges, outside of the lock, and whoever takes meanwhile."""
    loses_nothing(Coalescer)()


class MergesBlindly(Coalescer[str, int]):
    """A mutant: what was merged replaces what is held, whatever came in meanwhile."""

    def submit(self, event: int, key: str, priority: int = 0) -> Fate:
        with self.guard._section:
            entry = self._holding.get(key)
        if entry is None or self._merge is None:
            return super().submit(event, key, priority)
        merged = self._merge(entry.event, event)
        with self.guard._section:
            return self._join(entry, merged, priority)


class Unlocked(Coalescer[str, int]):
    """A mutant: its guard has no lock."""

    def __init__(self, guard: StormGuard, *, merge: Callable[[int, int], int], max_keys: int) -> None:
        super().__init__(guard, merge=merge, max_keys=max_keys)
        guard._section = Section(NoLock(), guard._events)  # type: ignore[arg-type]


@pytest.mark.parametrize("mutant", [Unlocked, MergesBlindly])
def test_a_coalescer_that_races_is_caught(mutant: type[Coalescer[str, int]]) -> None:
    """Without the lock, or without a second look, some schedule loses a number."""
    assert_caught(loses_nothing(mutant))
