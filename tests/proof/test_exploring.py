"""Tests under many schedules, without pytest's help."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import random
import socket
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import SystemClock
from resilience.testing import Faults, NondeterminismError, RealWorldError, Report, explore
from resilience.testing.exploring import Session, read, session, spell
from resilience.testing.schedules import PCT, Exhaustive, Random, Replay
from tests.resilience.support import assert_refuses

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.testing import Schedule
    from resilience.testing.interleaving import Threads


class Notes:
    """What a session was told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.steps: list[str] = []

    def run(self, test: Callable[..., None], *args: object, **asked: Any) -> None:  # noqa: ANN401 - what a session takes
        """Run a test in a session that writes here."""
        _run_in(Session(covered=self.reports.append, failed=self.steps.append, **asked), test, *args)


def _run_in(asked: Session, test: Callable[..., None], *args: object) -> None:
    token = session.set(asked)
    try:
        test(*args)
    finally:
        session.reset(token)


@pytest.fixture
def notes() -> Notes:
    """Make a notebook."""
    return Notes()


async def increments(tasks: int = 2, *, careful: bool = False) -> None:
    """Add one in every task; without care additions are lost, but not in plain order."""
    count = 0
    lock = asyncio.Lock()

    async def increment(number: int) -> None:
        nonlocal count
        for _ in range(number):
            await anyio.lowlevel.checkpoint()
        if careful:
            async with lock:
                await add()
        else:
            await add()

    async def add() -> None:
        nonlocal count
        seen = count
        await anyio.lowlevel.checkpoint()
        count = seen + 1

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(increment, 3 * number)
    assert count == tasks


async def carefully(tasks: int) -> None:
    """Add one in every task, so that none is lost."""
    await increments(tasks, careful=True)


def test_what_holds_under_every_schedule_passes(notes: Notes) -> None:
    """As many schedules as were asked for are run, most of them different."""
    notes.run(explore(schedules=50)(carefully), 3)

    (report,) = notes.reports
    assert (report.name, report.schedules, report.histories, report.seed) == ("carefully", 50, 50, 0)
    assert 25 < report.distinct <= 50
    assert notes.steps == []


def test_what_fails_under_some_is_told_in_its_plainest_form(notes: Notes) -> None:
    """The plain order passes; what fails is shrunk, and the note says how to run just that."""
    notes.run(explore(schedules=1)(increments))
    with pytest.raises(AssertionError) as caught:
        notes.run(explore(schedules=200)(increments))

    note = caught.value.__notes__[-1]
    first, command = note.splitlines()
    assert first.startswith("schedule ")
    assert first.endswith(" of increments failed (seed 0); as plain as it gets, it is")
    schedule = read(command.strip().removeprefix("replay="))
    assert isinstance(schedule, Replay)
    assert sum(map(bool, schedule.choices)) <= 4
    (steps,) = notes.steps
    assert "increments.<locals>.add, line " in steps

    with pytest.raises(AssertionError):
        notes.run(explore(schedules=200)(increments), replay=schedule)
    assert notes.steps == [steps, steps]
    assert [report.schedules for report in notes.reports[2:]] == [1]
    assert notes.reports[2].seed is None


def test_a_session_may_want_other_schedules(notes: Notes) -> None:
    """Another number of them, from another seed; or a single one, which may well pass."""
    notes.run(explore(schedules=3)(carefully), 2, schedules=7, seed=100)

    assert notes.reports == [
        Report(name="carefully", schedules=7, distinct=notes.reports[0].distinct, histories=7, seed=100)
    ]
    notes.run(explore(schedules=3)(carefully), 2, replay=Random(5))
    assert notes.reports[1] == Report(name="carefully", schedules=1, distinct=1, histories=1)


def test_trio_is_explored_too(notes: Notes) -> None:
    """The same test on the other event loop; what was carefully done passes there as well."""

    async def increments_on_trio(*, careful: bool) -> None:
        count = 0
        lock = anyio.Lock() if careful else contextlib.AsyncExitStack()

        async def increment() -> None:
            nonlocal count
            async with lock:
                seen = count
                if not careful and seen == 1:
                    await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                count = seen + 1

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(increment)
        assert count == 3

    notes.run(explore(schedules=20, backend="trio")(functools.partial(increments_on_trio, careful=True)))
    with pytest.raises(AssertionError):
        notes.run(explore(schedules=20, backend="trio")(functools.partial(increments_on_trio, careful=False)))
    assert notes.reports[0].distinct > 5
    assert "increments_on_trio.<locals>.increment, line " in notes.steps[0]


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def increment(self) -> None:
        """Add one, in more than one instruction."""
        self.count += 1


def test_threads_are_explored_too(notes: Notes) -> None:
    """An addition is lost between two instructions; the schedule that loses it is replayed."""

    def increments_in_threads(threads: Threads, number: int = 2) -> None:
        counter = Counter()
        for _ in range(number):
            threads.start(counter.increment)
        threads.join()
        assert counter.count == number

    test = explore(schedules=100, backend="threads", watch=[Counter])(increments_in_threads)
    assert [*inspect.signature(test).parameters] == ["number"]
    notes.run(test, 1)
    with pytest.raises(AssertionError) as caught:
        notes.run(test)
    word = caught.value.__notes__[-1].partition("replay=")[2]
    with pytest.raises(AssertionError):
        notes.run(test, replay=read(word))
    assert notes.steps[0] == notes.steps[1]
    assert "Counter.increment +" in notes.steps[0]


def test_only_the_last_steps_of_a_long_run_are_shown(notes: Notes) -> None:
    """Nobody reads a thousand."""

    async def fails_late() -> None:
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        pytest.fail("late")

    with pytest.raises(pytest.fail.Exception):
        notes.run(explore()(fails_late))
    (steps,) = notes.steps
    assert len(steps.splitlines()) == 61
    assert steps.startswith("(")
    assert steps.splitlines()[-1].startswith(f"{int(steps[1 : steps.index(' ')]) + 60}. ")


def test_every_schedule_is_run_twice_and_the_first_difference_is_told(notes: Notes) -> None:
    """Dice that nobody seeded are found out, and the schedule with them."""
    dice = random.Random(4)

    async def rolls() -> None:
        while dice.random() < 0.9:
            await anyio.lowlevel.checkpoint()

    with pytest.raises(NondeterminismError, match=r"The first difference is step \d+") as caught:
        notes.run(explore()(rolls))
    assert caught.value.__notes__ == ["replay=plain"]
    assert notes.steps == []


def test_what_cannot_be_found_again_is_told_as_it_was_found(notes: Notes) -> None:
    """A test that remembers how often it was run may fail once and then no more."""
    calls = itertools.count()

    async def forgives() -> None:
        assert next(calls) > 1

    with pytest.raises(AssertionError) as caught:
        notes.run(explore()(forgives))
    assert caught.value.__notes__[-1].endswith("replay=plain")
    assert len(notes.steps) == 1


def test_the_world_outside_is_refused(notes: Notes) -> None:
    """I/O is told by an error that says so, under the first schedule."""

    async def connects() -> None:
        socket.socket()

    with pytest.raises(RealWorldError, match="world outside"):
        notes.run(explore()(connects))
    assert notes.reports[0].schedules == 1


def test_faults_are_injected_and_counted(notes: Notes) -> None:
    """What may be wrong with time is an argument; so are starvation and the length of a run."""

    async def sleeps() -> None:
        clock = SystemClock()
        for _ in range(5):
            await clock.sleep(1.0)

    notes.run(explore(schedules=20, faults=Faults(late=1.0, odds=2), starve=True, max_steps=1_000)(sleeps))
    assert notes.reports[0].faults > 20


def test_arguments_are_passed_on() -> None:
    """So that fixtures and generated values reach the test; each example is explored by itself."""
    seen: set[int] = set()

    @given(st.integers(0, 3))
    @explore(schedules=3)
    async def test(number: int) -> None:
        seen.add(number)

    test()
    assert seen == {0, 1, 2, 3}


def test_without_a_session_it_runs_as_written() -> None:
    """A plain call from anywhere is a test, too; it keeps the name of what it runs."""
    ran = 0

    @explore(schedules=3)
    async def counted() -> None:
        nonlocal ran
        ran += 1

    counted()
    assert ran == 6
    assert counted.__name__ == "counted"
    with pytest.raises(AssertionError) as caught:
        _run_in(Session(), explore(schedules=200)(increments))
    assert "    replay=" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("schedules", 0),
        ("backend", "curio"),
        ("backend", []),
        ("seed", -1),
        ("faults", 1.0),
        ("max_steps", 0),
    ],
)
def test_a_bad_argument_is_refused(argument: str, value: object) -> None:
    """Each says its name and what it must be."""
    assert_refuses(argument, value, explore)


def test_what_does_not_belong_together_is_refused() -> None:
    """Threads have no loop that starves, loops watch no instructions, and either wants its kind of function."""
    with pytest.raises(ValueError, match=r"^starve must be left out with backend='threads', not True"):
        explore(backend="threads", starve=True, watch=[Counter])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^watch must be left out with backend='trio', not \(<class "):
        explore(backend="trio", watch=[Counter])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^func must be an async function, not <built-in function print>"):
        explore()(print)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^func must be a function of Threads, not 3"):
        explore(backend="threads", watch=[Counter])(3)  # type: ignore[arg-type]


# -- schedules as words ----------------------------------------------------------------------------------------------

numbers = st.integers(0, 10**6)
spelt = st.one_of(
    st.builds(Random, numbers),
    st.builds(PCT, numbers, st.integers(1, 9), st.integers(1, 999)),
    st.builds(Replay, st.lists(st.integers(0, 3), max_size=30)),
)


@given(spelt)
def test_a_schedule_that_is_read_is_the_one_that_was_spelt(schedule: Schedule) -> None:
    """But for plain choices at the end, which are made anyway."""
    again = read(spell(schedule))
    if isinstance(schedule, Replay):
        assert isinstance(again, Replay)
        length = len(again.choices)
        assert again.choices == schedule.choices[:length]
        assert not any(schedule.choices[length:])
    else:
        assert again == schedule


def test_schedules_are_short_words() -> None:
    """Only what is out of the plain order is written."""
    assert spell(Replay((0, 0, 1, 0, 2, 0))) == "2:1,4:2"
    assert spell(Replay()) == "plain"
    assert spell(PCT(7)) == "pct:7:3:200"
    assert read("random:7") == Random(7)
    with pytest.raises(ValueError, match=r"^schedule must be a Random, a PCT or a Replay, not "):
        spell(next(iter(Exhaustive())))


@pytest.mark.parametrize(
    "word",
    [
        "",
        "x",
        "1",
        "1:",
        "1:x",
        "1:1,",
        "-1:1",
        "1:-1",
        "random",
        "random:x",
        "random:-1",
        "pct:1",
        "pct:1:0:1",
        "plain:1",
    ],
)
def test_a_word_that_is_no_schedule_is_refused(word: str) -> None:
    """It says what there is."""
    with pytest.raises(ValueError, match=r"^a schedule must be random:SEED, .*, not '"):
        read(word)
