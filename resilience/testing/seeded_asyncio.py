"""A seeded event loop of asyncio: a schedule says which callback runs next, and time passes when nobody can run.

Rules of this module:

* One callback at a time, each a choice of the schedule. In *rounds* everybody who could run at the beginning of a
  round runs once before the next begins, in any order; *starving*, any one runs while all others wait, as often as the
  schedule likes. Which of the two is the first choice of a run, unless it is asked for.
* There is no selector. When nobody can run, time jumps to the next timer; without one that is a deadlock, and every
  waiting task is named. More steps than `max_steps` is no progress.
* Sockets, processes, threads and signals are refused, with an error that says so.
* Callbacks that become ready in the same step are put in the order of their tasks, since libraries keep tasks in sets.

asyncio promises first in, first out to callbacks. To a scheduler that is one order among many, and code that leans on
it breaks as soon as an await is added on the way; so the order is left to the schedule.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import math
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from resilience.machines.checks import positive_int
from resilience.testing import runs
from resilience.testing.runs import DeadlockError, Recorder, Run, end, refused, shut_off, standing
from resilience.testing.schedules import Random
from resilience.testing.virtual_time import NO_FAULTS, Faults, VirtualTime

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Awaitable, Callable
    from typing import NoReturn

    from resilience.testing.schedules import Schedule

__all__ = ["SeededLoop", "record", "run"]

T = TypeVar("T")

#: What asyncio's own clock resolves; its timers fire up to this much early.
_RESOLUTION_NS = 1
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

    Build everything within `main`: the second run must find the world as the first one did.

    Args:
        main: what to run. Guards on the SystemClock, and anyio's and asyncio's own timers, are on virtual time in it.
        schedule: who runs when.
        starve: True lets any one run while all others wait, False has everybody take turns; None leaves it to the
            schedule.
        faults: what may be wrong with time.
        max_steps: after so many steps the run makes no progress.

    Raises:
        DeadlockError: everybody waits for somebody else.
        NoProgressError: there were too many steps.
        NondeterminismError: the second run was not the same.
        RealWorldError: `main` did I/O or started a thread.

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

    Args:
        main: as for `run`.
        schedule: as for `run`.
        starve: as for `run`.
        faults: as for `run`.
        max_steps: as for `run`.
        twice: False runs once, and believes that the second run would have been the same.

    Raises:
        NondeterminismError: the second run was not the same.

    """
    positive_int("max_steps", max_steps)
    body = functools.partial(_once, main, starve=starve, faults=faults)
    return (runs.record_twice if twice else runs.record)(body, schedule, max_steps=max_steps)


def _once(main: Callable[[], Awaitable[T]], recorder: Recorder, *, starve: bool | None, faults: Faults) -> T:
    time = VirtualTime(recorder, faults)
    starving = bool(recorder.choose(2)) if starve is None else starve
    with shut_off(), time.shown():
        return SeededLoop(recorder, time, starving=starving).run(main)


async def _awaited(main: Callable[[], Awaitable[T]]) -> T:
    return await main()


class SeededLoop(asyncio.BaseEventLoop):
    """An event loop whose every step is a choice, for one run."""

    def __init__(self, recorder: Recorder, time: VirtualTime, *, starving: bool) -> None:
        super().__init__()
        self._recorder = recorder
        self._virtual = time
        self._starving = starving
        self._cleaning = 0
        self._numbers: dict[object, int] = {}
        self._counter = itertools.count()
        # Who can run: those of this round, and those of the next.
        self._turns: list[tuple[int, asyncio.Handle]] = []
        self._next_turns: list[tuple[int, asyncio.Handle]] = []

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._virtual.now_ns / 10**9

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run an async function to its end, and close the loop; nothing is left behind, however it ended."""
        runner = asyncio.Runner(loop_factory=lambda: self)
        try:
            return runner.run(_awaited(main))
        finally:
            # From here on, what is left to do is done in plain order, and nothing is put down.
            self._cleaning = 1
            # What there was to tell has been told.
            self.set_exception_handler(_say_nothing)
            try:
                with suppress(DeadlockError):
                    runner.close()
            finally:
                self._give_up_tasks()

    def _give_up_tasks(self) -> None:
        """End the tasks that would not be cancelled, and hold none any longer."""
        for task in sorted(asyncio.all_tasks(self), key=lambda task: self._numbers.get(task, -1)):
            task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001 - it has been told
            end(task.get_coro())
        self._numbers.clear()

    # -- one step ---------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        # asyncio's own loop calls this until it is to stop.
        turns = self._who_can_run()
        if self._cleaning:
            self._clean_once(turns)
            return
        recorder = self._recorder
        index = recorder.choose(len(turns), [number for number, _ in turns])
        number, handle = turns[index]
        what, line = _whereabouts(handle)
        # It may have been one step too many: whose turn it was must still be there to be cleaned up.
        recorder.step((number, what, line, self._virtual.now_ns))
        del turns[index]
        handle._run()  # noqa: SLF001 - a loop runs handles
        self._virtual.disturb()

    def _clean_once(self, turns: list[tuple[int, asyncio.Handle]]) -> None:
        self._cleaning += 1
        if self._cleaning > _CLEANING_STEPS:
            raise DeadlockError(self._everybody_waits())
        turns.pop(0)[1]._run()  # noqa: SLF001 - as above

    def _who_can_run(self) -> list[tuple[int, asyncio.Handle]]:
        """Return the turns to choose from, at least one."""
        while True:
            self._gather()
            if self._turns and not self._starving:
                return self._turns
            self._turns += self._next_turns
            self._next_turns.clear()
            if self._turns:
                return self._turns
            timer = self._next_timer()
            self._wait(None if timer is None else math.ceil(timer.when() * 10**9))

    def _wait(self, due_ns: int | None) -> None:
        """Nobody can run: let time pass until the next timer is due, if there is one."""
        if due_ns is None:
            raise DeadlockError(self._everybody_waits())
        self._virtual.pass_until(due_ns)

    def _gather(self) -> None:
        """Number what has become ready, and sort it by its number."""
        turns = self._turns
        if turns:
            turns[:] = [turn for turn in turns if not turn[1].cancelled()]
        ready = self._ready  # type: ignore[attr-defined]
        end = (self._virtual.now_ns + self._virtual.early_ns + _RESOLUTION_NS) / 10**9
        while (timer := self._next_timer()) is not None and timer.when() < end:
            heapq.heappop(self._scheduled)  # type: ignore[attr-defined]
            timer._scheduled = False  # type: ignore[attr-defined] # noqa: SLF001 - so cancel() knows it has left
            ready.append(timer)
        self._virtual.early_ns = 0
        if ready:
            arrived = [(self._number(handle), handle) for handle in ready if not handle.cancelled()]
            ready.clear()
            arrived.sort(key=_first)
            self._next_turns += arrived
        if self._next_turns:
            self._next_turns = [turn for turn in self._next_turns if not turn[1].cancelled()]

    def _next_timer(self) -> TimerHandle | None:
        timers: list[TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0].cancelled():
            heapq.heappop(timers)._scheduled = False  # type: ignore[attr-defined] # noqa: SLF001 - as above
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
        return timers[0] if timers else None

    def _number(self, handle: asyncio.Handle) -> int:
        """Return the number of the task that this is a turn of; other callbacks have one each."""
        task = _task_of(handle)
        if task is None:
            return next(self._counter)
        # The tasks are held, so that none of them dies, and none is collected, at an instant that nobody chose.
        if task not in self._numbers:
            self._numbers[task] = next(self._counter)
        return self._numbers[task]

    def _everybody_waits(self) -> str:
        return f"everybody waits, and nothing is due: {self.who_waits()}"

    def who_waits(self) -> str:
        """Name the tasks, and where each stands."""
        waiting = sorted(
            (self._numbers.get(task, -1), f"{task.get_name()}, {'{}, line {}'.format(*standing(task.get_coro()))}")
            for task in asyncio.all_tasks(self)
        )
        return "; ".join(text for _, text in waiting)

    # -- what a loop has to have, and what this one refuses -----------------------------------------------------------

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: object, context: object = None
    ) -> asyncio.Handle:
        """Call back soon. There are no other threads to be safe from."""
        return self.call_soon(callback, *args, context=context)  # type: ignore[arg-type]

    def _write_to_self(self) -> None:
        """Do nothing: there is no selector to wake."""

    def _process_events(self, event_list: list[object]) -> None:
        """Do nothing: there are no events."""


def _say_nothing(_loop: asyncio.AbstractEventLoop, _context: dict[str, object]) -> None:
    return


def _first(turn: tuple[int, asyncio.Handle]) -> int:
    return turn[0]


def _refusing(name: str) -> Callable[..., NoReturn]:
    def method(_self: SeededLoop, *_args: object, **_kwargs: object) -> NoReturn:
        raise refused(f"the event loop's {name}()")

    method.__name__ = name
    return method


for _name in (
    "add_reader", "add_signal_handler", "add_writer", "connect_accepted_socket", "connect_read_pipe",
    "connect_write_pipe", "create_connection", "create_datagram_endpoint", "create_server", "create_unix_connection",
    "create_unix_server", "getaddrinfo", "getnameinfo", "remove_reader", "remove_signal_handler", "remove_writer",
    "run_in_executor", "sendfile", "sock_accept", "sock_connect", "sock_recv", "sock_recv_into", "sock_recvfrom",
    "sock_recvfrom_into", "sock_sendall", "sock_sendfile", "sock_sendto", "start_tls", "subprocess_exec",
    "subprocess_shell",
):  # fmt: skip
    setattr(SeededLoop, _name, _refusing(_name))


def _task_of(handle: asyncio.Handle) -> asyncio.Task[object] | None:
    task = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined] # noqa: SLF001 - asyncio's own way of telling
    return task if isinstance(task, asyncio.Task) else None


def _whereabouts(handle: asyncio.Handle) -> tuple[str, int]:
    """Return what a turn will run, and the line on which it stands."""
    task = _task_of(handle)
    if task is None:
        callback = handle._callback  # type: ignore[attr-defined] # noqa: SLF001 - as above
        while isinstance(callback, functools.partial):
            callback = callback.func
        return getattr(callback, "__qualname__", type(callback).__qualname__), 0
    return standing(task.get_coro())
