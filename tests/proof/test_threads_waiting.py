"""The queue of a RateLimiter between threads, one instruction at a time: waits, reservations, turns for later."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import pytest

from resilience import RateLimiter, events, parking, rate_limiter, turns
from tests.proof.threaded import World, acting, holds, unlocked
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilience.parking import Waiter

CAPACITY = 2


class Turns(World):
    """A limiter of a token a second, on the run's own time, and when each turn was."""

    def __init__(self, kind: type[RateLimiter]) -> None:
        super().__init__()
        self.limiter = kind(1, CAPACITY, max_wait=math.inf)
        self.begun_ns = self.limiter.clock.monotonic_ns()
        self.turns: list[float] = []

    def note(self, delay: float = 0.0) -> None:
        """Note a turn that is now, or later."""
        self.turns.append((self.limiter.clock.monotonic_ns() - self.begun_ns) / 10**9 + delay)

    def block(self) -> None:
        """Wait for a turn."""
        self.limiter.admit_blocking()
        self.note()

    def schedule(self) -> None:
        """Take a turn for later."""
        self.note(self.limiter.schedule())

    def change_ones_mind(self) -> None:
        """Reserve all that there is, and cancel that."""
        self.limiter.reserve(CAPACITY).cancel()

    def every_turn_came(self) -> None:
        """RL1, RL11: as many at once as may be, and then one a second, as if those who gave up had never come."""
        assert sorted(self.turns) == [float(max(0, number - 1)) for number in range(len(self.turns))]
        seen = self.limiter.statistics()
        # Turns for later may not have come yet.
        assert seen.admitted + seen.waiting == len(self.turns)


Act: TypeAlias = "Callable[[Turns], None]"


def comes_in_turn(kind: type[RateLimiter], programs: Sequence[Sequence[Act]]) -> Callable[[], None]:
    """Make the property that who waits has a turn as soon as there can be one, whoever gives up ahead."""
    scenario = acting(lambda: Turns(kind), programs, Turns.every_turn_came)
    return lambda: holds(scenario, watch=[rate_limiter, turns, parking, events, kind], draws=40, limit=500)


CHANGED: list[list[Act]] = [[Turns.block, Turns.block], [Turns.change_ones_mind], [Turns.block]]
LATER: list[list[Act]] = [[Turns.block], [Turns.schedule, Turns.schedule], [Turns.block]]


@pytest.mark.parametrize("programs", [CHANGED, LATER], ids=["reservations", "turns for later"])
def test_who_waits_has_a_turn(programs: list[list[Act]]) -> None:
    """RL1, RL7, RL8, RL11: no token is lost or given twice, and nobody waits longer than need be."""
    comes_in_turn(RateLimiter, programs)()


class MovesNobodyUp(RateLimiter):
    """A mutant: who gives up a place leaves those behind it where they were."""

    def _abandon(self, waiter: Waiter) -> None:
        with self._section:
            self._queue.leave(waiter)


class WakesNobody(RateLimiter):
    """A mutant: who gives up a place grants what is due now, and has nobody ask anew when the next is."""

    def _abandon(self, waiter: Waiter) -> None:
        with self._section:
            if waiter.granted:
                waiter.granted = False
                self._bucket.give_back(waiter.units)
            elif self._queue.leave(waiter):
                self._queued_units -= waiter.units
            self._grant(self._line.at(self.clock.monotonic_ns()))


@pytest.mark.parametrize("mutant", [unlocked(RateLimiter), MovesNobodyUp, WakesNobody])
def test_a_queue_that_is_careless_is_caught(mutant: type[RateLimiter]) -> None:
    """Without its lock, or where those behind are not moved up, some schedule has somebody wait in vain."""
    assert_caught(comes_in_turn(mutant, CHANGED))
