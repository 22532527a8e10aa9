"""Trio under a schedule: its own loop, with its dice in our hands, and time that passes when nobody can run.

Rules of this module:

* Trio runs its ready tasks in batches, which it shuffles. Told to be deterministic, it sorts each batch and asks its
  module's random generator; here the generator is the schedule. In *rounds* every task of a batch runs once, in any
  order; *starving*, one task of the batch runs and the others go back, as often as the schedule likes.
* The clock is asked how long to sleep only when nobody can run, and answers by letting time jump to the next deadline.
  Without one that is a deadlock: every waiting task is named, and the body is cancelled.
* The rest is as in `seeded_asyncio`, and so is what is refused. Trio never fires a timer early, so no fault does.

Two private names of trio are set, as its own documentation of `trio.testing` and pytest-trio do.
"""

from __future__ import annotations

import functools
import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio
import trio._core._run as trio_run
import trio._core._thread_cache as trio_threads

from resilience.machines.checks import positive_int
from resilience.testing import runs
from resilience.testing.runs import DeadlockError, NoProgressError, Recorder, Run, end, shut_off, standing
from resilience.testing.schedules import Random
from resilience.testing.virtual_time import NO_FAULTS, Faults, VirtualTime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from resilience.testing.schedules import Schedule

__all__ = ["record", "run"]

T = TypeVar("T")

_CLEANING_STEPS = 10_000


def run(
    main: Callable[[], Awaitable[T]],
    *,
    schedule: Schedule = Random(0),  # noqa: B008 - frozen
    starve: bool | None = None,
    faults: Faults = NO_FAULTS,
    max_steps: int = 100_000,
) -> T:
    """Run an async function to its end under a schedule, twice; return what it returned or raise what it raised.

    Arguments and errors are those of `seeded_asyncio.run`.
    """
    return record(main, schedule=schedule, starve=starve, faults=faults, max_steps=max_steps).outcome()


def record(
    main: Callable[[], Awaitable[T]],
    *,
    schedule: Schedule = Random(0),  # noqa: B008 - frozen
    starve: bool | None = None,
    faults: Faults = NO_FAULTS,
    max_steps: int = 100_000,
    twice: bool = True,
) -> Run[T]:
    """Do the same, and return the `Run`: the steps and choices, their hash, the faults, and the outcome.

    Arguments and errors are those of `seeded_asyncio.record`.
    """
    positive_int("max_steps", max_steps)
    body = functools.partial(_once, main, starve=starve, faults=attrs.evolve(faults, early=0.0))
    return (runs.record_twice if twice else runs.record)(body, schedule, max_steps=max_steps)


def _once(main: Callable[[], Awaitable[T]], recorder: Recorder, *, starve: bool | None, faults: Faults) -> T:
    time = VirtualTime(recorder, faults)
    starving = bool(recorder.choose(2)) if starve is None else starve
    with time.shown(), in_charge():
        return Scheduler(recorder, time, starving=starving).run(main)


async def _shut_off(main: Callable[[], Awaitable[T]], scheduler: Scheduler) -> T:
    scheduler.root = trio.lowlevel.current_root_task()
    with scheduler.scope:
        scheduler.doors.enter_context(shut_off())
        try:
            return await main()
        finally:
            scheduler.clean_up()
            if scheduler.finding is not None:
                raise scheduler.finding
            scheduler.doors.close()
    # Only for a finding is the scope cancelled.
    raise AssertionError(scheduler.finding)


class _Dice:
    """Trio's dice, which are for all its runs: each that has a scheduler asks that one."""

    def shuffle(self, batch: list[trio.lowlevel.Task]) -> None:
        scheduler = trio_run.GLOBAL_RUN_CONTEXT.runner.clock
        if isinstance(scheduler, Scheduler):
            scheduler.shuffle(batch)


@contextmanager
def in_charge() -> Iterator[None]:
    """Be trio's dice; and have it start its threads anew, so that they are seen."""
    kept = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r  # noqa: SLF001 - the module says why
    idle = dict(trio_threads.THREAD_CACHE._idle_workers)  # noqa: SLF001 - as above
    trio_threads.THREAD_CACHE._idle_workers.clear()  # noqa: SLF001 - as above
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r = True, _Dice()  # type: ignore[misc, assignment] # noqa: SLF001
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r = kept  # type: ignore[misc] # noqa: SLF001 - as above
        trio_threads.THREAD_CACHE._idle_workers.update(idle)  # noqa: SLF001 - as above


class Scheduler(trio.abc.Clock, trio.abc.Instrument):
    """Everything that one run of trio asks in order to know what comes next: its clock, its dice and its instrument."""

    def __init__(self, recorder: Recorder, time: VirtualTime, *, starving: bool) -> None:
        self.scope: trio.CancelScope = trio.CancelScope()
        self.doors: ExitStack = ExitStack()
        self.root: trio.lowlevel.Task | None = None
        self.finding: BaseException | None = None
        self._recorder = recorder
        self._time = time
        self._starving = starving
        self._cleaning = 0
        self._shields_broken = False
        self._numbers: dict[trio.lowlevel.Task, int] = {}
        self._ready: list[trio.lowlevel.Task] = []
        self._steps = 0
        self._looked_at_step = -1

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run an async function to its end; nothing is left behind, however it ended."""
        # The doors are shut from within, when trio has what it needs, and opened in any case.
        with self.doors:
            try:
                return trio.run(_shut_off, main, self, clock=self, instruments=[self])
            except trio.TrioInternalError:
                # Tasks that would not be cancelled: there is no other way out of trio.
                self._give_up_tasks()
                if self.finding is None:
                    raise
                raise self.finding from None

    def clean_up(self) -> None:
        """From here on, have everything done in plain order, and put nothing down."""
        self._cleaning = self._cleaning or 1

    def _give_up(self, finding: BaseException) -> None:
        """Cancel the body for what was found, at the second time without its shields; at the third it goes on."""
        self.clean_up()
        if self.finding is None:
            self.finding = finding
            self.scope.cancel()
        elif not self._shields_broken:
            self._shields_broken = True
            for task in self._tasks():
                status: trio_run.CancelStatus | None = task._cancel_status  # noqa: SLF001 - a shield has no public name but to those behind it
                while status is not None:
                    status._scope.shield = False  # noqa: SLF001 - as above
                    status = status._parent  # noqa: SLF001 - as above
        else:
            raise self.finding

    def _give_up_tasks(self) -> None:
        """End the tasks that would not be cancelled, the children first, and hold none any longer."""
        root = self.root
        left = [root, *_below(root.child_nurseries)] if root is not None else []
        for task in left:
            task._abort_func = None  # noqa: SLF001 - nobody is left to wake it
            for nursery in task.child_nurseries:
                nursery._children.clear()  # noqa: SLF001 - a nursery complains of those left
        for task in reversed(left):
            end(task.coro)
        self._numbers.clear()
        self.root = None

    def _tasks(self) -> Iterator[trio.lowlevel.Task]:
        """Yield the tasks of the body, those of trio itself apart."""
        # The first nursery is for trio's own tasks, the last for the body.
        yield from _below(self.root.child_nurseries[-1:] if self.root is not None else [])

    def _everybody_waits(self) -> str:
        return f"everybody waits, and nothing is due: {self.who_waits()}"

    def who_waits(self) -> str:
        """Name the tasks, and where each stands."""
        return "; ".join(f"{task.name}, {'{}, line {}'.format(*standing(task.coro))}" for task in self._tasks())

    # -- the dice ---------------------------------------------------------------------------------------------------

    def shuffle(self, batch: list[trio.lowlevel.Task]) -> None:
        """Put the batch in order; trio takes the last one first."""
        if self._cleaning:
            self._cleaning += len(batch)
            if self._cleaning > _CLEANING_STEPS:
                self._give_up(DeadlockError(self._everybody_waits()))
            batch.reverse()
            return
        for task in batch:
            self._numbers.setdefault(task, len(self._numbers))
        ready = self._ready
        ready += [task for task in batch if task not in ready]
        order = []
        while ready:
            order.append(ready.pop(self._recorder.choose(len(ready), [self._numbers[task] for task in ready])))
            if self._starving:
                trio_run.GLOBAL_RUN_CONTEXT.runner.runq.extend(ready)
                break
        batch[:] = reversed(order)

    # -- the instrument ---------------------------------------------------------------------------------------------

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Put down whose turn it is."""
        self._steps += 1
        if self._cleaning:
            return
        what, line = standing(task.coro)
        try:
            self._recorder.step((self._numbers[task], what, line, self._time.now_ns))
        except NoProgressError as error:
            self._give_up(error)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - whoever it was
        """Perhaps disturb the clocks."""
        if not self._cleaning:
            self._time.disturb()

    # -- the clock --------------------------------------------------------------------------------------------------

    def start_clock(self) -> None:
        """Do nothing: it stands, until nobody can run."""

    def current_time(self) -> float:
        """Return the virtual time in seconds."""
        return self._time.now_ns / 10**9

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Let time pass, since nobody can run; return how long to wait for the world outside, which is not at all."""
        if self._looked_at_step != self._steps:
            # Somebody may have been woken through trio's own pipe, as a call from outside is.
            self._looked_at_step = self._steps
        elif trio_run.GLOBAL_RUN_CONTEXT.runner.waiting_for_idle:
            return math.inf
        elif deadline == math.inf:
            self._wait(None)
        elif deadline > self.current_time():
            due_ns = math.ceil(deadline * 10**9)
            self._wait(due_ns if due_ns / 10**9 >= deadline else due_ns + 1)
        return 0

    def _wait(self, due_ns: int | None) -> None:
        """Nobody can run: let time pass until the next deadline, if there is one."""
        if due_ns is None:
            self._give_up(DeadlockError(self._everybody_waits()))
        else:
            self._time.pass_until(due_ns)


def _below(nurseries: Iterable[trio.Nursery]) -> Iterator[trio.lowlevel.Task]:
    """Yield the tasks in these nurseries, then those in their nurseries, and so on, in the order of their birth."""
    tasks = sorted(
        (task for nursery in nurseries for task in nursery.child_tasks),
        key=lambda task: task._counter,  # noqa: SLF001 - the order of their birth
    )
    yield from tasks
    for task in tasks:
        yield from _below(task.child_nurseries)
