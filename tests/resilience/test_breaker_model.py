"""The breaker's machine beside a book that keeps everything: each answer, and every change with its instant."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from resilience.machines.breaker import Breaker, CircuitState
from resilience.machines.tripping import ConsecutiveFailures, CountWindow, FailureRate, SlowCallRate
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.machines.tripping import TripCondition

RECOVERY, LEASE = 10, 4
CLOSED, OPEN, HALF_OPEN, ISOLATED = CircuitState
LATE, EARLY = 0.75, 0.25


class _Longer:
    """Breaks that depend on everything that a backoff is told."""

    cap = 1.0

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:
        return 5 * attempt + int(8 * u) + previous_ns // 2


@attrs.frozen(kw_only=True)
class _Terms:
    """What a breaker is made with: `rates` trip it too, and its breaks grow, or they do not."""

    probes: int = 1
    successes: int = 1
    rates: bool = False
    grows: bool = False


class _Book:
    """What a circuit breaker is, in the words of its page: outcomes are kept in lists, and looked through each time."""

    def __init__(self, terms: _Terms) -> None:
        self.terms = terms
        self.state = CLOSED
        self.outcomes: list[tuple[bool, bool]] = []
        self.changes: list[tuple[CircuitState, CircuitState, int]] = []
        self.breaks: list[int] = []
        self.reopens_at = 0
        self.leases: dict[object, int] = {}
        self.good_probes = 0
        self.isolations = 0
        self.beneath = CLOSED
        # What is admitted belongs to the page that is open at the time; every change turns it.
        self.page = object()

    def turn(self, state: CircuitState, now: int) -> None:
        self.changes.append((self.state, state, now))
        self.state = state
        self.page = object()
        self.leases = {}
        self.good_probes = 0

    def open(self, now: int, u: float) -> None:
        lasts = RECOVERY
        if self.terms.grows and self.breaks:
            lasts = max(lasts, 5 * len(self.breaks) + int(8 * u) + self.breaks[-1] // 2)
        self.breaks.append(lasts)
        self.reopens_at = now + lasts
        self.turn(OPEN, now)

    def close(self, now: int) -> None:
        self.outcomes, self.breaks = [], []
        self.turn(CLOSED, now)

    def tick(self, now: int) -> None:
        while True:
            if self.state is OPEN and self.reopens_at <= now:
                self.turn(HALF_OPEN, self.reopens_at)
            elif self.leases and min(self.leases.values()) <= now:
                self.open(min(self.leases.values()), LATE)
            else:
                return

    def admit(self, now: int) -> tuple[object, object] | None:
        if self.state is CLOSED:
            return self.page, None
        if self.state is HALF_OPEN and len(self.leases) < self.terms.probes:
            probe = object()
            self.leases[probe] = now + LEASE
            return self.page, probe
        return None

    def record(self, admitted: tuple[object, object], now: int, *, failed: bool, slow: bool) -> bool:
        page, probe = admitted
        if page is not self.page or (probe is not None and probe not in self.leases):
            return False
        if probe is None:
            self.outcomes.append((failed, slow))
            if self.trips():
                self.open(now, EARLY)
            return True
        del self.leases[probe]
        if failed or slow:
            self.open(now, EARLY)
        else:
            self.good_probes += 1
            if self.good_probes == self.terms.successes:
                self.close(now)
        return True

    def release(self, admitted: tuple[object, object]) -> None:
        if admitted[0] is self.page:
            self.leases.pop(admitted[1], None)

    def trips(self) -> bool:
        failures = [failed for failed, _ in self.outcomes]
        if all(failures[-3:]) and len(failures) >= 3:
            return True
        if not self.terms.rates or len(self.outcomes) < 4:
            return False
        last = self.outcomes[-6:]
        return Fraction(sum(failed for failed, _ in last), len(last)) >= Fraction(1, 2) or (
            len(self.outcomes) >= 5 and Fraction(sum(slow for _, slow in self.outcomes[-5:]), 5) >= Fraction(6, 10)
        )

    def isolate(self, now: int) -> None:
        self.isolations += 1
        if self.isolations == 1:
            self.beneath = OPEN if self.state is HALF_OPEN else self.state
            self.turn(ISOLATED, now)

    def lift(self, now: int) -> None:
        self.isolations -= 1
        if not self.isolations:
            self.turn(self.beneath, now)

    def reset(self, now: int) -> None:
        self.outcomes, self.breaks = [], []
        if self.state is ISOLATED:
            self.beneath = CLOSED
        elif self.state is CLOSED:
            self.page = object()
        else:
            self.close(now)

    @property
    def fresh(self) -> bool:
        counts = bool(self.outcomes) and (self.terms.rates or self.outcomes[-1][0])
        return self.state is CLOSED and not counts


MOVES = (
    "admit",
    "admit",
    "admit",
    "good",
    "good",
    "bad",
    "bad",
    "slow",
    "pass",
    "pass",
    "isolate",
    "lift",
    "reset",
    "release",
)
TERMS = st.builds(
    _Terms, probes=st.integers(1, 3), successes=st.integers(1, 3), rates=st.booleans(), grows=st.booleans()
)
STEPS = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 12)), max_size=50)
TRIPPED = [("admit", 0), ("bad", 0)] * 3


class _Both:
    """The machine and the book, to which the same is done."""

    def __init__(self, kind: type[Breaker], terms: _Terms) -> None:
        conditions: tuple[TripCondition, ...] = (ConsecutiveFailures(3),)
        if terms.rates:
            conditions += (FailureRate(0.5, CountWindow(6), 4), SlowCallRate(0.6, CountWindow(5), 5))
        self.machine = kind(
            conditions=conditions,
            recovery_ns=RECOVERY,
            probe_limit=terms.probes,
            success_threshold=terms.successes,
            probe_for_ns=LEASE,
            backoff=_Longer() if terms.grows else None,
        )
        self.book = _Book(terms)
        self.now = 0
        # Of each admission what the machine, and what the book, knows it by.
        self.admitted: list[tuple[tuple[int, int], tuple[object, object]]] = []

    def step(self, move: str, number: int) -> None:
        if move == "pass":
            self.now += number
        self.tick()
        if move == "admit":
            self.admit()
        elif move in {"good", "bad", "slow", "release"}:
            if self.admitted:
                self.end(move, *self.admitted.pop(number % len(self.admitted)))
        elif move != "pass" and (move != "lift" or self.book.isolations):
            getattr(self.machine, move)(self.now)
            getattr(self.book, move)(self.now)
        self.tick()

    def tick(self) -> None:
        self.machine.tick(self.now, LATE)
        self.book.tick(self.now)

    def admit(self) -> None:
        probe, entry = self.machine.admit(self.now), self.book.admit(self.now)
        assert (probe is None) == (entry is None)
        if probe is not None and entry is not None:
            assert (probe == 0) == (entry[1] is None)
            self.admitted.append(((self.machine.generation, probe), entry))

    def end(self, move: str, known_as: tuple[int, int], entry: tuple[object, object]) -> None:
        if move == "release":
            self.machine.release(*known_as)
            self.book.release(entry)
            return
        failed, slow = move == "bad", move == "slow"
        counted = self.machine.record(*known_as, self.now, failed=failed, slow=slow, u=EARLY)
        assert counted == self.book.record(entry, self.now, failed=failed, slow=slow)

    def compare(self) -> None:
        machine, book = self.machine, self.book
        assert machine.state is book.state
        assert machine.probes == len(book.leases)
        assert machine.ready_at() == (book.reopens_at if book.state is OPEN else None)
        assert machine.is_fresh(self.now) == book.fresh
        assert machine.changes == book.changes


def law_of_the_book(kind: type[Breaker]) -> Callable[[], None]:
    """CB1 to CB6: the machine answers as the book does, changes when it does, and is as fresh as it."""

    @given(STEPS, TERMS)
    @example([*TRIPPED, ("pass", 10), *[("admit", 0), ("good", 0)] * 3, *TRIPPED], _Terms(successes=3))
    @example([*TRIPPED, ("pass", 10), ("admit", 0), ("pass", 4), ("pass", 12), ("pass", 12)], _Terms(grows=True))
    @example([("admit", 0), ("good", 0), *[("admit", 0), ("slow", 0)] * 4], _Terms(rates=True))
    @example([*TRIPPED, ("pass", 10), ("admit", 0), ("bad", 0)], _Terms(grows=True))
    @example([*TRIPPED, ("pass", 10), ("admit", 0), ("good", 0), *TRIPPED], _Terms(grows=True))
    @example([("reset", 0), *TRIPPED, ("reset", 0), *TRIPPED], _Terms(grows=True))
    @example([*TRIPPED, ("pass", 10), ("admit", 0), ("admit", 0), ("good", 0), ("bad", 0)], _Terms(probes=2))
    @example([("admit", 0), ("good", 0), ("admit", 0), ("bad", 0)] * 2, _Terms(rates=True))
    @example([("admit", 0), ("reset", 0), ("bad", 0)] * 2, _Terms())
    @example([*TRIPPED, ("pass", 10), ("admit", 0), ("admit", 0), ("release", 0), ("admit", 0)], _Terms(probes=2))
    def law(steps: list[tuple[str, int]], terms: _Terms) -> None:
        both = _Both(kind, terms)
        for move, number in steps:
            both.step(move, number)
            both.compare()

    return law


class _NeverSure(Breaker):
    """Begins to count good probes anew with each."""

    def record(self, generation: int, probe: int, now_ns: int, *, failed: bool, slow: bool, u: float = 0.0) -> bool:
        self._successes = min(self._successes, self.success_threshold - 2)
        return super().record(generation, probe, now_ns, failed=failed, slow=slow, u=u)


class _OneCondition(Breaker):
    """Goes by the first condition alone."""

    def __init__(self, *, conditions: tuple[TripCondition, ...], **terms: Any) -> None:  # noqa: ANN401 - as the original's
        super().__init__(conditions=conditions[:1], **terms)


class _Untimely(Breaker):
    """Dates changes when they are noticed rather than when they were due."""

    def tick(self, now_ns: int, u: float = 0.0) -> None:
        if self.state is OPEN and now_ns >= self._reopen_at:
            self._become(HALF_OPEN, now_ns)
        super().tick(now_ns, u)


class _NeverLonger(Breaker):
    """Forgets how often it has opened."""

    def _open(self, now_ns: int, u: float) -> None:
        self._openings = 0
        super()._open(now_ns, u)


class _Unbroken(Breaker):
    """Lets what was admitted before a reset count after it."""

    def reset(self, now_ns: int) -> None:
        generation = self.generation
        super().reset(now_ns)
        if self.state is CLOSED:
            self.generation = generation


class _AlwaysFresh(Breaker):
    """Takes a closed circuit for one that counts nothing."""

    def is_fresh(self, now_ns: int) -> bool:  # noqa: ARG002 - as the original
        return self.state is CLOSED


def test_the_machine_is_the_one_of_the_book() -> None:
    """Two-sided: it neither does what it must not nor leaves undone what it must."""
    law_of_the_book(Breaker)()


@pytest.mark.parametrize("mutant", [_NeverSure, _OneCondition, _Untimely, _NeverLonger, _Unbroken, _AlwaysFresh])
def test_law_of_the_book_catches_mutants(mutant: type[Breaker]) -> None:
    """A circuit that never closes, that hears half of what it should, is late, hasty, unforgiving or forgetful."""
    assert_caught(law_of_the_book(mutant))
