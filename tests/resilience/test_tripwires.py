"""What watches a closed circuit: each window beside a plain list of calls, and what is steady stays as it is."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from resilience import (
    CircuitBreaker,
    CircuitState,
    ConsecutiveFailures,
    CountWindow,
    FailureRate,
    Permit,
    SlowCallRate,
    TimeWindow,
    Verdict,
)
from resilience.machines.breaker import Breaker
from resilience.machines.tripwires import Consecutive, RateOfCalls, RateOfTime, Tripwires
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.machines.tripwires import Notes, Tripwire

    Call: TypeAlias = tuple[int, bool, bool]
    Make: TypeAlias = Callable[[], Tripwire]

SIZE, SLICE_NS, SLICES, MIN_CALLS = 4, 3, 4, 3
SHARE = Fraction(3, 5)

#: How long after the one before it a call ends, whether it failed, and whether it was slow; most go well.
CALLS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 3, 5, 20]), st.sampled_from([False, False, True]), st.sampled_from([False, False, True])
    ),
    max_size=16,
)
GOOD, FAILED, SLOW = (0, False, False), (0, True, False), (0, False, True)


def _record(wire: Tripwire, now_ns: int, *, failed: bool, slow: bool) -> bool:
    return wire.bad(now_ns, failed=failed, slow=slow) if failed or slow else wire.good(now_ns)


@attrs.define
class _Run:
    """Counters, and the time."""

    wire: Tripwire
    now_ns: int = 0

    def call(self, after_ns: int, failed: bool, slow: bool) -> tuple[bool, int, bool]:  # noqa: FBT001 - as they are drawn
        """Count a call; return whether that trips, and what can be seen afterwards."""
        self.now_ns += after_ns
        tripped = _record(self.wire, self.now_ns, failed=failed, slow=slow)
        return tripped, self.wire.failures, self.wire.blank


# -- windows --------------------------------------------------------------------------------------------------------


def _in_last_calls(calls: list[Call], now_ns: int) -> list[Call]:
    return calls[-SIZE:]


def _in_last_slices(calls: list[Call], now_ns: int) -> list[Call]:
    return [call for call in calls if call[0] // SLICE_NS > now_ns // SLICE_NS - SLICES]


WINDOWS = {RateOfCalls: _in_last_calls, RateOfTime: _in_last_slices}


def _rate(kind: type[RateOfCalls | RateOfTime], *, slow_calls: bool) -> RateOfCalls | RateOfTime:
    if issubclass(kind, RateOfCalls):
        return kind(SIZE, SHARE, MIN_CALLS, slow_calls=slow_calls)
    return kind(SLICE_NS, SLICES, SHARE, MIN_CALLS, slow_calls=slow_calls)


def law_of_windows(kind: type[RateOfCalls | RateOfTime]) -> Callable[[], None]:
    """A window counts what a list of all calls has in it, trips at its share of that, and forgets as time goes by."""
    (window,) = (window for base, window in WINDOWS.items() if issubclass(kind, base))

    @given(CALLS, st.booleans(), st.integers(0, 20))
    @example(calls=[FAILED, FAILED, GOOD], slow_calls=False, later_ns=0)
    @example(calls=[FAILED, *[GOOD] * SIZE], slow_calls=False, later_ns=0)
    @example(calls=[SLOW] * 3, slow_calls=True, later_ns=0)
    @example(calls=[GOOD, (SLICE_NS, False, False)], slow_calls=False, later_ns=SLICE_NS * (SLICES - 1))
    @example(calls=[FAILED, (5, True, False), (5, False, False), GOOD], slow_calls=False, later_ns=5)
    def law(calls: list[Call], slow_calls: bool, later_ns: int) -> None:  # noqa: FBT001 - drawn
        wire = _rate(kind, slow_calls=slow_calls)
        kind_of_calls = isinstance(wire, RateOfCalls)
        assert wire.steady is False
        book: list[Call] = []
        now_ns = 0
        for after_ns, failed, slow in calls:
            now_ns += after_ns
            book.append((now_ns, failed, slow))
            tripped = _record(wire, now_ns, failed=failed, slow=slow)
            held = window(book, now_ns)
            counted = sum(call[1 + slow_calls] for call in held)
            assert tripped == (len(held) >= MIN_CALLS and counted * 5 >= len(held) * 3)
            assert wire.failures == sum(call[1] for call in held)
            # A window of time never is: calls that went well leave it too, and then fewer are beside those that fail.
            assert wire.steady is (kind_of_calls and len(held) == SIZE and not any(call[1] or call[2] for call in held))
        now_ns += later_ns
        wire.age(now_ns)
        held = window(book, now_ns)
        assert (wire.failures, wire.slow) == (sum(call[1] for call in held), sum(call[2] for call in held))
        assert wire.blank == (not held)

    return law


class _OneTooMany(RateOfCalls):
    """Keeps a call for one call longer."""

    def _forget(self) -> None:
        if self._bad[0][0] + self._size < self._newest:
            super()._forget()


class _OneTooFew(RateOfTime):
    """Forgets a slice a slice early."""

    def _begin_slice(self, now_ns: int) -> None:
        super()._begin_slice(now_ns + self._slice_ns)


class _NeverForgets(RateOfTime):
    """Lets the newest slice go on for ever."""

    def age(self, now_ns: int) -> None:
        if self._ends_at is None:
            super().age(now_ns)


class _ByFailures(RateOfTime):
    """Goes by failures where it should go by slow calls."""

    def _reached(self, calls: int) -> bool:
        return calls >= self._min_calls and self.failures * self._of >= self._least * calls


@pytest.mark.parametrize("kind", [RateOfCalls, RateOfTime])
def test_law_of_windows(kind: type[RateOfCalls | RateOfTime]) -> None:
    """Both windows count what a list of all calls has in them."""
    law_of_windows(kind)()


@pytest.mark.parametrize("kind", [_OneTooMany, _OneTooFew, _NeverForgets, _ByFailures])
def test_law_of_windows_catches_mutants(kind: type[RateOfCalls | RateOfTime]) -> None:
    """Each of these windows is off by one, or counts the wrong calls."""
    assert_caught(law_of_windows(kind))


# -- what is steady -------------------------------------------------------------------------------------------------


def _several(kind: type[Tripwires] = Tripwires) -> Make:
    return lambda: kind([Consecutive(2), _rate(RateOfCalls, slow_calls=False)])


def law_of_the_steady(make: Make) -> Callable[[], None]:
    """What is steady goes on as if the calls that went well since then had not been; enough of these make it steady."""

    @given(CALLS, st.integers(1, 6), CALLS)
    @example([GOOD], 3, [FAILED] * 3)
    @example([*[FAILED] * 2, *[GOOD] * (SIZE - 1)], 3, [FAILED] * 3)
    def law(before: list[Call], goods: int, after: list[Call]) -> None:
        run, twin = _Run(make()), _Run(make())
        assert isinstance(run.wire.steady, bool)
        for call in before:
            assert run.call(*call) == twin.call(*call)
        assert isinstance(run.wire.steady, bool)
        if run.wire.steady:
            seen = (run.wire.failures, run.wire.blank)
            for _ in range(goods):
                assert twin.call(*GOOD) == (False, *seen)
        for call in after:
            assert run.call(*call) == twin.call(*call)
        for _ in range(SIZE):
            run.call(*GOOD)
        assert run.wire.steady

    return law


class _Hasty(RateOfCalls):
    """Calls itself steady before it is full."""

    def good(self, now_ns: int) -> bool:
        tripped = super().good(now_ns)
        self.steady = not self._bad
        return tripped


class _Restless(RateOfCalls):
    """Is never steady: right, but slow for ever."""

    def good(self, now_ns: int) -> bool:
        tripped = super().good(now_ns)
        self.steady = False
        return tripped


class _Unshaken(Consecutive):
    """Stays steady through failures."""

    def bad(self, now_ns: int, *, failed: bool, slow: bool) -> bool:
        tripped = super().bad(now_ns, failed=failed, slow=slow)
        self.steady = True
        return tripped


class _AnyOfThem(Tripwires):
    """Is steady as soon as one of its conditions is."""

    def _is_steady(self) -> bool:
        return any(wire.steady for wire in self._wires)


@pytest.mark.parametrize(
    "make",
    [lambda: Consecutive(2), lambda: _rate(RateOfCalls, slow_calls=False), _several()],
    ids=["in a row", "of calls", "several"],
)
def test_law_of_the_steady(make: Make) -> None:
    """CB6: a success that finds its circuit steady need not be counted: nobody could tell."""
    law_of_the_steady(make)()


@pytest.mark.parametrize(
    "make",
    [
        lambda: _rate(_Hasty, slow_calls=False),
        lambda: _rate(_Restless, slow_calls=False),
        lambda: _Unshaken(2),
        _several(_AnyOfThem),
    ],
    ids=["hasty", "restless", "unshaken", "any of them"],
)
def test_law_of_the_steady_catches_mutants(make: Make) -> None:
    """CB6: each of these is steady too early, or never."""
    assert_caught(law_of_the_steady(make))


# -- what is noted down ---------------------------------------------------------------------------------------------


def law_of_notes(make: Make) -> Callable[[], None]:
    """Counters that take up the notes of others are what those are, and go on as they do."""

    @given(CALLS, CALLS)
    @example([SLOW, FAILED, GOOD, (0, True, True)], [])
    @example([*[GOOD] * 2, SLOW, GOOD, SLOW], [GOOD])
    @example([GOOD] * SIZE, [])
    def law(before: list[Call], after: list[Call]) -> None:
        run, heir = _Run(make()), _Run(make())
        for call in before:
            run.call(*call)
        notes = run.wire.notes()
        assert notes is not None
        heir.wire.resume(notes)
        assert heir.wire.steady is run.wire.steady
        for one, other in ((run.wire.notes(), heir.wire.notes()), (run.wire.failures, heir.wire.failures)):
            assert one == other
        for call in after:
            assert run.call(*call) == heir.call(*call)

    return law


class _Forward(RateOfCalls):
    """Takes the newest call for the oldest."""

    def notes(self) -> Notes:
        calls, failed, slow = super().notes()
        return calls, int(f"{failed:0{calls}b}"[::-1], 2) if calls else 0, slow


NOTING = {
    "in a row": lambda: Consecutive(2),
    "failures of calls": lambda: _rate(RateOfCalls, slow_calls=False),
    "slow calls": lambda: _rate(RateOfCalls, slow_calls=True),
    "several": _several(),
}


@pytest.mark.parametrize("make", NOTING.values(), ids=NOTING)
def test_law_of_notes(make: Make) -> None:
    """PO5: what a circuit counts is not lost while it sleeps."""
    law_of_notes(make)()


def test_law_of_notes_catches_a_mutant() -> None:
    """PO5: one that forgets in another order is seen."""
    assert_caught(law_of_notes(lambda: _rate(_Forward, slow_calls=False)))


def test_notes_of_other_conditions_are_refused() -> None:
    """A factory that makes another circuit for the same key is told so."""
    with pytest.raises(ValueError, match="zip"):
        _several()().resume(((1,),))


def test_a_window_of_time_notes_only_that_nothing_is_left() -> None:
    """What is counted in slices of time is gone by itself."""
    wire = _rate(RateOfTime, slow_calls=False)
    assert wire.notes() == ()
    wire.good(0)
    assert wire.notes() is None
    assert Tripwires([Consecutive(2), wire]).notes() is None
    wire.age(SLICE_NS * SLICES)
    assert wire.notes() == ()


@pytest.mark.parametrize(
    "wire",
    [
        RateOfCalls(SIZE, Fraction(1, 3), 3, slow_calls=False),
        RateOfTime(SLICE_NS, SLICES, Fraction(1, 3), 3, slow_calls=False),
    ],
    ids=["of calls", "of time"],
)
def test_a_call_that_went_well_may_be_what_makes_the_calls_enough(wire: Tripwire) -> None:
    """One failure of three calls is a third, however the last of them ended."""
    assert [wire.bad(0, failed=True, slow=False), wire.good(0), wire.good(0)] == [False, False, True]


# -- conditions -----------------------------------------------------------------------------------------------------


def test_the_slices_of_a_window_are_whole_nanoseconds() -> None:
    """Thirty nanoseconds in twenty slices are twenty: the window is shorter rather than longer."""
    wire = SlowCallRate(1, TimeWindow(30e-9), 2).start()
    assert not wire.bad(0, failed=False, slow=True)
    wire.age(19)
    assert not wire.blank
    assert wire.bad(19, failed=False, slow=True)
    wire.age(20)
    assert not wire.bad(38, failed=False, slow=False)
    wire.age(58)
    assert wire.blank


def test_a_breaker_counts_good_calls_as_such() -> None:
    """By its machine alone too: enough of them make its tripwire steady, and a window of time dates them."""
    steady, timed = (
        Breaker(conditions=(trip,), recovery_ns=10, probe_limit=1, success_threshold=1, probe_for_ns=4)
        for trip in (TRIPS[1], TRIPS[2])
    )
    for _ in range(SIZE):
        for machine in (steady, timed):
            assert machine.record(0, 0, 1, failed=False, slow=False)
    assert steady.tripwire.steady
    assert not timed.tripwire.blank


# -- how the breaker counts -----------------------------------------------------------------------------------------

TRIPS = (
    ConsecutiveFailures(2),
    FailureRate(0.6, CountWindow(SIZE), MIN_CALLS),
    FailureRate(0.6, TimeWindow(20.0), MIN_CALLS),
    SlowCallRate(0.6, CountWindow(SIZE), MIN_CALLS),
    SlowCallRate(0.6, TimeWindow(20.0), MIN_CALLS),
)


def law_of_results(kind: type[CircuitBreaker]) -> Callable[[], None]:
    """CB6: whether a success is told by a result, often without the lock, or by hand, circuits count the same."""

    @given(CALLS, st.lists(st.sampled_from(TRIPS), min_size=1, max_size=2), st.booleans())
    @example(calls=[GOOD] * 5 + [FAILED] * 3, trips=[TRIPS[1]], judged=False)
    @example(calls=[GOOD] * 5 + [SLOW] * 3, trips=[TRIPS[3]], judged=True)
    @example(calls=[GOOD] + [FAILED] * 2, trips=[TRIPS[1]], judged=True)
    def law(calls: list[Call], trips: list[FailureRate | SlowCallRate], judged: bool) -> None:  # noqa: FBT001 - drawn
        clock = ManualClock()
        slow_after = 1.0 if any(isinstance(trip, SlowCallRate) for trip in trips) else None
        judge = (lambda result: result is None) if judged else None
        breakers = [
            each(trip=trips, clock=clock, slow_call_duration=slow_after, is_failure_result=judge)
            for each in (CircuitBreaker, kind)
        ]
        for after, failed, slow in calls:
            clock.advance(after)
            permits = [breaker.try_admit() for breaker in breakers]
            clock.advance(float(slow))
            for permit, tell in zip(permits, (_by_hand, _by_result), strict=True):
                if permit is not None:
                    tell(permit, failed=failed)
            seen = [(breaker.state, breaker.failure_count, breaker.statistics()) for breaker in breakers]
            assert seen[0] == seen[1]
            assert all(permit is None or permit.settled for permit in permits)

    return law


def _by_hand(permit: Permit, *, failed: bool) -> None:
    (permit.failure if failed else permit.success)()


def _by_result(permit: Permit, *, failed: bool) -> None:
    if failed:
        permit.guard.settle_exception(permit, KeyError())
    else:
        permit.guard.settle_result(permit, "well")


class _Guessing(CircuitBreaker):
    """Takes a circuit for steady that counts no failure."""

    def settle_result(self, permit: Permit, result: object) -> None:
        machine = self._machine
        if machine.state is CircuitState.CLOSED and not machine.tripwire.failures:
            permit.use_up()
            self._plain_successes.add()
        else:
            super().settle_result(permit, result)


class _Timeless(CircuitBreaker):
    """Does not ask how long a call took that ended with a result."""

    def settle_result(self, permit: Permit, result: object) -> None:
        slow_ns, self._slow_ns = self._slow_ns, None
        super().settle_result(permit, result)
        self._slow_ns = slow_ns


class _Heedless(CircuitBreaker):
    """Judges a result and forgets it."""

    def settle_result(self, permit: Permit, result: object) -> None:
        if self._is_failure_result is None:
            super().settle_result(permit, result)
        else:
            self.settle(permit, Verdict.IGNORED)


def test_law_of_results() -> None:
    """CB6: a result counts for what it is, however that is counted."""
    law_of_results(CircuitBreaker)()


@pytest.mark.parametrize("kind", [_Guessing, _Timeless, _Heedless])
def test_law_of_results_catches_mutants(kind: type[CircuitBreaker]) -> None:
    """CB6: each of these breakers counts results by another measure."""
    assert_caught(law_of_results(kind))
