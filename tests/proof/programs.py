"""Programs, and the instruments that run them.

A *program* makes a fresh guard, and says what a few tasks do with it and what must hold. It is written once and run by
every instrument: in every order that there is, in event loops under a schedule, and in threads that have a loop each.
A *trial* is a program on one instrument: called with the guard to judge, the real one or a mutant, it raises an
AssertionError where something does not hold, and returns what it covered.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import anyio
import anyio.lowlevel
import attrs

from resilience import SystemClock
from resilience.testing import (
    PCT,
    Faults,
    ManualClock,
    Random,
    Replay,
    Report,
    exploration,
    explore_program,
    interleaving,
)
from resilience.testing.cancellation import WAYS, CancelPoint, cancel_at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from resilience.clock import Clock
    from resilience.testing import Run, Schedule
    from resilience.testing.interleaving import Threads

__all__ = [
    "CLOCKS", "Budget", "Kind", "Program", "Stage", "Tasks", "Trial", "cancelled", "explored", "interleaved", "once",
    "seeded",
]  # fmt: skip

Kind: TypeAlias = "Callable[..., Any]"
"""What makes a guard: its class, or that of a mutant."""
Tasks: TypeAlias = "tuple[Callable[[Any], Awaitable[object]], ...]"
"""What the tasks of a program do, each a method of it."""

#: What may be wrong with clocks, one thing at a time, and nothing at all.
CLOCKS = (
    Faults(),
    Faults(early=0.4, odds=3),
    Faults(late=1.5, odds=4),
    Faults(stall=1.5, odds=3),
    Faults(back=2.5, odds=4),
    Faults(forward=20.0, odds=6),
    Faults(wall=86_400.0, odds=3),
)

#: How many preemptions every order has at least; see `exploration`.
PREEMPTIONS = 3


@attrs.frozen(kw_only=True)
class Budget:
    """How much a trial may do.

    `schedules` bounds what is drawn, from `seed` on. Exploration is complete for its bounds in any case; where `deepen`
    is more than it covers with that, it goes on with more preemptions.
    """

    schedules: int = 100
    deepen: int = 0
    seed: int = 0


class Stage:
    """Where a program runs: what its clock is, and how a task lets others have their turn."""

    def __init__(self, clock: Clock, pause: Callable[[], Awaitable[None]]) -> None:
        self.clock = clock
        self._pause = pause
        self._look: Callable[[], object] | None = None

    def watch(self, look: Callable[[], object]) -> None:
        """Have something looked at whenever a task pauses."""
        self._look = look

    async def pause(self) -> None:
        """Let others have their turn."""
        await self._pause()
        if self._look is not None:
            self._look()


class Program:
    """A guard, and what tasks do with it. `tasks` are methods; the guard is made from `kind`."""

    tasks: ClassVar[Tasks]

    def __init__(self, kind: Kind, stage: Stage) -> None:
        self.stage = stage
        self.clock = stage.clock
        #: How many tasks have not ended.
        self.left = len(self.tasks)
        #: Whether any task was cancelled.
        self.cancelled = False
        self.build(kind)

    def build(self, kind: Kind) -> None:
        """Make the guard, and what else the tasks share."""
        raise NotImplementedError

    def invariant(self) -> None:
        """Judge what must hold at any time."""

    def check(self) -> None:
        """Judge what must hold when all tasks have ended."""

    async def perform(self, task: Callable[[Any], Awaitable[object]]) -> None:
        """Do what a task does."""
        try:
            await task(self)
        except Exception:
            raise
        except BaseException:
            self.cancelled = True
            raise
        finally:
            self.left -= 1


@attrs.frozen
class Trial:
    """A program on one instrument."""

    instrument: str
    run: Callable[[Kind, Budget], Report]
    draws: float = 0.0
    """How many schedules it draws for each one that it may."""


# -- every order ---------------------------------------------------------------------------------------------------


def explored(
    program: type[Program],
    *,
    first: int | None = None,
    beside: Sequence[Callable[[Any], object]] = (),
    cancels: int = 1,
    preemptions: int = PREEMPTIONS,
) -> Trial:
    """Return the trial that runs a program in every order with so many preemptions, cancelling at every point.

    Time passes to the next deadline whenever it likes: that is one more thread. So are the operations `beside`. Where
    all its tasks are too many, the `first` few are taken.
    """
    tasks = program.tasks[:first]

    def run(kind: Kind, budget: Budget) -> Report:
        def factory() -> Program:
            system = program(kind, Stage(ManualClock(50.0), exploration.pause))
            system.left = len(tasks)
            return system

        threads: list[Any] = [_performing(task) for task in tasks]

        def within(bound: int | None, limit: int | None = None) -> Report:
            return explore_program(
                factory,
                [*threads, _time_passes, *([list(beside)] if beside else [])],
                preemptions=bound,
                cancels=cancels,
                cancellable=range(len(threads)),
                invariant=lambda system: system.invariant(),
                check=lambda system: system.check(),
                limit=limit,
                name=f"{program.__name__}, {'any number of' if bound is None else f'at most {bound}'} preemptions",
            )

        report = within(preemptions)
        deeper: Iterator[int | None] = itertools.chain(range(preemptions + 1, 2 * preemptions + 1), [None])
        while report.schedules < budget.deepen and (bound := next(deeper, -1)) != -1:
            tried = within(bound, limit=budget.deepen)
            if not tried.complete:
                break
            report = tried
        return report

    return Trial("every order", run)


def _performing(task: Callable[[Any], Awaitable[object]]) -> Callable[[Program], Awaitable[None]]:
    def thread(system: Program) -> Awaitable[None]:
        return system.perform(task)

    thread.__qualname__ = getattr(task, "__qualname__", repr(task))
    return thread


def _time_passes(system: Program) -> Iterator[Callable[[], bool]]:
    """Move time on to the next deadline, until all tasks have ended."""
    clock = system.clock
    assert isinstance(clock, ManualClock)
    while True:
        yield lambda: not system.left or clock.next_deadline() is not None
        due = clock.next_deadline()
        if due is None:
            return
        clock.advance(max(0.0, due - clock.monotonic_ns() / 10**9))


# -- event loops ---------------------------------------------------------------------------------------------------

Backend: TypeAlias = Literal["asyncio", "trio"]

#: How many schedules each instrument draws for one on asyncio: they take their time.
_DRAWS = {"asyncio": 1.0, "trio": 1 / 3, "threads": 1 / 5}


def _main(
    program: type[Program], kind: Kind, point: CancelPoint | None = None, victim: int = 0
) -> Callable[[], Awaitable[None]]:
    async def main() -> None:
        system = program(kind, Stage(SystemClock(), anyio.lowlevel.checkpoint))
        system.stage.watch(system.invariant)
        async with anyio.create_task_group() as group:
            for number, task in enumerate(program.tasks):
                if point is not None and number == victim:
                    group.start_soon(point.call, system.perform, task)
                else:
                    group.start_soon(system.perform, task)
        # Also where the cancellation came too late to be heard: a Retry gives up all the same.
        system.cancelled = system.cancelled or (point is not None and point.reached)
        system.check()

    return main


def _record(backend: Backend, main: Callable[[], Awaitable[None]], schedule: Schedule, faults: Faults) -> Run[None]:
    instrument = importlib.import_module(f"resilience.testing.seeded_{backend}")
    run: Run[None] = instrument.record(main, schedule=schedule, faults=faults, max_steps=20_000)
    run.outcome()
    return run


def seeded(
    program: type[Program], *, backend: Backend = "asyncio", faults: Sequence[Faults] = CLOCKS, cancels: bool = True
) -> Trial:
    """Return the trial that draws schedules, what is wrong with the clocks, and who is cancelled where and how."""

    def run(kind: Kind, budget: Budget) -> Report:
        hashes: set[str] = set()
        injected = 0
        points: set[tuple[int, str, int]] = set()
        length = 1
        schedules = max(1, round(budget.schedules * _DRAWS[backend]))
        for number in range(schedules):
            seed = budget.seed + number
            schedule: Schedule = PCT(seed, length=length) if number % 2 else Random(seed)
            victim, way, place = seed % len(program.tasks), WAYS[seed // 2 % 3], seed // 3 % 8
            point = cancel_at(place, way) if cancels and seed % 3 else None
            with _telling(f"seed {seed}, point {point and (victim, way, place)}"):
                told = _record(backend, _main(program, kind, point, victim), schedule, faults[seed % len(faults)])
            hashes.add(told.hash)
            injected += told.faults.total()
            length = max(length, len(told.choices))
            if point is not None and point.reached:
                points.add((victim, way, place))
        return Report(
            name=program.__name__,
            schedules=schedules,
            distinct=len(hashes),
            histories=schedules,
            cancel_points=len(points),
            faults=injected,
            seed=budget.seed,
        )

    return Trial(backend, run, _DRAWS[backend])


def cancelled(program: type[Program], *, backend: Backend = "asyncio", faults: Sequence[Faults] = (Faults(),)) -> Trial:
    """Return the trial that cancels each task at its k-th checkpoint for every k, in each way, in a few orders."""

    def run(kind: Kind, budget: Budget) -> Report:
        hashes: set[str] = set()
        schedules = points = injected = 0
        orders: list[Schedule] = [Replay(), *(Random(budget.seed + number) for number in range(2))]
        for victim, way, schedule, wrong in itertools.product(range(len(program.tasks)), WAYS, orders, faults):
            for place in itertools.count():
                point = cancel_at(place, way)
                with _telling(f"{schedule!r}, point {(victim, way, place)}"):
                    told = _record(backend, _main(program, kind, point, victim), schedule, wrong)
                hashes.add(told.hash)
                schedules += 1
                injected += told.faults.total()
                if not point.reached:
                    break
                points += 1
        return Report(
            name=program.__name__,
            schedules=schedules,
            distinct=len(hashes),
            histories=schedules,
            cancel_points=points,
            faults=injected,
            seed=budget.seed,
        )

    return Trial(f"{backend}, every cancel point", run)


class _telling:  # noqa: N801 - used as a keyword
    """Adds to what is raised in the block what it was raised under."""

    def __init__(self, under: str) -> None:
        self._under = under

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            error.add_note(self._under)


# -- threads -------------------------------------------------------------------------------------------------------


def interleaved(program: type[Program], watch: Sequence[Any]) -> Trial:
    """Return the trial that runs each task in a thread with a loop of its own, switching between any two instructions.

    `watch` are the modules whose instructions count.
    """

    def run(kind: Kind, budget: Budget) -> Report:
        hashes: set[str] = set()
        watched = [*watch, *([] if kind in watch or not inspect.isclass(kind) else [kind])]
        number = max(1, round(budget.schedules * _DRAWS["threads"]))
        length = 50

        def scenario(threads: Threads) -> None:
            system = program(kind, Stage(SystemClock(), anyio.lowlevel.checkpoint))
            for task in program.tasks:
                threads.start_loop(functools.partial(system.perform, task))
            threads.join()
            system.check()

        for seed in range(budget.seed, budget.seed + number):
            schedule: Schedule = PCT(seed, length=length) if seed % 2 else Random(seed)
            with _telling(f"seed {seed}"):
                told = interleaving.record(scenario, watch=watched, schedule=schedule)
                told.outcome()
            hashes.add(told.hash)
            length = max(length, len(told.choices))
        return Report(name=program.__name__, schedules=number, distinct=len(hashes), histories=number, seed=budget.seed)

    return Trial("threads", run, _DRAWS["threads"])


# -- anything else -------------------------------------------------------------------------------------------------


def once(name: str, law: Callable[[Kind, int], int]) -> Trial:
    """Return the trial of a law of its own kind: called with the guard and a seed, it returns how much it judged."""

    def run(kind: Kind, budget: Budget) -> Report:
        return Report(name=name, histories=law(kind, budget.seed), seed=budget.seed)

    return Trial(name, run)
