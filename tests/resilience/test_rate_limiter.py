"""RateLimiter: acquiring, reconfiguring, guarding calls."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import NotUntil, Permit, Policy, RateLimitedError, RateLimiter, RejectedError
from resilience.machines.decision import NeverFits
from resilience.outcome import Verdict
from resilience.telemetry import subscribe
from resilience.testing import ManualClock
from tests.resilience.subjects import emptied
from tests.resilience.support import (
    NOT_NEGATIVE,
    NOT_POSITIVE,
    Crew,
    assert_caught,
    assert_refuses,
    both_loops,
    brief,
    heavy,
    run,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable


every_loop = pytest.mark.anyio


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_rates_capacities_and_costs(bad: object) -> None:
    """What is no positive finite number is a ValueError that names the argument, wherever it is given."""
    assert_refuses("rate", bad, partial(RateLimiter, capacity=1))
    assert_refuses("capacity", bad, partial(RateLimiter, 1.0))
    limiter = RateLimiter(1.0, 1, clock=ManualClock())
    for method in (
        limiter.try_acquire,
        limiter.reserve,
        limiter.schedule,
        limiter.retry_after,
        partial(limiter.admit, 0),
    ):
        assert_refuses("cost", bad, method)
    if bad is not None:
        assert_refuses("rate", bad, limiter.update)
        assert_refuses("capacity", bad, limiter.update)
    assert limiter.statistics().admitted == limiter.statistics().rejected == 0
    assert (limiter.rate, limiter.capacity, limiter.available) == (1.0, 1, 1.0)


@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, None], ids=brief)
@every_loop
async def test_refuses_bad_waits(bad: object) -> None:
    """A wait that is no number of at least 0 is refused before anything is taken."""
    assert_refuses("max_wait", bad, partial(RateLimiter, 1.0, 1)) if bad is not math.inf else None
    limiter = RateLimiter(1.0, 1, clock=ManualClock())
    if bad is not None and bad is not math.inf:
        with pytest.raises(ValueError, match="max_wait must be"):
            await limiter.acquire(max_wait=bad)  # type: ignore[arg-type]
    assert limiter.available == 1.0


def test_refuses_a_name_that_is_no_string() -> None:
    """The name goes into errors and metrics, so it is a string."""
    with pytest.raises(ValueError, match="name must be a string, not 3"):
        RateLimiter(1.0, 1, name=3)  # type: ignore[arg-type]


@every_loop
async def test_cost_above_the_capacity_is_refused_at_once() -> None:
    """RL2: what can never be admitted is a ValueError, also behind others who wait, and is never queued."""
    limiter = emptied(capacity=2, clock=ManualClock())
    limiter.reserve(2)
    for method in (limiter.try_acquire, limiter.reserve, limiter.schedule, limiter.retry_after):
        with pytest.raises(ValueError, match="cost must be at most the capacity of 2, not 3"):
            method(3)
    with pytest.raises(ValueError, match="at most the capacity"):
        await limiter.acquire(3, max_wait=math.inf)
    with pytest.raises(ValueError, match="at most the capacity"):
        await limiter.admit_waiting(3)
    with pytest.raises(ValueError, match="at most the capacity"):
        limiter.admit_blocking(3)
    assert limiter.admit(0, 3) == NeverFits(3, 2)
    assert limiter.statistics().waiting == 1


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e308])
@every_loop
async def test_extreme_rates_have_answers(rate: float) -> None:
    """No positive rate makes a refusal overflow: what takes longer than a float can say takes infinitely long."""
    limiter = RateLimiter(rate, 1, clock=ManualClock())
    assert await limiter.acquire(max_wait=1e300)
    if rate < 1:
        assert not limiter.try_acquire()
        assert not await limiter.acquire(max_wait=1e290)
        assert limiter.retry_after() > 1e290
        with pytest.raises(RateLimitedError):
            limiter.admit_blocking()


# -- acquiring ------------------------------------------------------------------------------------------------------


@every_loop
async def test_acquire_refuses_at_once_what_comes_too_late() -> None:
    """Whoever cannot have his tokens within max_wait hears so now, and takes nobody's place."""
    clock = ManualClock()
    limiter = emptied(clock=clock, max_wait=2.0)
    assert limiter.waits
    assert not await limiter.acquire(max_wait=0.999999999)
    assert not await limiter.acquire(max_wait=0)
    assert limiter.statistics().rejected == 2
    async with Crew() as crew:
        first = crew.start(limiter.acquire)
        await settle()
        second = crew.start(limiter.acquire)
        await settle()
        # Both wait; a third would be due after 3 s.
        assert not await limiter.acquire()
        assert limiter.retry_after() == 3.0
        clock.advance(1.0)
        await settle()
        assert (first.result, second.ended) == (True, False)
        clock.advance(1.0)
        await settle()
        assert second.result is True


@every_loop
async def test_fast_path_is_no_checkpoint() -> None:
    """RL9: what is admitted or refused at once lets no cancellation in, and no other task run."""
    limiter = RateLimiter(1.0, 1, clock=ManualClock())
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await limiter.acquire()
        assert not await limiter.acquire()
        assert not limiter.try_acquire()
    assert not scope.cancelled_caught


def law_of_telling(make: Callable[[ManualClock], RateLimiter]) -> Callable[[], None]:
    """RL10: whoever waits exactly as told is admitted then, also behind reservations that nobody has come for."""

    @given(
        st.lists(st.tuples(st.sampled_from(["try", "reserve", "schedule", "advance"]), st.integers(1, 24))),
        st.integers(1, 8),
    )
    def law(steps: list[tuple[str, int]], quarters: int) -> None:
        clock = ManualClock()
        limiter = make(clock)
        for step, amount in steps:
            if step == "advance":
                clock.advance(amount / 4)
            elif step == "try":
                limiter.try_acquire(min(amount, 8) / 4)
            elif step == "reserve":
                limiter.reserve(min(amount, 8) / 4)
            else:
                limiter.schedule(min(amount, 8) / 4)
        told = limiter.retry_after(quarters / 4)
        if told > 0:
            assert not limiter.try_acquire(quarters / 4)
        clock.advance(told)
        assert limiter.try_acquire(quarters / 4)

    return law


class _Unpumped(RateLimiter):
    """A mutant, and once the code: does not let those who are due go first before it says when."""

    def retry_after(self, cost: float = 1) -> float:
        with self._lock:
            at_ns = self._bucket.ready_at(self._units(cost), self._queued_units)
            return max(0, at_ns - self._line.at(self.clock.monotonic_ns())) / 1e9


class _Jumpy(RateLimiter):
    """A mutant: tells the time of one who need not queue."""

    def retry_after(self, cost: float = 1) -> float:
        at_ns = self._bucket.ready_at(self._units(cost))
        return max(0, at_ns - self._line.at(self.clock.monotonic_ns())) / 1e9


def test_waiting_as_told_is_admitted() -> None:
    """RL10: `retry_after` is neither too early nor too late."""
    law_of_telling(lambda clock: RateLimiter(1.0, 2, clock=clock))()


@pytest.mark.parametrize("mutant", [_Unpumped, _Jumpy])
def test_law_of_telling_catches_mutants(mutant: type[RateLimiter]) -> None:
    """Forgetting those who are due, or those who queue, is seen."""
    assert_caught(law_of_telling(lambda clock: mutant(1.0, 2, clock=clock)))


def law_of_patience(kind: type[RateLimiter], backend: str) -> Callable[[], None]:
    """RL10: whoever could only get his turn after `max_wait`, or at his deadline, is told so at once; others get it."""

    @given(
        st.integers(0, 3),
        st.one_of(st.integers(1, 10), st.just(math.inf)),
        st.one_of(st.none(), st.integers(1, 10)),
        st.booleans(),
    )
    def law(ahead: int, max_wait_halves: float, deadline_halves: int | None, as_a_layer: bool) -> None:  # noqa: FBT001
        async def main() -> None:
            clock = ManualClock(autojump=True)
            limiter = kind(1.0, 1, max_wait=max_wait_halves / 2, clock=clock)
            limiter.try_acquire()
            for _ in range(ahead):
                limiter.reserve()
            deadline = clock.fail_after(deadline_halves / 2) if deadline_halves is not None else nullcontext()
            try:
                with deadline:
                    if as_a_layer:
                        await limiter.call(anyio.lowlevel.checkpoint)
                        admitted: bool | None = True
                    else:
                        admitted = await limiter.acquire()
            except RateLimitedError:
                admitted = False
            except TimeoutError:
                admitted = None
            turn = ahead + 1.0
            in_time = turn <= max_wait_halves / 2 and (deadline_halves is None or turn < deadline_halves / 2)
            assert (admitted, clock.monotonic_ns() / 1e9) == (in_time, turn if in_time else 0.0)

        run(backend, main)

    return law


@both_loops
def test_nobody_waits_past_his_deadline(backend: str) -> None:
    """RL10: neither for `max_wait` nor for a Timeout around it."""
    heavy(law_of_patience(RateLimiter, backend))()


class _Deaf(RateLimiter):
    """A mutant, and once the code: knows no deadline but its own."""

    def _patience_ns(self, max_wait_ns: int | None) -> int | None:
        return max_wait_ns


class _Hopeless(RateLimiter):
    """A mutant: lets nobody wait who has a deadline."""

    def _patience_ns(self, max_wait_ns: int | None) -> int | None:
        return 0 if super()._patience_ns(max_wait_ns) != max_wait_ns else max_wait_ns


@pytest.mark.parametrize("mutant", [_Deaf, _Hopeless])
@both_loops
def test_law_of_patience_catches_mutants(backend: str, mutant: type[RateLimiter]) -> None:
    """Waiting in vain, and not waiting where it would do, are seen."""
    assert_caught(law_of_patience(mutant, backend))


@every_loop
async def test_deadline_of_a_cancel_scope_counts_on_the_machines_clock() -> None:
    """A turn in an hour is no use to whoever has a minute; in a cancelled scope it is the cancellation that tells."""
    limiter = RateLimiter(1 / 3600, 1, max_wait=math.inf)
    assert await limiter.acquire()
    with anyio.fail_after(60.0):
        assert not await limiter.acquire()
        with pytest.raises(RateLimitedError):
            await limiter.call(anyio.lowlevel.checkpoint)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await limiter.acquire()
    assert scope.cancelled_caught


def test_late_reading_of_another_thread_mints_nothing() -> None:
    """RL1, RL3: a thread that read the clock, lost its turn and then asks does not put the limiter's time ahead."""
    clock = ManualClock()
    limiter = emptied(capacity=10, clock=clock)
    overtaken = clock.monotonic_ns()
    clock.advance(5.0)
    assert limiter.try_acquire(5)
    decision = limiter.admit(overtaken)
    assert decision == NotUntil(6_000_000_000)
    assert isinstance(limiter.refuse(decision), RateLimitedError)
    assert limiter.available == 0.0


# -- update ---------------------------------------------------------------------------------------------------------


@every_loop
async def test_update_moves_everybody_to_the_new_terms() -> None:
    """A faster rate wakes those who wait earlier; a turn that now comes too late is refused; the order stays."""
    clock = ManualClock()
    limiter = emptied(capacity=2, clock=clock)
    async with Crew() as crew:
        patient = crew.start(lambda: limiter.acquire(max_wait=math.inf))
        await settle()
        hurried = crew.start(lambda: limiter.acquire(max_wait=2.0))
        await settle()
        limiter.update(rate=0.5)
        await settle()
        assert (patient.ended, hurried.result) == (False, False)
        limiter.update(rate=4.0)
        clock.advance(0.25)
        await settle()
        assert patient.result is True
    assert (limiter.rate, limiter.capacity) == (4.0, 2)
    assert limiter.statistics().rejected == 1


@every_loop
async def test_update_ends_a_waiter_that_no_longer_fits() -> None:
    """A cost above the new capacity is a ValueError for whoever waits for it, and those behind move up."""
    clock = ManualClock()
    limiter = emptied(capacity=3, clock=clock)
    async with Crew() as crew:
        large = crew.start(lambda: limiter.acquire(3, max_wait=math.inf))
        await settle()
        small = crew.start(lambda: limiter.acquire(max_wait=math.inf))
        await settle()
        limiter.update(capacity=2)
        clock.advance(1.0)
        await settle()
        assert isinstance(large.error, ValueError)
        assert "at most the capacity of 2, not 3" in str(large.error)
        assert small.result is True


@every_loop
async def test_refusal_by_update_outlives_the_next_update() -> None:
    """What one update refuses is refused, for its own reason, even if the next one would have let it wait."""
    clock = ManualClock()
    limiter = emptied(capacity=3, clock=clock)
    reservation = limiter.reserve(3)
    async with Crew() as crew:
        waiting = crew.start(lambda: limiter.acquire(3, max_wait=math.inf))
        late = crew.start(lambda: limiter.acquire(1, max_wait=100.0))
        await settle()
        limiter.update(capacity=2, rate=0.001)
        limiter.update(capacity=100, rate=1.3)
        await settle()
        assert isinstance(waiting.error, ValueError)
        assert late.result is False
    with pytest.raises(ValueError, match="at most the capacity of 2, not 3"):
        await reservation.wait()
    assert limiter.statistics().admitted == 1


@every_loop
async def test_update_between_grant_and_resumption_takes_nothing_back() -> None:
    """RL1: a grant under the old terms stands; cancelled after an update, it is not refunded under the new ones."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    clock.advance(1.0)
    assert reservation.ready_in == 0.0
    limiter.update(rate=2.0)
    reservation.cancel()
    assert limiter.available == 0.0
    # And the terms after that give back as usual.
    second = limiter.reserve()
    clock.advance(0.5)
    assert second.ready_in == 0.0
    second.cancel()
    assert limiter.available == 1.0


# -- as a layer -----------------------------------------------------------------------------------------------------


@every_loop
async def test_guarded_calls_are_refused_or_wait() -> None:
    """Without max_wait the call is refused with the time to come back; with it, the call waits its turn."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 1, name="outgoing", clock=clock)
    assert not limiter.waits

    @limiter
    async def answer() -> int:
        return 42

    assert await answer() == 42
    with pytest.raises(RateLimitedError, match="outgoing has no token left; ask again in 1 s") as caught:
        await answer()
    assert caught.value.retry_after == 1.0
    with pytest.raises(RateLimitedError):
        await limiter.admit_waiting()

    patient = emptied(max_wait=1.0, clock=clock)
    async with Crew() as crew:
        waiting = crew.start(lambda: patient.call(answer.__wrapped__))  # type: ignore[attr-defined]
        await settle()
        with pytest.raises(RateLimitedError) as late:
            await patient.call(answer.__wrapped__)  # type: ignore[attr-defined]
        assert late.value.retry_after == 2.0
        clock.advance(1.0)
        await settle()
        assert waiting.result == 42
    assert patient.statistics().rejected == 1


@every_loop
async def test_blocks_are_guarded_too() -> None:
    """With and async with admit a block; an async one waits where a plain one in an event loop must not block."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 1, max_wait=5.0, clock=clock)
    with limiter as permit:
        assert isinstance(permit, Permit)
    with pytest.raises(RateLimitedError), limiter:
        pytest.fail("admitted")

    async def block() -> str:
        async with limiter:
            return "in"

    async with Crew() as crew:
        waiting = crew.start(block)
        await settle()
        assert not waiting.ended
        clock.advance(1.0)
        await settle()
        assert waiting.result == "in"


@every_loop
async def test_refusal_further_inside_gives_the_token_back() -> None:
    """A call that another guard refused did not run: its token comes back, and the count says so."""
    clock = ManualClock()
    outer, inner = RateLimiter(1.0, 5, clock=clock), emptied(clock=clock)

    async def never() -> None:
        pytest.fail("ran")

    with pytest.raises(RejectedError):
        await Policy(outer, inner).call(never)
    assert outer.available == 5.0
    # A counter never goes back: whoever watches it would take that for a restart.
    assert (outer.statistics().admitted, outer.statistics().ignored) == (1, 1)

    async def fails() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await outer.call(fails)
    assert outer.available == 4.0


def test_permit_is_settled_once_and_gives_back_only_what_is_exact() -> None:
    """Only the last admission comes back, once, and only if its call was ignored."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 5, clock=clock)
    first, second = limiter.admit(0), limiter.admit(0)
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    first.ignored()
    assert limiter.available == 3.0
    second.ignored()
    second.ignored()
    assert limiter.available == 4.0
    third = limiter.admit(0, 2)
    assert isinstance(third, Permit)
    limiter.settle(third, Verdict.CANCELLED)
    third.ignored()
    assert limiter.available == 2.0


@every_loop
async def test_token_that_comes_back_moves_everybody_up() -> None:
    """RL6, RL11: whoever sleeps until his turn hears that it comes earlier, though not yet."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 10, clock=clock)
    assert limiter.try_acquire(9)
    permit = limiter.admit(clock.monotonic_ns())
    assert isinstance(permit, Permit)
    async with Crew() as crew:
        waiting = crew.start(lambda: limiter.acquire(5, max_wait=math.inf))
        await settle()
        permit.ignored()
        await settle()
        clock.advance(4.0)
        await settle()
        assert waiting.result is True


def test_refusals_are_announced() -> None:
    """Whoever subscribes hears of each refusal, once, with the time to come back."""
    seen: list[object] = []
    limiter = emptied(clock=ManualClock())
    unsubscribe = subscribe(seen.append)
    try:
        limiter.try_acquire()
        with pytest.raises(RateLimitedError):
            limiter.admit_blocking()
    finally:
        unsubscribe()
    assert [(type(event).__name__, getattr(event, "retry_after", None)) for event in seen] == [("Rejected", 1.0)] * 2
