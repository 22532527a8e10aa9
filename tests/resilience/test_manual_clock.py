"""ManualClock: time that moves when a test says so."""

from __future__ import annotations

import math
import sys
import threading
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from resilience.clock import Clock
from resilience.testing import ManualClock
from resilience.timers import remaining_ns
from tests.resilience.support import assert_refuses, in_thread, run, settle, until_blocking

every_loop = pytest.mark.anyio


def test_starts_where_it_is_told() -> None:
    """The line begins at `start`, the wall clock at `wall`; by default at 0 and at the beginning of 2026."""
    assert isinstance(ManualClock(), Clock)
    assert ManualClock().monotonic_ns() == 0
    assert ManualClock().time_ns() == 1_767_225_600_000_000_000
    clock = ManualClock(5.0, wall=100.0)
    assert (clock.monotonic_ns(), clock.time_ns()) == (5_000_000_000, 100_000_000_000)


@pytest.mark.parametrize("bad", [math.nan, math.inf, True, "x", None])
def test_refuses_what_is_no_instant(bad: object) -> None:
    """A start that is no finite number is a ValueError that names it."""
    assert_refuses("start", bad, ManualClock)
    assert_refuses("wall", bad, ManualClock)
    assert_refuses("seconds", bad, ManualClock().jump_wall)


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, True, "x", None])
def test_refuses_to_move_by_what_is_no_duration(bad: object) -> None:
    """Time moves on by finite numbers of at least 0, and back only by step_back."""
    assert_refuses("seconds", bad, ManualClock().advance)
    assert_refuses("seconds", bad, ManualClock().step_back)


def test_wall_moves_along_and_jumps_alone() -> None:
    """Advancing moves both clocks; a jump of the wall clock leaves the line alone."""
    clock = ManualClock(wall=0.0)
    clock.advance(2.0)
    clock.jump_wall(-3600.0)
    assert (clock.monotonic_ns(), clock.time_ns()) == (2_000_000_000, -3_598_000_000_000)


def test_callbacks_run_in_deadline_order_each_at_its_own_instant() -> None:
    """Each callback sees the clock show the instant that it asked for; equal instants keep the order of asking."""
    clock = ManualClock()
    seen: list[tuple[str, int]] = []
    for name, delay in (("c", 3), ("a", 1), ("b", 2), ("b2", 2), ("past", -5)):
        clock.call_later(delay * 1_000_000_000, lambda name=name: seen.append((name, clock.monotonic_ns())))  # type: ignore[misc]
    taken_back = clock.call_later(1, lambda: seen.append(("never", 0)))
    taken_back()
    assert clock.next_deadline() == 0.0
    clock.advance(2.5)
    second = 1_000_000_000
    assert seen == [("past", 0), ("a", second), ("b", 2 * second), ("b2", 2 * second)]
    assert clock.next_deadline() == 3.0
    assert clock.monotonic_ns() == 2_500_000_000


def test_callback_may_ask_for_another_that_is_due_in_the_same_advance() -> None:
    """A chain of callbacks inside one advance runs to its end, at the right instants."""
    clock = ManualClock()
    seen: list[int] = []

    def again() -> None:
        seen.append(clock.monotonic_ns())
        if len(seen) < 3:
            clock.call_later(1_000_000_000, again)

    clock.call_later(1_000_000_000, again)
    clock.advance(10.0)
    assert seen == [1_000_000_000, 2_000_000_000, 3_000_000_000]
    assert clock.next_deadline() is None


@every_loop
async def test_sleepers_wake_when_the_clock_passes_them() -> None:
    """A sleeper wakes at its deadline and not before."""
    clock = ManualClock()
    woken: list[float] = []

    async def sleeper(duration: float) -> None:
        await clock.sleep(duration)
        woken.append(duration)

    async with anyio.create_task_group() as group:
        for duration in (2.0, 1.0, 3.0):
            group.start_soon(sleeper, duration)
        await settle()
        clock.advance(0.999999999)
        await settle()
        assert woken == []
        clock.advance(0.000000001)
        await settle()
        assert woken == [1.0]
        clock.advance(1.0)
        await settle()
        clock.advance(1.0)
        await settle()
    assert woken == [1.0, 2.0, 3.0]


@every_loop
async def test_step_back_lets_sleepers_sleep_as_long_as_they_meant_to() -> None:
    """After a step back a sleeper needs just as much more time as before it."""
    clock = ManualClock(100.0)
    done = False

    async def sleeper() -> None:
        nonlocal done
        await clock.sleep(10.0)
        done = True

    async with anyio.create_task_group() as group:
        group.start_soon(sleeper)
        await settle()
        clock.advance(4.0)
        clock.step_back(50.0)
        assert clock.monotonic_ns() == 54_000_000_000
        assert clock.next_deadline() == 60.0
        clock.advance(5.0)
        await settle()
        assert not done
        clock.advance(1.0)


@every_loop
async def test_sleep_of_zero_is_a_checkpoint() -> None:
    """Sleeping for no time lets a cancellation in."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await ManualClock().sleep(0)
    assert scope.cancelled_caught
    await ManualClock().sleep(-1.0)


@every_loop
async def test_cancelled_sleeper_leaves_no_deadline() -> None:
    """A sleep that is cancelled is forgotten by the clock."""
    clock = ManualClock()
    async with anyio.create_task_group() as group:
        group.start_soon(clock.sleep, 5.0)
        await settle()
        assert clock.next_deadline() == 5.0
        group.cancel_scope.cancel()
    assert clock.next_deadline() is None


@every_loop
async def test_fail_after_raises_when_the_clock_passes_it() -> None:
    """The block is cancelled at the deadline and ends with TimeoutError; a quick block leaves no deadline behind."""
    clock = ManualClock()
    with clock.fail_after(1.0):
        await anyio.lowlevel.checkpoint()
    assert clock.next_deadline() is None

    async def late() -> None:
        with pytest.raises(TimeoutError), clock.fail_after(1.0):
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(late)
        await settle()
        clock.advance(1.0)
    with pytest.raises(TimeoutError), clock.fail_after(0):
        await anyio.sleep_forever()


@every_loop
async def test_fail_after_lets_a_cancellation_from_outside_go_on() -> None:
    """A cancellation that is not the deadline's does not become a TimeoutError."""
    clock = ManualClock()
    with anyio.CancelScope() as outer:
        outer.cancel()
        with clock.fail_after(1.0):
            await anyio.sleep_forever()
    assert outer.cancelled_caught
    with clock.fail_after(1.0) as scope:
        scope.cancel()
        await anyio.sleep_forever()
    assert scope.cancelled_caught


@every_loop
async def test_fail_after_lets_its_block_know_how_long_it_has() -> None:
    """The earliest of several counts, on this clock alone, and until the block is left."""
    clock = ManualClock()
    with clock.fail_after(5.0):
        with clock.fail_after(2.0):
            clock.advance(0.5)
            assert remaining_ns(clock) == 1_500_000_000
            assert remaining_ns(ManualClock()) is None
            with clock.fail_after(3.0):
                assert remaining_ns(clock) == 1_500_000_000
        assert remaining_ns(clock) == 4_500_000_000
    assert remaining_ns(clock) is None


@every_loop
async def test_fail_after_is_fired_from_another_thread() -> None:
    """Whichever thread moves the clock, the block's own event loop cancels it."""
    clock = ManualClock()
    with pytest.raises(TimeoutError), clock.fail_after(1.0):  # noqa: PT012 - both happen inside of the timeout
        await anyio.to_thread.run_sync(partial(clock.advance, 1.0))
        await anyio.sleep_forever()


def test_sleep_blocking_waits_for_another_thread_to_move_the_clock() -> None:
    """A blocked thread goes on when the clock has passed it; no time needs no waiting."""
    clock = ManualClock()
    clock.sleep_blocking(0)
    thread = threading.Thread(target=clock.sleep_blocking, args=(2.0,))
    thread.start()
    until_blocking(lambda: clock.next_deadline() == 2.0)
    clock.advance(2.0)
    thread.join()


def test_sleep_blocking_moves_an_autojumping_clock_itself() -> None:
    """With autojump a blocking sleep is over at once, and the time has passed."""
    clock = ManualClock(autojump=True)
    clock.sleep_blocking(3.0)
    assert clock.monotonic_ns() == 3_000_000_000
    # Where no event loop runs, nobody can tell whether all wait: the callback is kept, and nothing jumps.
    in_thread(lambda: clock.call_later(1, lambda: None))
    assert clock.next_deadline() == 3.000000001


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_autojump_takes_everybody_to_the_next_deadline(backend: str) -> None:
    """Whenever all tasks wait, time jumps; the same clock does so in one event loop after another."""
    clock = ManualClock(autojump=True)
    woken: list[tuple[float, int]] = []

    async def sleeper(duration: float) -> None:
        await clock.sleep(duration)
        woken.append((duration, clock.monotonic_ns()))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(sleeper, 3600.0)
            group.start_soon(sleeper, 60.0)

    run(backend, main)
    assert woken == [(60.0, 60_000_000_000), (3600.0, 3_600_000_000_000)]
    run(backend, main)
    assert clock.monotonic_ns() == 7_200_000_000_000


def test_works_where_trio_was_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """On asyncio nothing of trio is needed, and nothing of it imported to find that out."""
    clock = ManualClock(autojump=True)

    async def main() -> None:
        monkeypatch.delitem(sys.modules, "trio")
        with pytest.raises(TimeoutError), clock.fail_after(5.0):
            await anyio.sleep_forever()
        assert "trio" not in sys.modules

    run("asyncio", main)
    assert clock.monotonic_ns() == 5_000_000_000
