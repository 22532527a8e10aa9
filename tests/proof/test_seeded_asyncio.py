"""The seeded loop of asyncio: schedules that differ, runs that repeat, time that jumps, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import random
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
from hypothesis import find, settings

from resilience import RateLimiter, SystemClock
from resilience.testing import ManualClock
from resilience.testing.runs import DeadlockError, NondeterminismError, NoProgressError, RealWorldError
from resilience.testing.schedules import PCT, Exhaustive, Random, Replay, Schedule, schedules
from resilience.testing.seeded_asyncio import record, run
from resilience.testing.virtual_time import Faults
from tests.proof.leavings import Broken, nothing_left_behind
from tests.resilience.support import assert_refuses, in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class HandOff:
    """A lock with a classic bug: between the release and the resumption of the next, a newcomer slips in."""

    def __init__(self) -> None:
        self.held = False
        self.waiters: list[asyncio.Event] = []
        self.inside = 0

    async def work(self) -> None:
        """Take the lock, be alone, give it back."""
        if self.held:
            event = asyncio.Event()
            self.waiters.append(event)
            await event.wait()
        self.held = True
        self.inside += 1
        assert self.inside == 1
        await asyncio.sleep(0)
        self.inside -= 1
        self.held = False
        if self.waiters:
            self.waiters.pop(0).set()


async def hand_off() -> None:
    """Three tasks, one after the other in plain order."""
    lock = HandOff()

    async def later() -> None:
        for _ in range(2):
            await asyncio.sleep(0)
        await lock.work()

    async with asyncio.TaskGroup() as group:
        group.create_task(lock.work())
        group.create_task(lock.work())
        group.create_task(later())


def fails(main: Callable[[], Awaitable[object]], schedule: Schedule) -> bool:
    """Tell whether a run ends in a failed assertion, alone or in a group."""
    error = record(main, schedule=schedule).error
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert error is None or type(error) is AssertionError
    return error is not None


def test_a_known_race_is_found_and_replayed() -> None:
    """Neither asyncio's own order nor the plain one shows it; some of a hundred seeds do, each time anew."""
    asyncio.run(hand_off())
    assert not fails(hand_off, Replay())
    found = [seed for seed in range(100) if fails(hand_off, Random(seed))]
    assert len(found) >= 5
    failed = record(hand_off, schedule=Random(found[0]))
    again = record(hand_off, schedule=failed.replay)
    assert (again.steps, again.hash) == (failed.steps, failed.hash)
    assert fails(hand_off, failed.replay)
    assert any(fails(hand_off, PCT(seed, length=20)) for seed in range(100))
    assert any(fails(hand_off, schedule) for schedule in Exhaustive(deviations=2))


def test_a_failing_schedule_shrinks() -> None:
    """Hypothesis finds the race and reduces its schedule to the few choices that matter."""
    smallest = find(schedules(), functools.partial(fails, hand_off), settings=settings(database=None))
    assert fails(hand_off, smallest)
    assert sum(map(bool, record(hand_off, schedule=smallest).choices)) <= 3


def test_a_failure_names_its_schedule() -> None:
    """Whatever the body raises leaves with a note of the schedule and of the trace."""

    async def body() -> None:
        await asyncio.sleep(0)
        raise LookupError

    with pytest.raises(LookupError) as caught:
        run(body, schedule=Random(5))
    assert caught.value.__notes__ == [f"under schedule=Random(seed=5), trace {record(body).hash} of 3 steps"]


def test_time_jumps_when_everybody_waits() -> None:
    """An hour takes no time; guards on the system's clock, timeouts and timers agree on what time it is."""

    async def body() -> tuple[float, float, bool]:
        clock = SystemClock()
        start, begun, wall = asyncio.get_running_loop().time(), clock.monotonic_ns(), clock.time_ns()
        limiter = RateLimiter(1, 1)
        await limiter.acquire()
        await limiter.acquire(max_wait=math.inf)
        with anyio.move_on_after(9) as scope:
            await clock.sleep(3600)
        assert clock.time_ns() - wall == clock.monotonic_ns() - begun
        return asyncio.get_running_loop().time() - start, (clock.monotonic_ns() - begun) / 10**9, scope.cancelled_caught

    assert run(body) == (10.0, 10.0, True)
    assert SystemClock.monotonic_ns is time.monotonic_ns


def test_a_manual_clock_may_be_used_too() -> None:
    """One that jumps by itself does so in the seeded loop."""

    async def body() -> float:
        clock = ManualClock(autojump=True)
        limiter = RateLimiter(1, 1, clock=clock)
        for _ in range(4):
            await limiter.acquire(max_wait=math.inf)
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
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(walk(number))
        return apart

    assert {run(body, schedule=Random(seed), starve=False) for seed in range(20)} == {1}
    assert max(run(body, schedule=PCT(seed), starve=True) for seed in range(20)) == 5
    assert {run(body, schedule=Random(seed)) > 1 for seed in range(20)} == {True, False}


def test_deadlock_is_told() -> None:
    """Who waits, and where, stands in the message; tasks that are left are cancelled."""
    left = []

    async def waits_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append(True)

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for_ever(), name="sleeper")

    with pytest.raises(DeadlockError, match=r"everybody waits, and nothing is due: .*sleeper, .*waits_for_ever, line"):
        run(body)
    assert left == [True, True]


def test_no_progress_is_told() -> None:
    """After so many steps the run ends, and tells what it was busy with; nothing stays behind."""

    async def spins() -> None:
        while True:  # noqa: ASYNC110 - the point
            await asyncio.sleep(0)

    with pytest.raises(NoProgressError, match=r"no end after 200 steps; .*spins, line \d+ \(200x\)"):
        run(spins, max_steps=200)


def test_a_task_that_will_not_end_is_given_up() -> None:
    """What swallows every cancellation holds nobody up for ever."""

    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run(stubborn)


def test_nothing_is_left_behind() -> None:
    """What a run has to give up is ended within it: no finalizer has anything to say later, in somebody else's run."""

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
            finally:
                await asyncio.sleep(0)

    async def minds() -> None:
        try:
            while True:  # noqa: ASYNC110 - it waits for nothing
                await asyncio.sleep(0)
        finally:
            raise LookupError

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(stubborn())
            group.create_task(stubborn())

    with nothing_left_behind():
        assert isinstance(record(body).error, DeadlockError)
        assert isinstance(record(minds, max_steps=20).error, NoProgressError)


def test_a_schedule_that_raises_ends_the_run() -> None:
    """Hypothesis does so when it has seen enough; the error goes on to it, and nothing is left behind."""
    with nothing_left_behind(), pytest.raises(LookupError, match="enough"):
        record(hand_off, schedule=Broken())


def test_a_body_that_rolls_dice_is_told_the_first_difference() -> None:
    """The double run compares step by step."""
    dice = random.Random(4)

    async def body() -> None:
        await asyncio.sleep(0)
        while dice.random() < 0.9:  # noqa: ASYNC110 - it waits for nothing
            await asyncio.sleep(0)
        await asyncio.sleep(1)

    with pytest.raises(NondeterminismError, match=r"The first difference is step \d+: .*; the second time, "):
        run(body)
    assert record(body, twice=False).error is None


def test_a_body_that_ends_differently_is_told() -> None:
    """The same steps with another end are another run."""
    ends = iter([ValueError(), TypeError()])

    async def body() -> None:
        raise next(ends)

    with pytest.raises(NondeterminismError, match=r"two different ends after the same 2 steps: ValueError.*TypeError"):
        run(body)


def test_sets_of_tasks_do_not_matter() -> None:
    """Libraries cancel tasks in the order of a set, which is the order of addresses; runs are the same nevertheless."""

    async def body() -> int:
        ended = 0

        async def wait() -> None:
            nonlocal ended
            try:
                await anyio.sleep_forever()
            finally:
                ended += 1

        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(wait)
            await anyio.sleep(1)
            group.cancel_scope.cancel()
        return ended

    for seed in range(10):
        assert run(body, schedule=Random(seed)) == 40


async def _socket() -> None:
    socket.socket()


async def _connection() -> None:
    await asyncio.open_connection("localhost", 80)


async def _server() -> None:
    await anyio.create_tcp_listener(local_port=0)


async def _executor() -> None:
    await asyncio.to_thread(print)


async def _worker() -> None:
    await anyio.to_thread.run_sync(print)


async def _thread() -> None:
    threading.Thread(target=print).start()


async def _process() -> None:
    await asyncio.create_subprocess_exec(sys.executable)


async def _popen() -> None:
    subprocess.run([sys.executable], check=False)  # noqa: ASYNC221 - refused


async def _sleep() -> None:
    SystemClock().sleep_blocking(0.001)


async def _caught() -> None:
    with contextlib.suppress(Exception):
        socket.getaddrinfo("localhost", 80)


@pytest.mark.parametrize(
    "body", [_socket, _connection, _server, _executor, _worker, _thread, _process, _popen, _sleep, _caught]
)
def test_the_world_outside_is_refused(body: Callable[[], Awaitable[None]]) -> None:
    """I/O, processes, threads and sleep in real time are refused in words, also to a body that catches everything."""
    with pytest.raises(RealWorldError, match=r"^the body asked for .*world outside"):
        run(body)


def test_the_world_outside_is_open_again_afterwards() -> None:
    """Nothing stays shut, in this thread or another."""

    async def body() -> None:
        await asyncio.sleep(0)

    run(body)
    SystemClock().sleep_blocking(1e-6)
    socket.socket().close()
    assert in_thread(lambda: socket.socket().close()) is None


def test_other_threads_are_in_the_world_outside_all_the_while() -> None:
    """What is refused to the body is not refused to them."""
    begun, done = threading.Event(), threading.Event()
    opened: list[socket.socket] = []

    def other() -> None:
        begun.wait()
        try:
            opened.append(socket.socket())
            SystemClock().sleep_blocking(1e-6)
            opened.pop().close()
        finally:
            done.set()

    async def body() -> bool:
        begun.set()
        return done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    assert run(body)
    thread.join()
    assert not opened


def test_runs_do_not_nest() -> None:
    """A run within a run is refused before it begins."""

    async def body() -> None:
        run(body)

    with pytest.raises(RuntimeError, match="within another"):
        run(body)


async def twelve_seconds() -> list[tuple[float, float, float]]:
    """Sleep for a second at a time; return what the loop and both clocks show after each."""
    clock, seen = SystemClock(), []
    for _ in range(12):
        await asyncio.sleep(1.0)
        seen.append((asyncio.get_running_loop().time(), clock.monotonic_ns() / 10**9, clock.time_ns() / 10**9))
    return seen


def test_faults_of_clocks_are_injected_and_counted() -> None:
    """Each kind happens, and none that was not asked for."""
    most = Faults(early=0.1, late=0.2, forward=5.0, back=2.0, stall=0.5, wall=100.0, odds=3)
    body = twelve_seconds
    kinds: set[str] = set()
    went_back = early = False
    for seed in range(20):
        told = record(body, schedule=Random(seed), faults=most)
        kinds |= set(told.faults)
        seen = told.outcome()
        for (loop, shown, _), (next_loop, next_shown, _) in itertools.pairwise(seen):
            early |= next_loop - loop < 1.0
            assert next_loop - loop >= 0.9 - 1e-9
            went_back |= next_shown < shown
    assert kinds == {"early", "late", "forward", "back", "stall", "wall"}
    assert went_back
    assert early
    assert not record(body, schedule=Random(1)).faults
    assert set(record(body, schedule=Random(1), faults=Faults(wall=1.0, odds=2)).faults) == {"wall"}


def sign(seconds: float) -> int:
    """Tell which way a clock has gone wrong, if it has."""
    return 0 if abs(seconds) < 1e-6 else int(math.copysign(1, seconds))


@pytest.mark.parametrize(
    ("kind", "passed", "shown", "wall"),
    [
        ("early", {-1}, {0}, {0}),
        ("late", {1}, {0}, {0}),
        ("forward", {0}, {1}, {0}),
        ("back", {0}, {-1}, {0}),
        ("stall", {0}, {-1}, {0}),
        ("wall", {0}, {0}, {-1, 1}),
    ],
)
def test_fault_is_what_it_is_called(kind: str, passed: set[int], shown: set[int], wall: set[int]) -> None:
    """It makes timers come early or late, or one clock show more or less than has passed; never more than it may."""
    found: list[tuple[int, int, int]] = []
    for seed in range(20):
        told = record(twelve_seconds, schedule=Random(seed), faults=Faults(**{kind: 0.25}, odds=4))
        seen = told.outcome()
        loop, monotonic, unix = (last - first for first, last in zip(seen[0], seen[-1], strict=True))
        wrong = loop - 11.0, monotonic - loop, unix - loop
        assert max(map(abs, wrong)) <= 0.25 * told.faults[kind] + 1e-6
        found.append((sign(wrong[0]), sign(wrong[1]), sign(wrong[2])))
    for ways, expected in zip(zip(*found, strict=True), (passed, shown, wall), strict=True):
        assert set(ways) | {0} == expected | {0}


def test_time_may_pass_although_somebody_could_run() -> None:
    """A loop that is busy is late with no timer due; it is so in no other way."""

    async def body() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(12):
            await asyncio.sleep(0)
        return loop.time() - begun

    late = [record(body, schedule=Random(seed), faults=Faults(late=0.25)).outcome() for seed in range(20)]
    assert min(late) == 0.0
    assert 0.0 < max(late) <= 12 * 0.25
    assert record(body, faults=Faults(early=0.25, stall=0.25)).outcome() == 0.0


@pytest.mark.parametrize("name", ["early", "late", "forward", "back", "stall", "wall"])
def test_bad_faults_are_refused(name: str) -> None:
    """Seconds, not negative."""
    assert_refuses(name, -1, Faults)
    assert_refuses("odds", 0, Faults)


def test_bad_limits_are_refused() -> None:
    """At least one step."""
    assert_refuses("max_steps", 0, run, hand_off)
