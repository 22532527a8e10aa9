"""RateLimiter: turns that are scheduled, and places that are reserved."""

from __future__ import annotations

import math

import anyio
import pytest

from resilience import RateLimiter
from resilience.testing import ManualClock
from tests.resilience.subjects import emptied
from tests.resilience.support import Crew, settle

every_loop = pytest.mark.anyio


def test_schedule_gives_one_turn_after_another() -> None:
    """Each scheduled turn comes when the tokens are there, and what comes later queues behind it."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 2, clock=clock)
    assert [limiter.schedule() for _ in range(5)] == [0.0, 0.0, 1.0, 2.0, 3.0]
    assert limiter.retry_after() == 4.0
    assert not limiter.try_acquire()
    clock.advance(4.0)
    assert limiter.try_acquire()
    assert limiter.statistics().admitted == 6


def test_scheduled_turn_is_used_when_it_is_due() -> None:
    """RL11: a turn that nobody looked after for long costs its token at its own instant, not when it is noticed."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    assert limiter.schedule() == 1.0
    clock.advance(10.0)
    assert limiter.try_acquire()


def test_scheduled_turns_live_through_an_update() -> None:
    """New terms move the turns that are still to come; one that no longer fits is given up, and the next moves up."""
    clock = ManualClock()
    limiter = emptied(capacity=3, clock=clock)
    assert limiter.schedule(3) == 3.0
    assert limiter.schedule(1) == 4.0
    limiter.update(rate=2.0)
    assert limiter.retry_after() == 2.5
    limiter.update(capacity=2)
    assert limiter.retry_after() == 1.0
    clock.advance(0.5)
    assert limiter.statistics().waiting == 1
    clock.advance(0.5)
    assert limiter.try_acquire()


@every_loop
async def test_reservation_holds_its_place_without_anybody_waiting() -> None:
    """Those who come later queue behind a reservation; it is had without waiting once its time has come."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    assert reservation.ready_in == 1.0
    later = limiter.reserve()
    assert later.ready_in == 2.0
    assert not limiter.try_acquire()
    clock.advance(1.0)
    assert reservation.ready_in == 0.0
    assert not limiter.try_acquire()
    with anyio.CancelScope() as scope:
        scope.cancel()
        # Not a checkpoint, since the tokens are there.
        await reservation.wait()
    assert not scope.cancelled_caught
    await reservation.wait()
    reservation.cancel()
    assert limiter.statistics().admitted == 2
    assert later.ready_in == 1.0


@every_loop
async def test_cancelled_reservation_lets_those_behind_it_move_up() -> None:
    """RL6: cancelling gives back the place, or the tokens, and wakes whoever is next; again is nothing."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    first, granted = limiter.reserve(), limiter.reserve()
    async with Crew() as crew:
        waiter = crew.start(lambda: limiter.acquire(max_wait=math.inf))
        await settle()
        first.cancel()
        first.cancel()
        assert granted.ready_in == 1.0
        clock.advance(1.0)
        assert granted.ready_in == 0.0
        granted.cancel()
        await settle()
        assert waiter.result is True
    for gone in (first, granted):
        with pytest.raises(RuntimeError, match="not after it was cancelled; this one is <reserved place, cancelled>"):
            await gone.wait()


@every_loop
async def test_reservation_is_waited_for_in_its_turn() -> None:
    """A wait ends when the tokens are there; a second one meanwhile is an error."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    async with Crew() as crew:
        waiting = crew.start(reservation.wait)
        await settle()
        with pytest.raises(RuntimeError, match="waited for once"):
            await reservation.wait()
        clock.advance(1.0)
        await settle()
        assert waiting.finished
    assert limiter.statistics().admitted == 2


@every_loop
async def test_reservation_cancelled_while_it_is_waited_for_ends_the_wait() -> None:
    """RL6: whoever waits for a reservation that somebody else cancels is told, and does not wait for ever."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    async with Crew() as crew:
        waiting = crew.start(reservation.wait)
        await settle()
        reservation.cancel()
        await settle()
        assert isinstance(waiting.error, RuntimeError)
        assert "cancelled while it was waited for" in str(waiting.error)
    clock.advance(1.0)
    assert limiter.try_acquire()


@every_loop
async def test_cancelled_wait_cancels_the_reservation() -> None:
    """RL7: a cancellation goes on, and the place is free."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await reservation.wait()
    assert scope.cancelled_caught
    clock.advance(1.0)
    assert limiter.try_acquire()
