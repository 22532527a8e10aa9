"""Backoff: schedules of delays."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    Backoff,
    ConstantBackoff,
    ExponentialBackoff,
    FibonacciBackoff,
    LinearBackoff,
    ScheduleBackoff,
)
from resilience.machines.backoff import as_backoff, is_backoff
from tests.resilience.support import NOT_NEGATIVE, NOT_POSITIVE, assert_caught, assert_refuses, brief

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.machines.backoff import Jitter, Spread

SECOND = 1_000_000_000
JITTERS: tuple[Jitter, ...] = ("full", "equal", "decorrelated", "none")
SPREADS: tuple[Spread, ...] = ("full", "equal", "none")
below_one = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_numbers(bad: object) -> None:
    """Base, factor and cap are positive finite numbers."""
    for name in ("base", "factor", "cap"):
        assert_refuses(name, bad, ExponentialBackoff)
    for name in ("base", "step", "cap"):
        assert_refuses(name, bad, LinearBackoff)
    for name in ("base", "cap"):
        assert_refuses(name, bad, FibonacciBackoff)


@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, None], ids=brief)
def test_refuses_bad_constant_delays(bad: object) -> None:
    """A constant delay is a finite number of at least 0."""
    assert_refuses("delay", bad, ConstantBackoff)


def test_refusal_of_a_jitter_names_those_there_are() -> None:
    """One after another, as they are written."""
    with pytest.raises(ValueError, match="must be one of 'full', 'equal', 'decorrelated', 'none', not 'half'"):
        ExponentialBackoff(jitter="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one of 'full', 'equal', 'none', not 'half'"):
        LinearBackoff(jitter="half")  # type: ignore[arg-type]


def test_share_of_what_no_float_holds() -> None:
    """Half of 1e308 seconds is half of them, to a billionth."""
    delay_ns = ExponentialBackoff(1e308, 1.0, 1e308).delay_ns(1, 0.5, 0)
    assert delay_ns == int(1e308) * SECOND // 2


def test_refuses_shrinking_delays_and_unknown_jitter() -> None:
    """A factor below 1 and a jitter that nobody knows are refused; decorrelated is a schedule of its own."""
    assert_refuses("factor", 0.99, ExponentialBackoff)
    for bad in ("none ", "", None, 1):
        assert_refuses("jitter", bad, ExponentialBackoff)
    for bad in ("decorrelated", None):
        assert_refuses("jitter", bad, LinearBackoff)
        assert_refuses("jitter", bad, FibonacciBackoff)
        assert_refuses("jitter", bad, partial(ScheduleBackoff, [1.0]))


@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, None], ids=brief)
def test_refuses_schedules_of_what_is_no_delay(bad: object) -> None:
    """Each delay of a schedule is a finite number of at least 0."""
    with pytest.raises(ValueError, match=r"^delays must be .* at least 0|^delays must be a number"):
        ScheduleBackoff([1.0, bad])  # type: ignore[list-item]


@pytest.mark.parametrize("bad", [[], (), "12", b"12", 1.5, None, iter([])], ids=repr)
def test_refuses_schedules_without_delays(bad: object) -> None:
    """There is at least one delay, and a text is none."""
    assert_refuses("delays", bad, ScheduleBackoff)


def test_delays_grow_up_to_the_cap() -> None:
    """Without jitter the delays are base * factor**n, and none is longer than the cap."""
    backoff = ExponentialBackoff(0.5, 2.0, 5.0, jitter="none")
    assert [backoff.delay_ns(n, 0.9, 0) / SECOND for n in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    steady = ExponentialBackoff(0.5, 1, 5.0, jitter="none")
    assert steady.delay_ns(10_000, 0.9, 0) == SECOND // 2
    whole = ExponentialBackoff(1, 3, 100, jitter="none")
    assert [whole.delay_ns(n, 0.0, 0) // SECOND for n in (1, 2, 5, 6, 10**9)] == [1, 3, 81, 100, 100]


def test_constant_delays_are_their_own_cap() -> None:
    """ConstantBackoff waits as long each time; its cap is that delay."""
    backoff = ConstantBackoff(2.5)
    assert [backoff.delay_ns(n, 0.3, 7) for n in (1, 2, 10_000)] == [2_500_000_000] * 3
    assert backoff.cap == 2.5
    assert ConstantBackoff(1e308).delay_ns(1, 0.0, 0) == int(1e308) * SECOND
    assert isinstance(backoff, Backoff)
    assert isinstance(ExponentialBackoff(), Backoff)


def test_linear_delays_grow_by_the_same_step() -> None:
    """Without jitter the delays are base + n * step, and none is longer than the cap."""
    backoff = LinearBackoff(0.5, 2, 5.0, jitter="none")
    assert [backoff.delay_ns(n, 0.9, 0) / SECOND for n in (1, 2, 3, 4, 10_000)] == [0.5, 2.5, 4.5, 5.0, 5.0]
    assert LinearBackoff(1e308, 1e308, 1e308, jitter="none").delay_ns(10**9, 0.0, 0) == int(1e308) * SECOND
    assert LinearBackoff().delay_ns(5, 0.5, 0) == SECOND // 4


def test_fibonacci_delays_are_the_sum_of_the_two_before() -> None:
    """Without jitter the delays are base times 1, 1, 2, 3, 5 …, and none is longer than the cap."""
    backoff = FibonacciBackoff(0.5, 5.0, jitter="none")
    delays = [backoff.delay_ns(n, 0.9, 0) / SECOND for n in (1, 2, 3, 4, 5, 6, 7, 10**9)]
    assert delays == [0.5, 0.5, 1.0, 1.5, 2.5, 4.0, 5.0, 5.0]
    assert FibonacciBackoff(1e-9, 1e308, jitter="none").delay_ns(10**9, 0.0, 0) == int(1e308) * SECOND
    assert FibonacciBackoff(40.0, 30.0, jitter="none").delay_ns(1, 0.0, 0) == 30 * SECOND
    assert FibonacciBackoff().delay_ns(5, 0.5, 0) == SECOND // 4


def test_schedule_is_followed_and_its_last_delay_stays() -> None:
    """Any iterable will do, also an endless one; it is read once, and its longest delay is the cap."""
    backoff = ScheduleBackoff([3, 0.5, 0])
    assert [backoff.delay_ns(n, 0.9, 0) / SECOND for n in (1, 2, 3, 4, 10_000)] == [3.0, 0.5, 0.0, 0.0, 0.0]
    assert backoff.cap == 3
    assert backoff == ScheduleBackoff(iter((3, 0.5, 0)))
    endless = ScheduleBackoff(itertools.count(1))
    assert [endless.delay_ns(n, 0.9, 0) // SECOND for n in (1, 2, 1_000, 1_001)] == [1, 2, 1_000, 1_000]
    assert ScheduleBackoff([8.0], jitter="full").delay_ns(1, 0.25, 0) == 2 * SECOND
    assert ScheduleBackoff([8.0], jitter="equal").delay_ns(1, 0.25, 0) == 5 * SECOND
    assert isinstance(backoff, Backoff)


def test_what_is_taken_for_a_backoff() -> None:
    """A backoff is itself, an iterable of seconds a schedule; anything else is named."""
    backoff = LinearBackoff()
    assert as_backoff("backoff", backoff) is backoff
    assert as_backoff("backoff", (1.0, 2.0)) == ScheduleBackoff((1.0, 2.0))
    for bad in (1.0, "1, 2", b"1", None, list, ExponentialBackoff):
        with pytest.raises(ValueError, match=r"^recovery_backoff must be a backoff"):
            as_backoff("recovery_backoff", bad)  # type: ignore[arg-type]


def test_class_of_schedules_is_no_schedule() -> None:
    """A backoff whose parentheses were forgotten is told apart from one."""
    assert is_backoff(ExponentialBackoff())
    assert is_backoff(ConstantBackoff(1.0))
    assert not is_backoff(ExponentialBackoff)
    assert not is_backoff(1.0)


def law_of_delays(make: Callable[[float, float, float, Jitter], Backoff]) -> Callable[[], None]:
    """PO7: every delay lies where its jitter says, never above the cap, and no attempt's number overflows."""
    numbers = st.floats(1e-9, 1e300)

    @given(
        st.one_of(st.sampled_from([0.1, 1.0]), numbers),
        st.one_of(st.sampled_from([1.0, 2.0, 10.0]), st.floats(1, 1e300)),
        st.one_of(st.sampled_from([30.0, 1e308]), numbers),
        st.sampled_from(JITTERS),
        st.one_of(st.integers(1, 8), st.sampled_from([1_000, 10_000, 10**9])),
        below_one,
        st.integers(0, 100 * SECOND),
    )
    def law(  # noqa: PLR0917 - drawn by position
        base: float, factor: float, cap: float, jitter: Jitter, attempt: int, u: float, previous_ns: int
    ) -> None:
        delay_ns = make(base, factor, cap, jitter).delay_ns(attempt, u, previous_ns)
        assert isinstance(delay_ns, int)

        def longer(seconds: float) -> Fraction:
            """Return nanoseconds with room for the rounding of floats."""
            return Fraction(seconds) * SECOND * (1 + Fraction(1, 10**12)) + 1

        assert 0 <= delay_ns <= longer(cap)
        try:
            whole = min(cap, base * factor ** (attempt - 1))
        except OverflowError:
            whole = cap
        if jitter == "decorrelated":
            floor = min(base, cap)
            assert delay_ns <= max(longer(base), Fraction(3 * previous_ns))
        else:
            floor = {"full": 0.0, "equal": whole / 2, "none": whole}[jitter]
            assert delay_ns <= longer(whole)
        assert delay_ns >= Fraction(floor) * SECOND * (1 - Fraction(1, 10**12)) - 1

    return law


class _Uncapped(ExponentialBackoff):
    """A mutant: jitter on top of the cap."""

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:
        return super().delay_ns(attempt, u, previous_ns) + int(u * SECOND) + 10


class _Overflowing(ExponentialBackoff):
    """A mutant: raises to the power first, and asks for the cap then."""

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:  # noqa: ARG002
        try:
            return round(min(self.cap, self.base * self.factor ** (attempt - 1)) * SECOND)
        except OverflowError as error:
            raise AssertionError from error


def test_delays_lie_where_their_jitter_says() -> None:
    """PO7: also for attempt 10,000, and for the longest cap that a float can hold."""
    law_of_delays(lambda base, factor, cap, jitter: ExponentialBackoff(base, factor, cap, jitter=jitter))()


@pytest.mark.parametrize("mutant", [_Uncapped, _Overflowing])
def test_law_of_delays_catches_mutants(mutant: type[ExponentialBackoff]) -> None:
    """A delay above the cap and a power that overflows are seen."""
    assert_caught(law_of_delays(lambda base, factor, cap, jitter: mutant(base, factor, cap, jitter=jitter)))


def law_of_growth(
    make: Callable[[float, float, Spread], Backoff], grown: Callable[[float, int], float]
) -> Callable[[], None]:
    """PO7: a delay lies where its jitter says below what the schedule has grown to, never above the cap."""
    numbers = st.one_of(st.sampled_from([0.1, 1.0, 30.0]), st.floats(1e-9, 1e300))

    @given(numbers, numbers, st.sampled_from(SPREADS), st.one_of(st.integers(1, 60), st.just(10_000)), below_one)
    def law(base: float, cap: float, jitter: Spread, attempt: int, u: float) -> None:
        delay_ns = make(base, cap, jitter).delay_ns(attempt, u, 0)
        assert isinstance(delay_ns, int)
        whole = Fraction(min(cap, grown(base, attempt))) * SECOND
        floor = {"full": Fraction(0), "equal": whole / 2, "none": whole}[jitter]
        slack = Fraction(1, 10**9)
        assert floor * (1 - slack) - 1 <= delay_ns <= whole * (1 + slack) + 1

    return law


def _linearly(base: float, attempt: int) -> float:
    return base * attempt


def _by_fibonacci(base: float, attempt: int) -> float:
    numbers = [1, 1]
    while len(numbers) < attempt:
        numbers.append(numbers[-1] + numbers[-2])
    try:
        return base * numbers[attempt - 1]
    except OverflowError:
        return math.inf


def test_slower_delays_lie_where_their_jitter_says() -> None:
    """PO7: linear ones and Fibonacci's, also for attempt 10,000."""
    law_of_growth(lambda base, cap, jitter: LinearBackoff(base, base, cap, jitter=jitter), _linearly)()
    law_of_growth(lambda base, cap, jitter: FibonacciBackoff(base, cap, jitter=jitter), _by_fibonacci)()


def test_law_of_growth_catches_mutants() -> None:
    """A schedule that grows as another should, and one that starts a step too late, are seen."""
    linear = partial(law_of_growth, lambda base, cap, jitter: LinearBackoff(base, base, cap, jitter=jitter))
    assert_caught(linear(_by_fibonacci))
    assert_caught(linear(lambda base, attempt: base * (attempt + 1)))
    fibonacci = partial(law_of_growth, lambda base, cap, jitter: FibonacciBackoff(base, cap, jitter=jitter))
    assert_caught(fibonacci(_linearly))
    assert_caught(fibonacci(lambda base, attempt: _by_fibonacci(base, attempt + 1)))


def law_of_uniformity(backoff: Backoff, low: float, high: float) -> None:
    """PO7: over many draws the delays are uniform (Kolmogorov and Smirnov, at a level of one in a million)."""
    dice = random.Random(20_260_101)
    count = 4_000
    delays = sorted(backoff.delay_ns(4, dice.random(), 2 * SECOND) / SECOND for _ in range(count))
    distance = max(
        max(abs((number + 1) / count - share), abs(number / count - share))
        for number, delay in enumerate(delays)
        for share in [min(1.0, max(0.0, (delay - low) / (high - low)))]
    )
    assert distance < math.sqrt(-math.log(1e-6 / 2) / (2 * count))


@pytest.mark.parametrize(
    ("jitter", "low", "high"), [("full", 0.0, 8.0), ("equal", 4.0, 8.0), ("decorrelated", 1.0, 6.0)]
)
def test_jitter_is_uniform(jitter: Jitter, low: float, high: float) -> None:
    """PO7: full jitter over [0, d], equal over [d/2, d], decorrelated over [base, three times the delay before]."""
    law_of_uniformity(ExponentialBackoff(1.0, 2.0, 60.0, jitter=jitter), low, high)


def test_uniformity_catches_mutants() -> None:
    """Equal jitter is not full jitter, nor is a delay without any."""
    for jitter in ("equal", "none"):
        assert_caught(partial(law_of_uniformity, ExponentialBackoff(1.0, 2.0, 60.0, jitter=jitter), 0.0, 8.0))
