"""The explorer beside one that tries every order by hand; what it finds, how it replays, and what it refuses."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from functools import partial
from types import GeneratorType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience.testing import (
    Cancel,
    FailedScheduleError,
    Report,
    exploration,
    explore_program,
    fingerprint,
    pause,
    until,
)
from tests.resilience.support import assert_caught, assert_refuses, both_loops, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Box:
    """Something that threads share."""

    def __init__(self) -> None:
        self.value = 0
        self.log: list[int] = []


def add_one(box: Box) -> None:
    """Add one in one step."""
    box.value += 1


def add_one_in_two_steps(box: Box) -> Iterator[None]:
    """Read, let others go, write: the oldest race there is."""
    value = box.value
    yield
    box.value = value + 1


async def add_one_in_a_coroutine(box: Box) -> None:
    """Do the same in a coroutine."""
    value = box.value
    await pause()
    box.value = value + 1


def is_two(box: Box) -> None:
    """Tell whether two have been added."""
    if box.value != 2:
        msg = f"only {box.value}"
        raise AssertionError(msg)


# -- how many schedules there are -------------------------------------------------------------------------------------


def _preemptions(schedule: tuple[int, ...]) -> int:
    return sum(a != b and a in schedule[place:] for place, (a, b) in enumerate(itertools.pairwise(schedule), 1))


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("preemptions", [0, 1, 2, 3, None])
@pytest.mark.parametrize("steps", [(1,), (2, 2), (3, 1, 2), (2, 2, 2)], ids=str)
def test_every_schedule_within_the_bound_is_covered_once(
    steps: tuple[int, ...], preemptions: int | None, *, merge: bool
) -> None:
    """As many schedules as there are orders with so few preemptions, with merging as without."""
    orders = set(itertools.permutations([number for number, count in enumerate(steps) for _ in range(count)]))
    within = [order for order in orders if preemptions is None or _preemptions(order) <= preemptions]

    report = explore_program(Box, [[add_one] * count for count in steps], preemptions=preemptions, merge=merge)

    assert (report.schedules, report.distinct, report.complete) == (len(within), len(within), True)
    assert report.histories <= len(within)
    assert report.histories == len(within) or merge


def test_three_threads_of_four_steps_have_34650_schedules() -> None:
    """INVARIANTS.md says so; merging covers them in a few hundred runs."""
    report = explore_program(Box, [[add_one] * 4] * 3, preemptions=None, name="4 × 3")

    assert report.schedules == 34_650
    assert report.histories < 1_000
    assert str(report).startswith("4 × 3: 34,650 schedules, 34,650 distinct, ")


def test_each_schedule_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `distinct` says is so: no order is run twice."""
    seen: Counter[tuple[object, ...]] = Counter()
    close = exploration._Run.close

    def closing(run: exploration._Run[Box]) -> None:
        seen[tuple(run.schedule)] += 1
        close(run)

    monkeypatch.setattr(exploration._Run, "close", closing)
    report = explore_program(Box, [[add_one] * 3] * 3, preemptions=2, merge=False)

    assert len(seen) == report.distinct
    assert set(seen.values()) == {1}


# -- merging loses nothing --------------------------------------------------------------------------------------------


@attrs.frozen
class Action:
    """One step of a generated thread: what it does to which of two numbers, and what it reads on the way."""

    kind: str
    place: int


def _generated(actions: list[Action]) -> Callable[[list[int]], Iterator[Callable[[], bool] | None]]:
    def thread(numbers: list[int]) -> Iterator[Callable[[], bool] | None]:
        seen = 0
        # The place in this list is on the stack of the generator and nowhere else.
        for action in actions:
            if action.kind == "read":
                seen = numbers[action.place]
            elif action.kind == "write":
                numbers[action.place] = seen + 1
            elif action.kind == "wait":
                yield lambda action=action: numbers[action.place] > 0  # type: ignore[misc]
                continue
            yield None

    return thread


def _count(numbers: list[int]) -> None:
    numbers[0] += 1


def _double(numbers: list[int]) -> None:
    numbers[0] *= 2


# Drawn from a few that exist once: the same one twice in a row is the same object.
ACTIONS = st.sampled_from([Action(kind, place) for kind in ("read", "write", "wait") for place in (0, 1)])
GENERATORS = st.lists(ACTIONS, max_size=3).map(_generated)
PROGRAMS = st.lists(
    st.one_of(GENERATORS, st.lists(st.sampled_from([_count, _double]), min_size=1, max_size=3)), min_size=2, max_size=3
)
TWICE = Action("write", 0)


def _outcomes(threads: list[Any], preemptions: int, *, merge: bool) -> tuple[set[tuple[int, ...]], int]:
    """Return in what states a program can end, how many schedules there are, or -1 if one of them has no end."""
    ends: set[tuple[int, ...]] = set()
    try:
        report = explore_program(
            lambda: [0, 0],
            threads,
            preemptions=preemptions,
            merge=merge,
            check=lambda numbers: ends.add(tuple(numbers)),
        )
    except FailedScheduleError:
        return set(), -1
    return ends, report.schedules


def merging_loses_nothing() -> Callable[[], None]:
    """Make the property that with merging a program ends in the same states, by as many schedules."""

    @given(threads=PROGRAMS, preemptions=st.integers(0, 2))
    @example(threads=[_generated([TWICE, TWICE]), [_count]], preemptions=1)
    @example(threads=[[_double, _count], [_double, _double], [_count]], preemptions=2)
    def law(threads: list[Any], preemptions: int) -> None:
        assert _outcomes(threads, preemptions, merge=True) == _outcomes(threads, preemptions, merge=False)

    return law


def test_merging_loses_nothing() -> None:
    """The reduction is sound: it finds each end and each deadlock that running every schedule finds."""
    merging_loses_nothing()()


@pytest.mark.parametrize("left_out", ["system", "tasks", "running", "preemptions"])
def test_a_state_without_one_of_its_parts_is_caught(monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """Each part of the state matters: leave one out, and merging loses something."""

    def key(run: exploration._Run[Any]) -> bytes:
        parts = {
            "system": run.system,
            "tasks": [task.state for task in run.tasks],
            "running": run._current,
            "preemptions": run._preemptions,
        }
        del parts[left_out]
        return fingerprint.fingerprint(*parts.values())

    monkeypatch.setattr(exploration._Run, "key", key)

    assert_caught(merging_loses_nothing())


def test_a_state_that_does_not_know_how_far_an_iterator_is_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies on the stack of a generator, such as the iterator of a `for`, is a part of its state."""

    def get_referents(suspended: GeneratorType[object, None, None]) -> list[object]:
        assert suspended.gi_frame is not None
        return list(suspended.gi_frame.f_locals.values())

    monkeypatch.setattr(fingerprint, "gc", SimpleNamespace(get_referents=get_referents))

    assert_caught(merging_loses_nothing())


# -- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thread", [add_one_in_two_steps, add_one_in_a_coroutine])
@pytest.mark.parametrize("merge", [True, False])
def test_a_race_is_found_and_replays(thread: Callable[[Box], object], *, merge: bool) -> None:
    """One preemption loses an addition; what is reported replays it, and another schedule passes."""
    with pytest.raises(FailedScheduleError) as caught:
        explore_program(Box, [thread, thread], check=is_two, merge=merge)

    assert caught.value.schedule == (0, 1, 1, 0)
    assert caught.value.preemptions == 1
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(FailedScheduleError) as again:
        explore_program(Box, [thread, thread], check=is_two, schedule=caught.value.schedule)
    assert str(again.value) == str(caught.value)
    assert explore_program(Box, [thread, thread], check=is_two, schedule=[0, 0, 1, 1], name="x") == Report(
        name="x", schedules=1, distinct=1, histories=1
    )
    assert explore_program(Box, [thread, thread], check=is_two, preemptions=0).complete


def test_the_failure_says_step_by_step_what_happened() -> None:
    """Who reads it sees who did what, where each went on, and how to see it again."""
    with pytest.raises(FailedScheduleError) as caught:
        explore_program(Box, [add_one_in_two_steps, [add_one]], check=is_two)

    line = add_one_in_two_steps.__code__.co_firstlineno + 3
    assert str(caught.value).splitlines() == [
        "Box: AssertionError: only 1",
        "  1. thread 0: add_one_in_two_steps",
        "  2. thread 1: add_one (a preemption)",
        f"  3. thread 0: add_one_in_two_steps, from line {line}",
        "replay it with explore_program(…, schedule=[0, 1, 0])",
    ]


def test_the_failure_with_the_fewest_preemptions_is_reported() -> None:
    """Depth first finds any; what is shown is one that is as easy to understand as there is."""

    def early(box: Box) -> Iterator[None]:
        for number in range(4):
            box.log.append(number)
            yield

    def breaks(box: Box) -> None:
        assert box.log[:2] != [0, 9]
        assert box.log[:1] != [9]

    with pytest.raises(FailedScheduleError) as caught:
        explore_program(Box, [early, [lambda box: box.log.append(9)]], check=breaks)

    assert caught.value.preemptions == 0
    assert caught.value.schedule[0] == 1


def test_an_invariant_is_judged_after_every_step_and_before_the_first() -> None:
    """What holds only at the end is no invariant."""

    def even(box: Box) -> None:
        assert box.value % 2 == 0

    def odd(box: Box) -> None:
        assert box.value % 2

    with pytest.raises(FailedScheduleError) as caught:
        explore_program(Box, [[add_one, add_one]], invariant=even)
    assert caught.value.schedule == (0,)
    with pytest.raises(FailedScheduleError) as caught:
        explore_program(Box, [[add_one, add_one]], invariant=odd)
    assert caught.value.schedule == ()


def test_a_step_that_raises_fails_the_schedule() -> None:
    """The exception is the cause."""

    def broken(_box: Box) -> None:
        raise KeyError(7)

    with pytest.raises(FailedScheduleError, match=r"^Box: KeyError: 7\n") as caught:
        explore_program(Box, [[add_one], [broken]])
    assert isinstance(caught.value.__cause__, KeyError)


class Locks:
    def __init__(self) -> None:
        self.left, self.right = asyncio.Lock(), asyncio.Lock()

    async def both(self, *, swapped: bool) -> None:
        """Take both locks, in one order or the other."""
        first, second = (self.right, self.left) if swapped else (self.left, self.right)
        async with first:
            await asyncio.sleep(0)
            async with second:
                pass


def test_a_deadlock_is_found() -> None:
    """Two who take two locks in different orders may both wait for ever; in the same order they never do."""

    async def forward(locks: Locks) -> None:
        await locks.both(swapped=False)

    async def backward(locks: Locks) -> None:
        await locks.both(swapped=True)

    with pytest.raises(FailedScheduleError, match=r"nobody can go on: thread 0 waits in .*forward, from line \d+, thr"):
        explore_program(Locks, [forward, backward])
    assert explore_program(Locks, [forward, forward, forward]).complete


def test_a_thread_that_waits_goes_on_when_its_condition_holds() -> None:
    """`until` and a yielded condition stop a thread; whoever makes the condition true lets it go on."""

    async def waits(box: Box) -> None:
        await until(lambda: box.value > 0)
        box.log.append(box.value)

    def waits_too(box: Box) -> Iterator[Callable[[], bool]]:
        yield lambda: box.value > 0
        box.log.append(box.value)

    def check(box: Box) -> None:
        assert box.log == [1, 1]

    assert explore_program(Box, [waits, waits_too, [add_one]], check=check).complete


def test_threads_that_go_round_in_circles_are_told_so() -> None:
    """A loop that polls has no end under an unfair schedule; one that counts is stopped in the end."""

    def polls(box: Box) -> Iterator[None]:
        while not box.value:
            yield

    def counts(box: Box) -> Iterator[None]:
        while True:
            box.value += 1
            yield

    with pytest.raises(FailedScheduleError, match="the threads can go round for ever"):
        explore_program(Box, [polls, [add_one]])
    with pytest.raises(FailedScheduleError, match="have not ended after max_steps=50 steps"):
        explore_program(Box, [counts], max_steps=50)


def test_a_limit_ends_it_and_the_report_says_so() -> None:
    """What was not covered is not claimed."""
    report = explore_program(Box, [[add_one] * 3] * 3, preemptions=None, merge=False, limit=100)

    assert report == Report(name="Box", schedules=100, distinct=100, histories=100)
    assert explore_program(Box, [[add_one] * 3] * 3, preemptions=None, merge=False, limit=1_680).complete


# -- cancellation -----------------------------------------------------------------------------------------------------


class Gate:
    """A gate of the most careful kind, or not so careful: a place that is taken is given back on every way out."""

    def __init__(self, *, careful: bool = True) -> None:
        self.free = asyncio.Semaphore(1)
        self.careful = careful
        self.inside = 0

    async def work(self) -> None:
        """Go in, and out."""
        await self.free.acquire()
        if self.careful:
            try:
                await self._stay()
            finally:
                self.free.release()
        else:
            await self._stay()
            self.free.release()

    async def _stay(self) -> None:
        self.inside += 1
        try:
            await pause()
        finally:
            self.inside -= 1


def _closed_again(gate: Gate) -> None:
    assert not gate.free.locked(), "the place was lost"


def test_a_place_that_is_lost_on_cancellation_is_found() -> None:
    """Every point at which a thread may be cancelled is tried, within whatever the others do."""

    def one_at_most(gate: Gate) -> None:
        assert gate.inside <= 1

    threads = [Gate.work] * 3
    report = explore_program(Gate, threads, cancels=2, check=_closed_again, invariant=one_at_most)
    assert report.complete
    # Each thread can be cancelled while it waits, if it does, and while it is inside.
    assert report.cancel_points == 6

    with pytest.raises(FailedScheduleError, match="the place was lost") as caught:
        explore_program(partial(Gate, careful=False), threads, cancels=1, check=_closed_again, name="gate")
    (cancelled,) = (each.thread for each in caught.value.schedule if isinstance(each, Cancel))
    assert f"thread {cancelled} is cancelled in Gate.work, from line " in str(caught.value)
    with pytest.raises(FailedScheduleError, match="the place was lost"):
        explore_program(partial(Gate, careful=False), threads, check=_closed_again, schedule=caught.value.schedule)


def test_only_threads_that_may_be_cancelled_are() -> None:
    """The environment of what is tested need not stand it."""
    with pytest.raises(FailedScheduleError) as caught:
        explore_program(
            partial(Gate, careful=False), [Gate.work, Gate.work], cancels=1, cancellable=[1], check=_closed_again
        )
    assert Cancel(1) in caught.value.schedule
    assert Cancel(0) not in caught.value.schedule


def test_a_cancellation_that_is_swallowed_is_found() -> None:
    """It goes on to whoever cancelled, whatever else it finds on its way."""

    async def swallows(box: Box) -> None:
        try:
            await pause()
        except asyncio.CancelledError:
            box.value += 1

    with pytest.raises(FailedScheduleError, match="a cancellation was swallowed"):
        explore_program(Box, [swallows], cancels=1)
    assert explore_program(Box, [swallows]).complete


def test_a_cancellation_that_nobody_ordered_is_a_failure() -> None:
    """A future that was cancelled by the program itself is no decision of the explorer's."""

    async def cancels_itself(_box: Box) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with pytest.raises(asyncio.CancelledError):
        explore_program(Box, [cancels_itself])


class Grant:
    """Something that one thread gives and another waits for; who comes to nothing passes it on."""

    def __init__(self) -> None:
        self.future: asyncio.Future[None] | None = None
        self.ends: set[str] = set()

    def give(self) -> None:
        """Give it, if it is still wanted."""
        assert self.future is not None
        self.ends.add("given too late" if self.future.done() else "given")
        if not self.future.done():
            self.future.set_result(None)

    async def take(self) -> None:
        """Wait for it."""
        self.future = asyncio.get_running_loop().create_future()
        try:
            await self.future
        except asyncio.CancelledError:
            self.ends.add("not wanted any more" if self.future.cancelled() else "not wanted although it was there")
            raise
        self.ends.add("taken")


def test_others_go_on_between_a_cancellation_and_its_delivery() -> None:
    """What is given to somebody who is being cancelled, before or after that, are cases of their own."""
    seen: set[frozenset[str]] = set()

    def note(grant: Grant) -> None:
        seen.add(frozenset(grant.ends))

    def give(grant: Grant) -> Iterator[Callable[[], bool]]:
        yield lambda: grant.future is not None
        grant.give()

    explore_program(Grant, [Grant.take, give], cancels=1, cancellable=[0], check=note)

    assert seen == {
        frozenset({"given", "taken"}),
        frozenset({"given too late", "not wanted any more"}),
        frozenset({"given", "not wanted although it was there"}),
    }


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_program_that_does_not_do_the_same_each_time_is_told_so() -> None:
    """Dice, clocks and what is left over from the run before are found when a schedule is replayed."""
    dice = random.Random(1)
    left_over = [1, 2, 3, 4, 5]

    def rolls(box: Box) -> None:
        box.value = dice.randrange(1_000_000)

    def remembers(_box: Box) -> Iterator[None]:
        left_over.pop()
        for _ in left_over:
            yield

    with pytest.raises(RuntimeError, match=r"Box: the program does not do the same each time; it differed at step 2"):
        explore_program(Box, [[rolls, add_one], [add_one]])
    with pytest.raises(RuntimeError, match=r"the program does not do the same each time"):
        explore_program(Box, [remembers, [add_one]], merge=False)


def test_what_cannot_be_looked_into_is_refused_and_explored_without_merging() -> None:
    """A file, a socket, a view of a dict: their state is their own."""

    class Looks:
        def __init__(self) -> None:
            self.views = {1: 2}.items()

        def look(self) -> None:
            assert list(self.views) == [(1, 2)]

    threads = [[Looks.look], [Looks.look]]
    with pytest.raises(ValueError, match=r"the state of dict_items\(.* cannot be looked into; .*merge=False"):
        explore_program(Looks, threads)
    assert explore_program(Looks, threads, merge=False).schedules == 2


def test_a_thread_that_waits_for_something_else_is_told_so() -> None:
    """There is no event loop: whatever needs one says so, and so does what is no way to wait."""

    def waits(_box: Box) -> Iterator[int]:
        yield 7

    async def sleeps(_box: Box) -> None:
        await asyncio.sleep(1.0)

    with pytest.raises(FailedScheduleError, match=r"a thread waits with pause\(\), until\(condition\) .*, not for 7"):
        explore_program(Box, [waits])
    with pytest.raises(FailedScheduleError, match=r"loop.call_later: a thread that is explored has futures and no "):
        explore_program(Box, [sleeps])


@both_loops
def test_it_is_not_called_where_an_event_loop_runs(backend: str) -> None:
    """It is a plain function, for plain tests."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="must not be called where an event loop runs"):
            explore_program(Box, [add_one])

    run(backend, main)
    assert explore_program(Box, [add_one]).complete


def test_a_schedule_that_is_none_of_the_program_is_refused() -> None:
    """The error says which decision it is, and what there was to decide."""
    threads: list[Any] = [add_one_in_two_steps, [add_one]]
    with pytest.raises(ValueError, match=r"schedule\[1\] must be one of 0, 1, Cancel\(0\), not 2"):
        explore_program(Box, threads, schedule=[0, 2])
    with pytest.raises(ValueError, match=r"schedule\[3\] must be none, since all threads have ended, not 0"):
        explore_program(Box, threads, schedule=[0, 1, 0, 0])
    assert explore_program(Box, threads, schedule=[0], check=is_two).histories == 0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("factory", 3),
        ("threads", []),
        ("threads", 3),
        ("preemptions", -1),
        ("preemptions", 1.5),
        ("cancels", -1),
        ("cancels", None),
        ("cancellable", [2]),
        ("cancellable", ["x"]),
        ("cancellable", 1),
        ("check", 3),
        ("invariant", "x"),
        ("limit", 0),
        ("max_steps", 0),
        ("name", None),
    ],
)
def test_a_bad_argument_is_refused(argument: str, value: object) -> None:
    """Each says its name and what it must be."""
    arguments: dict[str, Any] = {"factory": Box, "threads": [[add_one], [add_one]]}
    arguments.pop(argument, None)
    assert_refuses(argument, value, partial(explore_program, **arguments))


@pytest.mark.parametrize("thread", [3, [], [add_one, 3], "x"])
def test_a_thread_that_is_none_is_refused(thread: object) -> None:
    """A thread is an operation, or several."""
    with pytest.raises(ValueError, match=r"^threads\[1\] must be an operation or a sequence of operations, .*, not "):
        explore_program(Box, [add_one, thread])  # type: ignore[list-item]
