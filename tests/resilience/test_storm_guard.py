"""StormGuard: an exact sliding window, and storms that begin and end where they should."""

from __future__ import annotations

import math
import random
import threading
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import NotUntil, Permit, RejectedError, Sample, StormError, StormGuard
from resilience.events import StormEnded, StormStarted
from resilience.machines.sliding_window import Change, SlidingWindow
from resilience.telemetry import subscribe
from resilience.testing import ManualClock
from tests.resilience.support import NOT_A_COUNT, NOT_NEGATIVE, NOT_POSITIVE, assert_caught, assert_refuses, brief

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

every_loop = pytest.mark.anyio


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_windows_and_ratios(bad: object) -> None:
    """A window or ratio that is no positive number is a ValueError that names it."""
    assert_refuses("window_size", bad, StormGuard)
    assert_refuses("calm_ratio", bad, StormGuard)
    assert_refuses("key_share", bad, StormGuard)


@pytest.mark.parametrize("bad", NOT_A_COUNT, ids=brief)
def test_refuses_bad_counts(bad: object) -> None:
    """max_events, and what a sampled event stands for, are whole numbers of at least 1."""
    assert_refuses("max_events", bad, StormGuard)
    assert_refuses("one_in", bad, Sample)


@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, None], ids=brief)
def test_refuses_bad_holds(bad: object) -> None:
    """hold_for is a finite number of at least 0."""
    assert_refuses("hold_for", bad, StormGuard)


def test_calm_is_at_most_everything() -> None:
    """A calm_ratio above 1 would end a storm while it rages."""
    assert_refuses("calm_ratio", 1.01, StormGuard)
    assert StormGuard(calm_ratio=1).calm_ratio == 1


@every_loop
@pytest.mark.parametrize("bad", [-1, 1.5, "x", math.inf, None], ids=brief)
async def test_refuses_bad_priorities(bad: object) -> None:
    """A priority is a whole number of at least 0, wherever it is asked for; the guard has counted nothing."""
    guard = StormGuard(clock=ManualClock())
    for ask in (guard.try_admit, guard.retry_after):
        with pytest.raises(ValueError, match="priority must be a whole number of at least 0"):
            ask(None, bad)  # type: ignore[arg-type]
    assert guard.statistics().admitted == guard.statistics().rejected == 0


@pytest.mark.parametrize("bad", [0.2, None, (0.5, -0.1), (math.nan,), ("x",), (0.5, 0.5), (0.95,)], ids=brief)
def test_refuses_bad_reserves(bad: object) -> None:
    """What is reserved are shares of the window that leave everybody an event at least."""
    with pytest.raises(ValueError, match=r"^reserve must "):
        StormGuard(max_events=10, reserve=bad)  # type: ignore[arg-type]
    assert StormGuard(max_events=10, reserve=[0.9]).reserve == (0.9,)


def test_refuses_a_surplus_that_it_does_not_know() -> None:
    """The surplus is sampled or rejected; there is no third way here."""
    assert_refuses("surplus", "drop", StormGuard)
    for bad in (4, random.Random, None):
        assert_refuses("random", bad, Sample, 10)


# Instants of a small world, so that windows' ends and equal instants are met often.
moves = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 1, 2, 3, 10, 11, 25]), st.sampled_from(["nothing", "usual", "critical"])),
    max_size=40,
)
shapes = st.tuples(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 1, 5])
)


def law_of_the_window(kind: type[SlidingWindow]) -> Callable[[], None]:
    """SG1, SG3, SG6: the window admits within either bound, counts and storms as a plain list of instants says."""

    @given(shapes, moves)
    @example((1, 2, 2, 2, 5), [(0, "usual"), (1, "usual"), (0, "usual"), (2, "usual"), (0, "nothing")])
    def law(shape: tuple[int, int, int, int, int], steps: list[tuple[int, str]]) -> None:
        width, limit, usual, calm, hold = shape
        usual = min(usual, limit)
        calm = min(calm, usual)
        window = kind(width, limit, calm, hold)
        log: list[int] = []
        storm, refused, calm_since, now = False, 0, 0, 100

        def count(at: int) -> int:
            return sum(1 for event in log if at - width <= event <= at)

        def calm_at() -> int:
            """Return since when it has been calm, or will be if nothing comes."""
            return next(at for at in range(now, now + width + 2) if count(at) < calm)

        for later, event in steps:
            # The model looks at every instant; the machine only when it is asked.
            for at in range(now, now + later + 1):
                calm_since = at + 1 if count(at) >= calm else calm_since
                if storm and at - calm_since >= hold:
                    assert at <= now + later
                    storm = False
                    ended = at
                    assert window.over_at() == ended
            now += later
            was = window.in_storm
            assert (window.settle(now) is Change.ENDED) == (was and not storm)
            assert window.in_storm == storm
            assert window.count(now) == count(now)
            if storm:
                assert window.over_at() == (calm_since if count(now) < calm else calm_at()) + hold
            if event == "nothing":
                continue
            bound = usual if event == "usual" else limit
            # Both ways of naming the whole window.
            within = bound % limit if later else bound
            ready = window.ready_at(within)
            room = count(now) < bound
            assert room == (ready is None or ready <= now)
            assert room != window.full(now, within)
            admitted = window.take(now, within)
            assert admitted == room
            if admitted:
                log.append(now)
                calm_since = now + 1 if count(now) >= calm else calm_since
            else:
                change = window.refuse()
                assert change is (Change.NONE if storm else Change.STARTED)
                refused = refused + 1 if storm else 1
                storm = True
                assert window.refused == refused
            assert count(now) <= limit

    return law


def test_the_whole_window_is_meant_unless_a_part_is_named() -> None:
    """One event of two leaves room; it is the second that fills the window."""
    window = SlidingWindow(10, 2, 1, 0)
    assert (window.full(0), window.ready_at(), window.refused) == (False, None, 0)
    assert window.take(0)
    assert (window.full(1), window.ready_at(), window.full(1, 1)) == (False, None, True)
    assert window.take(1)
    assert (window.full(2), window.ready_at(), window.ready_at(1)) == (True, 11, 12)


class _HalfOpen(SlidingWindow):
    """A mutant: an event exactly as old as the window no longer counts."""

    def take(self, now_ns: int, within: int = 0) -> bool:
        self.window_ns -= 1
        try:
            return super().take(now_ns, within)
        finally:
            self.window_ns += 1


class _Fixed(SlidingWindow):
    """A mutant: a fixed window, which admits twice as much around its edge."""

    def take(self, now_ns: int, within: int = 0) -> bool:
        oldest = self._ring[self._next - within]
        if oldest is not None and oldest // (self.window_ns + 1) == now_ns // (self.window_ns + 1):
            return False
        self._ring[self._next] = now_ns
        self._next = (self._next + 1) % self.limit
        return True


class _Unreserved(SlidingWindow):
    """A mutant: lets everybody use the whole window."""

    def take(self, now_ns: int, within: int = 0) -> bool:  # noqa: ARG002
        return super().take(now_ns)


class _CountsRefusals(SlidingWindow):
    """A mutant: events that were refused fill the window as well."""

    def refuse(self) -> Change:
        newest = self._ring[(self._next - 1) % self.limit]
        self._ring[self._next] = newest
        self._next = (self._next + 1) % self.limit
        return super().refuse()


class _Hasty(SlidingWindow):
    """A mutant: the storm is over as soon as there is room again."""

    def over_at(self) -> int:
        return self.ready_at() or 0


class _Restless(SlidingWindow):
    """A mutant: begins a storm with every refusal."""

    def refuse(self) -> Change:
        self.in_storm = False
        return super().refuse()


class _Impatient(SlidingWindow):
    """A mutant: does not hold."""

    def over_at(self) -> int:
        return super().over_at() - self.hold_ns


class _NeverCalm(SlidingWindow):
    """A mutant, and once the code: every event that is admitted begins the hold anew."""

    def over_at(self) -> int:
        entry = self._ring[(self._next - self.calm) % self.limit]
        return (entry or 0) + self.window_ns + 1 + self.hold_ns


def test_window_is_exact() -> None:
    """SG1, SG3, SG6: at every instant the ring says what the whole list would."""
    law_of_the_window(SlidingWindow)()


@pytest.mark.parametrize(
    "mutant", [_HalfOpen, _Fixed, _Unreserved, _CountsRefusals, _Hasty, _Restless, _Impatient, _NeverCalm]
)
def test_law_of_the_window_catches_mutants(mutant: type[SlidingWindow]) -> None:
    """Open ends, fixed windows, counted refusals and storms that begin or end at the wrong time are seen."""
    assert_caught(law_of_the_window(mutant))


def law_of_the_guard(make: Callable[[ManualClock], StormGuard]) -> Callable[[], None]:
    """SG1, SG3, SG6: any closed window holds at most max_events, the clock may stall or step back."""

    @given(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 9, 10, -1, -20]), st.booleans()), max_size=40))
    def law(steps: list[tuple[int, bool]]) -> None:
        clock = ManualClock(1000.0)
        guard = make(clock)
        log: list[int] = []
        elapsed = 0
        for later, plain in steps:
            if later >= 0:
                clock.advance(later)
                elapsed += later
            else:
                assert guard.count <= 3
                clock.step_back(-later)
            told = guard.retry_after()
            expected = sum(1 for at in log if elapsed - at <= 10) < 3
            assert (told == 0.0) == expected
            admitted = guard.try_admit() is not None if plain else isinstance(guard.admit(clock.monotonic_ns()), Permit)
            assert admitted == expected
            if admitted:
                log.append(elapsed)
            assert guard.count == sum(1 for at in log if elapsed - at <= 10)

    return law


class _Trusting(StormGuard):
    """A mutant: believes a clock that steps back, and waits until it has caught up."""

    def _decide(self, clock_ns: int | None, key: Hashable, bound: int, *, count_refusal: bool) -> Permit | NotUntil:  # noqa: ARG002
        self._line.offset_ns = 0
        late_ns = max(self.clock.monotonic_ns(), self._line.last_ns)
        return super()._decide(late_ns, key, bound, count_refusal=count_refusal)

    def retry_after(self, key: Hashable = None, priority: int = 0) -> float:
        self._line.offset_ns = 0
        return super().retry_after(key, priority)


def test_guard_is_exact_on_its_own_line_of_time() -> None:
    """SG1, SG6: backward timestamps count as the last instant, and time goes on from there."""
    law_of_the_guard(lambda clock: StormGuard(10.0, 3, clock=clock))()


def test_law_of_the_guard_catches_mutants() -> None:
    """A guard that waits for its clock to catch up is seen, and so is one with a window that is too short."""
    assert_caught(law_of_the_guard(lambda clock: _Trusting(10.0, 3, clock=clock)))
    assert_caught(law_of_the_guard(lambda clock: StormGuard(9.0, 3, clock=clock)))


@every_loop
async def test_storm_begins_with_a_refusal_and_ends_when_calm() -> None:
    """SG3: hysteresis: the storm goes on while events are admitted again, until it has been calm for hold_for."""
    clock = ManualClock()
    guard = StormGuard(10.0, 4, name="intake", calm_ratio=0.5, hold_for=5.0, clock=clock)
    seen: list[object] = []
    unsubscribe = subscribe(seen.append)
    try:
        for _ in range(4):
            assert await guard.should_process_event()
            clock.advance(1.0)
        assert not guard.in_storm
        assert not await guard.should_process_event()
        assert guard.in_storm
        assert guard.try_admit() is None
        assert isinstance(guard.admit(clock.monotonic_ns()), NotUntil)
        # The third newest of t = 0, 1, 2, 3 leaves just after 12 s: then one is left, fewer than two; 5 s more.
        clock.advance(13.0)
        assert guard.in_storm
        clock.advance(0.000000001)
        assert not guard.in_storm
    finally:
        unsubscribe()
    started, ended = seen[0], seen[-1]
    assert started == StormStarted(guard="intake", at_ns=4_000_000_000)
    assert ended == StormEnded(guard="intake", at_ns=17_000_000_001, refused=3)
    assert len([event for event in seen if isinstance(event, StormStarted | StormEnded)]) == 2


@every_loop
async def test_steady_trickle_does_not_keep_a_storm_alive() -> None:
    """SG3: events that come while the window is calm do not begin the hold anew, or a storm might never end."""
    clock = ManualClock()
    guard = StormGuard(1.0, 2, calm_ratio=1.0, hold_for=5.0, clock=clock)
    assert [await guard.should_process_event() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        clock.advance(2.0)
        assert await guard.should_process_event()
    clock.advance(0.1)
    assert not guard.in_storm


@every_loop
async def test_storm_that_nobody_looked_at_ends_with_the_next_event() -> None:
    """The end is announced for the instant at which it came, whenever it is noticed; or to nobody."""
    clock = ManualClock()
    guard = StormGuard(1.0, 1, clock=clock)
    assert await guard.should_process_event()
    assert not await guard.should_process_event()
    clock.advance(100.0)
    assert await guard.should_process_event()
    assert not guard.in_storm
    clock.step_back(50.0)
    assert not await guard.should_process_event()
    clock.advance(1.0)
    assert not await guard.should_process_event()
    clock.advance(0.000000001)
    assert await guard.should_process_event()
    assert guard.statistics().admitted == 3
    assert guard.statistics().rejected == 3
    assert guard.statistics().in_use == 1


@every_loop
async def test_guarded_calls_are_refused_in_a_storm() -> None:
    """As a layer it raises StormError with the time to come back; no verdict takes an event back; no checkpoint."""
    clock = ManualClock()
    guard = StormGuard(10.0, 2, name="intake", clock=clock)

    async def nested() -> None:
        raise RejectedError("inner")

    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await guard.should_process_event()
    assert not scope.cancelled_caught
    with pytest.raises(RejectedError):
        await guard.call(nested)
    clock.advance(4.0)
    with pytest.raises(StormError, match="intake is weathering a storm; ask again in 6 s") as caught:
        await guard.call(nested)
    assert caught.value.retry_after == 6.000000001
    assert guard.retry_after() == 6.000000001
    clock.advance(guard.retry_after())
    permit = guard.try_admit()
    assert permit is not None
    permit.ignored()
    assert guard.count == 1


def test_late_reading_of_another_thread_moves_no_window() -> None:
    """SG1: a thread that read the clock, lost its turn and then asks does not put the guard's time ahead."""
    clock = ManualClock()
    guard = StormGuard(10.0, 1, clock=clock)
    overtaken = clock.monotonic_ns()
    clock.advance(8.0)
    assert guard.try_admit() is not None
    decision = guard.admit(overtaken)
    assert isinstance(decision, NotUntil)
    assert isinstance(guard.refuse(decision), StormError)
    clock.advance(10.0)
    assert guard.try_admit() is None


def test_threads_never_admit_too_much() -> None:
    """SG1: of many threads that start together exactly max_events get in."""
    guard = StormGuard(10.0, 40, clock=ManualClock())
    barrier = threading.Barrier(4)
    admitted: list[int] = []

    def work() -> None:
        barrier.wait()
        admitted.append(sum(guard.try_admit() is not None for _ in range(50)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == guard.statistics().admitted == guard.count == 40
    assert guard.statistics().rejected == 160


@pytest.mark.parametrize("awaited", [True, False])
def test_found_lock_is_counted(awaited: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """An event that finds the lock taken waits for a few lines of code, and says so."""
    guard = StormGuard(clock=ManualClock())
    found = threading.Event()
    lock = guard._lock

    class Watched:
        def locked(self) -> bool:
            found.set()
            return True

    def acquire(*blocking: bool) -> bool:
        acquired = lock.acquire(*blocking)
        if not acquired:
            found.set()
        return acquired

    guard._lock = Watched()  # type: ignore[assignment]
    guard._try_lock = acquire  # type: ignore[assignment]
    ask: Callable[[], object] = partial(anyio.run, guard.should_process_event) if awaited else guard.try_admit
    with lock:
        thread = threading.Thread(target=ask)
        thread.start()
        found.wait()
    thread.join()
    assert guard.statistics().contended == 1
    assert guard.statistics().admitted == 1
