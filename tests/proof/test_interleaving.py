"""Threads under a schedule: races found within so many schedules, replayed exactly; locks, events, loops, deadlocks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import socket
import threading
from typing import TYPE_CHECKING, Any, Literal

import anyio
import pytest
import trio
from hypothesis import find, settings

from resilience import RateLimiter, SystemClock, parking, rate_limiter, turns
from resilience.testing import (
    PCT,
    DeadlockError,
    Exhaustive,
    NondeterminismError,
    NoProgressError,
    Random,
    RealWorldError,
    Replay,
    Schedule,
    interleaving,
    schedules,
    thread_locks,
)
from resilience.testing.interleaving import Threads, record, run
from tests.proof.leavings import Broken, nothing_left_behind
from tests.resilience.support import assert_refuses, both_loops, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable


class Counter:
    """A counter with the oldest race there is."""

    def __init__(self) -> None:
        self.value = 0

    def increment(self) -> None:
        self.value += 1


class Locked(Counter):
    """The same with a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def increment(self) -> None:
        with self.lock:
            super().increment()


def count(kind: type[Counter], threads: Threads) -> None:
    """Count to three in three threads."""
    counter = kind()
    for _ in range(3):
        threads.start(counter.increment)
    threads.join()
    assert counter.value == 3


def fails(scenario: Callable[[Threads], object], schedule: Schedule) -> bool:
    """Tell whether a run ends in a failed assertion."""
    error = record(scenario, watch=[Counter], schedule=schedule).error
    assert error is None or type(error) is AssertionError
    return error is not None


def test_a_lost_update_is_found_and_replayed() -> None:
    """Chance, priorities and the search each find it, in few schedules, and exactly so again."""
    scenario = functools.partial(count, Counter)
    assert not fails(scenario, Replay())
    found = [seed for seed in range(20) if fails(scenario, Random(seed))]
    assert len(found) >= 10
    failed = record(scenario, watch=[Counter], schedule=Random(found[0]))
    again = record(scenario, watch=[Counter], schedule=failed.replay)
    assert (again.steps, again.hash) == (failed.steps, failed.hash)
    assert fails(scenario, failed.replay)
    assert any(fails(scenario, PCT(seed, depth=2, length=20)) for seed in range(50))
    assert any(fails(scenario, schedule) for schedule in Exhaustive(deviations=1))


def test_a_failing_schedule_shrinks() -> None:
    """Hypothesis finds the race too; most choices of what it is reduced to are the plain ones."""
    scenario = functools.partial(count, Counter)
    examples = settings(database=None, max_examples=50)
    choices = record(
        scenario, watch=[Counter], schedule=find(schedules(), functools.partial(fails, scenario), settings=examples)
    ).choices
    assert sum(map(bool, choices)) < len(choices) / 2


def test_a_lock_is_a_lock() -> None:
    """With a lock no schedule loses an update: of all those with at most two preemptions, and of chance."""
    scenario = functools.partial(count, Locked)
    search = Exhaustive(deviations=1)
    assert not any(fails(scenario, schedule) for schedule in search)
    assert search.complete
    assert not any(fails(scenario, Random(seed)) for seed in range(50))


def test_deadlock_is_told() -> None:
    """Two locks taken in either order: some schedule stops, and it is told where; nothing stays behind."""

    def take(first: threading.Lock, second: threading.Lock) -> None:
        with first, second:
            pass

    def scenario(threads: Threads) -> None:
        first, second = threading.Lock(), threading.Lock()
        threads.start(take, first, second)
        threads.start(take, second, first)
        threads.join()

    before = threading.active_count()
    errors = [record(scenario, watch=[Counter], schedule=Random(seed)).error for seed in range(20)]
    told = {str(error) for error in errors if error is not None}
    assert all(isinstance(error, DeadlockError | None) for error in errors)
    assert any("every thread waits for another: thread 1 in take, line" in each for each in told)
    assert threading.active_count() == before


def test_no_progress_is_told() -> None:
    """A thread that spins is ended after so many instructions."""

    def spin() -> None:
        while True:
            pass

    def scenario(threads: Threads) -> None:
        threads.start(spin)
        threads.join()

    with pytest.raises(NoProgressError, match=r"no end after 500 steps; .*spin \+\d+ \(\d+x\)"):
        run(scenario, watch=[Counter], max_steps=500)


def test_waits_are_on_virtual_time() -> None:
    """Timeouts of locks, events and queues, and the sleep of SystemClock, take no time and the right time."""

    def scenario(threads: Threads) -> list[object]:
        log: list[object] = []
        clock = SystemClock()
        start = clock.monotonic_ns()
        event, lock, reentrant, line = threading.Event(), threading.Lock(), threading.RLock(), queue.Queue[int]()

        def seconds() -> float:
            return (clock.monotonic_ns() - start) / 10**9

        def wait() -> None:
            with reentrant, reentrant:
                log.append((event.wait(2.0), lock.acquire(timeout=1.5), lock.acquire(blocking=False), seconds()))
            log.append((event.wait(), event.is_set(), seconds()))
            log.append((line.get(), lock.locked()))

        def set_it() -> None:
            with lock:
                clock.sleep_blocking(4.0)
                if reentrant.acquire(blocking=False):
                    reentrant.release()
            with reentrant:
                event.set()
            clock.sleep_blocking(4.0)
            line.put(7)

        threads.start(wait)
        threads.start(set_it)
        threads.join()
        threads.join()
        return [*log, seconds()]

    for seed in range(30):
        told = run(scenario, watch=[Counter], schedule=Random(seed))
        assert told[-1] == 8.0
        assert told[1:-1] == [(True, True, 4.0), (7, told[0][1])]  # type: ignore[index]
        assert told[0] in ((False, False, False, 3.5), (False, True, False, 2.0))


def test_a_condition_wakes_one() -> None:
    """Conditions are built of what is instrumented, also on a lock that is taken twice."""

    def scenario(threads: Threads) -> list[int]:
        ready, got = threading.Condition(), []

        def wait() -> None:
            with ready, ready:
                ready.wait()
                got.append(1)

        def tell() -> None:
            while len(got) < 2:
                with ready:
                    ready.notify()

        threads.start(wait)
        threads.start(wait)
        threads.start(tell)
        threads.join()
        return got

    assert {tuple(run(scenario, watch=[Counter], schedule=Random(seed))) for seed in range(20)} == {(1, 1)}


def test_locks_are_as_strict_as_real_ones() -> None:
    """A release without an acquire is refused; the scenario itself cannot wait for nobody."""

    def scenario(threads: Threads) -> None:
        lock, reentrant = threading.Lock(), threading.RLock()
        with pytest.raises(RuntimeError, match="unlocked"):
            lock.release()
        with pytest.raises(RuntimeError, match="un-acquired"):
            reentrant.release()
        threads.join()
        with lock, pytest.raises(DeadlockError, match="the scenario itself waits"):
            lock.acquire()

    run(scenario, watch=[Counter])
    assert type(threading.Lock()) is type(thread_locks.real_lock())


def test_what_threads_raise_is_raised() -> None:
    """The first error is raised by join, the others are noted on it."""

    def scenario(threads: Threads) -> None:
        def bad(number: int) -> None:
            raise LookupError(number)

        threads.start(bad, 1)
        threads.start(bad, 2)
        threads.join()

    with pytest.raises(LookupError, match="1") as caught:
        run(scenario, watch=[Counter])
    assert caught.value.__notes__[0] == "another thread raised LookupError(2)"


def test_a_scenario_that_keeps_state_is_told() -> None:
    """The second run must find the world as the first one did."""
    counter = Counter()

    def again() -> None:
        counter.value += 1
        if counter.value > 1:
            counter.value += 1

    def scenario(threads: Threads) -> None:
        threads.start(again)
        threads.join()

    with pytest.raises(NondeterminismError, match=r"The first difference is step \d+: "):
        run(scenario, watch=[Counter])


def _connect() -> None:
    socket.socket()


def _start() -> None:
    threading.Thread(target=print).start()


@pytest.mark.parametrize("body", [_connect, _start])
def test_the_world_outside_is_refused(body: Callable[[], None]) -> None:
    """I/O and threads of its own are refused in words to a thread of the run."""

    def scenario(threads: Threads) -> None:
        threads.start(body)
        threads.join()

    with pytest.raises(RealWorldError, match=r"^the body asked for .*world outside"):
        run(scenario, watch=[Counter])


def test_a_lock_from_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What blocks in earnest is given up after a while, with the stack of who blocks."""
    monkeypatch.setattr(interleaving, "STUCK_AFTER", 0.05)
    lock = threading.Lock()

    def block() -> None:
        with lock:
            pass

    def scenario(threads: Threads) -> None:
        threads.start(block)
        threads.join()

    with lock, pytest.raises(DeadlockError, match=r"a lock made before the run: thread 1 in block, line \d+"):
        record(scenario, watch=[Counter], twice=False).outcome()


@both_loops
def test_event_loops_in_several_threads_wake_one_another(backend: Literal["asyncio", "trio"]) -> None:
    """RL1, RL5: a limiter between two loops and a thread admits each in turn, at its instant."""

    def scenario(threads: Threads) -> list[float]:
        limiter = RateLimiter(1, 1, max_wait=100)
        start = limiter.clock.monotonic_ns()
        admitted = []

        async def acquire() -> None:
            assert await limiter.acquire(max_wait=100)
            admitted.append((limiter.clock.monotonic_ns() - start) / 10**9)

        def block() -> None:
            limiter.admit_blocking()
            admitted.append((limiter.clock.monotonic_ns() - start) / 10**9)

        threads.start_loop(acquire)
        threads.start_loop(acquire, backend=backend)
        threads.start(block)
        threads.join()
        assert limiter.statistics().waiting == 0
        return admitted

    hashes = set()
    for seed in range(15):
        told = record(scenario, watch=[rate_limiter, turns, parking], schedule=Random(seed))
        assert told.outcome() == [0.0, 1.0, 2.0]
        hashes.add(told.hash)
    assert len(hashes) == 15


@both_loops
def test_a_loop_that_nobody_wakes_is_a_deadlock(backend: Literal["asyncio", "trio"]) -> None:
    """Also for a loop that runs in one of the threads."""

    def scenario(threads: Threads) -> None:
        async def wait() -> None:
            waiter = parking.async_waiter()
            await waiter.wait(SystemClock(), None)

        threads.start_loop(wait, backend=backend)
        threads.start(int)
        threads.join()

    with pytest.raises(DeadlockError, match=r"waits for another: thread 1 in a loop of .*, _\w+Waiter.wait, line \d+"):
        run(scenario, watch=[Counter])


def test_a_loop_is_called_by_other_threads_in_the_one_way_that_wakes_it() -> None:
    """What a loop that sleeps would not notice is refused, as asyncio does in its debug mode."""

    def scenario(threads: Threads, name: str) -> None:
        loops: list[asyncio.AbstractEventLoop] = []

        async def wait() -> None:
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(1)

        def call() -> None:
            SystemClock().sleep_blocking(0.5)
            getattr(loops[0], name)(*[0] * (name == "call_later"), print)

        threads.start_loop(wait)
        threads.start(call)
        threads.join()

    for name in ("call_soon", "call_later"):
        with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
            run(functools.partial(scenario, name=name), watch=[Counter])


def test_what_no_module_has_is_watched_too() -> None:
    """A class may come from a prompt; what was defined there later is watched as well."""
    page: dict[str, Any] = {"__name__": "no module"}
    source = """
class Tally:
    def __init__(self):
        self.value = 0

    def increment(self):
        self.value += 1
"""
    for _ in range(2):
        exec(compile(source, "a page", "exec"), page)  # noqa: S102 - our own
        scenario = functools.partial(count, page["Tally"])
        errors = [record(scenario, watch=[page["Tally"]], schedule=Random(seed)).error for seed in range(20)]
        assert any(type(error) is AssertionError for error in errors)


def test_nothing_is_left_behind() -> None:
    """A run that is given up ends its threads, its loops and their tasks: nothing has anything to say later."""

    def scenario(threads: Threads) -> None:
        async def stubborn() -> None:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

        async def body() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(stubborn())
                group.create_task(stubborn())

        async def in_trio() -> None:
            for _ in range(3):
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(trio.sleep_forever)
                except* trio.Cancelled:
                    pass

        threads.start_loop(body)
        threads.start_loop(in_trio, backend="trio")
        threads.start(threading.Event().wait)
        threads.join()

    with nothing_left_behind():
        assert isinstance(record(scenario, watch=[Counter]).error, DeadlockError)
        assert isinstance(record(scenario, watch=[Counter], max_steps=3).error, NoProgressError)
        with pytest.raises(LookupError, match="enough"):
            record(functools.partial(count, Counter), watch=[Counter], schedule=Broken())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("interleaved-")]


def test_names_bound_to_locks_are_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watched module may have imported `Lock` by name."""
    monkeypatch.setitem(globals(), "Lock", threading.Lock)

    def scenario(threads: Threads) -> str:
        threads.join()
        return type(globals()["Lock"]()).__name__

    assert run(scenario, watch=[Counter]) == "Lock"
    assert globals()["Lock"] is threading.Lock


def test_runs_in_other_threads_wait_for_one_another() -> None:
    """A run holds what belongs to the whole process, so there is one at a time."""
    assert in_thread(lambda: run(lambda threads: threads.join(), watch=[Counter])) is None


def test_a_loop_of_another_kind_is_refused() -> None:
    """There are two."""

    def scenario(threads: Threads) -> None:
        assert_refuses("backend", "curio", threads.start_loop, anyio.sleep_forever)

    run(scenario, watch=[Counter])


def test_bad_arguments_are_refused() -> None:
    """There must be something to watch, and at least one step."""
    for watch in ([], [int]):
        with pytest.raises(ValueError, match=r"^watch must be modules"):
            run(functools.partial(count, Counter), watch=watch)
    assert_refuses("max_steps", 0, run, functools.partial(count, Counter), watch=[Counter])
