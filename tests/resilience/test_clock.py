"""Clocks, seconds and nanoseconds, and the line of time that never goes back."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience.clock import CallbackClock, Clock, MonotoneLine, SystemClock, nanoseconds, seconds
from resilience.testing import ManualClock
from tests.resilience.support import SleepingClock, as_clock, assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable


def test_system_clock_is_a_clock_without_callbacks() -> None:
    """SystemClock is a Clock; it cannot call back, so waits on it use the event loop's own timers."""
    clock = as_clock(SystemClock())
    assert isinstance(clock, Clock)
    assert not isinstance(clock, CallbackClock)
    assert isinstance(ManualClock(), CallbackClock)
    assert isinstance(SleepingClock(), Clock)
    assert not isinstance(SleepingClock(), CallbackClock)
    assert repr(clock) == "SystemClock()"


def test_system_clock_reads_the_machine() -> None:
    """Its readings are those of the time module."""
    clock = SystemClock()
    assert time.monotonic_ns() <= clock.monotonic_ns() <= time.monotonic_ns()
    assert time.time_ns() <= clock.time_ns() + 1_000_000_000
    clock.sleep_blocking(0)


@pytest.mark.anyio
async def test_system_clock_sleeps_and_times_out_as_anyio_does() -> None:
    """A sleep of 0 is a checkpoint; fail_after ends its block with TimeoutError."""
    clock = SystemClock()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await clock.sleep(0)
    assert scope.cancelled_caught
    with pytest.raises(TimeoutError), clock.fail_after(0):
        await anyio.sleep_forever()


@given(st.integers(-(2**51), 2**51))
def test_nanoseconds_survive_the_way_through_seconds(number: int) -> None:
    """Up to 26 days either way, whole nanoseconds come back from seconds unchanged."""
    assert nanoseconds(seconds(number)) == number


@given(st.floats(min_value=-1e300, max_value=1e300, allow_nan=False))
@example(1e300)
@example(-1e300)
def test_every_finite_duration_has_nanoseconds(duration: float) -> None:
    """No finite number of seconds is too long for an integer of nanoseconds, and the way back loses next to nothing."""
    assert math.isclose(seconds(nanoseconds(duration)), duration, rel_tol=1e-12, abs_tol=1e-9)


def test_what_no_float_holds_is_infinite_seconds() -> None:
    """An instant beyond every float is infinitely far away, rather than an OverflowError in the middle of a refusal."""
    assert seconds(10**400) == math.inf
    assert seconds(-(10**400)) == -math.inf
    with pytest.raises(OverflowError):
        nanoseconds(math.inf)
    with pytest.raises(ValueError, match="NaN"):
        nanoseconds(math.nan)


class _Forgetful(MonotoneLine):
    """A mutant: stands still, but then waits for the clock to catch up."""

    def stand_still(self, behind_ns: int) -> int:  # noqa: ARG002
        return self.last_ns


class _Naive(MonotoneLine):
    """A mutant: believes the clock."""

    def at(self, clock_ns: int) -> int:
        self.last_ns = clock_ns
        return clock_ns


class _Minting(MonotoneLine):
    """A mutant: counts a step back as time that has passed."""

    def at(self, clock_ns: int) -> int:
        self.last_ns += abs(clock_ns - self.offset_ns)
        self.offset_ns = clock_ns
        return self.last_ns


def law_of_the_line(kind: type[MonotoneLine]) -> Callable[[], None]:
    """RL3: the line never goes back, stands still during a step back, and goes on at the clock's pace at once."""

    @given(st.lists(st.integers(-50, 50)))
    def law(steps: list[int]) -> None:
        reading = expected = 1_000
        line = kind(reading)
        line.at(reading)
        for step in steps:
            reading += step
            expected += max(0, step)
            assert line.at(reading) == expected
        assert line.last_ns == expected

    return law


def test_line_stands_still_where_the_clock_steps_back() -> None:
    """RL3: forward steps pass unchanged and backward ones count as nothing, in any mixture."""
    law_of_the_line(MonotoneLine)()


@pytest.mark.parametrize("mutant", [_Forgetful, _Naive, _Minting])
def test_law_of_the_line_catches_mutants(mutant: type[MonotoneLine]) -> None:
    """Waiting to catch up, believing the clock and minting a step back all violate the law."""
    assert_caught(law_of_the_line(mutant))


def test_late_reading_is_no_step_back() -> None:
    """A reading that was overtaken by another thread's is taken again, so the line stays with its clock."""
    line = MonotoneLine(0)
    line.at(100)
    assert line.at_reading(40, lambda: 105) == 105
    assert line.offset_ns == 0
    assert line.at_reading(110, lambda: pytest.fail("read in vain")) == 110
    assert line.at_reading(None, lambda: 110) == 110
    # A clock that really is behind has stepped back.
    assert line.at_reading(50, lambda: 60) == 110
    assert line.at(61) == 111
