"""Gradient2, Vegas and AIMD: what they find, what they hold, and what must not move them."""

from __future__ import annotations

import heapq
import random
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import AIMD, Gradient2, Vegas
from resilience.machines.limits import _Aimd, _Gradient, _Vegas
from tests.resilience.support import NOT_A_COUNT, NOT_POSITIVE, assert_caught, assert_refuses, brief

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.machines.limits import LimitAlgorithm, LimitMachine, Notes, _Samples

MILLISECOND = 1_000_000
BARE = 10 * MILLISECOND
"""What a call takes that does not have to wait."""

measuring = pytest.mark.parametrize("algorithm", [Gradient2(), Vegas()], ids=["Gradient2", "Vegas"])
Start: TypeAlias = "Callable[[], LimitMachine]"


def alike(_dice: random.Random) -> int:
    """Every call takes the same time."""
    return BARE


def exponential(dice: random.Random) -> int:
    """Calls take all kinds of times, as in the M/M/c of the textbooks."""
    return max(1, round(dice.expovariate(1 / BARE)))


class Callee:
    """So many workers, a queue in front of them, and callers who ask again as soon as they may; in virtual time."""

    def __init__(
        self,
        machine: LimitMachine,
        workers: int,
        service: Callable[[random.Random], int] = alike,
        *,
        callers: int = 10_000,
        slower: float = 1.0,
        fails: float = 0.0,
    ) -> None:
        self.machine = machine
        self.workers = workers
        self.service = service
        self.callers = callers
        self.slower = slower
        self.fails = fails
        self.dice = random.Random(17)
        self.now = 0
        self.served = 0
        self._in_flight = 0
        self._queue: deque[tuple[int, int]] = deque()
        self._busy: list[tuple[int, int, int, int]] = []

    def run(self, calls: int) -> list[int]:
        """Answer so many calls; return the limit after each."""
        limits = []
        for _ in range(calls):
            self._ask()
            self.now, _, started, in_flight = heapq.heappop(self._busy)
            self._in_flight -= 1
            self.served += 1
            dropped = self.dice.random() < self.fails
            limits.append(self.machine.record(started, self.now, in_flight, dropped=dropped))
        return limits

    def _ask(self) -> None:
        while self._in_flight < min(self.callers, self.machine.limit):
            self._in_flight += 1
            self._queue.append((self.now, self._in_flight))
        while self._queue and len(self._busy) < self.workers:
            started, in_flight = self._queue.popleft()
            takes = round(self.service(self.dice) * self.slower)
            heapq.heappush(self._busy, (self.now + takes, self.served + len(self._busy), started, in_flight))


def called(value: object) -> str:
    """Return the name of an algorithm or a function in a test's name."""
    return getattr(value, "__name__", type(value).__name__)


def settled(limits: list[int]) -> list[int]:
    """Return the limits that were no probes, which leave a quarter."""
    return [limit for limit in limits if limit > max(limits) // 3]


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", NOT_A_COUNT, ids=brief)
def test_refuses_bad_counts(bad: object) -> None:
    """A count that is none is a ValueError that names it."""
    for algorithm in (Gradient2, Vegas, AIMD):
        for name in ("initial_limit", "min_limit", "max_limit"):
            assert_refuses(name, bad, algorithm)
    for algorithm in (Gradient2, Vegas):
        for name in ("window", "probe_every"):
            assert_refuses(name, bad, algorithm)
    assert_refuses("queue_size", bad, Gradient2)


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_numbers(bad: object) -> None:
    """A number that is none, or is not positive, is a ValueError that names it."""
    assert_refuses("tolerance", bad, Gradient2)
    assert_refuses("smoothing", bad, Gradient2)
    assert_refuses("alpha", bad, Vegas)
    assert_refuses("beta", bad, Vegas)
    assert_refuses("backoff_ratio", bad, AIMD)
    assert_refuses("timeout", bad, AIMD)


def test_refuses_what_does_not_fit_together() -> None:
    """Bounds that cross, and shares that are none, are refused."""
    for algorithm in (Gradient2, Vegas, AIMD):
        assert_refuses("initial_limit", 21, partial(algorithm, max_limit=20))
        assert_refuses("initial_limit", 4, partial(algorithm, min_limit=5))
        assert_refuses("min_limit", 6, partial(algorithm, max_limit=5))
    assert_refuses("tolerance", 0.99, Gradient2)
    assert_refuses("smoothing", 1.01, Gradient2)
    assert_refuses("alpha", 6.0, Vegas)
    assert_refuses("backoff_ratio", 1.0, AIMD)
    assert Gradient2(smoothing=1, tolerance=1).smoothing == 1


# -- AL1: the bounds -------------------------------------------------------------------------------------------------

samples = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 12), st.booleans()), min_size=1, max_size=120
)
bounds = st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 4))


def law_of_the_bounds(start: Callable[[int, int, int], LimitMachine]) -> Callable[[], None]:
    """AL1: whatever the samples, the limit is within [min_limit, max_limit], and what record says is what holds."""

    @given(bounds, samples)
    def law(bound: tuple[int, int, int], calls: list[tuple[int, int, int, bool]]) -> None:
        least, more, most = bound
        machine = start(least, least + more, least + more + most)
        assert machine.limit == least + more
        now = 0
        for passed, latency, in_flight, dropped in calls:
            now += passed
            limit = machine.record(now - latency, now, in_flight, dropped=dropped)
            assert least <= limit <= least + more + most
            assert limit == machine.limit

    return law


def gradient2(least: int, first: int, most: int, kind: type[_Gradient] = _Gradient) -> LimitMachine:
    """Return a hasty Gradient2."""
    return kind(Gradient2(initial_limit=first, min_limit=least, max_limit=most, window=2, probe_every=2, smoothing=1))


def vegas(least: int, first: int, most: int, kind: type[_Vegas] = _Vegas) -> LimitMachine:
    """Return a hasty Vegas."""
    return kind(Vegas(initial_limit=first, min_limit=least, max_limit=most, window=2, probe_every=2))


def aimd(least: int, first: int, most: int, kind: type[_Aimd] = _Aimd) -> LimitMachine:
    """Return an AIMD to which 40 ns are long."""
    return kind(AIMD(initial_limit=first, min_limit=least, max_limit=most, timeout=40e-9))


@pytest.mark.parametrize("start", [gradient2, vegas, aimd])
def test_limit_stays_within_its_bounds(start: Callable[[int, int, int], LimitMachine]) -> None:
    """No sequence of samples leads out of [min_limit, max_limit] (AL1)."""
    law_of_the_bounds(start)()


class _Unbounded(_Vegas):
    """A mutant: moves the limit past its bounds."""

    def _adjust(self, ratio: float, answered: float) -> None:
        self._estimate = self._estimate_after(ratio, answered)
        self.limit = int(self._estimate)


class _ProbesTooDeep(_Gradient):
    """A mutant: a probe knows no min_limit."""

    def _probe(self, now_ns: int) -> None:
        super()._probe(now_ns)
        self.limit = 1


class _CutsTooDeep(_Aimd):
    """A mutant: cuts the limit once more than it may."""

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        limit = super().record(started_ns, ended_ns, in_flight, dropped=dropped)
        self.limit -= dropped
        return limit - dropped


@pytest.mark.parametrize(("start", "mutant"), [(vegas, _Unbounded), (gradient2, _ProbesTooDeep), (aimd, _CutsTooDeep)])
def test_law_of_the_bounds_catches_mutants(start: Callable[..., LimitMachine], mutant: type[LimitMachine]) -> None:
    """A limit out of its bounds is seen."""
    assert_caught(law_of_the_bounds(partial(start, kind=mutant)))


# -- AL2: a stationary load does not make the limit drift -----------------------------------------------------------

WORKERS = 20
SAMPLES = 30_000


def law_of_no_drift_when_saturated(
    start: Start, service: Callable[[random.Random], int], least: int, most: int
) -> None:
    """AL2: with a callee that never has enough, the limit comes to a band around what it works on, and stays there."""
    callee = Callee(start(), WORKERS, service)
    callee.run(SAMPLES // 3)
    for _ in range(4):
        limits = settled(callee.run(SAMPLES // 6))
        assert least <= min(limits)
        assert max(limits) <= most


def law_of_no_drift_with_room(start: Start, service: Callable[[random.Random], int], callers: int = 15) -> None:
    """AL2: with room for everybody the limit goes to about twice what is in flight, and then does not move at all."""
    callee = Callee(start(), 1000, service, callers=callers)
    limits = callee.run(SAMPLES // 3)
    assert 2 * callers <= limits[-1] <= 2 * callers + 8
    assert set(callee.run(SAMPLES)) == {limits[-1]}


# What each settles at, with 20 workers: Gradient2 at 1.5 times that and 4, Vegas at that and 3 to 6 times log10(26).
SATURATED = [
    (Gradient2(), alike, 32, 36),
    (Gradient2(), exponential, WORKERS, 2 * WORKERS + 8),
    (Vegas(), alike, 23, 29),
    (Vegas(), exponential, WORKERS - 4, 2 * WORKERS + 14),
    # The limit is cut when calls take longer than twice the bare time, so at twice as many calls as there are workers.
    (AIMD(timeout=2 * BARE / 1e9), alike, 35, 42),
]


@pytest.mark.parametrize(("algorithm", "service", "least", "most"), SATURATED, ids=called)
def test_saturated_callee_does_not_make_the_limit_drift(
    algorithm: LimitAlgorithm, service: Callable[[random.Random], int], least: int, most: int
) -> None:
    """Tens of thousands of samples of a full queue teach nothing new (AL2)."""
    law_of_no_drift_when_saturated(algorithm.start, service, least, most)


@pytest.mark.parametrize("service", [alike, exponential])
@measuring
def test_light_load_does_not_make_the_limit_drift(
    algorithm: Gradient2 | Vegas, service: Callable[[random.Random], int]
) -> None:
    """A limit that binds nobody stays where it is (AL2)."""
    law_of_no_drift_with_room(algorithm.start, service)


def test_light_load_does_not_make_aimd_drift() -> None:
    """The same of AIMD, for calls that are never too slow (AL2)."""
    law_of_no_drift_with_room(AIMD().start, alike)


class _AveragesUnderLoad(_Gradient):
    """A mutant, after the original: the baseline is a slow average of everything, also of the queue."""

    def _adjust(self, ratio: float, answered: float) -> None:
        super()._adjust(ratio, answered)
        assert self._baseline.latency_ns is not None
        self._baseline.latency_ns *= 1 + (1 / ratio - 1) / 300

    def _probe(self, now_ns: int) -> None:
        """Do not probe."""


class _RenewsUnderLoad(_Vegas):
    """A mutant, after the original: what is measured anew now and then is measured in a full house."""

    def _adjust(self, ratio: float, answered: float) -> None:
        super()._adjust(ratio, answered)
        if self._doubts >= self._config.probe_every and self._baseline.latency_ns is not None:
            self._baseline.latency_ns /= ratio
            self._doubts = 0


class _SamplesTheOldHouse(_Gradient):
    """A mutant: a probe takes the calls of the full house for its own."""

    def _probe(self, now_ns: int) -> None:
        super()._probe(now_ns - 60_000 * MILLISECOND)
        self._settling = 0
        self.limit = int(self._estimate)


@pytest.mark.parametrize(
    "start",
    [
        partial(_AveragesUnderLoad, Gradient2()),
        partial(_RenewsUnderLoad, Vegas(probe_every=10)),
        partial(_SamplesTheOldHouse, Gradient2(probe_every=10)),
    ],
)
def test_law_of_no_drift_catches_a_baseline_learnt_under_load(start: Start) -> None:
    """A limit that grows with the queue it makes is seen, even by the widest of the bands."""
    assert_caught(partial(law_of_no_drift_when_saturated, start, alike, WORKERS - 4, 2 * WORKERS + 14))


# -- AL3: capacity is found, and load is shed when latency rises ----------------------------------------------------


def law_of_finding_capacity(start: Start, service: Callable[[random.Random], int] = alike) -> None:
    """AL3: whatever it begins with, and however workers come and go, the limit keeps them busy with a short queue."""
    callee = Callee(start(), 4, service)
    for workers in (4, 40, 12):
        callee.workers = workers
        callee.run(6_000)
        began = callee.now
        limits = settled(callee.run(3_000))
        assert workers <= sum(limits) / len(limits) <= 2 * workers + 8
        # Probes and all, the workers are idle for less than an eighth of the time.
        assert 3_000 * BARE / (callee.now - began) >= workers * 7 / 8


def law_of_backing_off(start: Start) -> None:
    """AL3: when three workers in four are lost the limit comes down at once; that all got slow is found out too."""
    callee = Callee(start(), 40)
    before = settled(callee.run(6_000))[-1]
    callee.workers = 10
    assert settled(callee.run(30 * before))[-1] <= 2 * callee.workers + 8
    # It is not the queue now: fewer calls would not be quicker.
    callee.slower = 4.0
    assert callee.workers <= max(callee.run(6_000)[-1_000:]) <= 2 * callee.workers + 8


@pytest.mark.parametrize("service", [alike, exponential])
@measuring
def test_capacity_is_found(algorithm: Gradient2 | Vegas, service: Callable[[random.Random], int]) -> None:
    """Few workers, many more, and fewer again: the limit follows (AL3)."""
    law_of_finding_capacity(algorithm.start, service)


@measuring
def test_limit_shrinks_when_latency_rises(algorithm: Gradient2 | Vegas) -> None:
    """Load is shed at once, and the new latency is learnt later (AL3)."""
    law_of_backing_off(algorithm.start)


class _OnlyGrows(_Gradient):
    """A mutant: never lowers the limit."""

    def _estimate_after(self, ratio: float, answered: float) -> float:
        return max(self._estimate, super()._estimate_after(ratio, answered))


class _NeverProbes(_Vegas):
    """A mutant: what it saw first is its baseline for ever."""

    def _probe(self, now_ns: int) -> None:
        """Do not probe."""


@pytest.mark.parametrize("start", [partial(_OnlyGrows, Gradient2()), partial(_NeverProbes, Vegas())])
@pytest.mark.parametrize("law", [law_of_finding_capacity, law_of_backing_off])
def test_laws_of_capacity_catch_mutants(law: Callable[[Start], None], start: Start) -> None:
    """A limit that cannot fall, or never finds out what a call takes by itself, is seen."""
    assert_caught(partial(law, start))


# -- AL4: an idle load moves nothing ---------------------------------------------------------------------------------


def law_of_the_idle(start: Start) -> Callable[[], None]:
    """AL4: while less than half of the limit is in flight, no latency and no success moves the limit."""

    @given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 9)), min_size=60, max_size=90))
    def law(calls: list[tuple[int, int]]) -> None:
        machine = start()
        now = 0
        for latency, in_flight in calls:
            now += latency
            assert machine.record(now - latency, now, in_flight, dropped=False) == 20

    return law


@pytest.mark.parametrize("algorithm", [Gradient2(probe_every=1), Vegas(probe_every=1), AIMD()], ids=called)
def test_idle_load_moves_nothing(algorithm: LimitAlgorithm) -> None:
    """What does not come near the limit says nothing about it (AL4)."""
    law_of_the_idle(algorithm.start)()


class _CountsTheIdle(_Gradient):
    """A mutant: takes every window for a full one."""

    def _judge(self, samples: _Samples, now_ns: int) -> None:
        samples.most_in_flight = 1000
        super()._judge(samples, now_ns)


class _GrowsIdly(_Aimd):
    """A mutant: every good call is a reason to grow."""

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        return super().record(started_ns, ended_ns, in_flight + 1000, dropped=dropped)


@pytest.mark.parametrize("start", [partial(_CountsTheIdle, Gradient2()), partial(_GrowsIdly, AIMD())])
def test_law_of_the_idle_catches_mutants(start: Start) -> None:
    """A limit that drifts at rest is seen."""
    assert_caught(law_of_the_idle(start))


# -- AL5: what is dropped -------------------------------------------------------------------------------------------


def law_of_drops(start: Start) -> None:
    """AL5: three failures in a hundred cost little of the limit; when all fail it sinks, however quickly they do."""
    callee = Callee(start(), 40)
    before = settled(callee.run(6_000))[-1]
    callee.fails = 0.03
    assert settled(callee.run(6_000))[-1] >= 0.8 * before
    callee.fails = 1.0
    callee.slower = 0.01
    assert callee.run(6_000)[-1] <= 10


@measuring
def test_drops_weigh_by_their_share(algorithm: Gradient2 | Vegas) -> None:
    """A few failures are no overload; a callee that fails every call gets few (AL5)."""
    law_of_drops(algorithm.start)


class _Jumpy(_Gradient):
    """A mutant: one drop spoils the window."""

    def _estimate_after(self, ratio: float, answered: float) -> float:
        return super()._estimate_after(ratio, answered if answered == 1 else 0)


class _Forgiving(_Gradient):
    """A mutant: a call that failed quickly was a quick call."""

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        return super().record(started_ns, ended_ns, in_flight, dropped=dropped and ended_ns < started_ns)


@pytest.mark.parametrize("start", [partial(_Jumpy, Gradient2()), partial(_Forgiving, Gradient2())])
def test_law_of_drops_catches_mutants(start: Start) -> None:
    """A limit that panics, or that failures make grow, is seen."""
    assert_caught(partial(law_of_drops, start))


@pytest.mark.parametrize("algorithm", [Gradient2, Vegas])
def test_probe_that_only_sees_failures_learns_no_latency(algorithm: type[Gradient2 | Vegas]) -> None:
    """It ends all the same, and the baseline stays what it was."""
    machine = algorithm(window=4, initial_limit=4, probe_every=1).start()
    limits = [machine.record(call, call + 10, 4, dropped=False) for call in range(4)]
    probing = limits[-1]
    assert probing < 4
    limits = [machine.record(100, 101, 1, dropped=True) for _ in range(probing + 4)]
    assert limits[-2] == probing
    assert limits[-1] > 3
    # Of before it began, or of more than it leaves: not its calls, and there were some.
    assert machine.record(200, 210, 4, dropped=False) == limits[-1]


def test_less_than_the_clock_can_tell_is_a_latency() -> None:
    """Calls that take no time at all are as quick as can be, and divide nothing by zero."""
    machine = Gradient2(window=1, initial_limit=1).start()
    assert machine.record(5, 5, 1, dropped=False) == 1


# -- AIMD, step by step ----------------------------------------------------------------------------------------------


def test_aimd_adds_one_for_each_full_round() -> None:
    """As many good calls as the limit allows make it one more."""
    machine = AIMD(initial_limit=3).start()
    assert [machine.record(0, 1, 2, dropped=False) for _ in range(7)] == [3, 3, 4, 4, 4, 4, 5]


def test_aimd_cuts_once_for_all_the_calls_of_one_round() -> None:
    """Calls that were admitted before the cut have been paid for; one that was admitted after it counts anew."""
    machine = AIMD(initial_limit=100, backoff_ratio=0.8, timeout=1e-6).start()
    assert machine.record(0, 10, 100, dropped=True) == 80
    assert [machine.record(started, 20, 99, dropped=True) for started in range(10)] == [80] * 10
    assert machine.record(10, 20, 80, dropped=True) == 64
    # Too slow is dropped too; just in time is not.
    assert machine.record(1000, 2000, 64, dropped=False) == 64
    assert machine.record(1000, 2001, 64, dropped=False) == 51


def test_aimd_cuts_at_least_one() -> None:
    """A ratio near 1 still takes one call off, down to min_limit."""
    machine = AIMD(initial_limit=5, backoff_ratio=0.99, min_limit=2).start()
    assert [machine.record(now, now, 5, dropped=True) for now in (1, 2, 3, 4)] == [4, 3, 2, 2]


def test_aimd_begins_its_round_anew_after_a_cut() -> None:
    """What was good before the cut says nothing about the limit after it."""
    machine = AIMD(initial_limit=4, backoff_ratio=0.5, min_limit=2).start()
    assert [machine.record(0, 1, 4, dropped=False) for _ in range(3)] == [4, 4, 4]
    assert machine.record(2, 2, 4, dropped=True) == 2
    assert [machine.record(3, 4, 2, dropped=False) for _ in range(2)] == [2, 3]


NOTHING = (0, 0, 0, 0)
"""The notes of a window that has just begun."""


def window(machine: LimitMachine, latency_ns: int, in_flight: int, *, calls: int, dropped: int = 0) -> Notes | None:
    """Let so many calls end, the first of them dropped; return what the machine has learnt by then."""
    for number in range(calls):
        machine.record(0, latency_ns, in_flight, dropped=number < dropped)
    return machine.notes()


@pytest.mark.parametrize(
    ("latency_ns", "dropped", "estimate", "doubts"),
    [
        (100, 0, 20.8, 0),  # as quick as can be: room for four more, and a fifth of that at once
        (125, 0, 20.8, 0),  # within the tolerance, and no reason to doubt the baseline
        (126, 0, 20.8, 1),
        (80, 0, 20.8, 0),
        (79, 0, 20.8, 1),
        (200, 0, 19.8, 1),  # 1.5 times half of the limit, and four
        (1_000, 0, 18.8, 1),  # by half at most
        (100, 10, 19.8, 1),
        (100, 20, 18.8, 1),
    ],
)
def test_gradient_is_its_formula(latency_ns: int, dropped: int, estimate: float, doubts: int) -> None:
    """One window of a full house, of a limit of 20 and a baseline of 100 ns."""
    machine = Gradient2(initial_limit=20, window=20).start()
    assert window(machine, 100, 1, calls=20) == (20.0, 0, 100.0, True, *NOTHING)
    learnt = window(machine, latency_ns, 20, calls=20, dropped=dropped)
    assert learnt == pytest.approx((estimate, doubts, 100.0, True, *NOTHING))


@pytest.mark.parametrize(
    ("limit", "baseline_ns", "latency_ns", "dropped", "estimate"),
    [
        (8, 7, 8, 0, 14),  # one queues: six more
        (8, 5, 8, 0, 8),  # three queue: alpha
        (8, 2, 8, 0, 8),  # six queue: beta
        (8, 1, 8, 0, 7),  # seven queue
        (100, 1, 1, 0, 112),  # steps of two
        (100, 95, 100, 0, 102),
        (100, 1, 2, 0, 98),
        (10, 100, 80, 2, 11),  # two were dropped, and as good as queue, however quick the others were
    ],
)
def test_vegas_is_its_formula(limit: int, baseline_ns: int, latency_ns: int, dropped: int, estimate: float) -> None:
    """One window of a full house, by how many calls queue then."""
    machine = Vegas(initial_limit=limit, window=1).start()
    window(machine, baseline_ns, 1, calls=limit)
    learnt = window(machine, latency_ns, limit, calls=limit, dropped=dropped)
    assert learnt is not None
    assert learnt[0] == pytest.approx(estimate)


def test_half_of_the_limit_is_a_load() -> None:
    """A window in which just half of the limit was in use moves it; one with less measures the baseline."""
    machine = Gradient2(initial_limit=4, window=4).start()
    window(machine, 100, 1, calls=4)
    assert window(machine, 120, 2, calls=4) == pytest.approx((4.8, 0, 100.0, True, *NOTHING))


def test_baseline_is_smoothed_unless_it_is_of_another_callee() -> None:
    """Up to twice as much is noise, of which three tenths are taken in; more is taken as it is."""
    machine = Gradient2(initial_limit=4, window=4).start()
    baselines = []
    for latency_ns in (100, 200, 65, 300):
        learnt = window(machine, latency_ns, 1, calls=4)
        assert learnt is not None
        baselines.append(learnt[2])
    assert baselines == [100, pytest.approx(130), pytest.approx(110.5), 300]


def test_doubts_are_over_once_the_baseline_is_measured() -> None:
    """A window without load measures it, and what was doubtful before is forgotten."""
    machine = Gradient2(initial_limit=20, window=20).start()
    window(machine, 100, 1, calls=20)
    window(machine, 200, 20, calls=20)
    assert window(machine, 100, 1, calls=20) == pytest.approx((19.8, 0, 100.0, True, *NOTHING))


def test_nothing_but_failures_is_no_doubt_of_the_baseline() -> None:
    """They have no latency to compare; a small limit grows all the same, to what may queue."""
    machine = Gradient2(initial_limit=4, window=4).start()
    assert window(machine, 100, 4, calls=4, dropped=4) == pytest.approx((4.4, 0, None, False, *NOTHING))


def test_probe_comes_after_so_many_doubtful_windows() -> None:
    """Not a window later."""
    machine = Gradient2(initial_limit=20, window=20, probe_every=2).start()
    window(machine, 100, 1, calls=20)
    assert window(machine, 200, 20, calls=20) is not None
    assert window(machine, 200, 20, calls=20) is None
    assert machine.limit == 4


def test_first_probe_takes_the_place_of_what_stood_in_for_the_baseline() -> None:
    """It is not averaged with what was measured under load; a call of the very instant of the probe is part of it."""
    machine = Gradient2(initial_limit=4, window=4).start()
    assert window(machine, 150, 4, calls=4) is None
    assert machine.limit == 1
    # One for the round trip, four for the window.
    for _ in range(5):
        assert machine.notes() is None
        machine.record(150, 250, 1, dropped=False)
    assert machine.notes() == pytest.approx((4.8, 0, 100.0, True, *NOTHING))
    assert machine.limit == 4


def test_window_counts_each_of_its_calls() -> None:
    """How many there were, how many of them were answered, the most in flight, and the time that they took."""
    machine = Vegas().start()
    assert machine.notes() == (20.0, 0, None, False, *NOTHING)
    machine.record(5, 5, 3, dropped=False)
    machine.record(5, 12, 2, dropped=False)
    machine.record(5, 99, 1, dropped=True)
    assert machine.notes() == (20.0, 0, None, False, 3, 2, 3, 8)


@measuring
def test_what_was_learnt_can_be_taken_up(algorithm: Gradient2 | Vegas) -> None:
    """Another machine goes on where the first one stopped, within a window too."""
    machine, other = algorithm.start(), algorithm.start()
    window(machine, 100, 1, calls=30)
    window(machine, 300, 20, calls=30)
    learnt = window(machine, 120, 7, calls=3, dropped=1)
    assert learnt is not None
    other.resume(learnt, 0)
    assert (other.notes(), other.limit) == (learnt, machine.limit)
    fresh = algorithm.start()
    assert fresh.notes() != learnt
    other.resume(fresh.notes() or (), 0)
    assert (other.notes(), other.limit) == (fresh.notes(), 20)


def test_what_aimd_has_learnt_can_be_taken_up() -> None:
    """The limit, the round and the cut; a cut that lies ahead, since the clock has stepped back, was made now."""
    machine, other = AIMD(initial_limit=10).start(), AIMD(initial_limit=10).start()
    machine.record(0, 7, 10, dropped=True)
    machine.record(8, 9, 9, dropped=False)
    learnt = machine.notes()
    assert learnt == (9, 1, 7)
    for now_ns, cut_ns in ((7, 7), (100, 7), (3, 3)):
        other.resume((9, 1, 7), now_ns)
        assert (other.notes(), other.limit) == ((9, 1, cut_ns), 9)
    other.resume((12, 0, None), 3)
    assert (other.notes(), other.limit) == ((12, 0, None), 12)
