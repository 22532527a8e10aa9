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

Instructions are seen by `sys.monitoring` where it exists (Python 3.12), else by `sys.settrace`. On 3.11 lines that run
in such a thread are therefore not seen by coverage.
"""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import math
import sys
import threading
import traceback
import types
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from resilience.clock import SystemClock
from resilience.machines.checks import positive_int
from resilience.testing import runs
from resilience.testing.runs import DeadlockError, NoProgressError, Recorder, Run, let_in, shut_off
from resilience.testing.schedules import Random
from resilience.testing.seeded_asyncio import SeededLoop
from resilience.testing.virtual_time import VirtualTime

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from typing import TypeAlias

    from resilience.testing.schedules import Schedule

    TraceFunction: TypeAlias = Callable[[types.FrameType, str, object], "TraceFunction | None"]
    Watched: TypeAlias = types.ModuleType | type | Callable[..., object]

__all__ = ["Threads", "record", "run"]

T = TypeVar("T")

#: After so many seconds of real time without a step the run is given up.
STUCK_AFTER = 20.0

_real_lock = threading.Lock
_real_rlock = threading.RLock


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
    files = frozenset(filter(None, map(_file, watched)))
    if not files:
        msg = f"watch must be modules, classes or functions that have a source file, not {watch!r}"
        raise ValueError(msg)
    body = functools.partial(_once, scenario, files, watched)
    return (runs.record_twice if twice else runs.record)(body, schedule, max_steps=max_steps)


def _file(watched: Watched) -> str | None:
    if isinstance(watched, types.ModuleType):
        return watched.__file__
    try:
        return inspect.getfile(watched)
    except (TypeError, OSError):
        # A class that was typed at a prompt or ran from a page knows no file; its methods do.
        return next((function.__code__.co_filename for function in _functions(watched)), None)


def _functions(found: object) -> Iterator[types.FunctionType]:
    """Yield the function that this is, or those that it is made of."""
    if isinstance(found, functools.partial):
        for inner in (found.func, *found.args):
            yield from _functions(inner)
    elif isinstance(found, types.MethodType):
        yield from _functions(found.__func__)
    elif isinstance(found, type):
        for inner in vars(found).values():
            yield from _functions(inner)
    elif isinstance(found, types.FunctionType):
        yield found


def _once(
    scenario: Callable[[Threads], T], files: frozenset[str], watched: tuple[Watched, ...], recorder: Recorder
) -> T:
    time = VirtualTime(recorder)
    threads = Threads(recorder, time, files, [scenario, *watched])
    with time.shown(), threads._in_charge(), shut_off():  # noqa: SLF001 - its own other half
        return scenario(threads)


class _AbandonedError(BaseException):
    """Ends a thread of a run that is over."""


class _Thread:
    """One thread, and what it waits for."""

    __slots__ = ("body", "deadline_ns", "done", "error", "gate", "number", "ready")

    def __init__(self, number: int, body: Callable[[], object]) -> None:
        self.number = number
        self.body = body
        self.gate = _real_lock()
        self.gate.acquire()
        self.ready: Callable[[], bool] | None = None
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
        self._finished = _real_lock()
        self._finished.acquire()
        self._lifted = False

    def start(self, func: Callable[..., object], /, *args: object) -> None:
        """Have a thread that calls `func(*args)`; it runs in `join`."""
        self._threads.append(_Thread(len(self._threads) + 1, functools.partial(func, *args)))

    def start_loop(self, main: Callable[[], Awaitable[object]], /) -> None:
        """Have a thread that runs an async function in an event loop of asyncio of its own, on the same virtual time.

        The order of its callbacks is chosen too; when none can run, it waits to be woken by another thread.
        """
        self.start(self._run_loop, main)

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
        with _watching(self):
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

    def _park(self, ready: Callable[[], bool], deadline_ns: int | None) -> bool:
        """Let others run until `ready()`; return False if time has passed to the deadline instead."""
        me = self._by_ident.get(threading.get_ident())
        if me is None:
            msg = "the scenario itself waits for what nobody can give while no thread runs"
            raise DeadlockError(msg)
        if self._finding is not None:
            raise _AbandonedError
        me.ready, me.deadline_ns = ready, deadline_ns
        try:
            self._hand_over(me)
            return ready()
        finally:
            me.ready = me.deadline_ns = None

    def _hand_over(self, me: _Thread) -> None:
        chosen = self._choose(me)
        if chosen is not me:
            self._pass_baton(chosen)
            me.gate.acquire()
            if self._finding is not None:
                raise _AbandonedError

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
        raise _AbandonedError

    def _work(self, thread: _Thread) -> None:
        """Be one of the threads."""
        thread.gate.acquire()
        self._by_ident[threading.get_ident()] = thread
        try:
            if self._finding is None:
                with shut_off(), _tracing(self):
                    thread.body()
        except _AbandonedError:
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
            except _AbandonedError:
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
            yield f"thread {thread.number} in {where}"

    # -- what is replaced -------------------------------------------------------------------------------------------

    @contextmanager
    def _in_charge(self) -> Iterator[None]:
        """Have locks instrumented and sleep virtual, for what is made and done from here on."""
        kept = SystemClock.sleep_blocking
        replaced = _references(self._files)

        def sleep_blocking(_clock: SystemClock, seconds: float, /) -> None:
            self._park(_never, self._time.now_ns + max(0, math.ceil(seconds * 10**9)))

        self._replacements = [
            (threading, "Lock", _real_lock, functools.partial(_Lock, self)),
            (threading, "RLock", _real_rlock, functools.partial(_RLock, self)),
            (threading, "_allocate_lock", threading._allocate_lock, functools.partial(_Lock, self)),  # type: ignore[attr-defined] # noqa: SLF001 - what Condition takes
            *((module, name, old, functools.partial(new, self)) for module, name, old, new in replaced),
        ]
        SystemClock.sleep_blocking = sleep_blocking  # type: ignore[method-assign]
        self._replace(instrumented=True)
        try:
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

    # -- an event loop in a thread ------------------------------------------------------------------------------------

    def _run_loop(self, main: Callable[[], Awaitable[object]]) -> None:
        _ThreadLoop(self._recorder, self._time, self).run(main)


class _ThreadLoop(SeededLoop):
    """A seeded loop that waits for other threads, where one that is alone would be in a deadlock.

    Only `call_soon_threadsafe` may be called by these: to what else they call a real loop that sleeps would not wake.
    """

    def __init__(self, recorder: Recorder, time: VirtualTime, threads: Threads) -> None:
        super().__init__(recorder, time, starving=False)
        self._threads = threads

    def call_soon(self, callback: Callable[..., object], *args: object, context: object = None) -> asyncio.Handle:
        """Call back soon; RuntimeError in another thread."""
        self._check_thread()  # type: ignore[attr-defined]
        return super().call_soon(callback, *args, context=context)  # type: ignore[arg-type]

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: object = None
    ) -> asyncio.TimerHandle:
        """Call back then; RuntimeError in another thread."""
        self._check_thread()  # type: ignore[attr-defined]
        return super().call_at(when, callback, *args, context=context)  # type: ignore[arg-type]

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: object, context: object = None
    ) -> asyncio.Handle:
        """Call back soon, whoever asks."""
        return super().call_soon(callback, *args, context=context)  # type: ignore[arg-type]

    def _wait(self, due_ns: int | None) -> None:
        self._threads._park(lambda: bool(self._ready), due_ns)  # type: ignore[attr-defined] # noqa: SLF001 - its own other half


def _never() -> bool:
    return False


def _references(files: frozenset[str]) -> list[tuple[types.ModuleType, str, object, type[_Lock | _RLock]]]:
    """Return where watched modules have imported the classes of locks by name."""
    by_name: dict[object, type[_Lock | _RLock]] = {_real_lock: _Lock, _real_rlock: _RLock}
    return [
        (module, name, value, by_name[value])
        for module in _modules(files, len(sys.modules))
        for name, value in list(vars(module).items())
        if value is _real_lock or value is _real_rlock
    ]


@functools.lru_cache
def _modules(files: frozenset[str], _loaded: int) -> list[types.ModuleType]:
    """Return the modules that were read from these files; where more have been loaded since, it is another question."""
    return [module for module in list(sys.modules.values()) if getattr(module, "__file__", None) in files]


# -- locks ------------------------------------------------------------------------------------------------------------


class _Lock:
    """A `threading.Lock` whose waiters pass the baton on. Only one thread runs at a time, so a flag will do."""

    __slots__ = ("__weakref__", "_held", "_threads")

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as the real one
        if self._held and not (blocking and _parked(self._threads, self._free, timeout)):
            return False
        self._held = True
        return True

    def _free(self) -> bool:
        return not self._held

    def release(self) -> None:
        if not self._held:
            msg = "release unlocked lock"
            raise RuntimeError(msg)
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class _RLock:
    """A `threading.RLock`, likewise; with the three methods by which Condition gives it up and takes it back."""

    __slots__ = ("__weakref__", "_count", "_owner", "_threads")

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._owner: int | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as the real one
        me = threading.get_ident()
        if self._owner not in (None, me) and not (blocking and _parked(self._threads, self._free, timeout)):
            return False
        self._owner = me
        self._count += 1
        return True

    def _free(self) -> bool:
        return self._owner is None

    def release(self) -> None:
        if not self._is_owned():
            msg = "cannot release un-acquired lock"
            raise RuntimeError(msg)
        self._count -= 1
        if not self._count:
            self._owner = None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self._owner == threading.get_ident()

    def _release_save(self) -> int:
        count, self._count, self._owner = self._count, 0, None
        return count

    def _acquire_restore(self, count: int) -> None:
        self.acquire()
        self._count = count


def _parked(threads: Threads, ready: Callable[[], bool], timeout: float) -> bool:
    deadline_ns = None if timeout < 0 else threads._time.now_ns + math.ceil(timeout * 10**9)  # noqa: SLF001 - its own other half
    return threads._park(ready, deadline_ns)  # noqa: SLF001 - as above


# -- instructions -----------------------------------------------------------------------------------------------------

#: They move what the thread has already, and drop nothing that might have a finalizer.
_QUIET = frozenset(
    dis.opmap[name]
    for name in (
        "CACHE", "COPY", "COPY_FREE_VARS", "EXTENDED_ARG", "JUMP_FORWARD", "KW_NAMES", "LOAD_CLOSURE", "LOAD_CONST",
        "LOAD_FAST", "LOAD_FAST_AND_CLEAR", "LOAD_FAST_BORROW", "LOAD_FAST_BORROW_LOAD_FAST_BORROW", "LOAD_FAST_CHECK",
        "LOAD_FAST_LOAD_FAST", "LOAD_SMALL_INT", "MAKE_CELL", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL", "RESUME",
        "SWAP",
    )
    if name in dis.opmap
)  # fmt: skip


@functools.cache
def _quiet(code: types.CodeType) -> frozenset[int]:
    """Return where in this code nothing is done that another thread could see, or see to."""
    return frozenset(offset for offset in range(0, len(code.co_code), 2) if code.co_code[offset] in _QUIET)


if sys.version_info >= (3, 12):
    _monitoring = sys.monitoring
    _TOOLS = (4, 3)  # the numbers that Python reserves for nobody

    @contextmanager
    def _watching(threads: Threads) -> Iterator[None]:
        """Have every instruction of the watched files told to `threads`."""
        tool = next(number for number in _TOOLS if _monitoring.get_tool(number) is None)
        known = [each.__code__ for found in threads._known for each in _functions(found)]  # noqa: SLF001 - its own other half
        codes = _codes(threads._files) | _within(known, threads._files)  # noqa: SLF001 - as above
        event, step = _monitoring.events.INSTRUCTION, threads._step  # noqa: SLF001 - as above

        def instruction(code: types.CodeType, offset: int) -> object:
            if offset in _quiet(code):
                return _monitoring.DISABLE
            return step(code, offset)

        _monitoring.use_tool_id(tool, __name__)
        _monitoring.register_callback(tool, event, instruction)
        for code in codes.values():
            _monitoring.set_local_events(tool, code, event)
        try:
            yield
        finally:
            for code in codes.values():
                _monitoring.set_local_events(tool, code, 0)
            _monitoring.register_callback(tool, event, None)
            _monitoring.free_tool_id(tool)

    @contextmanager
    def _tracing(_threads: Threads) -> Iterator[None]:
        """Do nothing: what is watched is watched in every thread."""
        yield

    @functools.cache
    def _codes(files: frozenset[str]) -> dict[int, types.CodeType]:
        """Return all code of these files, the first time that they are asked for: functions, and what these contain."""
        functions = [each for each in gc.get_objects() if isinstance(each, types.FunctionType)]
        return _within([each.__code__ for each in functions], files)

    def _within(codes: list[types.CodeType], files: frozenset[str]) -> dict[int, types.CodeType]:
        """Return those of these files, and what they contain, by id: what was read twice is equal, and yet is two."""
        found: dict[int, types.CodeType] = {}
        while codes:
            code = codes.pop()
            if code.co_filename in files and id(code) not in found:
                found[id(code)] = code
                codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        return found

else:

    @contextmanager
    def _watching(_threads: Threads) -> Iterator[None]:
        """Do nothing: each thread watches itself."""
        yield

    @contextmanager
    def _tracing(threads: Threads) -> Iterator[None]:
        """Have every instruction of the watched files in this thread told to `threads`."""
        files, step = threads._files, threads._step  # noqa: SLF001 - its own other half

        def watch(frame: types.FrameType, _event: str, _argument: object) -> TraceFunction | None:
            code = frame.f_code
            if code.co_filename not in files:
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            quiet = _quiet(code)

            def instruction(frame: types.FrameType, event: str, _argument: object) -> TraceFunction:
                if event == "opcode" and frame.f_lasti not in quiet:
                    step(code, frame.f_lasti)
                return instruction

            return instruction

        sys.settrace(watch)
        try:
            yield
        finally:
            sys.settrace(None)
