"""Threads under a schedule: one instruction at a time, whose turn it is being a choice of the schedule.

Rules of this module:

* The threads are real, but only the one that holds the *baton* runs. Before every instruction of the code that is
  watched (the modules that you name, and nothing else) the schedule says who goes on. Instructions that only move what
  the thread has already are passed over: what happens before one of those might as well happen before the next.
* Locks made during a run are instrumented: who would block passes the baton on instead. `threading.Event`, `Condition`,
  `Semaphore` and `queue.Queue` are built of them and need nothing more. Waits with a timeout are on virtual time, as is
  SystemClock; time passes when nobody can run.
* Everybody waiting is a deadlock, told with what each waits for. A run that takes too many steps makes no progress.
* What cannot be instrumented (a lock from before the run, a blocking call in C) would hold the baton for ever. Then the
  run is given up after some seconds of real time, with the stack that is to blame.

Plain stress finds next to no races: a thread runs thousands of instructions before another has its turn.

On Python 3.11 instructions are seen by `sys.settrace`; lines that run in such a thread are not seen by coverage there.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import traceback
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

from resilience.clock import SystemClock
from resilience.machines.checks import positive_int
from resilience.testing import runs
from resilience.testing.instructions import file_of, tracing, watching
from resilience.testing.runs import AbandonedError, DeadlockError, NoProgressError, Recorder, Run, let_in, shut_off
from resilience.testing.schedules import Random
from resilience.testing.thread_locks import Lock, RLock, real_lock, real_rlock, references
from resilience.testing.virtual_time import VirtualTime

if TYPE_CHECKING:
    import types
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from resilience.testing.instructions import Watched
    from resilience.testing.schedules import Schedule

__all__ = ["Threads", "record", "run"]

T = TypeVar("T")

#: After so many seconds of real time without a step the run is given up.
STUCK_AFTER = 20.0


def run(
    scenario: Callable[[Threads], T],
    *,
    watch: Iterable[Watched],
    schedule: Schedule = Random(0),  # noqa: B008 - frozen
    max_steps: int = 100_000,
) -> T:
    """Run a scenario under a schedule, twice; return what it returned or raise what it raised.

    The scenario builds everything anew, calls `threads.start(func, *args)` for each thread and then `threads.join()`,
    which runs them all to their ends, and judges what it finds.

    Args:
        scenario: what to run, called with the `Threads`.
        watch: the modules whose instructions are chosen one by one; a class or a function stands for its module, or
            for whatever else it was defined in.
        schedule: who runs when. Choice 0 is the thread that runs already.
        max_steps: after so many instructions the run makes no progress.

    Raises:
        DeadlockError: every thread waits for another.
        NoProgressError: there were too many steps.
        NondeterminismError: the second run was not the same.
        RealWorldError: a thread did I/O, or started a thread or slept on its own.

    """
    return record(scenario, watch=watch, schedule=schedule, max_steps=max_steps).outcome()


def record(
    scenario: Callable[[Threads], T],
    *,
    watch: Iterable[Watched],
    schedule: Schedule = Random(0),  # noqa: B008 - frozen
    max_steps: int = 100_000,
    twice: bool = True,
) -> Run[T]:
    """Do the same, and return the `Run`: the steps and choices, their hash, and the outcome.

    Args:
        scenario: as for `run`.
        watch: as for `run`.
        schedule: as for `run`.
        max_steps: as for `run`.
        twice: False runs once, and believes that the second run would have been the same.

    Raises:
        NondeterminismError: the second run was not the same.
        ValueError: there is nothing to watch.

    """
    positive_int("max_steps", max_steps)
    watched = tuple(watch)
    files = frozenset(filter(None, map(file_of, watched)))
    if not files:
        msg = f"watch must be modules, classes or functions that have a source file, not {watch!r}"
        raise ValueError(msg)
    body = functools.partial(_once, scenario, files, watched)
    return (runs.record_twice if twice else runs.record)(body, schedule, max_steps=max_steps)


def _once(
    scenario: Callable[[Threads], T], files: frozenset[str], watched: tuple[Watched, ...], recorder: Recorder
) -> T:
    time = VirtualTime(recorder)
    threads = Threads(recorder, time, files, [scenario, *watched])
    with time.shown(), threads._in_charge(), shut_off():  # noqa: SLF001 - its own other half
        return scenario(threads)


class _Thread:
    """One thread, and what it waits for."""

    __slots__ = ("body", "deadline_ns", "done", "error", "gate", "number", "ready", "where")

    def __init__(self, number: int, body: Callable[[], object]) -> None:
        self.number = number
        self.body = body
        self.gate = real_lock()
        self.gate.acquire()
        self.ready: Callable[[], bool] | None = None
        self.where: Callable[[], str] | None = None
        self.deadline_ns: int | None = None
        self.done = False
        self.error: BaseException | None = None


class Threads:
    """The threads of one run. `run` makes it and hands it to the scenario."""

    def __init__(self, recorder: Recorder, time: VirtualTime, files: frozenset[str], known: list[object]) -> None:
        self._recorder = recorder
        self._time = time
        self._files = files
        # What may have been made since somebody last looked for all that there is in these files.
        self._known = known
        self._threads: list[_Thread] = []
        self._by_ident: dict[int, _Thread] = {}
        self._places: dict[tuple[int, int], tuple[str, types.CodeType]] = {}
        self._circles: list[list[_Thread]] = []
        self._finding: BaseException | None = None
        self._finished = real_lock()
        self._finished.acquire()
        self._stack = ExitStack()
        self._has_trio = False

    def start(self, func: Callable[..., object], /, *args: object) -> None:
        """Have a thread that calls `func(*args)`; it runs in `join`."""
        self._threads.append(_Thread(len(self._threads) + 1, functools.partial(func, *args)))

    def start_loop(
        self, main: Callable[[], Awaitable[object]], /, *, backend: Literal["asyncio", "trio"] = "asyncio"
    ) -> None:
        """Have a thread that runs an async function in an event loop of its own, on the same virtual time.

        The order of its callbacks or tasks is chosen too; when none can run, it waits to be woken by another thread.

        Raises:
            ImportError: trio is not installed.
            ValueError: `backend` is neither of the two.

        """
        if backend == "asyncio":
            from resilience.testing import thread_asyncio

            self.start(thread_asyncio.run, main, self._recorder, self._time, self._park)
        elif backend == "trio":
            from resilience.testing import thread_trio

            if not self._has_trio:
                self._has_trio = True
                self._stack.enter_context(thread_trio.in_charge())
            self.start(thread_trio.run, main, self._recorder, self._time, self._park)
        else:
            msg = f"backend must be 'asyncio' or 'trio', not {backend!r}"
            raise ValueError(msg)

    def join(self) -> None:
        """Run the threads until all of them have ended; raise what one of them raised.

        Raises:
            DeadlockError: every thread waits for another.
            NoProgressError: there were too many steps.

        """
        threads = [thread for thread in self._threads if not thread.done]
        if not threads:
            return
        every = self._threads
        self._circles = [[*every[first:], *every[:first]] for first in range(len(every))]
        with self._originals(), let_in():
            workers = [
                threading.Thread(target=self._work, args=(thread,), daemon=True, name=f"interleaved-{thread.number}")
                for thread in threads
            ]
            for worker in workers:
                worker.start()
        self._known += [thread.body for thread in threads]
        with watching(self._files, self._known, self._step):
            self._pass_baton(self._choose(None))
            self._wait_for_all()
        with self._originals(), let_in():
            for worker in workers:
                worker.join()
        if self._finding is not None:
            raise self._finding
        errors = [thread.error for thread in threads if thread.error is not None]
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"another thread raised {other!r}")
            raise errors[0]

    # -- the baton --------------------------------------------------------------------------------------------------

    def _step(self, code: types.CodeType, offset: int) -> None:
        """Before an instruction: perhaps somebody else goes first."""
        me = self._by_ident.get(threading.get_ident())
        if me is None or self._finding is not None:
            return
        # This is done some hundred times in each of some thousand runs. The code is held, so that its id stays its own.
        place = self._places.get((id(code), offset))
        if place is None:
            place = self._places[id(code), offset] = f"{code.co_qualname} +{offset}", code
        try:
            self._recorder.step((me.number, place[0], 0, self._time.now_ns))
        except NoProgressError as error:
            self._give_up(error)
        self._hand_over(me)

    def _park(self, ready: Callable[[], bool], deadline_ns: int | None, where: Callable[[], str] | None = None) -> bool:
        """Let others run until `ready()`; return False if time has passed to the deadline instead.

        `where` tells where the thread stands, if that is not where its stack does.
        """
        me = self._by_ident.get(threading.get_ident())
        if me is None:
            msg = "the scenario itself waits for what nobody can give while no thread runs"
            raise DeadlockError(msg)
        if self._finding is not None:
            raise AbandonedError
        me.ready, me.deadline_ns, me.where = ready, deadline_ns, where
        try:
            self._hand_over(me)
            return ready()
        finally:
            me.ready = me.deadline_ns = me.where = None

    def _park_for(self, ready: Callable[[], bool], timeout: float) -> bool:
        """Do the same, for so many seconds at most; below zero, for as long as it takes."""
        return self._park(ready, None if timeout < 0 else self._time.now_ns + math.ceil(timeout * 10**9))

    def _hand_over(self, me: _Thread) -> None:
        chosen = self._choose(me)
        if chosen is not me:
            self._pass_baton(chosen)
            me.gate.acquire()
            if self._finding is not None:
                raise AbandonedError

    def _pass_baton(self, thread: _Thread) -> None:
        thread.gate.release()

    def _choose(self, me: _Thread | None) -> _Thread:
        """Return who goes on. Who runs already comes first, then the others in a circle behind it."""
        circle = self._threads if me is None else self._circles[me.number - 1]
        while True:
            can = [thread for thread in circle if thread.ready is None or self._may_go_on(thread, thread.ready)]
            if can:
                return can[self._recorder.choose(len(can), [thread.number for thread in can])]
            deadlines = [each.deadline_ns for each in circle if not each.done and each.deadline_ns is not None]
            if not deadlines:
                self._give_up(DeadlockError(self._everybody_waits()))
            self._time.pass_until(min(deadlines))

    def _may_go_on(self, thread: _Thread, ready: Callable[[], bool]) -> bool:
        return (thread.deadline_ns is not None and thread.deadline_ns <= self._time.now_ns) or ready()

    def _give_up(self, finding: BaseException) -> NoReturn:
        self._finding = self._finding or finding
        raise AbandonedError

    def _work(self, thread: _Thread) -> None:
        """Be one of the threads."""
        thread.gate.acquire()
        self._by_ident[threading.get_ident()] = thread
        try:
            if self._finding is None:
                with shut_off(), tracing(self._files, self._step):
                    thread.body()
        except AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by who joins
            thread.error = error
        finally:
            del self._by_ident[threading.get_ident()]
            thread.done, thread.ready, thread.deadline_ns = True, _never, None
            self._next_after(thread)

    def _next_after(self, thread: _Thread) -> None:
        left = [other for other in self._threads if not other.done]
        if not left:
            self._finished.release()
            return
        chosen = left[0]
        if self._finding is None:
            try:
                chosen = self._choose(thread)
            except AbandonedError:
                # Whoever it is ends now.
                chosen = left[0]
        self._pass_baton(chosen)

    def _wait_for_all(self) -> None:
        seen = -1
        while not self._finished.acquire(timeout=STUCK_AFTER):
            if seen == len(self._recorder.steps):
                raise DeadlockError(self._stuck())
            seen = len(self._recorder.steps)

    # -- what is told -----------------------------------------------------------------------------------------------

    def _everybody_waits(self) -> str:
        return f"every thread waits for another: {'; '.join(self._stacks())}"

    def _stuck(self) -> str:
        return (
            f"no thread has gone on for {STUCK_AFTER:.0f} s of real time; one of them blocks in what is not "
            f"instrumented, such as a lock made before the run: {'; '.join(self._stacks())}"
        )

    def _stacks(self) -> Iterator[str]:
        frames = sys._current_frames()  # noqa: SLF001 - documented, for debugging
        for ident, thread in sorted(self._by_ident.items(), key=lambda item: item[1].number):
            ours = [entry for entry in traceback.extract_stack(frames[ident]) if entry.filename in self._files]
            where = f"{ours[-1].name}, line {ours[-1].lineno}" if ours else "code that is not watched"
            yield f"thread {thread.number} in {where if thread.where is None else f'a loop of {thread.where()}'}"

    # -- what is replaced -------------------------------------------------------------------------------------------

    @contextmanager
    def _in_charge(self) -> Iterator[None]:
        """Have locks instrumented and sleep virtual, for what is made and done from here on."""
        kept = SystemClock.sleep_blocking
        replaced = references(self._files)

        def sleep_blocking(_clock: SystemClock, seconds: float, /) -> None:
            self._park_for(_never, max(0.0, seconds))

        self._replacements = [
            (threading, "Lock", real_lock, functools.partial(Lock, self._park_for)),
            (threading, "RLock", real_rlock, functools.partial(RLock, self._park_for)),
            (threading, "_allocate_lock", threading._allocate_lock, functools.partial(Lock, self._park_for)),  # type: ignore[attr-defined] # noqa: SLF001 - what Condition takes
            *((module, name, old, functools.partial(new, self._park_for)) for module, name, old, new in replaced),
        ]
        SystemClock.sleep_blocking = sleep_blocking  # type: ignore[method-assign]
        self._replace(instrumented=True)
        try:
            with self._stack:
                yield
        finally:
            self._replace(instrumented=False)
            SystemClock.sleep_blocking = kept  # type: ignore[method-assign]

    @contextmanager
    def _originals(self) -> Iterator[None]:
        """Have the real locks back, for the real threads."""
        self._replace(instrumented=False)
        try:
            yield
        finally:
            self._replace(instrumented=True)

    def _replace(self, *, instrumented: bool) -> None:
        for module, name, old, new in self._replacements:
            setattr(module, name, new if instrumented else old)


def _never() -> bool:
    return False
