"""StormGuard between keys and priorities: nobody uses up the window of the others; and what of the surplus is seen."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import Permit, Policy, Sample, StormGuard
from resilience.events import StormStarted
from resilience.machines.fairness import KeyShares
from resilience.machines.sampling import Sampler
from resilience.telemetry import subscribe
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught, both_loops, heavy, in_thread, run

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

every_loop = pytest.mark.anyio

keys = st.integers(0, 5)
pauses = st.sampled_from([0, 0, 0, 1, 2, 3, 10, 11, 25])


# -- the machine ------------------------------------------------------------------------------------------------------


def law_of_the_shares(kind: type[KeyShares]) -> Callable[[], None]:
    """SG4, SG5: each key has its quota of the window as a plain list of admissions says, in memory for `limit` keys."""

    @given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.lists(st.tuples(pauses, keys), max_size=50))
    def law(width: int, limit: int, quota: int, steps: list[tuple[int, int]]) -> None:
        shares = kind(width, limit, quota)
        log: list[tuple[int, int]] = []
        now = 100

        def of(key: int, at: int) -> int:
            return sum(1 for when, whose in log if whose == key and at - width <= when <= at)

        for later, key in steps:
            now += later
            for each in range(6):
                told = shares.ready_at(each)
                free_at = next(at for at in range(now, now + width + 2) if of(each, at) < quota)
                assert max(now, told or 0) == free_at
            room = sum(1 for when, _ in log if now - width <= when) < limit
            if room and of(key, now) < quota:
                shares.take(key, now)
                log.append((now, key))
            assert len(shares) <= limit

    return law


class _HalfOpen(KeyShares):
    """A mutant: an event exactly as old as the window no longer counts."""

    def ready_at(self, key: Hashable) -> int | None:
        ready_at = super().ready_at(key)
        return None if ready_at is None else ready_at - 1


class _Sketchy(KeyShares):
    """A mutant: keys that share a cell of a sketch share their quota."""

    def ready_at(self, key: Hashable) -> int | None:
        return super().ready_at(hash(key) % 3)

    def take(self, key: Hashable, now_ns: int) -> None:
        super().take(hash(key) % 3, now_ns)


class _Forgetful(KeyShares):
    """A mutant: remembers the two keys that came last, and lets the others begin anew."""

    def ready_at(self, key: Hashable) -> int | None:
        return super().ready_at(key) if key in list(self._shares)[-2:] else None


class _Hoarder(KeyShares):
    """A mutant: keeps the keys for ever."""

    def _retire(self, now_ns: int) -> None:
        share = self._owners[self._oldest]
        super()._retire(now_ns)
        if share is not None:
            self._shares.setdefault(share.key, share)


class _Stuck(KeyShares):
    """A mutant: the gate stays where an entry was that has been retired."""

    def _retire(self, now_ns: int) -> None:
        share = self._owners[self._oldest]
        gate = 0 if share is None else share.gate
        super()._retire(now_ns)
        if share is not None:
            share.gate = gate


class _Eager(KeyShares):
    """A mutant: retires what is still in the window."""

    def _retire(self, now_ns: int) -> None:
        super()._retire(now_ns + 1)


def test_shares_are_exact_in_bounded_memory() -> None:
    """SG4, SG5: no key counts for another, none is forgotten while it matters, and none is kept for ever."""
    law_of_the_shares(KeyShares)()


@pytest.mark.parametrize("mutant", [_HalfOpen, _Sketchy, _Forgetful, _Hoarder, _Stuck, _Eager])
def test_law_of_the_shares_catches_mutants(mutant: type[KeyShares]) -> None:
    """Open ends, sketches, evictions that grant a burst, and memory that grows are seen."""
    assert_caught(law_of_the_shares(mutant))


def test_idle_keys_go_as_others_come() -> None:
    """SG5: each admission retires two entries that have left the window, and a key goes with its last one."""
    shares = KeyShares(10, 8, 2)
    for key in "abcdef":
        shares.take(key, 0)
    remembered = []
    for _ in range(4):
        shares.take("z", 11)
        remembered.append(len(shares))
    assert remembered == [5, 3, 1, 1]


def test_however_many_keys_come_few_are_remembered() -> None:
    """SG5: what is remembered depends on the window, not on how many events or keys have come."""
    clock = ManualClock()
    guard = StormGuard(1.0, 50, key_share=0.1, clock=clock)
    for number in range(20_000):
        guard.try_admit(f"key {number}")
        if number % 40 == 0:
            clock.advance(0.3)
    statistics = guard.statistics()
    assert statistics.keys <= 50
    assert statistics.admitted + statistics.rejected == 20_000


# -- the guard --------------------------------------------------------------------------------------------------------

events = st.lists(st.tuples(pauses, st.none() | st.integers(0, 3), st.integers(0, 3)), max_size=50)


def law_of_keys_and_priorities(make: Callable[[ManualClock], StormGuard], backend: str) -> Callable[[], None]:
    """SG1, SG4: an event is admitted if, and only if, its priority's part of the window and its key's have room.

    For guards of 10 s, 8 events, a key_share of 0.4 (3 events) and a reserve of (0.25, 0.25): priority 0 may fill
    4 places, 1 may fill 6, and those above all 8.
    """

    @given(events)
    @example([(0, 0, 3), (0, 0, 3), (0, 0, 3), (1, 0, 3), (10, 0, 3)])
    def law(steps: list[tuple[int, int | None, int]]) -> None:
        async def main() -> None:
            clock = ManualClock()
            guard = make(clock)
            log: list[tuple[int, int | None]] = []
            now = over_share = 0
            for later, key, priority in steps:
                clock.advance(later)
                now += later
                window = [whose for when, whose in log if now - when <= 10]
                in_window = len(window) < (4, 6, 8, 8)[priority]
                in_share = key is None or window.count(key) < 3
                told = guard.retry_after(key, priority)
                assert (told == 0.0) == (in_window and in_share)
                admitted = await guard.should_process_event(key, priority)
                assert admitted == (in_window and in_share)
                over_share += in_window and not in_share
                if admitted:
                    log.append((now, key))
                elif not in_window:
                    assert guard.in_storm
                assert guard.count == sum(1 for when, _ in log if now - when <= 10)
            statistics = guard.statistics()
            assert (statistics.admitted, statistics.rejected) == (len(log), len(steps) - len(log))
            assert statistics.over_share == over_share

        run(backend, main)

    return law


def _fair(clock: ManualClock, kind: type[StormGuard] = StormGuard) -> StormGuard:
    return kind(10.0, 8, key_share=0.4, reserve=(0.25, 0.25), clock=clock)


class _Unfair(StormGuard):
    """A mutant: does not mind whose event it is."""

    def _take(self, now_ns: int, key: Hashable, bound: int) -> bool:  # noqa: ARG002
        return super()._take(now_ns, None, bound)


class _Charging(StormGuard):
    """A mutant: a refused event counts against its key."""

    def _take(self, now_ns: int, key: Hashable, bound: int) -> bool:
        admitted = super()._take(now_ns, key, bound)
        if not admitted and key is not None and self._shares is not None:
            self._shares.take(key, now_ns)
        return admitted


class _Nobody(StormGuard):
    """A mutant: takes those without a key for one more key."""

    def _take(self, now_ns: int, key: Hashable, bound: int) -> bool:
        return super()._take(now_ns, "nobody" if key is None else key, bound)


class _Equal(StormGuard):
    """A mutant: serves all priorities alike."""

    def _level(self, priority: int) -> int:  # noqa: ARG002
        return 0


class _UpsideDown(StormGuard):
    """A mutant: sheds what is critical first."""

    def _level(self, priority: int) -> int:
        return 2 - super()._level(priority)


@both_loops
def test_keys_and_priorities_are_exact(backend: str) -> None:
    """SG1, SG4: the guard says what a plain list of all admissions would, for every key and priority."""
    heavy(law_of_keys_and_priorities(_fair, backend))()


@pytest.mark.parametrize("mutant", [_Unfair, _Charging, _Nobody, _Equal, _UpsideDown])
def test_law_of_keys_and_priorities_catches_mutants(mutant: type[StormGuard]) -> None:
    """Guards that ignore keys or priorities, or charge for what they refuse, are seen."""
    assert_caught(law_of_keys_and_priorities(partial(_fair, kind=mutant), "asyncio"))


def law_of_isolation(kind: type[StormGuard]) -> Callable[[], None]:
    """SG4: while the window has room for every key's share, a key's verdicts are those it would get all alone."""

    @given(st.lists(st.tuples(pauses, st.integers(0, 2)), max_size=50))
    def law(steps: list[tuple[int, int]]) -> None:
        clock = ManualClock()
        together = kind(10.0, 9, key_share=1 / 3, clock=clock)
        alone = [kind(10.0, 9, key_share=1 / 3, clock=clock) for _ in range(3)]
        for later, key in steps:
            clock.advance(later)
            verdict = together.try_admit(key) is not None
            assert verdict == (alone[key].try_admit(key) is not None)
            assert together.retry_after(key) == alone[key].retry_after(key)
            assert not together.in_storm

    return law


def test_a_noisy_key_changes_nobody_s_verdict() -> None:
    """SG4: together or alone, a key sees the same guard; and its noise is no storm."""
    law_of_isolation(StormGuard)()


def test_law_of_isolation_catches_a_mutant() -> None:
    """A guard that lets one key use up the window is seen."""
    assert_caught(law_of_isolation(_Unfair))


@every_loop
async def test_a_key_may_come_back_when_told() -> None:
    """The wait that is told for a key is exact: one nanosecond before it the event is refused, and then admitted."""
    clock = ManualClock()
    guard = StormGuard(10.0, 10, key_share=0.2, clock=clock)
    assert [await guard.should_process_event("a") for _ in range(3)] == [True, True, False]
    assert guard.retry_after("a") == 10.000000001
    assert guard.retry_after("b") == guard.retry_after() == 0.0
    clock.advance(10.0)
    assert not await guard.should_process_event("a")
    clock.advance(0.000000001)
    assert await guard.should_process_event("a")
    assert guard.statistics().over_share == 2


def test_a_share_is_one_event_at_least() -> None:
    """A key_share of less than an event gives every key one; an equal part is not lost to rounding."""
    clock = ManualClock()
    tiny = StormGuard(10.0, 4, key_share=0.01, clock=clock)
    assert [tiny.try_admit(key) is not None for key in "aabb"] == [True, False, True, False]
    tenth = StormGuard(10.0, 30, key_share=0.1, clock=clock)
    assert [tenth.try_admit("a") is not None for _ in range(4)] == [True, True, True, False]


def test_without_shares_keys_are_not_remembered() -> None:
    """A guard whose keys may take everything keeps none of them, and need not even be able to."""
    guard = StormGuard(10.0, 4, clock=ManualClock())
    assert guard.try_admit(["unhashable"]) is not None  # type: ignore[arg-type]
    assert guard.statistics().keys == 0


@every_loop
async def test_what_is_critical_is_shed_last() -> None:
    """A storm begins where the usual events find no room; what is reserved is still there, and calm is below it."""
    clock = ManualClock()
    guard = StormGuard(10.0, 10, name="intake", reserve=(0.8,), calm_ratio=1.0, clock=clock)
    seen: list[object] = []
    unsubscribe = subscribe(seen.append)
    try:
        assert [await guard.should_process_event() for _ in range(3)] == [True, True, False]
        assert seen[0] == StormStarted(guard="intake", at_ns=0)
        assert [await guard.should_process_event(priority=1) for _ in range(9)] == [True] * 8 + [False]
    finally:
        unsubscribe()
    assert guard.in_storm
    clock.advance(10.000000001)
    assert not guard.in_storm


def test_as_a_layer_it_guards_what_is_usual() -> None:
    """Calls through it have no key and no priority: what is reserved is not for them."""
    guard = StormGuard(10.0, 4, reserve=(0.5,), key_share=0.25, clock=ManualClock())
    assert [isinstance(guard.admit(), Permit) for _ in range(3)] == [True, True, False]
    assert guard.try_admit(priority=7) is not None


def law_of_threads(kind: type[StormGuard]) -> Callable[[], None]:
    """SG4: of threads that make all the noise they can, each gets its key's share and no more."""

    def law() -> None:
        guard = kind(10.0, 40, key_share=0.25, clock=ManualClock())
        barrier = threading.Barrier(4)
        admitted = [0] * 4

        def work(key: int) -> None:
            barrier.wait()
            admitted[key] = sum(guard.try_admit(key) is not None for _ in range(50))

        threads = [threading.Thread(target=work, args=(key,)) for key in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert admitted == [10] * 4
        assert guard.statistics().rejected == 160

    return law


def test_threads_share_fairly() -> None:
    """SG4: the shares hold between threads too."""
    law_of_threads(StormGuard)()


def test_law_of_threads_catches_a_mutant() -> None:
    """A guard that lets whoever is first use up the window is seen."""
    assert_caught(law_of_threads(_Unfair))


# -- sampling ---------------------------------------------------------------------------------------------------------


def law_of_sampling(kind: type[StormGuard], backend: str) -> Callable[[], None]:
    """SG2: in = admitted + sampled + rejected, and of k events too many k / one_in pass, give or take one run."""

    @given(st.integers(1, 5), st.lists(st.tuples(pauses, st.integers(0, 2)), max_size=50), st.integers(0, 2**32))
    def law(one_in: int, steps: list[tuple[int, int]], seed: int) -> None:
        async def main() -> None:
            clock = ManualClock()
            surplus = Sample(one_in, random=random.Random(seed))
            guard = kind(10.0, 3, key_share=0.4, surplus=surplus, clock=clock)
            passed = 0
            for later, how in steps:
                clock.advance(later)
                if how == 0:
                    passed += await guard.should_process_event()
                elif how == 1:
                    passed += guard.try_admit("a") is not None
                else:
                    decision = guard.admit()
                    passed += isinstance(decision, Permit)
                    if not isinstance(decision, Permit):
                        guard.refuse(decision)
                assert guard.count <= 3
            statistics = guard.statistics()
            assert statistics.admitted + statistics.sampled + statistics.rejected == len(steps)
            assert statistics.admitted + statistics.sampled == passed
            runs, rest = divmod(len(steps) - statistics.admitted, one_in)
            assert runs <= statistics.sampled <= runs + (rest > 0)

        run(backend, main)

    return law


class _Uncounted(StormGuard):
    """A mutant: does not count what it samples."""

    def _sample(self) -> bool:
        sampled = super()._sample()
        self._sampled = 0
        return sampled


class _Charged(StormGuard):
    """A mutant: counts what it samples as rejected as well."""

    def _sample(self) -> bool:
        sampled = super()._sample()
        self._rejected += sampled
        return sampled


@both_loops
def test_nothing_that_is_sampled_is_uncounted(backend: str) -> None:
    """SG2: every event is admitted, sampled or rejected, and counted as what it was."""
    heavy(law_of_sampling(StormGuard, backend))()


@pytest.mark.parametrize("mutant", [_Uncounted, _Charged])
def test_law_of_sampling_catches_mutants(mutant: type[StormGuard]) -> None:
    """Samples that are not counted, or counted twice, are seen."""
    assert_caught(law_of_sampling(mutant, "asyncio"))


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=12, max_size=12), st.integers(1, 6))
def test_one_of_each_run_passes_where_it_was_drawn(draws: list[float], one_in: int) -> None:
    """Exactly one of each run passes, at the place that the run's first number says; the other numbers are not used."""
    sampler = Sampler(one_in)
    passed = [sampler.passes(u) for u in draws]
    for start in range(0, len(draws) - one_in + 1, one_in):
        assert passed[start : start + one_in].index(True) == int(draws[start] * one_in)
        assert sum(passed[start : start + one_in]) == 1


def test_a_sample_has_its_own_dice() -> None:
    """Two samples are equal if they stand for as much; each draws for itself unless told from where."""
    assert Sample(3) == Sample(3)
    assert Sample(3).random is not Sample(3).random
    assert repr(Sample(3)) == "Sample(one_in=3)"


@every_loop
async def test_calls_that_are_sampled_run() -> None:
    """Through a Policy too, one of every `one_in` calls beyond the limit runs, though another thread was first."""
    guard = StormGuard(10.0, 1, surplus=Sample(1), clock=ManualClock())
    in_thread(guard.try_admit)

    async def work() -> int:
        return 7

    assert await Policy(guard).call(work) == 7
    assert guard.statistics().sampled == 1
    assert guard.in_storm


def test_what_has_left_the_window_is_no_measure_of_a_key() -> None:
    """Of a quota of two, the second newest in the window says when there is room, not one that was forgotten."""
    shares = KeyShares(window_ns=10, limit=5, quota=2)
    for now_ns in (0, 8, 12):
        shares.take("a", now_ns)
    assert shares.ready_at("a") == 19
