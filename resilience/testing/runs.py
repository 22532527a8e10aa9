"""Runs: what one run under a schedule did, and how two of them are compared.

Rules of this module:

* A run is a list of steps, each told by what ran and where. Two runs of one schedule must take the same steps; if they
  do not, something outside the schedule had a say, and that is reported before anything else.
* What a run found is an error that says so. Whatever the body raised leaves with a note of the schedule that did it.

It knows no event loop and no thread; those write the steps.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.util
import inspect
import itertools
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import attrs

from resilience.testing.schedules import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from resilience.testing.schedules import Choices, Schedule

__all__ = ["DeadlockError", "NoProgressError", "NondeterminismError", "RealWorldError", "Recorder", "Run", "Step"]

T = TypeVar("T")


class DeadlockError(AssertionError):
    """Everybody waits, and nothing that could wake anybody is left."""


class NoProgressError(AssertionError):
    """The run has taken more steps than it was allowed; something goes round and round."""


class NondeterminismError(AssertionError):
    """The same schedule gave two different runs: something that is not in the schedule had a say."""


class RealWorldError(RuntimeError):
    """The body reached for the world outside: a socket, a process, a thread, a sleep in real time."""


class AbandonedError(BaseException):
    """Ends a thread of a run that is over, whatever catches an Exception there."""


#: Whose turn it was, by number; what ran, and where it stood; the virtual time in nanoseconds.
Step: TypeAlias = tuple[int, str, int, int]


def told(step: Step) -> str:
    """Return a step in words."""
    name, what, line, at_ns = step
    return f"{what}{f', line {line}' if line else ''}, as number {name} at {at_ns / 10**9:.9g} s"


#: How often a coroutine may await something when it is told to end.
_GOODBYES = 100
#: Not where a body stands, but what it stands on.
_LIBRARIES = tuple(
    str(Path(spec.origin).parent)
    for spec in map(importlib.util.find_spec, ("asyncio", "anyio", "trio"))
    if spec is not None and spec.origin is not None
)


def standing(coroutine: object) -> tuple[str, int]:
    """Return the innermost function that a coroutine awaits, libraries of event loops apart, and the line there."""
    name = getattr(coroutine, "__qualname__", type(coroutine).__qualname__)
    line, theirs = 0, False
    while coroutine is not None:
        if inspect.iscoroutine(coroutine):
            frame, coroutine = coroutine.cr_frame, coroutine.cr_await
        elif inspect.isgenerator(coroutine):
            frame, coroutine = coroutine.gi_frame, coroutine.gi_yieldfrom
        else:
            break
        if frame is not None and not (theirs and frame.f_code.co_filename.startswith(_LIBRARIES)):
            name, line = frame.f_code.co_qualname, frame.f_lineno or 0
            theirs = not frame.f_code.co_filename.startswith(_LIBRARIES)
    return name, line


def end(coroutine: object) -> None:
    """Close a coroutine that nobody will resume again, as often as it awaits something on its way out."""
    for _ in range(_GOODBYES):
        try:
            coroutine.close()  # type: ignore[attr-defined] # whatever a task runs has it
        except BaseException:  # noqa: BLE001, S112 - why the run has ended has been told
            continue
        return


class Recorder:
    """Asks a schedule, and puts down what it says and what is done about it."""

    __slots__ = ("_choose", "broken", "choices", "faults", "max_steps", "steps")

    def __init__(self, choices: Choices, max_steps: int) -> None:
        self._choose = choices.choose
        self.max_steps: int = max_steps
        self.choices: list[int] = []
        self.steps: list[Step] = []
        self.faults: Counter[str] = Counter()
        #: What the schedule raised instead of answering, as Hypothesis does when it has seen enough.
        self.broken: BaseException | None = None

    def choose(self, n: int, names: Sequence[int] = (), /) -> int:
        """Ask which of `n` comes next. If the schedule raises, the next step ends the run: here nobody could."""
        try:
            choice = self._choose(n, names)
        except BaseException as error:  # noqa: BLE001 - raised again at the end of the run
            self.broken = self.broken or error
            self.max_steps = 0
            return 0
        if n > 1:
            self.choices.append(choice)
        return choice

    def step(self, step: Step) -> None:
        """Put down a step; NoProgressError if there have been too many."""
        self.steps.append(step)
        if len(self.steps) > self.max_steps:
            raise self.no_progress()

    def no_progress(self) -> NoProgressError:
        """Return the error that tells what the run has been busy with."""
        last = Counter(told(each).partition(", as number ")[0] for each in self.steps[-1000:]).most_common(3)
        most = "; ".join(f"{what} ({times}x)" for what, times in last)
        return NoProgressError(f"no end after {self.max_steps} steps; of the last 1000, most were {most}")


@attrs.frozen(eq=False)
class Run(Generic[T]):
    """One run of a body under a schedule.

    `hash` tells its steps in sixteen digits: runs with the same hash took the same steps in the same order.
    """

    schedule: Schedule
    choices: tuple[int, ...]
    steps: tuple[Step, ...] = attrs.field(repr=lambda steps: f"<{len(steps)} steps>")
    faults: Counter[str]
    """The faults that were injected, by kind."""
    outcome: Callable[[], T] = attrs.field(repr=False)
    """Returns what the body returned, or raises what it raised."""
    error: BaseException | None = None

    @functools.cached_property
    def hash(self) -> str:
        """The steps in sixteen hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=8)
        for step in self.steps:
            digest.update(repr(step).encode())
        return digest.hexdigest()

    @property
    def replay(self) -> Replay:
        """The schedule in its plainest form: every choice that was made."""
        return Replay(self.choices)

    def compare(self, other: Run[T]) -> None:
        """Raise NondeterminismError with the first step in which the other run of this schedule differs."""
        for number, (mine, its) in enumerate(itertools.zip_longest(self.steps, other.steps), start=1):
            if mine != its:
                first, second = ("the end" if step is None else told(step) for step in (mine, its))
                msg = (
                    f"{self.schedule!r} gave two different runs. The first difference is step {number}: "
                    f"{first}; the second time, {second}. Something outside the schedule had a say, such as "
                    "`random`, the clock of the machine, `id()` or the order of a set, or state left over from before"
                )
                raise NondeterminismError(msg) from (self.error or other.error)
        if type(self.error) is not type(other.error):
            msg = (
                f"{self.schedule!r} gave two different ends after the same {len(self.steps)} steps: {self.error!r} "
                f"and {other.error!r}. Something outside the schedule had a say"
            )
            raise NondeterminismError(msg) from (self.error or other.error)


def record(body: Callable[[Recorder], T], schedule: Schedule, *, max_steps: int) -> Run[T]:
    """Run a body once, undisturbed, and return what it did. The body asks the recorder for every choice."""
    recorder = Recorder(schedule.start(), max_steps)
    error: BaseException | None = None
    outcome: Callable[[], T]
    with _ONE_AT_A_TIME, _nobody_collects(), _doors():
        try:
            value = body(recorder)
            outcome = functools.partial(_return, value)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as caught:  # noqa: BLE001 - raised again by whoever asks for the outcome
            error = caught
            outcome = functools.partial(_raise, caught)
    if recorder.broken is not None:
        raise recorder.broken
    run = Run(schedule, tuple(recorder.choices), tuple(recorder.steps), recorder.faults, outcome, error)
    if error is not None:
        _note(error, run)
    return run


# A run holds the clocks, the collector and the doors of the whole process.
_ONE_AT_A_TIME = threading.RLock()


def record_twice(body: Callable[[Recorder], T], schedule: Schedule, *, max_steps: int) -> Run[T]:
    """Run a body twice; NondeterminismError if it was not the same run."""
    first = record(body, schedule, max_steps=max_steps)
    if not isinstance(first.error, RealWorldError):
        first.compare(record(body, schedule, max_steps=max_steps))
    return first


def _return(value: T) -> T:
    return value


def _raise(error: BaseException) -> T:  # type: ignore[type-var]
    raise error


def _note(error: BaseException, run: Run[T]) -> None:
    error.add_note(f"under schedule={run.schedule!r}, trace {run.hash} of {len(run.steps)} steps")


@contextmanager
def _nobody_collects() -> Iterator[None]:
    """Keep the garbage collector from closing a generator or calling a finalizer somewhere in the middle.

    What the run leaves is collected at its end, so that a finalizer that has something to say does not say it during
    somebody else's run. Nothing was collected meanwhile, so all of it is young.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if enabled:
            gc.enable()


# -- the world outside ------------------------------------------------------------------------------------------------

_FORBIDDEN = frozenset(
    {
        "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "socket.__new__", "socket.bind",
        "socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname", "socket.sendmsg",
        "socket.sendto", "subprocess.Popen",
    }
)  # fmt: skip
#: The threads that are shut off, each with what it was refused.
_WATCHED: dict[int, list[RealWorldError]] = {}


def refused(what: str) -> RealWorldError:
    """Put down that the body reached for the world outside, and return the error that says so."""
    error = RealWorldError(
        f"the body asked for {what}, which belongs to the world outside: under a schedule nothing may happen that the "
        "schedule does not decide. Give the body a fake, or test it on an ordinary event loop"
    )
    _WATCHED.get(threading.get_ident(), []).append(error)
    return error


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    # On every audited event of the process, for ever, since such a hook cannot be taken out: one look at a dictionary.
    if _WATCHED and event in _FORBIDDEN and threading.get_ident() in _WATCHED:
        shown = ", ".join(repr(argument)[:60] for argument in arguments[:2])
        raise refused(f"{event}({shown})")


@functools.cache
def _install() -> None:
    sys.addaudithook(_audit)


@contextmanager
def _doors() -> Iterator[None]:
    """Put a door keeper before what not every Python audits: the start of a thread, and sleep in real time."""
    start, sleep = threading.Thread.start, time.sleep  # noqa: TID251 - to refuse it

    def guarded_start(self: threading.Thread) -> None:
        if threading.get_ident() in _WATCHED:
            raise refused(f"a thread to run {getattr(self, '_target', None)!r}")
        start(self)

    def guarded_sleep(seconds: float, /) -> None:
        if threading.get_ident() in _WATCHED:
            raise refused(f"time.sleep({seconds!r})")
        sleep(seconds)

    threading.Thread.start = guarded_start  # type: ignore[method-assign]
    time.sleep = guarded_sleep  # type: ignore[assignment] # noqa: TID251 - as above
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
        time.sleep = sleep  # noqa: TID251 - as above


@contextmanager
def shut_off() -> Iterator[None]:
    """Refuse the calling thread the world outside: I/O, threads and sleep are RealWorldError.

    It is raised where it happens and once more at the end, for a body that catches whatever comes.
    """
    _install()
    this = threading.get_ident()
    if this in _WATCHED:
        msg = "one run under a schedule cannot be started within another"
        raise RuntimeError(msg)
    _WATCHED[this] = []
    try:
        yield
    finally:
        errors = _WATCHED.pop(this)
        if errors:
            raise errors[0]


@contextmanager
def let_in() -> Iterator[None]:
    """Allow the calling thread the world outside again, for what the instrument itself has to do there."""
    this = threading.get_ident()
    errors = _WATCHED.pop(this, None)
    try:
        yield
    finally:
        if errors is not None:
            _WATCHED[this] = errors
