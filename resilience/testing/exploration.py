"""Exhaustive exploration: every order in which the steps of a few threads can happen, within a stated bound.

Rules of this module: it knows no guard. A *program* is a fresh system and some threads; a thread is a sequence of
operations on the system. An operation is a plain function, which is one step; or a generator or a coroutine, which is
several: one up to each `yield`, `pause()`, `until(condition)` or future of asyncio that it waits for, and the rest.
Between two steps of a thread any other may take its own, and that is the whole of what is explored: nothing is random
and no time passes, so that a schedule, the list of who goes next, replays exactly.

Theory of operation. Depth first; a run goes to its end, and then its last decision that has an alternative is taken
otherwise, in a fresh system, by replaying those before it. (Godefroid, "Model Checking for Programming Languages using
VeriSoft", POPL 1997.) To stop a thread that could go on, and let another go, is a *preemption*. Nearly all bugs need
few of them, and with few there are polynomially many schedules rather than exponentially; so their number is bounded
(Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing of Multithreaded Programs", PLDI 2007). Of
the schedules that fail, one with the fewest preemptions is reported.

The reduction. Where two beginnings of a schedule lead to the same state, with the same thread running and as many
preemptions and cancellations left, all that can follow is the same too; it is explored once, and counted as often as
it occurs. The state is everything that can be reached from the system and the threads (see `fingerprint`), what has
been seen so far included if the system remembers it. So nothing is assumed about which steps commute, which is what
other reductions (sleep sets, persistent sets) rest on. What the checks look at must be part of that state.

Cancellation. With `cancels=n` there is one more kind of decision: `Cancel(thread)`, at most n times in a schedule, at
any point at which that thread is within an operation. As asyncio does, it cancels the future that is waited for, and
raises CancelledError in the thread when that goes on next; in between the others may take their steps.
"""

from __future__ import annotations

import types
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import attrs

from resilience.machines.checks import callable_or_none, string, whole_number
from resilience.parking import running_loop
from resilience.testing.fingerprint import fingerprint
from resilience.testing.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

__all__ = ["Cancel", "FailedScheduleError", "Step", "Thread", "explore_program", "pause", "until"]

S = TypeVar("S")

Step: TypeAlias = "Callable[[S], object]"
Thread: TypeAlias = "Step[S] | Sequence[Step[S]]"


@attrs.frozen
class Cancel:
    """The decision to cancel a thread."""

    thread: int

    def __repr__(self) -> str:
        return f"Cancel({self.thread})"


Decision: TypeAlias = "int | Cancel"
"""Which thread takes its next step, or is cancelled."""


@types.coroutine
def pause() -> Generator[None, None, None]:
    """Let any other thread go on, in an operation that is a coroutine; in a generator, `yield` does."""
    yield


@types.coroutine
def until(condition: Callable[[], object]) -> Generator[Callable[[], object], None, None]:
    """Wait until the condition holds, in a coroutine; in a generator, `yield condition` does. It changes nothing."""
    yield condition


class FailedScheduleError(AssertionError):
    """A schedule of which something failed: a step, a check, or nobody could go on.

    `schedule` replays it. What was raised is the `__cause__`.
    """

    def __init__(self, message: str, schedule: tuple[Decision, ...], preemptions: int) -> None:
        super().__init__(message)
        self.schedule = schedule
        self.preemptions = preemptions


def explore_program(
    factory: Callable[[], S],
    threads: Sequence[Thread[S]],
    *,
    preemptions: int | None = 3,
    cancels: int = 0,
    cancellable: Iterable[int] | None = None,
    check: Callable[[S], object] | None = None,
    invariant: Callable[[S], object] | None = None,
    merge: bool = True,
    limit: int | None = None,
    max_steps: int = 10_000,
    schedule: Iterable[Decision] | None = None,
    name: str = "",
) -> Report:
    """Run a program under every schedule there is, and return what was covered.

    Args:
        factory: makes a fresh system. It and the steps must do the same each time: no clock, no dice, no I/O.
        threads: for each thread its operations, or the only one; each is called with the system.
        preemptions: how often a thread that could go on may be made to wait in one schedule; None: as often as can be.
        cancels: how many cancellations there may be in one schedule.
        cancellable: the threads that may be cancelled, by number; None: any.
        check: called with the system when all threads have ended; it fails the schedule by raising.
        invariant: the same after every step.
        merge: whether what leads to the same state is explored once. Without it every schedule is run on its own; that
            is for systems that hold what cannot be looked into.
        limit: after how many runs to stop, leaving the report incomplete.
        max_steps: how many steps a schedule may have: threads must end.
        schedule: run this schedule and no other, as it was reported with a failure. It may end before the threads do.
        name: what the report calls it; by default as the factory.

    Raises:
        FailedScheduleError: a schedule failed; an AssertionError that says how to replay it.
        ValueError: an argument is not what it must be, or the schedule is not one of this program.
        RuntimeError: the program does not do the same each time, or waits for what nothing here can give; or an event
            loop runs already in this thread.

    """
    found = _threads(threads)
    program = _Program(
        factory=_callable("factory", factory),
        threads=tuple(_operations(number, thread) for number, thread in enumerate(found)),
        preemptions=None if preemptions is None else whole_number("preemptions", preemptions),
        cancels=whole_number("cancels", cancels),
        cancellable=_cancellable(cancellable, len(found)),
        check=callable_or_none("check", check),
        invariant=callable_or_none("invariant", invariant),
        merge=merge,
        limit=None if limit is None else whole_number("limit", limit, minimum=1),
        max_steps=whole_number("max_steps", max_steps, minimum=1),
        name=string("name", name) or getattr(factory, "__qualname__", repr(factory)),
    )
    with _event_loop():
        if schedule is not None:
            return program.replay(tuple(schedule))
        try:
            return _Search(program).run()
        except FailedScheduleError as failure:
            for fewer in range(failure.preemptions):
                _Search(attrs.evolve(program, preemptions=fewer, limit=None)).run()
            raise


def _callable(name: str, value: Callable[..., S]) -> Callable[..., S]:
    if not callable(value):
        msg = f"{name} must be callable, not {value!r}"
        raise ValueError(msg)
    return value


def _threads(threads: Sequence[Thread[S]]) -> list[Thread[S]]:
    try:
        found = list(threads)
    except TypeError:
        found = []
    if not found:
        msg = f"threads must be at least one thread, not {threads!r}"
        raise ValueError(msg)
    return found


def _cancellable(numbers: Iterable[int] | None, count: int) -> tuple[int, ...]:
    if numbers is None:
        return tuple(range(count))
    found = tuple(numbers) if hasattr(numbers, "__iter__") else ()
    if not found or not all(type(number) is int and 0 <= number < count for number in found):
        msg = f"cancellable must be numbers of threads, from 0 to {count - 1}, not {numbers!r}"
        raise ValueError(msg)
    return found


def _operations(number: int, thread: Thread[S]) -> tuple[Step[S], ...]:
    operations = (thread,) if callable(thread) else tuple(thread) if hasattr(thread, "__iter__") else ()
    if not operations or not all(callable(operation) for operation in operations):
        msg = f"threads[{number}] must be an operation or a sequence of operations, which are callable, not {thread!r}"
        raise ValueError(msg)
    return operations


# -- one run --------------------------------------------------------------------------------------------------------


class _Task(Generic[S]):
    """One thread of one run."""

    __slots__ = ("_cancelling", "_operations", "_place", "_running", "_waiting", "steps", "system", "to_cancel")

    def __init__(self, system: S, operations: tuple[Step[S], ...]) -> None:
        self.system = system
        self._operations = operations
        self._place = 0
        # The operation under way, if it has several steps, and what it waits for.
        self._running: Any = None
        self._waiting: Any = None
        # Whether it is to be cancelled at its next step; whether it has been.
        self.to_cancel = False
        self._cancelling = False
        self.steps = 0

    @property
    def ended(self) -> bool:
        return self._place == len(self._operations)

    @property
    def state(self) -> tuple[object, ...]:
        """All that says how it goes on."""
        return self._place, self._running, self._waiting, self.to_cancel, self._cancelling

    @property
    def ready(self) -> bool:
        """Whether it can take a step."""
        if self.ended or self.to_cancel or self._waiting is None:
            return not self.ended
        return bool(self._waiting.done() if hasattr(self._waiting, "done") else self._waiting())

    @property
    def cancellable(self) -> bool:
        """Whether it is within an operation that was not cancelled yet."""
        return self._running is not None and not self.to_cancel and not self._cancelling

    def cancel(self) -> None:
        """Cancel what it waits for; it hears of it when it goes on."""
        self.to_cancel = True
        if hasattr(self._waiting, "done"):
            self._waiting.cancel()

    def step(self) -> None:
        """Take a step."""
        self.steps += 1
        if self._running is None:
            made = self._operations[self._place](self.system)
            if not (hasattr(made, "send") and hasattr(made, "throw")):
                self._place += 1
                return
            self._running = made
        self._advance()

    def _advance(self) -> None:
        import asyncio

        try:
            if self.to_cancel:
                self.to_cancel, self._cancelling = False, True
                waiting = self._running.throw(asyncio.CancelledError())
            else:
                waiting = self._running.send(None)
        except StopIteration:
            self._running = self._waiting = None
            self._place += 1
            if self._cancelling:
                msg = "a cancellation was swallowed"
                raise AssertionError(msg) from None
        except asyncio.CancelledError:
            if not self._cancelling:
                raise
            self._running = self._waiting = None
            self._place = len(self._operations)
        else:
            self._wait_for(waiting)

    def _wait_for(self, waiting: Any) -> None:  # noqa: ANN401 - whatever the thread gave
        if hasattr(waiting, "_asyncio_future_blocking"):
            # As a task of asyncio does: it tells a future that was awaited from one that was yielded.
            waiting._asyncio_future_blocking = False  # noqa: SLF001 - the protocol between futures and tasks
        elif waiting is not None and not callable(waiting):
            msg = f"a thread waits with pause(), until(condition) or for a future of asyncio, not for {waiting!r}"
            raise RuntimeError(msg)
        self._waiting = waiting

    def close(self) -> None:
        """Leave the operation under way, if there is one."""
        if self._running is not None:
            self._running.close()

    def __str__(self) -> str:
        """Return where it is; it has not ended."""
        operation = self._operations[self._place]
        name = getattr(operation, "__qualname__", None) or repr(operation)
        if self._running is None:
            return name
        frame = getattr(self._running, "cr_frame", None) or getattr(self._running, "gi_frame", None)
        return name if frame is None else f"{name}, from line {frame.f_lineno}"


@attrs.frozen(kw_only=True, eq=False)
class _Program(Generic[S]):
    """What is explored, and how far."""

    factory: Callable[[], S]
    threads: tuple[tuple[Step[S], ...], ...]
    preemptions: int | None
    cancels: int
    cancellable: tuple[int, ...]
    check: Callable[[S], object] | None
    invariant: Callable[[S], object] | None
    merge: bool
    limit: int | None
    max_steps: int
    name: str

    def replay(self, schedule: tuple[Decision, ...]) -> Report:
        """Run one schedule, whatever bounds it breaks."""
        run = _Run(attrs.evolve(self, preemptions=None, cancels=len(schedule)))
        try:
            for number, decision in enumerate(schedule):
                decisions = run.decisions()
                if decision not in decisions:
                    choice = (
                        f"one of {', '.join(map(str, decisions))}"
                        if decisions
                        else "none, since all threads have ended"
                    )
                    msg = f"schedule[{number}] must be {choice}, not {decision!r}"
                    raise ValueError(msg)
                run.take(decision)
            run.decisions()
        finally:
            run.close()
        return Report(
            name=self.name, schedules=1, distinct=1, histories=int(run.ended), cancel_points=len(run.cancel_points)
        )


class _Run(Generic[S]):
    """One run: a fresh system, its threads, and the decisions so far."""

    __slots__ = (
        "_cancels",
        "_current",
        "_preemptions",
        "_program",
        "_trace",
        "cancel_points",
        "schedule",
        "system",
        "tasks",
    )

    def __init__(self, program: _Program[S]) -> None:
        self._program = program
        self.system = program.factory()
        self.tasks = [_Task(self.system, operations) for operations in program.threads]
        self._current: int | None = None
        self._preemptions = self._cancels = 0
        self.schedule: list[Decision] = []
        self._trace: list[str] = []
        self.cancel_points: set[tuple[int, int]] = set()
        self._judge(program.invariant)

    @property
    def ended(self) -> bool:
        return all(task.ended for task in self.tasks)

    def decisions(self) -> list[Decision]:
        """Return what can happen next, within the bounds; the thread that is running first. Nothing, if all have ended.

        Nobody can go on, although not all have ended: then the schedule has failed.
        """
        ready = [number for number, task in enumerate(self.tasks) if task.ready]
        if self.ended:
            return []
        if not ready:
            waiting = [f"thread {number} waits in {task}" for number, task in enumerate(self.tasks) if not task.ended]
            raise self._failure(f"nobody can go on: {', '.join(waiting)}")
        found: list[Decision] = list(ready)
        if self._current in ready:
            found.remove(self._current)
            may_preempt = self._program.preemptions is None or self._preemptions < self._program.preemptions
            found = [self._current, *(found if may_preempt else [])]
        if self._cancels < self._program.cancels:
            found += [Cancel(number) for number in self._program.cancellable if self.tasks[number].cancellable]
        return found

    def take(self, decision: Decision) -> None:
        """Do it, and see whether all is well."""
        self.schedule.append(decision)
        if isinstance(decision, Cancel):
            task = self.tasks[decision.thread]
            self._trace.append(f"thread {decision.thread} is cancelled in {task}")
            self._cancels += 1
            self.cancel_points.add((decision.thread, task.steps))
            task.cancel()
            return
        preempted = self._current is not None and self._current != decision and self.tasks[self._current].ready
        self._preemptions += preempted
        self._current = decision
        task = self.tasks[decision]
        self._trace.append(f"thread {decision}: {task}{' (a preemption)' if preempted else ''}")
        try:
            task.step()
        except Exception as error:
            raise self._failure(f"{type(error).__name__}: {error}") from error
        self._judge(self._program.invariant)
        if self.ended:
            self._judge(self._program.check)
        elif len(self.schedule) >= self._program.max_steps:
            raise self._failure(f"the threads have not ended after max_steps={self._program.max_steps} steps")

    def key(self) -> bytes:
        """Return the fingerprint of all that says what can follow."""
        left = (self._current, self._preemptions, self._cancels)
        return fingerprint(self.system, left, *(task.state for task in self.tasks))

    def close(self) -> None:
        """Leave all operations that are under way."""
        for task in self.tasks:
            task.close()

    def repeated(self) -> FailedScheduleError:
        """Return the failure of threads that have come back to where they were."""
        return self._failure("the threads can go round for ever; a thread that waits says so with until(condition)")

    def _judge(self, judge: Callable[[S], object] | None) -> None:
        if judge is None:
            return
        try:
            judge(self.system)
        except Exception as error:
            raise self._failure(f"{type(error).__name__}: {error}") from error

    def _failure(self, why: str) -> FailedScheduleError:
        lines = [
            f"{self._program.name}: {why}",
            *(f"  {number}. {step}" for number, step in enumerate(self._trace, 1)),
            f"replay it with explore_program(…, schedule={self.schedule!r})",
        ]
        return FailedScheduleError("\n".join(lines), tuple(self.schedule), self._preemptions)


# -- all runs -------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Fork:
    """A point of the present run at which something else could have been decided."""

    decisions: list[Decision]
    key: bytes | None
    choice: int = 0
    schedules: int = 0
    """How many schedules were found beyond it so far."""


class _Search(Generic[S]):
    """The exploration of one program. `forks` leads to where it is now."""

    __slots__ = ("_cancel_points", "_forks", "_known", "_program", "_runs")

    def __init__(self, program: _Program[S]) -> None:
        self._program = program
        self._forks: list[_Fork] = []
        # How many schedules lead on from a state that has been explored; None while it is.
        self._known: dict[bytes | None, int | None] = {}
        self._cancel_points: set[tuple[int, int]] = set()
        self._runs = 0

    def run(self) -> Report:
        """Explore everything, or as much as the limit lets."""
        found = judged = 0
        complete = False
        while not complete and (self._program.limit is None or self._runs < self._program.limit):
            schedules, ended = self._run_once()
            judged += ended
            complete, found = self._backtrack(schedules)
        return Report(
            name=self._program.name,
            schedules=found,
            distinct=found,
            histories=judged,
            states=len(self._known),
            cancel_points=len(self._cancel_points),
            complete=complete,
        )

    def _run_once(self) -> tuple[int, bool]:
        """Run the next schedule, to its end or to a state that is known; return how many are done with that."""
        self._runs += 1
        run = _Run(self._program)
        try:
            self._replay(run)
            while not run.ended:
                decisions = run.decisions()
                if len(decisions) > 1:
                    key = run.key() if self._program.merge else None
                    if key in self._known:
                        known = self._known[key]
                        if known is None:
                            raise run.repeated()
                        return known, False
                    if key is not None:
                        self._known[key] = None
                    self._forks.append(_Fork(decisions, key))
                run.take(decisions[0])
            return 1, True
        finally:
            self._cancel_points |= run.cancel_points
            run.close()

    def _replay(self, run: _Run[S]) -> None:
        """Decide as before, up to the last fork. Where a program has come to differ, it is not the same program."""
        for number, fork in enumerate(self._forks):
            decisions = run.decisions()
            while len(decisions) == 1:
                run.take(decisions[0])
                decisions = run.decisions()
            # What it comes to is compared once, which costs as much as the run.
            compared = number == len(self._forks) - 1 and fork.choice == 1 and fork.key is not None
            if decisions != fork.decisions or (compared and run.key() != fork.key):
                msg = (
                    f"{self._program.name}: the program does not do the same each time; it differed at step"
                    f" {len(run.schedule) + 1} or before, after {run.schedule!r}"
                )
                raise RuntimeError(msg)
            run.take(decisions[fork.choice])

    def _backtrack(self, schedules: int) -> tuple[bool, int]:
        """Go to the next decision that was not taken; return whether there was none, and how many schedules were."""
        forks = self._forks
        while forks:
            fork = forks[-1]
            fork.schedules += schedules
            fork.choice += 1
            if fork.choice < len(fork.decisions):
                return False, sum(each.schedules for each in forks)
            schedules = fork.schedules
            if fork.key is not None:
                self._known[fork.key] = schedules
            forks.pop()
        return True, schedules


# -- for those who wait as asyncio does -----------------------------------------------------------------------------


class _Loop:
    """As much of an event loop as a future needs: nothing ever runs in it."""

    __slots__ = ()

    def create_future(self) -> object:
        import asyncio

        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def __getattr__(self, name: str) -> object:
        msg = f"loop.{name}: a thread that is explored has futures and no event loop; give what it uses a ManualClock"
        raise AttributeError(msg)


@contextmanager
def _event_loop() -> Iterator[None]:
    """Let futures be made as if an event loop were running."""
    import asyncio

    if running_loop():
        msg = "explore_program() runs its threads itself; it must not be called where an event loop runs"
        raise RuntimeError(msg)
    asyncio._set_running_loop(_Loop())  # type: ignore[arg-type] # noqa: SLF001 - documented for those who write event loops
    try:
        yield
    finally:
        asyncio._set_running_loop(None)  # noqa: SLF001 - as above
