"""The token bucket alone: exact bounds, exact instants, and giving back no more than the bound allows."""

from __future__ import annotations

import math
from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience.machines.decision import NeverFits, NotUntil
from resilience.machines.token_bucket import TokenBucket, exact_fraction
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND = 1_000_000_000

rates = st.sampled_from([0.1, 1, 3, 7.3, 1e9, 2.5e9, 1 / 3])
capacities = st.sampled_from([1, 2, 2.5, 10])
costs = st.sampled_from([1, 1, 2, 0.1, 0.75, 2.5])
# Times in eighths of the time that one token takes, so that every corner is met.
times = st.integers(0, 40)
MOVES = ("take", "take", "take", "hold", "hold", "keep", "give_back", "give_back", "give_back_last")
# Most of what goes wrong goes wrong within one instant.
steps = st.lists(
    st.tuples(st.sampled_from(MOVES), st.sampled_from([0, 0, 0, 0, 1, 4, 8, 40]), st.sampled_from([1, 1, 0.75, 2])),
    min_size=4,
    max_size=24,
)


def assert_bounded(log: list[tuple[int, int]], bucket: TokenBucket) -> None:
    """RL1: in every closed interval [s, t] at most burst + rate * (t - s) was admitted; by the greatest excess."""
    excess: int | None = None
    previous = 0
    for at_ns, units in log:
        carried = 0 if excess is None else max(0, excess - (at_ns - previous) * bucket.per_nanosecond)
        excess, previous = carried + units, at_ns
        assert excess <= bucket.burst


def law_of_the_bound(kind: type[TokenBucket]) -> Callable[[], None]:
    """RL1, RL2, RL4, RL8: whatever is taken, held, kept and given back, what remains admitted is within the bound."""

    @given(st.sampled_from([1, 7.3, 1e9]), st.sampled_from([1, 2, 2.5]), steps)
    @example(1, 1, [("take", 0, 1), ("hold", 40, 1), ("give_back_last", 0, 1), ("take", 0, 1)])
    def law(rate: float, capacity: float, moves: list[tuple[str, int, float]]) -> None:
        now_ns = 7 * SECOND
        bucket = kind(rate, capacity, now_ns)
        eighth = max(1, round(SECOND / rate / 8))
        log: list[list[int]] = []
        held: deque[list[int]] = deque()
        last: tuple[int, int, list[int]] | None = None
        for move, later, cost in moves:
            now_ns += later * eighth
            units = bucket.units(cost)
            if move in ("take", "hold") and bucket.take(now_ns, units):
                entry = [now_ns, units]
                log.append(entry)
                if move == "hold":
                    bucket.hold()
                    held.append(entry)
                else:
                    last = (bucket.generation, bucket.tat, entry)
            elif move == "keep" and held:
                bucket.keep()
                held.popleft()
            elif move == "give_back" and held:
                # The call is not made, though maybe only a part of its tokens comes back.
                entry = held.pop()
                assert 0 <= bucket.give_back(entry[1]) <= entry[1]
                entry[1] = 0
            elif move == "give_back_last" and last is not None:
                generation, tat, entry = last
                if bucket.give_back_last(generation, tat, entry[1]):
                    entry[1] = 0
                last = None
            assert_bounded([(at_ns, taken) for at_ns, taken in log], bucket)

    return law


class _Generous(TokenBucket):
    """A mutant: gives all back, even what would have run over in the meantime."""

    def give_back(self, units: int) -> int:
        super().give_back(0)
        self.tat -= units
        return units


class _Bottomless(TokenBucket):
    """A mutant: goes on filling past its capacity."""

    def take(self, now_ns: int, units: int) -> bool:
        if self.tat + units > now_ns * self.per_nanosecond + self.burst:
            return False
        self.tat += units
        return True


class _Forgiving(TokenBucket):
    """A mutant: takes any admission back, not only the last."""

    def give_back_last(self, generation: int, tat: int, units: int) -> bool:  # noqa: ARG002
        return super().give_back_last(self.generation, self.tat, units)


class _OffByOne(TokenBucket):
    """A mutant: admits one unit too many."""

    def take(self, now_ns: int, units: int) -> bool:
        return super().take(now_ns, units - 1)


def test_bucket_never_admits_beyond_the_bound() -> None:
    """RL1, RL2, RL4, RL8: the bound holds in whole numbers for every history."""
    law_of_the_bound(TokenBucket)()


@pytest.mark.parametrize("mutant", [_Generous, _Bottomless, _Forgiving, _OffByOne])
def test_law_of_the_bound_catches_mutants(mutant: type[TokenBucket]) -> None:
    """Refunding too much, overfilling, refunding twice and being off by one are all seen."""
    assert_caught(law_of_the_bound(mutant))


def law_of_the_level(kind: type[TokenBucket]) -> Callable[[], None]:
    """RL11: a call is admitted if, and only if, a bucket that is topped up in exact fractions holds enough."""

    @given(rates, capacities, st.lists(st.tuples(times, costs), max_size=30))
    def law(rate: float, capacity: float, calls: list[tuple[int, float]]) -> None:
        bucket = kind(rate, capacity, 0)
        eighth = max(1, round(SECOND / rate / 8))
        level = size = exact_fraction(capacity)
        now_ns = 0
        for later, cost in calls:
            now_ns += later * eighth
            level = min(size, level + exact_fraction(rate) * later * eighth / SECOND)
            weight = Fraction(bucket.units(cost), bucket.per_token)
            assert bucket.available(now_ns) == float(level)
            admitted = bucket.take(now_ns, bucket.units(cost))
            assert admitted == (weight <= level)
            if admitted:
                level -= weight

    return law


class _Float(TokenBucket):
    """A mutant: the usual bucket of floats."""

    level = 0.0
    seen_ns = 0

    def __init__(self, rate: float, capacity: float, now_ns: int) -> None:
        super().__init__(rate, capacity, now_ns)
        self.level, self.seen_ns = float(capacity), now_ns

    def available(self, now_ns: int) -> float:
        self.level = min(self.capacity, self.level + (now_ns - self.seen_ns) / 1e9 * self.rate)
        self.seen_ns = now_ns
        return self.level

    def take(self, now_ns: int, units: int) -> bool:
        if self.available(now_ns) < units / self.per_token:
            return False
        self.level -= units / self.per_token
        return True


def test_bucket_is_the_one_of_the_textbook_in_exact_numbers() -> None:
    """RL11: it refuses nothing that the tokens suffice for, and its level is right to the last bit."""
    law_of_the_level(TokenBucket)()


@pytest.mark.parametrize("mutant", [_Float, _Bottomless, _OffByOne])
def test_law_of_the_level_catches_mutants(mutant: type[TokenBucket]) -> None:
    """Floats gather errors, and a bucket must not overflow."""
    assert_caught(law_of_the_level(mutant))


class _Ledger:
    """The same rules in the textbook's words: a level of tokens that is topped up, and the room that others left."""

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate, self.capacity = exact_fraction(rate), exact_fraction(capacity)
        self.level = self.capacity
        self.held = 0
        self.room = Fraction(0)

    def pass_time(self, ns: int) -> None:
        self.level = min(self.capacity, self.level + self.rate * Fraction(ns, SECOND))

    def take(self, cost: Fraction) -> bool:
        if cost > self.level:
            return False
        if self.held:
            # Had what is held never been taken, the bucket might be full but for this much.
            self.room = min(self.room, self.capacity - self.level)
        self.level -= cost
        return True

    def hold(self) -> None:
        self.room = self.room if self.held else self.capacity
        self.held += 1

    def give_back(self, cost: Fraction) -> Fraction:
        self.held -= 1
        returned = min(cost, self.room)
        self.room -= returned
        self.level = min(self.capacity, self.level + returned)
        return returned


def law_of_the_ledger(kind: type[TokenBucket]) -> Callable[[], None]:
    """RL8: what is given back comes back as far as the bound allows, and no token less."""

    @given(rates, capacities, steps)
    @example(1, 10, [("hold", 0, 2), ("give_back", 0, 1), ("take", 0, 1), ("keep", 0, 1)])
    @example(1, 10, [("take", 0, 2), ("hold", 0, 2), ("hold", 8, 2), ("take", 8, 1), ("give_back", 0, 1)])
    @example(1, 10, [("hold", 0, 2), ("take", 8, 1), ("give_back", 0, 1)])
    @example(1, 10, [("hold", 0, 2), ("hold", 0, 2), ("take", 24, 1), ("give_back", 0, 1), ("give_back", 0, 1)])
    @example(1, 10, [("take", 0, 1), ("hold", 0, 1), ("take", 40, 2), ("hold", 4, 1), ("keep", 0, 1), ("keep", 0, 1)])
    def law(rate: float, capacity: float, moves: list[tuple[str, int, float]]) -> None:
        now_ns = 7 * SECOND
        bucket, ledger = kind(rate, capacity, now_ns), _Ledger(rate, capacity)
        eighth = max(1, round(SECOND / rate / 8))
        held: deque[int] = deque()
        simple = bucket.per_nanosecond == 1 and capacity >= 1
        for move, later, cost in moves:
            now_ns += later * eighth
            ledger.pass_time(later * eighth)
            units = bucket.units(cost)
            tokens = Fraction(units, bucket.per_token)
            if move in ("take", "hold"):
                taken = bucket.take(now_ns, units)
                assert ledger.take(tokens) == taken
                if taken and move == "hold":
                    bucket.hold()
                    ledger.hold()
                    held.append(units)
            elif move == "keep" and held:
                bucket.keep()
                ledger.held -= 1
                held.popleft()
            elif move == "give_back" and held:
                units = held.pop()
                returned = bucket.give_back(units)
                assert ledger.give_back(Fraction(units, bucket.per_token)) == Fraction(returned, bucket.per_token)
            assert float(ledger.level) == bucket.available(now_ns)
            assert (simple and not ledger.held) == bucket.plain
            assert (ledger.held > 0) == bucket.unsettled

    return law


class _Stingy(TokenBucket):
    """Gives nothing back that somebody has come after."""

    __slots__ = ()

    def take(self, now_ns: int, units: int) -> bool:
        taken = super().take(now_ns, units)
        if taken and self._outstanding:
            self._least_slack = 0
        return taken


class _Forgetful(TokenBucket):
    """Starts anew with every hold, so that what was held before comes back beyond the room that others left."""

    __slots__ = ()

    def hold(self) -> None:
        super().hold()
        self._least_slack = self.burst


class _NeverPlain(TokenBucket):
    """Keeps the slow path for ever, once something was held."""

    __slots__ = ()

    def keep(self) -> None:
        self._outstanding -= 1


def test_what_is_given_back_is_all_that_the_bound_allows() -> None:
    """RL8: beside a bucket that is a level of tokens."""
    law_of_the_ledger(TokenBucket)()


@pytest.mark.parametrize("mutant", [_Stingy, _Forgetful, _NeverPlain])
def test_law_of_the_ledger_catches_mutants(mutant: type[TokenBucket]) -> None:
    """Too little, too much, and a fast path that is never found again."""
    assert_caught(law_of_the_ledger(mutant))


def test_a_new_bucket_is_just_full() -> None:
    """From the very instant at which it was made, whatever its unit of time is."""
    bucket = TokenBucket(7.3, 2.5, 7 * SECOND)
    assert (bucket.full_at(), bucket.available(7 * SECOND)) == (7 * SECOND, 2.5)


def test_others_that_go_first_count() -> None:
    """`ready_at` behind others is when a bucket from which they have taken would say."""
    bucket, behind = TokenBucket(2, 10, 0), TokenBucket(2, 10, 0)
    for each in (bucket, behind):
        assert each.take(0, each.units(10))
    behind.tat += behind.units(3)
    assert bucket.ready_at(bucket.units(1), ahead=bucket.units(3)) == behind.ready_at(behind.units(1)) == 2 * SECOND


def test_every_reconfiguration_is_another_generation() -> None:
    """What was admitted two changes ago is not taken for what was admitted before all of them."""
    bucket = TokenBucket(1, 2, 0)
    generations = [bucket.generation]
    assert not bucket.unsettled
    for rate in (2, 3, 1):
        bucket.reconfigure(0, rate, 2)
        generations.append(bucket.generation)
    assert generations == [0, 1, 2, 3]
    assert bucket.unsettled


def law_of_the_instant(kind: type[TokenBucket]) -> Callable[[], None]:
    """RL10: one who comes at the instant he was told is admitted, and one who comes a nanosecond sooner is not."""

    @given(rates, capacities, costs, st.lists(costs, max_size=8), st.integers(0, 10**12))
    def law(rate: float, capacity: float, cost: float, before: list[float], now_ns: int) -> None:
        bucket = kind(rate, capacity, now_ns)
        for earlier in before:
            bucket.take(now_ns, bucket.units(earlier))
        units = bucket.units(cost)
        if not bucket.fits(units):
            return
        at_ns = bucket.ready_at(units)
        if at_ns > now_ns:
            assert not bucket.take(at_ns - 1, units)
        assert bucket.take(max(now_ns, at_ns), units)

    return law


class _RoundsDown(TokenBucket):
    """A mutant: tells an instant that is a fraction too early."""

    def ready_at(self, units: int, ahead: int = 0) -> int:
        return (self.tat + ahead + units - self.burst) // self.per_nanosecond


class _RoundsUpTwice(TokenBucket):
    """A mutant: lets people wait a nanosecond longer than needed."""

    def ready_at(self, units: int, ahead: int = 0) -> int:
        return super().ready_at(units, ahead) + 1


def test_told_instant_is_the_first_that_works() -> None:
    """RL10: `ready_at` is exact."""
    law_of_the_instant(TokenBucket)()


@pytest.mark.parametrize("mutant", [_RoundsDown, _RoundsUpTwice])
def test_law_of_the_instant_catches_mutants(mutant: type[TokenBucket]) -> None:
    """Rounding down livelocks, rounding up twice wastes."""
    assert_caught(law_of_the_instant(mutant))


@given(rates, capacities, rates, capacities, st.lists(costs, max_size=6), times)
def test_reconfiguring_keeps_the_tokens_that_fit(  # noqa: PLR0917 - drawn by position
    rate: float, capacity: float, new_rate: float, new_capacity: float, before: list[float], later: int
) -> None:
    """After new terms there are as many tokens as before, or the new capacity; to within a unit, and never more."""
    bucket = TokenBucket(rate, capacity, 0)
    for cost in before:
        bucket.take(0, bucket.units(cost))
    now_ns = later * max(1, round(SECOND / rate / 8))
    expected = min(bucket.available(now_ns), float(new_capacity))
    bucket.reconfigure(now_ns, new_rate, new_capacity)
    assert (bucket.rate, bucket.capacity) == (new_rate, new_capacity)
    assert bucket.available(now_ns) <= expected
    assert math.isclose(bucket.available(now_ns), expected, rel_tol=1e-9, abs_tol=1.01 / bucket.per_token)


def test_nothing_comes_back_across_a_reconfiguration() -> None:
    """What was admitted under the old terms is neither given back under the new ones, nor by mistake for another's."""
    bucket = TokenBucket(1, 2, 0)
    assert bucket.take(0, bucket.units(1))
    bucket.hold()
    stale = (bucket.generation, bucket.tat, bucket.units(1))
    bucket.reconfigure(0, 1, 2)
    assert not bucket.give_back_last(*stale)
    assert bucket.give_back(bucket.units(1)) == 0
    assert bucket.available(0) == 1.0


def test_units_are_the_decimals_that_were_written() -> None:
    """0.1 is a tenth; a cost that is finer than the units is rounded up, so that it is never free."""
    assert exact_fraction(0.1) == Fraction(1, 10)
    assert exact_fraction(3) == 3
    bucket = TokenBucket(0.1, 1, 0)
    assert bucket.units(0.1) * 10 == bucket.units(1)
    assert TokenBucket(1e9, 1, 0).units(1e-30) == 1
    assert bucket.fits(bucket.units(1))
    assert not bucket.fits(bucket.units(1.01))


def test_not_until_differs_from_never_fits() -> None:
    """The two answers of a guard that does not admit are values that compare by what they say."""
    assert NotUntil(3) == NotUntil(3) != NotUntil(None)
    assert NeverFits(3, 2) == NeverFits(3, 2)
    assert repr(NeverFits(3, 2)) == "NeverFits(cost=3, capacity=2)"


def test_a_float_and_an_integer_that_are_equal_may_stand_for_different_decimals() -> None:
    """Whichever of them was asked for first, each bucket has the terms that were written."""
    whole, decimal = 2**60, float(2**60)
    assert whole == decimal
    integers, floats = TokenBucket(1, whole, 0), TokenBucket(1, decimal, 0)
    assert integers.burst == 2**60 * integers.per_token
    assert floats.burst == 1_152_921_504_606_847_000 * floats.per_token
