"""CircuitBreaker: the shell around the machine, on both event loops, between threads, and with listeners."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from typing import TYPE_CHECKING

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
    RejectedError,
    SlowCallRate,
    TimeWindow,
    Verdict,
)
from resilience.testing import ManualClock
from tests.resilience.support import (
    BACKENDS,
    HookedClock,
    assert_caught,
    assert_refuses,
    both_loops,
    heavy,
    in_thread,
    run,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSED, OPEN, HALF_OPEN, ISOLATED = CircuitState


class _DownError(Exception):
    pass


def _fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        permit = breaker.try_admit()
        assert permit is not None
        permit.failure()


def _succeed(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        permit = breaker.try_admit()
        assert permit is not None
        permit.success()


# -- laws, each for the breaker and for a mutant --------------------------------------------------------------------


def _probes_come_back(kind: type[CircuitBreaker], backend: str) -> Callable[[], None]:  # noqa: C901 - one law
    """CB1, CB2: at most k probes run; one that ends in any way at all gives its place back."""

    @given(ends=st.lists(st.sampled_from(["cancel", "native", "close", "ignore"]), min_size=1, max_size=4))
    def law(ends: list[str]) -> None:
        async def main() -> None:
            clock = ManualClock()
            breaker = kind(
                1, 10.0, half_open_max_calls=2, is_failure=lambda e: not isinstance(e, KeyError), clock=clock
            )
            _fail(breaker)
            clock.advance(10)
            running = most = 0

            async def probe(*, ignored: bool = False) -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                try:
                    if ignored:
                        raise KeyError
                    await anyio.sleep_forever()
                finally:
                    running -= 1

            for end in ends:
                if end == "close":
                    coroutine = breaker.call(probe)
                    if backend == "asyncio":
                        coroutine.send(None)
                    coroutine.close()
                elif end == "ignore":
                    with pytest.raises(KeyError):
                        await breaker.call(probe, ignored=True)
                elif end == "native" and backend == "asyncio":
                    import asyncio

                    task = asyncio.ensure_future(breaker.call(probe))
                    await settle()
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    async with anyio.create_task_group() as group:
                        for _ in range(2):
                            group.start_soon(breaker.call, probe)
                        await settle()
                        assert breaker.try_admit() is None
                        group.cancel_scope.cancel()
                assert breaker.statistics().in_use == 0
                assert breaker.state is HALF_OPEN
            assert most <= 2
            _succeed(breaker)
            assert breaker.state is CLOSED

        run(backend, main)

    return law


class _KeepsProbes(CircuitBreaker):
    """Forgets that a cancelled probe has to give back its place."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        if verdict is not Verdict.CANCELLED:
            super().settle(permit, verdict)


@both_loops
def test_a_probe_that_ends_in_any_way_gives_its_place_back(backend: str) -> None:
    """CB1, CB2: cancelled, natively cancelled, closed and ignored probes leave the circuit half-open and usable."""
    heavy(_probes_come_back(CircuitBreaker, backend))()


@both_loops
def test_a_breaker_that_keeps_cancelled_probes_is_caught(backend: str) -> None:
    """CB1, CB2: the mutant fails the very same law."""
    assert_caught(_probes_come_back(_KeepsProbes, backend))


def _stale_outcomes(kind: type[CircuitBreaker]) -> Callable[[], None]:
    """CB3: an outcome of an earlier generation changes nothing, failures and successes alike."""

    @given(verdicts=st.lists(st.sampled_from([Verdict.SUCCESS, Verdict.FAILURE]), min_size=1, max_size=4))
    def law(verdicts: list[Verdict]) -> None:
        clock = ManualClock()
        breaker = kind(2, 10.0, clock=clock)
        stale = [breaker.try_admit() for _ in verdicts]
        breaker.reset()
        _fail(breaker)
        for permit, verdict in zip(stale, verdicts, strict=True):
            assert permit is not None
            breaker.settle(permit, verdict)
            assert (breaker.state, breaker.failure_count) == (CLOSED, 1)
        fresh = breaker.try_admit()
        _fail(breaker)
        assert fresh is not None
        clock.advance(5)
        fresh.failure()
        clock.advance(5)
        assert breaker.state is HALF_OPEN

    return law


class _NoGenerations(CircuitBreaker):
    """Counts an outcome whenever it comes."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        permit.generation = self._machine.generation
        super().settle(permit, verdict)


def test_stale_outcomes_change_nothing() -> None:
    """CB3: what was admitted before the circuit changed neither counts nor moves the reopening."""
    _stale_outcomes(CircuitBreaker)()


def test_a_breaker_without_generations_is_caught() -> None:
    """CB3: the mutant fails the very same law."""
    assert_caught(_stale_outcomes(_NoGenerations))


def _changes_are_announced(kind: type[CircuitBreaker]) -> Callable[[], None]:  # noqa: C901 - one law
    """CB4, CB9: each change is told once and in order, whatever listeners do."""

    @given(
        steps=st.lists(st.sampled_from(["fail", "succeed", "advance", "reset", "isolate"]), max_size=25),
        rude=st.booleans(),
    )
    def law(steps: list[str], rude: bool) -> None:  # noqa: FBT001 - Hypothesis passes it by name
        clock = ManualClock()
        told: list[tuple[CircuitState, CircuitState]] = []

        def listener(breaker: CircuitBreaker, old: CircuitState, new: CircuitState) -> None:
            told.append((old, new))
            if new is OPEN and len(told) < 20:
                breaker.reset()
            if rude:
                raise _DownError

        breaker = kind(1, 10.0, on_state_change=listener, clock=clock)
        for step in steps:
            if step == "advance":
                clock.advance(10)
            elif step == "reset":
                breaker.reset()
            elif step == "isolate":
                with breaker.isolate():
                    assert breaker.state is ISOLATED
            else:
                permit = breaker.try_admit()
                if permit is not None:
                    (permit.failure if step == "fail" else permit.success)()
        state = CLOSED
        for old, new in told:
            assert old is state
            assert new is not old
            state = new
        assert breaker.state is state

    return law


class _Doubled(CircuitBreaker):
    """Announces every change twice."""

    def _announce(self) -> None:
        changes = list(self._machine.changes)
        super()._announce()
        self._machine.changes += changes
        super()._announce()


def test_every_change_is_announced_once_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """CB4, CB9: a listener that re-enters or raises neither reorders, repeats nor deadlocks."""
    caplog.set_level("CRITICAL", "resilience")
    _changes_are_announced(CircuitBreaker)()


def test_a_breaker_that_announces_out_of_order_is_caught(caplog: pytest.LogCaptureFixture) -> None:
    """CB4, CB9: the mutant fails the very same law."""
    caplog.set_level("CRITICAL", "resilience")
    assert_caught(_changes_are_announced(_Doubled))


def _only_failures_count(kind: type[CircuitBreaker], backend: str) -> Callable[[], None]:
    """CB7: rejections from inside, excluded exceptions and cancellations are neither failures nor successes."""

    @given(ends=st.lists(st.sampled_from(["reject", "exclude", "cancel", "fail", "succeed"]), max_size=8))
    def law(ends: list[str]) -> None:
        async def main() -> None:
            breaker = kind(100, is_failure=lambda error: not isinstance(error, KeyError), clock=ManualClock())
            expected = 0

            async def call(end: str) -> None:
                if end == "cancel":
                    await anyio.sleep_forever()
                if end != "succeed":
                    raise {"reject": RejectedError("inner"), "exclude": KeyError(), "fail": _DownError()}[end]

            for end in ends:
                with anyio.CancelScope() as scope:
                    if end == "cancel":
                        scope.cancel()
                    with contextlib.suppress(RejectedError, KeyError, _DownError):
                        await breaker.call(call, end)
                expected = {"fail": expected + 1, "succeed": 0}.get(end, expected)
                assert breaker.failure_count == expected
            statistics = breaker.statistics()
            assert (statistics.failed, statistics.succeeded) == (ends.count("fail"), ends.count("succeed"))
            assert statistics.ignored == ends.count("reject") + ends.count("exclude")
            assert statistics.cancelled == ends.count("cancel")
            assert statistics.admitted == len(ends)

        run(backend, main)

    return law


class _CountsAll(CircuitBreaker):
    """Takes whatever goes wrong for a failure."""

    def judge_exception(self, exception: BaseException) -> Verdict:  # noqa: ARG002 - the mutant
        return Verdict.FAILURE


@both_loops
def test_only_failures_count_as_failures(backend: str) -> None:
    """CB7: the failure count is what the failures and successes alone make it."""
    heavy(_only_failures_count(CircuitBreaker, backend))()


@both_loops
def test_a_breaker_that_counts_everything_is_caught(backend: str) -> None:
    """CB7: the mutant fails the very same law."""
    assert_caught(_only_failures_count(_CountsAll, backend))


def _elapsed_time_counts(kind: type[CircuitBreaker]) -> Callable[[], None]:
    """CB5, CB8: open lasts its time of the elapsed kind, however the clock steps back; a leap opens one probe set."""

    @given(moves=st.lists(st.tuples(st.floats(0.001, 3), st.floats(0, 1000)), max_size=12), leap=st.floats(10.1, 1e9))
    def law(moves: list[tuple[float, float]], leap: float) -> None:
        clock = ManualClock()
        breaker = kind(1, 10.0, clock=clock)
        _fail(breaker)
        elapsed = 0
        for forward, back in moves:
            before = clock.monotonic_ns()
            clock.advance(forward)
            elapsed += clock.monotonic_ns() - before
            # Seen, as it would be by any call: a step that nobody sees has not happened.
            assert (breaker.state is HALF_OPEN) == (elapsed >= 10_000_000_000)
            clock.step_back(back)
            assert (breaker.try_admit() is None) == (elapsed < 10_000_000_000)
            if elapsed >= 10_000_000_000:
                return
        clock.advance(leap)
        assert breaker.try_admit() is not None
        assert breaker.try_admit() is None

    return law


class _RawClock(CircuitBreaker):
    """Believes its clock when that steps back."""

    def __init__(self, *args: int, clock: ManualClock) -> None:
        super().__init__(*args, clock=clock)

        class Raw:
            last_ns = offset_ns = 0
            at = staticmethod(lambda now_ns: now_ns)
            at_reading = staticmethod(lambda now_ns, read: read() if now_ns is None else now_ns)

        self._line = Raw()  # type: ignore[assignment]


def test_open_lasts_its_time_and_no_longer() -> None:
    """CB5, CB8: nothing passes before the time is over, and a backward clock adds nothing to it."""
    _elapsed_time_counts(CircuitBreaker)()


def test_a_breaker_that_believes_a_backward_clock_is_caught() -> None:
    """CB8: the mutant fails the very same law."""
    assert_caught(_elapsed_time_counts(_RawClock))


# -- CB6: threads ---------------------------------------------------------------------------------------------------


def _linearizable(kind: type[CircuitBreaker]) -> Callable[[], None]:
    """CB6: an operation that another thread completes while one holds the lock takes effect before or after it."""

    @given(first=st.sampled_from(["fail", "succeed", "admit"]), second=st.sampled_from(["fail", "succeed", "reset"]))
    def law(first: str, second: str) -> None:
        clock = HookedClock()
        breaker = kind(2, 10.0, clock=clock)
        permits = [breaker.try_admit(), breaker.try_admit()]
        _fail(breaker)
        threads: list[threading.Thread] = []

        def act(name: str, permit: Permit | None) -> None:
            if name == "reset":
                breaker.reset()
            elif name == "admit":
                breaker.try_admit()
            else:
                assert permit is not None
                (permit.failure if name == "fail" else permit.success)()

        def intrude() -> None:
            thread = threading.Thread(target=act, args=(second, permits[1]))
            threads.append(thread)
            thread.start()
            # It ends now if nothing keeps it out, else as soon as the lock is free.
            thread.join(0.02)

        clock.hook = intrude
        act(first, permits[0])
        hook, clock.hook = clock.hook, None
        if hook is not None:
            # It has no middle: a call through a closed circuit takes no lock and reads no clock.
            hook()
        for thread in threads:
            thread.join()
        outcome = (breaker._machine.state, breaker.failure_count)
        assert outcome in {_in_order(first, second), _in_order(second, first)}

    return law


def _in_order(*names: str) -> tuple[CircuitState, int]:
    """Return what the sequential model comes to: two failures in a row open the circuit, and one has happened."""
    state, failures, current = CLOSED, 1, True
    for name in names:
        if name == "reset":
            state, failures, current = CLOSED, 0, False
        elif state is CLOSED and current and name != "admit":
            failures = failures + 1 if name == "fail" else 0
            state = OPEN if failures == 2 else CLOSED
    return state, failures


class _NoLock(CircuitBreaker):
    """Reads the clock and the count outside of any lock, and writes the count back."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        before = self._machine.tripwire.failures
        generation = self._machine.generation
        self.clock.monotonic_ns()
        super().settle(permit, verdict)
        if generation == permit.generation or verdict is Verdict.FAILURE:
            self._machine.tripwire.failures = before + (verdict is Verdict.FAILURE)  # type: ignore[misc]


def test_operations_of_two_threads_take_effect_one_after_the_other() -> None:
    """CB6: whatever intrudes in the middle of an operation, the outcome is one of the two orders."""
    heavy(_linearizable(CircuitBreaker))()


def test_a_breaker_that_counts_outside_its_lock_is_caught() -> None:
    """CB6: the mutant fails the very same law."""
    assert_caught(_linearizable(_NoLock))


def test_half_open_admits_one_probe_among_many_threads() -> None:
    """CB1: of eight threads that ask at once, one is let through."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 10.0, clock=clock)
    _fail(breaker)
    clock.advance(10)
    barrier, admitted = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait()
        admitted.append(breaker.try_admit())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(permit is not None for permit in admitted) == 1


# -- behaviours -----------------------------------------------------------------------------------------------------


def test_it_opens_probes_and_closes() -> None:
    """Consecutive failures open it, a success between them starts the count again, a probe closes it."""
    clock = ManualClock(wall=1000.0)
    breaker = CircuitBreaker(failure_threshold=2, recovery_timeout=60, clock=clock)
    _fail(breaker)
    _succeed(breaker)
    assert (breaker.failure_count, breaker.last_failure_time) == (0, 1000.0)
    _fail(breaker, 2)
    assert (breaker.state, breaker.failure_count, breaker.retry_after()) == (OPEN, 2, 60.0)
    with pytest.raises(CircuitOpenError) as caught, breaker:
        pytest.fail("an open circuit let a block run")
    assert (caught.value.guard, caught.value.retry_after) == ("CircuitBreaker", 60.0)
    clock.advance(60)
    assert (breaker.state, breaker.retry_after()) == (HALF_OPEN, 0.0)
    _succeed(breaker)
    assert (breaker.state, breaker.failure_count, breaker.last_failure_time) == (CLOSED, 0, 1000.0)
    assert CircuitBreaker(clock=clock).last_failure_time is None


def test_a_probe_that_is_never_settled_has_failed() -> None:
    """CB2: the lease of a forgotten probe ends, the circuit reopens at that instant, and later probes it again."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 10.0, probe_timeout=3.0, clock=clock)
    _fail(breaker)
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
    _fail(breaker)
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
    _fail(breaker)
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
    _fail(breaker, 2)
    breaker.reset()
    assert (breaker.state, breaker.failure_count) == (CLOSED, 0)
    _fail(breaker)
    breaker.reset()
    assert breaker.failure_count == 0


def test_the_break_follows_a_schedule() -> None:
    """An iterable of seconds does as a `recovery_backoff`; it says how long each break is, but for the shortest."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 2.0, recovery_backoff=iter([1.0, 3.0, 4.0]), clock=clock)
    breaks = []
    for _ in range(5):
        _fail(breaker)
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
        _fail(breaker)
        breaks.append(breaker.retry_after())
        clock.advance(breaks[-1])
    assert breaks == [1.0, 4.0, 6.0, 6.0]


@pytest.mark.parametrize("threshold", [0.07, 0.55, 0.29, 1])
def test_a_failure_rate_is_the_share_that_was_written(threshold: float) -> None:
    """55 failures of 100 calls trip a threshold of 0.55, though the float nearest to it is larger; 54 do not."""
    failures = round(threshold * 100)
    for failed, tripped in ((failures, True), (failures - 1, False)):
        breaker = CircuitBreaker(trip=FailureRate(threshold, CountWindow(100), 100), clock=ManualClock())
        _succeed(breaker, 100 - failed)
        _fail(breaker, failed)
        assert (breaker.state is OPEN) is tripped


@given(outcomes=st.lists(st.booleans(), max_size=40), calls=st.integers(1, 8), share=st.sampled_from([0.3, 0.5, 1]))
def test_a_count_window_holds_exactly_the_last_calls(outcomes: list[bool], calls: int, share: float) -> None:
    """The circuit trips exactly when the failures among the last calls reach the share."""
    breaker = CircuitBreaker(trip=FailureRate(share, CountWindow(calls), calls), clock=ManualClock())
    for number, failed in enumerate(outcomes, 1):
        (_fail if failed else _succeed)(breaker)
        last = outcomes[max(0, number - calls) : number]
        assert breaker.failure_count == sum(last)
        assert (breaker.state is OPEN) == (len(last) == calls and sum(last) * 10 >= round(share * 10) * calls)
        if breaker.state is OPEN:
            return


def test_a_time_window_forgets_as_time_goes_by() -> None:
    """Failures leave a time window without another call, and no longer trip the circuit."""
    clock = ManualClock()
    breaker = CircuitBreaker(trip=[FailureRate(0.5, TimeWindow(10.0), 4), ConsecutiveFailures(99)], clock=clock)
    _fail(breaker, 3)
    assert breaker.failure_count == 3
    clock.advance(10)
    assert breaker.failure_count == 0
    _fail(breaker, 3)
    clock.advance(1)
    assert breaker.state is CLOSED
    _succeed(breaker)
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
    _fail(breaker)
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
            raise _DownError

        with pytest.raises(_DownError):
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
