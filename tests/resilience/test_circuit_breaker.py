"""CircuitBreaker: the shell around the machine, as it is used."""

from __future__ import annotations

import math
import random

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import given

from resilience import (
    CircuitBreaker,
    CircuitOpenError,
    CircuitState,
    ConsecutiveFailures,
    CountWindow,
    ExponentialBackoff,
    FailureRate,
    Permit,
    SlowCallRate,
    TimeWindow,
    Verdict,
)
from resilience.testing import ManualClock
from tests.resilience.subjects import fail, succeed
from tests.resilience.support import BACKENDS, HookedClock, assert_refuses, in_thread

CLOSED, OPEN, HALF_OPEN, ISOLATED = CircuitState


# -- behaviours -----------------------------------------------------------------------------------------------------


def test_it_opens_probes_and_closes() -> None:
    """Consecutive failures open it, a success between them starts the count again, a probe closes it."""
    clock = ManualClock(wall=1000.0)
    breaker = CircuitBreaker(failure_threshold=2, recovery_timeout=60, clock=clock)
    fail(breaker)
    succeed(breaker)
    assert (breaker.failure_count, breaker.last_failure_time) == (0, 1000.0)
    fail(breaker, 2)
    assert (breaker.state, breaker.failure_count, breaker.retry_after()) == (OPEN, 2, 60.0)
    with pytest.raises(CircuitOpenError) as caught, breaker:
        pytest.fail("an open circuit let a block run")
    assert (caught.value.guard, caught.value.retry_after) == ("CircuitBreaker", 60.0)
    clock.advance(60)
    assert (breaker.state, breaker.retry_after()) == (HALF_OPEN, 0.0)
    succeed(breaker)
    assert (breaker.state, breaker.failure_count, breaker.last_failure_time) == (CLOSED, 0, 1000.0)
    assert CircuitBreaker(clock=clock).last_failure_time is None


def test_a_probe_that_is_never_settled_has_failed() -> None:
    """CB2: the lease of a forgotten probe ends, the circuit reopens at that instant, and later probes it again."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 10.0, probe_timeout=3.0, clock=clock)
    fail(breaker)
    clock.advance(10)
    forgotten = breaker.try_admit()
    assert forgotten is not None
    clock.advance(5)
    assert (breaker.state, breaker.retry_after()) == (OPEN, 8.0)
    forgotten.success()
    assert breaker.state is OPEN
    clock.advance(8)
    assert breaker.state is HALF_OPEN


def test_a_renewed_permit_keeps_its_lease() -> None:
    """CB2: renewing a probe begins its lease anew; renewing any other permit does nothing."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 10.0, probe_timeout=3.0, clock=clock)
    ordinary = breaker.try_admit()
    assert ordinary is not None
    ordinary.renew()
    fail(breaker)
    clock.advance(10)
    probe = breaker.try_admit()
    assert probe is not None
    for _ in range(3):
        clock.advance(2)
        probe.renew()
    assert breaker.statistics().in_use == 1
    probe.success()
    probe.failure()
    assert breaker.state is CLOSED


def test_isolation_is_counted_and_lifted_once_each() -> None:
    """The circuit stays isolated until the last isolation is lifted, and is then what it was before."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 10.0, clock=clock)
    first, second = breaker.isolate(), breaker.isolate()
    first.lift()
    first.lift()
    assert (breaker.state, breaker.retry_after(), breaker.try_admit()) == (ISOLATED, math.inf, None)
    breaker.reset()
    assert breaker.state is ISOLATED
    second.lift()
    assert breaker.state is CLOSED
    fail(breaker)
    with breaker.isolate():
        clock.advance(4)
    assert (breaker.state, breaker.retry_after()) == (OPEN, 6.0)
    clock.advance(6)
    with breaker.isolate():
        pass
    assert breaker.state is HALF_OPEN


def test_reset_closes_and_forgets() -> None:
    """Reset closes an open circuit, and forgets the failures of a closed one."""
    breaker = CircuitBreaker(2, 10.0, clock=ManualClock())
    fail(breaker, 2)
    breaker.reset()
    assert (breaker.state, breaker.failure_count) == (CLOSED, 0)
    fail(breaker)
    breaker.reset()
    assert breaker.failure_count == 0


def test_the_break_follows_a_schedule() -> None:
    """An iterable of seconds does as a `recovery_backoff`; it says how long each break is, but for the shortest."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 2.0, recovery_backoff=iter([1.0, 3.0, 4.0]), clock=clock)
    breaks = []
    for _ in range(5):
        fail(breaker)
        breaks.append(breaker.retry_after())
        clock.advance(breaks[-1])
    assert breaks == [2.0, 2.0, 3.0, 4.0, 4.0]


def test_the_break_grows_when_probes_keep_failing() -> None:
    """With `recovery_backoff`, each failed probe makes the next break longer."""
    clock = ManualClock()
    breaker = CircuitBreaker(
        1,
        1.0,
        recovery_backoff=ExponentialBackoff(base=4.0, factor=2.0, cap=6.0, jitter="none"),
        clock=clock,
        random=random.Random(1),
    )
    breaks = []
    for _ in range(4):
        fail(breaker)
        breaks.append(breaker.retry_after())
        clock.advance(breaks[-1])
    assert breaks == [1.0, 4.0, 6.0, 6.0]


@pytest.mark.parametrize("threshold", [0.07, 0.55, 0.29, 1])
def test_a_failure_rate_is_the_share_that_was_written(threshold: float) -> None:
    """55 failures of 100 calls trip a threshold of 0.55, though the float nearest to it is larger; 54 do not."""
    failures = round(threshold * 100)
    for failed, tripped in ((failures, True), (failures - 1, False)):
        breaker = CircuitBreaker(trip=FailureRate(threshold, CountWindow(100), 100), clock=ManualClock())
        succeed(breaker, 100 - failed)
        fail(breaker, failed)
        assert (breaker.state is OPEN) is tripped


@given(outcomes=st.lists(st.booleans(), max_size=40), calls=st.integers(1, 8), share=st.sampled_from([0.3, 0.5, 1]))
def test_a_count_window_holds_exactly_the_last_calls(outcomes: list[bool], calls: int, share: float) -> None:
    """The circuit trips exactly when the failures among the last calls reach the share."""
    breaker = CircuitBreaker(trip=FailureRate(share, CountWindow(calls), calls), clock=ManualClock())
    for number, failed in enumerate(outcomes, 1):
        (fail if failed else succeed)(breaker)
        last = outcomes[max(0, number - calls) : number]
        assert breaker.failure_count == sum(last)
        assert (breaker.state is OPEN) == (len(last) == calls and sum(last) * 10 >= round(share * 10) * calls)
        if breaker.state is OPEN:
            return


def test_a_time_window_forgets_as_time_goes_by() -> None:
    """Failures leave a time window without another call, and no longer trip the circuit."""
    clock = ManualClock()
    breaker = CircuitBreaker(trip=[FailureRate(0.5, TimeWindow(10.0), 4), ConsecutiveFailures(99)], clock=clock)
    fail(breaker, 3)
    assert breaker.failure_count == 3
    clock.advance(10)
    assert breaker.failure_count == 0
    fail(breaker, 3)
    clock.advance(1)
    assert breaker.state is CLOSED
    succeed(breaker)
    assert breaker.state is OPEN


def test_slow_calls_trip_and_a_slow_probe_has_failed() -> None:
    """A call is slow from `slow_call_duration` on, however it ends; a clock that steps back makes none slow."""
    clock = ManualClock()
    breaker = CircuitBreaker(
        1, 10.0, trip=(SlowCallRate(1, CountWindow(2), 2), ConsecutiveFailures(5)), slow_call_duration=1.0, clock=clock
    )

    def call(seconds: float) -> None:
        with breaker:
            clock.advance(seconds)

    call(5)
    clock.step_back(3)
    call(0.9)
    call(1.0)
    assert breaker.state is CLOSED
    with breaker:
        clock.advance(0.5)
        # The breaker has seen the half second; what it has not seen when the clock steps back, nobody can know.
        assert breaker.state is CLOSED
        clock.step_back(100)
        assert breaker.state is CLOSED
        clock.advance(0.5)
    assert breaker.state is OPEN
    clock.advance(10)
    call(2)
    assert breaker.state is OPEN
    clock.advance(10)
    call(0.5)
    assert breaker.state is CLOSED


def test_predicates_may_return_a_verdict_and_may_raise() -> None:
    """`is_failure` and `is_failure_result` say bool or Verdict; what they raise goes on, and the permit comes back."""
    clock = ManualClock()
    verdicts: dict[object, bool | Verdict] = {"bad": True, "odd": Verdict.IGNORED, "good": False}

    def judge(result: object) -> bool | Verdict:
        return verdicts[result]

    breaker = CircuitBreaker(
        9,
        is_failure=lambda error: verdicts[str(error)],
        is_failure_result=judge,
        clock=clock,
    )
    guarded = breaker(lambda result: result)
    for result in ("bad", "odd", "good", "bad"):
        guarded(result)
    statistics = breaker.statistics()
    assert (statistics.failed, statistics.ignored, statistics.succeeded, breaker.failure_count) == (2, 1, 1, 1)
    with pytest.raises(KeyError):
        guarded("unknown")

    @breaker
    def raising(text: str) -> None:
        raise OSError(text)

    for text, error in (("bad", OSError), ("odd", OSError), ("unknown", KeyError)):
        with pytest.raises(error):
            raising(text)
    # The error of the predicate goes on; what it was asked about says nothing.
    assert breaker.statistics().ignored == 4
    assert breaker.statistics().failed == 3


def test_a_finalizer_that_interrupts_the_lock_is_put_off() -> None:
    """CB2: a probe's frame that is collected in the middle of a critical section gives its place back afterwards."""
    clock = HookedClock()
    breaker = CircuitBreaker(1, 10.0, clock=clock)
    fail(breaker)
    clock.advance(10)

    class _Stop:
        def __await__(self) -> object:
            yield

    async def stuck() -> None:
        await _Stop()  # type: ignore[misc]

    for intrude_on in (lambda: breaker.state, breaker.retry_after, lambda: breaker.failure_count, breaker.try_admit):
        coroutine = breaker.call(stuck)
        coroutine.send(None)
        assert breaker.statistics().in_use == 1
        clock.hook = coroutine.close
        permit = intrude_on()
        assert clock.hook is None
        if isinstance(permit, Permit):
            permit.ignored()
        assert breaker.statistics().in_use == 0


def test_it_is_shared_between_event_loops() -> None:
    """One breaker serves several event loops, each in a thread of its own."""
    breaker = CircuitBreaker(1, 10.0, clock=ManualClock())

    async def main() -> None:
        async def fail() -> None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await breaker.call(fail)

    in_thread(lambda: anyio.run(main, backend=BACKENDS[0]))
    assert breaker.state is OPEN
    breaker.reset()
    in_thread(lambda: anyio.run(main, backend=BACKENDS[1]))
    assert breaker.state is OPEN
    assert "open" in repr(breaker)


# -- bad input ------------------------------------------------------------------------------------------------------

_NUMBERS = (0, -1, math.nan, math.inf, True, "x")


@pytest.mark.parametrize("value", [*_NUMBERS, None, 1.5])
@pytest.mark.parametrize("name", ["failure_threshold", "half_open_max_calls", "success_threshold"])
def test_counts_must_be_whole_and_positive(name: str, value: object) -> None:
    """A count that is not a whole number of at least 1 is a ValueError that names it."""
    assert_refuses(name, value, CircuitBreaker)


@pytest.mark.parametrize("value", _NUMBERS)
@pytest.mark.parametrize("name", ["recovery_timeout", "probe_timeout", "slow_call_duration"])
def test_durations_must_be_positive_and_finite(name: str, value: object) -> None:
    """A duration that is not a positive finite number is a ValueError that names it."""
    trip = SlowCallRate(0.5, CountWindow(10)) if name == "slow_call_duration" else None
    assert_refuses(name, value, CircuitBreaker, trip=trip)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recovery_timeout", None),
        ("is_failure", None),
        *((name, value) for name in ("is_failure", "is_failure_result", "on_state_change") for value in (0, "x", True)),
        *(("trip", value) for value in (5, True, "x", (), [1])),
        *(("recovery_backoff", value) for value in (1.0, "x", ExponentialBackoff)),
        ("random", 4),
        ("name", 3),
    ],
)
def test_other_arguments_are_judged_too(name: str, value: object) -> None:
    """What is no predicate, condition, backoff or name is refused when the breaker is made."""
    assert_refuses(name, value, CircuitBreaker)


def test_slow_calls_need_a_duration_and_the_other_way_round() -> None:
    """SlowCallRate without `slow_call_duration`, or that without SlowCallRate, is a ValueError."""
    with pytest.raises(ValueError, match="slow_call_duration must be given"):
        CircuitBreaker(trip=SlowCallRate(0.5, CountWindow(10)))
    with pytest.raises(ValueError, match=r"slow_call_duration .* 1\.0"):
        CircuitBreaker(slow_call_duration=1.0)


@pytest.mark.parametrize("value", [*_NUMBERS, None, 1.5])
def test_conditions_and_windows_are_judged(value: object) -> None:
    """Thresholds, windows and minimums are refused by name, whichever condition they are given to."""
    assert_refuses("n", value, ConsecutiveFailures)
    assert_refuses("calls", value, CountWindow)
    for kind in (FailureRate, SlowCallRate):
        assert_refuses("min_calls", value, kind, 0.5, TimeWindow(1.0))
        assert_refuses("window", value, kind, 0.5)
        assert_refuses("threshold", value, kind, window=CountWindow(10))
        with pytest.raises(ValueError, match="min_calls"):
            kind(0.5, CountWindow(5), 6)
    if value != 1.5:
        assert_refuses("seconds", value, TimeWindow)
