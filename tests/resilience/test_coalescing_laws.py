"""SG1, SG2 and SG4 for a Coalescer: none of the surplus is uncounted, beside plain lists and with threads; mutants."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Coalesced, Coalescer, Fate, StormGuard
from resilience.coalescing import CoalescerStatistics
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.machines.holding import Entry

Numbers = tuple[int, ...]


def _joined(held: Numbers, event: Numbers) -> Numbers:
    return held + event


steps = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 1, 3, 10, 11]), st.sampled_from([*"abcde", "take"]), st.integers(0, 2)),
    max_size=50,
)
WIDTH, EVENTS, QUOTA, MAX_KEYS = 10, 5, 2, 3
BOUNDS = (3, 5, 5)


class _World:
    """A coalescer beside plain lists of what went in, what came out and what must be held."""

    def __init__(self, kind: type[Coalescer[str, Numbers]]) -> None:
        self.clock = ManualClock()
        self.guard = StormGuard(WIDTH, EVENTS, key_share=0.4, reserve=(0.4,), clock=self.clock)
        self.events = kind(self.guard, merge=_joined, max_keys=MAX_KEYS)
        self.now = 0
        self.received = self.passed = self.released = self.dropped = 0
        self.log: list[tuple[int, str]] = []
        self.held: dict[str, tuple[Numbers, int]] = {}

    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.now += seconds

    def window(self) -> list[str]:
        return [key for at, key in self.log if self.now - at <= WIDTH]

    def ripe(self, key: str) -> bool:
        return self.window().count(key) < QUOTA

    def room(self, key: str, priority: int) -> bool:
        return self.ripe(key) and len(self.window()) < BOUNDS[priority]

    def submit(self, key: str, priority: int) -> None:
        number = self.received
        self.received += 1
        room = self.room(key, priority)
        full = len(self.held) == MAX_KEYS
        ahead = any(self.ripe(other) and level >= min(priority, 1) for other, (_, level) in self.held.items())
        fate = self.events.submit((number,), key, priority)
        if key in self.held:
            expected = Fate.MERGED
        elif room and (full or not ahead):
            expected = Fate.PASSED
        else:
            expected = Fate.DROPPED if full else Fate.HELD
        assert fate is expected
        assert bool(fate) == (fate is Fate.PASSED)
        if fate is Fate.PASSED:
            self.passed += 1
            self.log.append((self.now, key))
        elif fate is Fate.DROPPED:
            self.dropped += 1
        else:
            before, level = self.held.get(key, ((), 0))
            self.held[key] = ((*before, number), max(level, min(priority, 1)))

    def take(self) -> None:
        able = {key: level for key, (_, level) in self.held.items() if self.room(key, level)}
        told = self.events.ready_in()
        assert (told is None) == (not self.held)
        taken = self.events.take()
        assert (taken is not None) == bool(able)
        if taken is None:
            assert told is None or told > 0
            return
        assert told == 0
        numbers, level = self.held.pop(taken.key)
        assert taken == Coalesced(taken.key, numbers, len(numbers), level)
        assert level == max(able.values())
        self.released += 1
        self.log.append((self.now, taken.key))

    def audit(self) -> None:
        """SG1, SG2, SG4: the counters are the lists, and no window holds more of all, or of one key, than it may."""
        statistics = self.events.statistics()
        held = sum(len(numbers) for numbers, _ in self.held.values())
        assert statistics == CoalescerStatistics(
            received=self.received,
            passed=self.passed,
            released=self.released,
            merged=self.received - self.passed - self.dropped - self.released - len(self.held),
            dropped=self.dropped,
            held=len(self.held),
        )
        assert held + self.passed + self.dropped <= self.received
        assert len(self.events) == len(self.held) <= MAX_KEYS
        assert self.guard.statistics().admitted == len(self.log)
        assert self.guard.statistics().rejected == self.dropped
        assert len(self.window()) <= EVENTS
        assert all(count <= QUOTA for count in Counter(self.window()).values())


def law_of_the_coalescer(kind: type[Coalescer[str, Numbers]]) -> Callable[[], None]:
    """SG1, SG2, SG4: in = out + merged + dropped + held; all that goes fits the window; nobody waits for another's key.

    Of two keys that may go the one with the higher priority goes. What is merged is the key's events in their order.
    When all is over, waiting as told brings out the rest, in time.
    """

    @given(steps)
    def law(schedule: list[tuple[int, str, int]]) -> None:
        world = _World(kind)
        for later, what, priority in schedule:
            world.advance(later)
            if what == "take":
                world.take()
            else:
                world.submit(what, priority)
            world.audit()
        for _ in range(3 * MAX_KEYS):
            told = world.events.ready_in()
            if told is None:
                break
            # As told, to the second: the extra nanosecond is that of the closed window.
            world.advance(int(told) + (told > 0))
            world.take()
            world.audit()
        assert not world.held

    return law


class _Amnesiac(Coalescer[str, Numbers]):
    """A mutant: does not count what it merges."""

    def _join(self, entry: Entry[str, Numbers], event: Numbers, level: int) -> Fate:
        self._merged -= 1
        return super()._join(entry, event, level)


class _Lossy(Coalescer[str, Numbers]):
    """A mutant: keeps the newest event, whatever it was told to do."""

    def submit(self, event: Numbers, key: str, priority: int = 0) -> Fate:
        self._merge = None
        return super().submit(event, key, priority)


class _Backwards(Coalescer[str, Numbers]):
    """A mutant: merges the wrong way round."""

    def submit(self, event: Numbers, key: str, priority: int = 0) -> Fate:
        self._merge = lambda held, event: event + held
        return super().submit(event, key, priority)


class _Overtaking(Coalescer[str, Numbers]):
    """A mutant: asks the guard first, so that newcomers go while what is held waits."""

    def submit(self, event: Numbers, key: str, priority: int = 0) -> Fate:
        if self.guard.try_admit(key, priority) is not None:
            self._received += 1
            self._passed += 1
            return Fate.PASSED
        return super().submit(event, key, priority)


class _HeadOfLine(Coalescer[str, Numbers]):
    """A mutant: what waits for its own key holds up everybody."""

    def _offer(self, event: Numbers, key: str, level: int, now_ns: int) -> Fate:
        if len(self) and not self._holding.full:
            self._received += 1
            self._holding.hold(key, event, level, None)
            return Fate.HELD
        return super()._offer(event, key, level, now_ns)


class _Unweighted(Coalescer[str, Numbers]):
    """A mutant: lets what is merged keep the priority of its first event."""

    def _join(self, entry: Entry[str, Numbers], event: Numbers, level: int) -> Fate:  # noqa: ARG002
        return super()._join(entry, event, entry.level)


class _Unbounded(Coalescer[str, Numbers]):
    """A mutant: holds another key than it may."""

    def _offer(self, event: Numbers, key: str, level: int, now_ns: int) -> Fate:
        self._holding.max_keys = self.max_keys + 1
        return super()._offer(event, key, level, now_ns)


class _Late(Coalescer[str, Numbers]):
    """A mutant: says nothing of what waits for its own key."""

    def _delay(self, now_ns: int) -> int | None:
        return super()._delay(now_ns) if self._holding.next_ripe_at() is None else 20 * 10**9


class _Flood(Coalescer[str, Numbers]):
    """A mutant: gives what is held without asking the guard."""

    def take(self) -> Coalesced[str, Numbers] | None:
        head = self._holding.head()
        if head is None:
            return None
        self._holding.remove(head)
        self._released += 1
        return Coalesced(head.key, head.event, head.count, head.level)


MUTANTS = [_Amnesiac, _Lossy, _Backwards, _Overtaking, _HeadOfLine, _Unweighted, _Unbounded, _Late, _Flood]


def test_nothing_is_uncounted() -> None:
    """SG1, SG2, SG4: whatever comes when, each event passes, is merged, is held or is dropped, as the rules say."""
    law_of_the_coalescer(Coalescer)()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_law_of_the_coalescer_catches_mutants(mutant: type[Coalescer[str, Numbers]]) -> None:
    """Events lost, uncounted, out of order, held up by others or let out too soon are seen."""
    assert_caught(law_of_the_coalescer(mutant))


# -- threads ----------------------------------------------------------------------------------------------------------


class _Traffic:
    """Four threads that submit two hundred events each, a key a thread, and one that takes meanwhile."""

    def __init__(self, kind: type[Coalescer[str, Numbers]]) -> None:
        self.clock = ManualClock()
        self.events = kind(StormGuard(10.0, 6, key_share=0.5, clock=self.clock), merge=_joined, max_keys=3)
        self.out: list[Numbers] = []
        self.dropped: list[int] = []
        self.barrier = threading.Barrier(5)

    def submit(self, first: int) -> None:
        self.barrier.wait()
        for number in range(first, first + 200):
            fate = self.events.submit((number,), f"key {first}")
            if fate:
                self.out.append((number,))
            elif fate is Fate.DROPPED:
                self.dropped.append(number)

    def take(self) -> None:
        self.barrier.wait()
        for _ in range(200):
            self.clock.advance(1.0)
            taken = self.events.take()
            if taken is not None:
                self.out.append(taken.event)

    def run(self) -> None:
        threads = [threading.Thread(target=self.submit, args=(200 * number,)) for number in range(4)]
        threads.append(threading.Thread(target=self.take))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.out.extend(each.event for each in self.events.drain())


def law_of_threads(kind: type[Coalescer[str, Numbers]]) -> Callable[[], None]:
    """SG2: threads that submit and take at once lose nothing, double nothing, and keep each key's own order."""

    def law() -> None:
        traffic = _Traffic(kind)
        traffic.run()
        assert sorted([*(number for numbers in traffic.out for number in numbers), *traffic.dropped]) == [*range(800)]
        assert all(numbers == tuple(sorted(numbers)) for numbers in traffic.out)
        counted = traffic.events.statistics()
        assert counted.received == 800 == counted.passed + counted.released + counted.merged + counted.dropped
        assert counted.dropped == len(traffic.dropped)

    return law


def test_threads_lose_nothing() -> None:
    """SG2: the coalescer is one for all threads."""
    law_of_threads(Coalescer)()


@pytest.mark.parametrize("mutant", [_Lossy, _Amnesiac])
def test_law_of_threads_catches_mutants(mutant: type[Coalescer[str, Numbers]]) -> None:
    """Events that are lost or uncounted are seen."""
    assert_caught(law_of_threads(mutant))
