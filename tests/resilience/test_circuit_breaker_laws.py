"""CircuitBreaker: its laws, on both event loops, between threads, and with listeners."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from resilience import CircuitBreaker, CircuitState, Permit, RejectedError, Verdict
from resilience.testing import ManualClock
from tests.resilience.subjects import fail, succeed
from tests.resilience.support import HookedClock, assert_caught, both_loops, heavy, run, settle

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSED, OPEN, HALF_OPEN, ISOLATED = CircuitState


class _DownError(Exception):
    pass


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
            fail(breaker)
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
            succeed(breaker)
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
        fail(breaker)
        for permit, verdict in zip(stale, verdicts, strict=True):
            assert permit is not None
            breaker.settle(permit, verdict)
            assert (breaker.state, breaker.failure_count) == (CLOSED, 1)
        fresh = breaker.try_admit()
        fail(breaker)
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
    @example(steps=[*["fail"] * 11, "advance"], rude=False)
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
        # Before the rest, since to look makes the changes that are due.
        last = breaker.state
        state = CLOSED
        for old, new in told:
            assert old is state
            assert new is not old
            state = new
        assert last is state

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
        fail(breaker)
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
        fail(breaker)
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
    fail(breaker)
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
