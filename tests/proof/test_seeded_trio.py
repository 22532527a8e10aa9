"""Trio under a schedule: the same promises as the seeded loop of asyncio makes."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import socket
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
import trio
import trio.testing
from hypothesis import find, settings

from resilience import RateLimiter, SystemClock
from resilience.testing import (
    PCT,
    DeadlockError,
    Exhaustive,
    Faults,
    ManualClock,
    NondeterminismError,
    NoProgressError,
    Random,
    RealWorldError,
    Replay,
    Schedule,
    schedules,
)
from resilience.testing.seeded_trio import record, run
from tests.proof.leavings import Broken, nothing_left_behind
from tests.resilience.support import assert_refuses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Account:
    """A balance with a classic bug: a checkpoint between reading and writing."""

    def __init__(self) -> None:
        self.balance = 0

    async def pay_in(self) -> None:
        """Add one, unless another task does so in between."""
        balance = self.balance
        await trio.lowlevel.checkpoint()
        self.balance = balance + 1


async def payments() -> None:
    """Two payments, apart in plain order."""
    account = Account()

    async def later() -> None:
        await trio.lowlevel.checkpoint()
        await account.pay_in()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(account.pay_in)
        nursery.start_soon(later)
    assert account.balance == 2


def fails(main: Callable[[], Awaitable[object]], schedule: Schedule) -> bool:
    """Tell whether a run ends in a failed assertion."""
    error = record(main, schedule=schedule).error
    assert error is None or type(error) is AssertionError
    return error is not None


def test_a_known_race_is_found_and_replayed() -> None:
    """In plain order it does not show; some seeds show it, and do so exactly again."""
    assert not fails(payments, Replay())
    found = [seed for seed in range(60) if fails(payments, Random(seed))]
    assert found
    failed = record(payments, schedule=Random(found[0]))
    again = record(payments, schedule=failed.replay)
    assert (again.steps, again.hash) == (failed.steps, failed.hash)
    assert fails(payments, failed.replay)
    assert any(fails(payments, PCT(seed, length=20)) for seed in range(100))
    assert any(fails(payments, schedule) for schedule in Exhaustive(deviations=2))


def test_a_failing_schedule_shrinks() -> None:
    """Hypothesis reduces it to the few choices that matter."""
    smallest = find(schedules(), functools.partial(fails, payments), settings=settings(database=None))
    assert sum(map(bool, record(payments, schedule=smallest).choices)) <= 4


def test_time_jumps_when_everybody_waits() -> None:
    """An hour takes no time; guards on the system's clock, timeouts and trio agree on what time it is."""

    async def body() -> tuple[float, float, bool]:
        clock = SystemClock()
        start, begun = trio.current_time(), clock.monotonic_ns()
        limiter = RateLimiter(1, 1)
        await limiter.acquire()
        await limiter.acquire(max_wait=math.inf)
        with anyio.move_on_after(9) as scope:
            await clock.sleep(3600)
        await trio.sleep(0.1)
        await trio.testing.wait_all_tasks_blocked()
        return trio.current_time() - start, (clock.monotonic_ns() - begun) / 10**9, scope.cancelled_caught

    assert run(body) == pytest.approx((10.1, 10.1, True))


def test_a_manual_clock_may_be_used_too() -> None:
    """One that jumps by itself does so under a schedule; calls from outside come through trio's own door."""

    async def body() -> float:
        clock = ManualClock(autojump=True)
        limiter = RateLimiter(1, 1, clock=clock)
        for _ in range(4):
            await limiter.acquire(max_wait=math.inf)
        called = trio.Event()
        trio.lowlevel.current_trio_token().run_sync_soon(called.set)
        await called.wait()
        return clock.monotonic_ns() / 10**9

    assert run(body, schedule=Random(3)) == 3.0


def test_in_rounds_everybody_has_a_turn_and_starving_not() -> None:
    """In rounds no task is more than one step ahead of another; starving, one may run to its end first."""

    async def body() -> int:
        steps = [0, 0, 0]
        apart = 0

        async def walk(number: int) -> None:
            nonlocal apart
            for _ in range(5):
                steps[number] += 1
                apart = max(apart, max(steps) - min(steps))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(walk, number)
        return apart

    assert {run(body, schedule=Random(seed), starve=False) for seed in range(20)} == {1}
    assert max(run(body, schedule=PCT(seed), starve=True) for seed in range(20)) == 5


@pytest.mark.parametrize("shield", [False, True])
def test_deadlock_is_told(shield: bool) -> None:  # noqa: FBT001 - a case
    """Who waits, and where, stands in the message; what is left is cancelled, whatever shields it."""
    left = []

    async def waits_for_ever() -> None:
        try:
            with trio.CancelScope(shield=shield):
                await trio.sleep_forever()
        finally:
            left.append(True)

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits_for_ever)

    with pytest.raises(DeadlockError, match=r"everybody waits, and nothing is due: .*waits_for_ever, line \d+"):
        run(body)
    assert left == [True, True]


def test_no_progress_is_told() -> None:
    """After so many steps the run ends, and tells what it was busy with."""

    async def spins() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(NoProgressError, match=r"no end after 200 steps; .*spins, line \d+ \(\d+x\)"):
        run(spins, max_steps=200)


def test_nothing_is_left_behind() -> None:
    """What a run has to give up is ended within it: no finalizer has anything to say later, in somebody else's run."""

    async def stubborn() -> None:
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
            except* trio.Cancelled:
                pass
            finally:
                with contextlib.suppress(trio.Cancelled):
                    await trio.lowlevel.checkpoint()

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stubborn)
            nursery.start_soon(trio.sleep_forever)

    with nothing_left_behind():
        assert isinstance(record(body).error, DeadlockError)
        assert isinstance(record(body, max_steps=2).error, NoProgressError)


def test_a_schedule_that_raises_ends_the_run() -> None:
    """Hypothesis does so when it has seen enough; the error goes on to it, and nothing is left behind."""
    with nothing_left_behind(), pytest.raises(LookupError, match="enough"):
        record(payments, schedule=Broken())


def test_a_body_that_rolls_dice_is_told_the_first_difference() -> None:
    """The double run compares step by step."""
    dice = random.Random(4)

    async def body() -> None:
        while dice.random() < 0.9:
            await trio.lowlevel.checkpoint()
        await trio.sleep(1)

    with pytest.raises(NondeterminismError, match=r"The first difference is step \d+: .*; the second time, "):
        run(body)
    assert record(body, twice=False).error is None


def test_what_the_body_raises_comes_through() -> None:
    """An error of the body is not an error of trio's, and carries its schedule."""

    async def body() -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        run(body)
    assert caught.value.__notes__[0].startswith("under schedule=Random(seed=0), trace ")


async def _socket() -> None:
    socket.socket()


async def _connection() -> None:
    await trio.open_tcp_stream("localhost", 80)


async def _worker() -> None:
    await anyio.to_thread.run_sync(print)


async def _thread() -> None:
    threading.Thread(target=print).start()


async def _caught() -> None:
    with contextlib.suppress(Exception):
        SystemClock().sleep_blocking(0.001)


@pytest.mark.parametrize("body", [_socket, _connection, _worker, _thread, _caught])
def test_the_world_outside_is_refused(body: Callable[[], Awaitable[None]]) -> None:
    """I/O and threads are refused, also those that trio keeps from before."""
    trio.run(_worker)
    with pytest.raises(RealWorldError, match=r"^the body asked for .*world outside"):
        run(body)
    trio.run(_worker)


def test_faults_of_clocks_are_injected_and_counted() -> None:
    """All but early timers, which trio has not; sleepers sleep as long as they meant to."""
    most = Faults(early=0.1, late=0.2, forward=5.0, back=2.0, stall=0.5, wall=100.0, odds=3)

    async def body() -> bool:
        for _ in range(12):
            before = trio.current_time()
            await trio.sleep(1.0)
            assert trio.current_time() - before >= 1.0 - 1e-9
        return True

    kinds: set[str] = set()
    for seed in range(10):
        told = record(body, schedule=Random(seed), faults=most)
        assert told.outcome()
        kinds |= set(told.faults)
    assert kinds == {"late", "forward", "back", "stall", "wall"}


def test_bad_limits_are_refused() -> None:
    """At least one step."""
    assert_refuses("max_steps", 0, run, payments)
