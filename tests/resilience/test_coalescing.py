"""Coalescer: a surplus that is merged by key and goes when there is room. That nothing of it is lost is in the laws."""

from __future__ import annotations

import threading
from functools import partial

import anyio
import pytest

from resilience import Coalesced, Coalescer, Fate, Sample, StormGuard
from resilience.telemetry import subscribe
from resilience.testing import ManualClock
from tests.resilience.support import (
    NOT_A_COUNT,
    Crew,
    assert_refuses,
    both_loops,
    brief,
    in_thread,
    run,
    settle,
)

every_loop = pytest.mark.anyio


@pytest.mark.parametrize("bad", NOT_A_COUNT, ids=brief)
def test_refuses_bad_counts(bad: object) -> None:
    """max_keys is a whole number of at least 1."""
    assert_refuses("max_keys", bad, Coalescer, StormGuard(clock=ManualClock()))


def test_refuses_what_it_cannot_work_with() -> None:
    """It needs a guard that leaves the surplus to it, and something to merge with."""
    assert_refuses("guard", "guard", Coalescer)
    with pytest.raises(ValueError, match="guard must be a StormGuard that rejects its surplus"):
        Coalescer(StormGuard(surplus=Sample(2)))
    assert_refuses("merge", "newest", Coalescer, StormGuard())


@pytest.mark.parametrize("bad", [-1, 1.5, True, None], ids=brief)
def test_refuses_bad_priorities(bad: object) -> None:
    """A priority is a whole number of at least 0; an event with another one is not counted."""
    events = Coalescer[str, int](StormGuard(clock=ManualClock()))
    with pytest.raises(ValueError, match="priority must be a whole number of at least 0"):
        events.submit(1, "a", bad)  # type: ignore[arg-type]
    assert events.statistics().received == 0


# -- order ------------------------------------------------------------------------------------------------------------


def _full(clock: ManualClock, **options: object) -> Coalescer[str, str]:
    """Return a coalescer whose guard of two events in ten seconds is full."""
    events = Coalescer[str, str](StormGuard(10.0, 2, reserve=(0.5,), clock=clock), **options)  # type: ignore[arg-type]
    assert events.submit("first", "z") is Fate.PASSED
    assert events.submit("second", "y", 1) is Fate.PASSED
    return events


def _taken(events: Coalescer[str, str]) -> list[str]:
    """Take, and wait as told, until nothing is held; return the keys as they came."""
    clock, keys = events.guard.clock, []
    assert isinstance(clock, ManualClock)
    while (told := events.ready_in()) is not None:
        clock.advance(told)
        taken = events.take()
        keys += [] if taken is None else [taken.key]
    return keys


def test_first_held_first_gone() -> None:
    """Keys of one priority go in the order in which they were first held, however often they are merged."""
    events = _full(ManualClock())
    for key in "abcab":
        assert not events.submit(key, key)
    assert _taken(events) == ["a", "b", "c"]


def test_the_newest_is_kept_where_nothing_else_is_said() -> None:
    """Without `merge` the newest event stands for all before it; its count says for how many."""
    clock = ManualClock()
    events = _full(clock)
    for event in ("old", "newer", "newest"):
        events.submit(event, "a")
    clock.advance(10.1)
    assert events.take() == Coalesced("a", "newest", 3, 0)


def test_a_critical_event_lifts_what_is_held() -> None:
    """What is merged has the highest priority of its events, and goes before those who were held with a lower one."""
    clock = ManualClock()
    events = _full(clock)
    for key in "abc":
        events.submit(key, key)
    events.submit("critical", "d", 1)
    assert events.submit("critical", "b", 5) is Fate.MERGED
    assert events.submit("usual", "b") is Fate.MERGED
    clock.advance(10.1)
    assert [events.take(), events.take()] == [Coalesced("d", "critical", 1, 1), Coalesced("b", "usual", 3, 1)]
    assert events.take() is None
    assert _taken(events) == ["a", "c"]


def test_a_critical_event_lifts_what_waits_for_its_key() -> None:
    """The priority of what is not ripe is that of the queue in which it will stand."""
    clock = ManualClock()
    events = Coalescer[str, str](StormGuard(10.0, 4, key_share=0.25, reserve=(0.5,), clock=clock))
    for key in "aabb":
        events.submit("usual", key)
    events.submit("critical", "b", 1)
    clock.advance(10.1)
    assert [taken.key for taken in (events.take(), events.take()) if taken] == ["b", "a"]


def test_rather_overtaken_than_dropped() -> None:
    """With no place for another key, a newcomer goes past what is held if there is room for it; else it is dropped."""
    clock = ManualClock()
    events = _full(clock, max_keys=1)
    assert events.submit("held", "a") is Fate.HELD
    assert events.submit("dropped", "b") is Fate.DROPPED
    clock.advance(10.1)
    assert events.submit("overtakes", "b") is Fate.PASSED
    assert events.submit("merged", "a") is Fate.MERGED
    assert events.guard.statistics().rejected == 1


def test_a_key_that_was_admitted_elsewhere_waits_again() -> None:
    """Where the guard was asked directly for a key that is held, that key waits for its share anew, and nobody else."""
    clock = ManualClock()
    guard = StormGuard(10.0, 4, key_share=0.5, clock=clock)
    events = Coalescer[str, str](guard)
    for key in ("a", "b", "c", "d"):
        events.submit(key, key)
    for key in ("a", "b"):
        assert events.submit(key, key) is Fate.HELD
    clock.advance(10.1)
    assert [guard.try_admit("a") is not None for _ in range(3)] == [True, True, False]
    assert _taken(events) == ["b", "a"]
    assert clock.monotonic_ns() == 20_100_000_001


def test_drained_whatever_the_guard_says() -> None:
    """At the end all that is held is given, in the order in which it came; the window is not asked, and not filled."""
    events = Coalescer[str, str](StormGuard(10.0, 4, key_share=0.25, clock=ManualClock()), max_keys=4)
    for key in "ababcbdxx":
        events.submit(key, key)
    assert [(each.key, each.count) for each in events.drain()] == [("a", 1), ("b", 2), ("x", 2)]
    assert events.guard.count == 4
    assert events.drain() == []
    assert len(events) == 0
    assert events.ready_in() is None
    assert events.take() is None


# -- merging ----------------------------------------------------------------------------------------------------------


def test_merge_is_called_without_the_lock_and_again_if_overtaken() -> None:
    """SG2: if another event of the key comes while `merge` runs, it is called again, with both in their order."""
    clock = ManualClock()
    calls: list[tuple[str, str]] = []

    def merge(held: str, event: str) -> str:
        calls.append((held, event))
        if len(calls) == 1:
            in_thread(lambda: events.submit("b", "x"))
        return held + event

    events = Coalescer[str, str](StormGuard(10.0, 1, clock=clock), merge=merge)
    for event in ("first", "a"):
        events.submit(event, "x")
    assert events.submit("c", "x") is Fate.MERGED
    assert calls == [("a", "c"), ("a", "b"), ("ab", "c")]
    clock.advance(10.1)
    assert events.take() == Coalesced("x", "abc", 3, 0)


def test_what_is_taken_while_merging_is_not_merged_into() -> None:
    """SG2: an event whose counterpart went meanwhile is decided on anew."""
    clock = ManualClock()
    taken: list[Coalesced[str, str] | None] = []

    def merge(held: str, event: str) -> str:
        clock.advance(10.1)
        taken.append(events.take())
        return held + event

    events = Coalescer[str, str](StormGuard(10.0, 1, clock=clock), merge=merge)
    for event in ("first", "a"):
        events.submit(event, "x")
    assert events.submit("b", "x") is Fate.HELD
    assert taken == [Coalesced("x", "a", 1, 0)]
    assert events.statistics().merged == 0


def test_a_merge_that_raises_changes_nothing() -> None:
    """The submitter gets the exception; the event has not been received, and what was held is as it was."""

    def merge(held: str, event: str) -> str:
        raise RuntimeError(held + event)

    events = Coalescer[str, str](StormGuard(10.0, 1, clock=ManualClock()), merge=merge)
    for event in ("first", "a"):
        events.submit(event, "x")
    before = events.statistics()
    with pytest.raises(RuntimeError, match="ab"):
        events.submit("b", "x")
    assert events.statistics() == before
    assert events.drain() == [Coalesced("x", "a", 1, 0)]


def test_a_listener_may_submit() -> None:
    """The storm is announced when the lock is free: who hears of it may use the coalescer."""
    events = Coalescer[str, str](StormGuard(10.0, 1, clock=ManualClock()))
    unsubscribe = subscribe(lambda _: events.submit("heard", "listener"))
    try:
        for event in ("first", "second"):
            events.submit(event, "x")
    finally:
        unsubscribe()
    assert [each.key for each in events.drain()] == ["x", "listener"]


# -- waiting ----------------------------------------------------------------------------------------------------------


@every_loop
async def test_async_for_gives_what_is_held_as_there_is_room() -> None:
    """Each goes at the very instant at which the guard has room for it, and takes its place there."""
    clock = ManualClock()
    events = Coalescer[str, str](StormGuard(10.0, 2, clock=clock))
    seen: list[tuple[float, str, int]] = []

    async def consume() -> None:
        async for each in events:
            seen.append((clock.monotonic_ns() / 1e9, each.key, each.count))  # noqa: PERF401 - each is seen as it comes

    async with Crew() as crew:
        crew.start(consume)
        await settle()
        for key in "abcdec":
            events.submit(key, key)
        await settle()
        assert seen == []
        for _ in range(2):
            due = events.ready_in()
            assert due == 10.000000001
            clock.advance(due)
            await settle()
        assert seen == [(10.000000001, "c", 2), (10.000000001, "d", 1), (20.000000002, "e", 1)]
        assert events.guard.count == 1
    assert not events._takers


@every_loop
async def test_takes_at_once_what_may_go() -> None:
    """What may go now is taken without a wait, and without a checkpoint."""
    clock = ManualClock()
    events = _full(clock)
    events.submit("a", "a")
    clock.advance(10.1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await anext(events) == Coalesced("a", "a", 1, 0)
    assert not scope.cancelled_caught


@every_loop
async def test_a_critical_event_wakes_who_waits() -> None:
    """What goes sooner than those who wait on the clock expect wakes them: a newcomer, and one that was lifted."""
    clock = ManualClock()
    events = _full(clock)
    async with Crew() as crew:
        takers = [crew.start(partial(anext, events)) for _ in range(2)]
        events.submit("a", "a")
        await settle()
        clock.advance(10.0)
        assert events.guard.try_admit() is None
        clock.advance(0.1)
        await settle()
        assert [taker.result for taker in takers if taker.ended] == [Coalesced("a", "a", 1, 0)]
        assert events.submit("b", "b") is Fate.HELD
        await settle()
        assert [taker.ended for taker in takers].count(True) == 1
        assert events.submit("b again", "b", 1) is Fate.MERGED
        await settle()
        assert Coalesced("b", "b again", 2, 1) in [taker.result for taker in takers]


@every_loop
@pytest.mark.parametrize("native", [True, False])
async def test_a_cancelled_wait_has_taken_nothing(native: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Whoever led the waiters and is cancelled hands the lead on; the next is given what there is, in time."""
    clock = ManualClock()
    events = _full(clock)
    events.submit("a", "a")
    async with Crew() as crew:
        first = crew.start(partial(anext, events))
        await settle()
        second = crew.start(partial(anext, events))
        await settle()
        first.cancel(native=native)
        await settle()
        assert first.cancelled
        clock.advance(10.1)
        await settle()
        assert second.result == Coalesced("a", "a", 1, 0)
    assert not events._takers


@every_loop
async def test_a_wait_that_is_dropped_leaves_no_trace() -> None:
    """A frame that is closed, by the garbage collector say, leaves the queue of those who wait."""
    events = Coalescer[str, str](StormGuard(clock=ManualClock()))
    waiting = events.__anext__()
    waiting.send(None)
    assert len(events._takers) == 1
    waiting.close()
    assert not events._takers


@both_loops
def test_an_error_before_the_wait_is_the_caller_s(backend: str) -> None:
    """Where no wait has begun, nothing has to be taken back: a clock that fails does so with its own error."""

    class Broken(ManualClock):
        broken = False

        def monotonic_ns(self) -> int:
            if self.broken:
                raise RuntimeError("the clock is broken")
            return super().monotonic_ns()

    clock = Broken()
    events = Coalescer[str, str](StormGuard(clock=clock))
    clock.broken = True

    async def main() -> None:
        with pytest.raises(RuntimeError, match="the clock is broken"):
            await anext(events)

    run(backend, main)
    assert not events._takers


def test_another_thread_s_submission_wakes_the_taker() -> None:
    """A task that waits hears of what a thread submits."""
    clock = ManualClock()
    events = Coalescer[str, str](StormGuard(10.0, 1, clock=clock))
    taken: list[Coalesced[str, str]] = []
    waits = threading.Event()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await settle()
            waits.set()

    async def consume() -> None:
        taken.append(await anext(events))

    thread = threading.Thread(target=partial(anyio.run, main))
    thread.start()
    waits.wait()
    for event in ("first", "second"):
        events.submit(event, "x")
    clock.advance(10.1)
    thread.join()
    assert taken == [Coalesced("x", "second", 1, 0)]
