"""Backoff: schedules of delays."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Backoff, ConstantBackoff, ExponentialBackoff
from resilience.machines.backoff import is_backoff
from tests.resilience.support import NOT_NEGATIVE, NOT_POSITIVE, assert_caught, assert_refuses, brief

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.machines.backoff import Jitter

SECOND = 1_000_000_000
JITTERS: tuple[Jitter, ...] = ("full", "equal", "decorrelated", "none")
below_one = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_numbers(bad: object) -> None:
    """Base, factor and cap are positive finite numbers."""
    for name in ("base", "factor", "cap"):
        assert_refuses(name, bad, ExponentialBackoff)


@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, None], ids=brief)
def test_refuses_bad_constant_delays(bad: object) -> None:
    """A constant delay is a finite number of at least 0."""
    assert_refuses("delay", bad, ConstantBackoff)


def test_refuses_shrinking_delays_and_unknown_jitter() -> None:
    """A factor below 1 and a jitter that nobody knows are refused."""
    assert_refuses("factor", 0.99, ExponentialBackoff)
    for bad in ("none ", "", None, 1):
        assert_refuses("jitter", bad, ExponentialBackoff)


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
