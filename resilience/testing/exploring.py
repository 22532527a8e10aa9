"""Exploring: a test that runs under many schedules, and says how to run the one that failed.

Rules of this module:

* The first schedule is the plain one; then chance and priorities take turns, by the seed. Each is run twice and its
  steps are compared, so that what cannot be replayed is told before anything else.
* A schedule that fails is made as plain as it gets, and is written as one word that a command line takes.
* Of pytest it knows only that somebody may be there who wants another number of schedules, or a single one, and to be
  told what was covered: a `Session`. The module `plugin` is that somebody.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, get_args, overload

import attrs

from resilience.machines.checks import instance, positive_int, whole_number
from resilience.testing.report import Report
from resilience.testing.runs import NondeterminismError, told
from resilience.testing.schedules import PCT, Random, Replay
from resilience.testing.shrinking import shrink
from resilience.testing.virtual_time import NO_FAULTS, Faults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from resilience.testing.instructions import Watched
    from resilience.testing.interleaving import Threads
    from resilience.testing.runs import Run
    from resilience.testing.schedules import Schedule

__all__ = ["Backend", "Session", "explore", "read", "session", "spell"]

P = ParamSpec("P")

Backend: TypeAlias = Literal["asyncio", "trio", "threads"]
_INSTRUMENTS = {"asyncio": "seeded_asyncio", "trio": "seeded_trio", "threads": "interleaving"}

#: How many of the last steps of a failure are shown.
_SHOWN = 60


@attrs.frozen(kw_only=True, eq=False)
class Session:
    """What whoever runs the tests wants to be different, and hears of.

    Args:
        replay: the only schedule to run.
        schedules: how many to run, in place of what the test says.
        seed: what they are drawn from, in place of what the test says.
        command: makes the command that runs the test under one schedule, which is written as by `spell`.
        covered: called with what was covered, failed or not.
        failed: called with the steps of a run that failed, in words.

    """

    replay: Schedule | None = None
    schedules: int | None = None
    seed: int | None = None
    command: Callable[[str], str] = "replay={}".format
    covered: Callable[[Report], object] = attrs.field(default=lambda _: None)
    failed: Callable[[str], object] = attrs.field(default=lambda _: None)


session: ContextVar[Session] = ContextVar("session", default=Session())  # noqa: B039 - frozen
"""The session that tests run in."""


class _Record(Protocol):
    def __call__(self, body: Callable[..., object], /, *, schedule: Schedule, twice: bool) -> Run[object]: ...


@overload
def explore(
    *,
    schedules: int = ...,
    backend: Literal["asyncio", "trio"] = ...,
    seed: int = ...,
    starve: bool | None = ...,
    faults: Faults = ...,
    max_steps: int = ...,
) -> Callable[[Callable[P, Awaitable[object]]], Callable[P, None]]: ...


@overload
def explore(
    *,
    schedules: int = ...,
    backend: Literal["threads"],
    seed: int = ...,
    watch: Iterable[Watched],
    max_steps: int = ...,
) -> Callable[[Callable[Concatenate[Threads, P], object]], Callable[P, None]]: ...


def explore(
    *,
    schedules: int = 1_000,
    backend: Backend = "asyncio",
    seed: int = 0,
    starve: bool | None = None,
    faults: Faults = NO_FAULTS,
    watch: Iterable[Watched] = (),
    max_steps: int = 100_000,
) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """Make of a function a test that runs it under many schedules.

    On "asyncio" and "trio" it is an async function, and the schedule says which task is next. On "threads" it is a
    plain one whose first argument is the `interleaving.Threads` to start, and the schedule says which thread is next
    before every instruction of what is watched.

    Everything that the test uses is to be built within it: fixtures and arguments are the same for all its runs.

    Args:
        schedules: how many; the first is the plain one. Each is run twice.
        backend: "asyncio", "trio" or "threads".
        seed: what schedules are drawn from.
        starve: True lets any task run while all others wait, False has everybody take turns; None does both.
        faults: what may be wrong with time.
        watch: the modules whose instructions are watched, for threads alone, which need it.
        max_steps: after so many steps a run makes no progress.

    Raises:
        ImportError: trio is not installed.
        ValueError: an argument is not what it must be, or what is decorated is no function of the right kind.

    """
    if backend not in get_args(Backend):
        msg = f"backend must be one of {', '.join(map(repr, get_args(Backend)))}, not {backend!r}"
        raise ValueError(msg)
    positive_int("schedules", schedules)
    whole_number("seed", seed)
    options: dict[str, object] = {"max_steps": positive_int("max_steps", max_steps)}
    if backend == "threads":
        _leave_out(backend, starve=starve, faults=faults)
        options |= {"watch": tuple(watch)}
    else:
        _leave_out(backend, watch=tuple(watch))
        options |= {"starve": starve, "faults": instance("faults", faults, Faults)}
    instrument = importlib.import_module(f"resilience.testing.{_INSTRUMENTS[backend]}")
    record: _Record = functools.partial(instrument.record, **options)

    def decorate(func: Callable[..., object]) -> Callable[..., None]:
        if backend == "threads":
            _check(callable(func), "a function of Threads", func)
        else:
            _check(inspect.iscoroutinefunction(func), "an async function", func)

        @functools.wraps(func)
        def explored(*args: object, **kwargs: object) -> None:
            body = functools.partial(func, **kwargs)
            whole = (lambda threads: body(threads, *args)) if backend == "threads" else functools.partial(body, *args)
            _Exploration(record, whole, getattr(func, "__qualname__", repr(func)), schedules, seed).run()

        if backend == "threads":
            # Whoever calls it gives the other arguments.
            signature = inspect.signature(func)
            vars(explored)["__signature__"] = signature.replace(parameters=[*signature.parameters.values()][1:])
        return explored

    return decorate


def _leave_out(backend: Backend, **arguments: object) -> None:
    for name, value in arguments.items():
        if value:
            msg = f"{name} must be left out with backend={backend!r}, not {value!r}"
            raise ValueError(msg)


def _check(good: bool, kind: str, func: object) -> None:  # noqa: FBT001 - what was found out
    if not good:
        msg = f"func must be {kind}, not {func!r}"
        raise ValueError(msg)


class _Exploration:
    """One test under its schedules."""

    def __init__(self, record: _Record, body: Callable[..., object], name: str, schedules: int, seed: int) -> None:
        self._record_with = record
        self._body = body
        self._name = name
        self._session = session.get()
        self._number = schedules if self._session.schedules is None else self._session.schedules
        self._seed = seed if self._session.seed is None else self._session.seed
        self._hashes: set[str] = set()
        self._count = self._faults = 0
        # About how many choices a run has: the most that one had so far.
        self._length = 1

    def run(self) -> None:
        """Run every schedule; raise what the first that fails raises."""
        try:
            for schedule in self._schedules():
                self._count += 1
                run = self._record(schedule)
                self._hashes.add(run.hash)
                self._faults += run.faults.total()
                self._length = max(self._length, len(run.choices))
                if run.error is not None:
                    self._fail(run)
        finally:
            self._session.covered(
                Report(
                    name=self._name,
                    schedules=self._count,
                    distinct=len(self._hashes),
                    histories=self._count,
                    faults=self._faults,
                    seed=None if self._session.replay is not None else self._seed,
                )
            )

    def _schedules(self) -> Iterator[Schedule]:
        if self._session.replay is not None:
            yield self._session.replay
            return
        yield Replay()
        for number in range(1, self._number):
            seed = self._seed + number
            yield PCT(seed, length=self._length) if number % 2 else Random(seed)

    def _record(self, schedule: Schedule, *, twice: bool = True) -> Run[object]:
        try:
            return self._record_with(self._body, schedule=schedule, twice=twice)
        except NondeterminismError as error:
            error.add_note(self._session.command(spell(schedule)))
            raise

    def _fail(self, run: Run[object]) -> None:
        """Find a plainer schedule that fails in the same way; raise what that raises."""

        def attempt(choices: tuple[int, ...]) -> tuple[int, ...] | None:
            tried = self._record(Replay(choices), twice=False)
            return tried.choices if type(tried.error) is type(run.error) else None

        found = Replay(shrink(run.choices, attempt))
        shrunk = self._record(found)
        error = shrunk.error
        # What is found once more is told; what is not, although it was run twice, is told as it was found first.
        if type(error) is not type(run.error):
            found, shrunk = run.replay, run
        assert shrunk.error is not None  # noqa: S101 - as the lines above say
        shrunk.error.add_note(
            f"schedule {self._count} of {self._name} failed (seed {self._seed}); as plain as it gets, it is\n"
            f"    {self._session.command(spell(found))}"
        )
        self._session.failed(_steps(shrunk))
        shrunk.outcome()


def _steps(run: Run[object]) -> str:
    left_out = len(run.steps) - _SHOWN
    lines = [f"{number}. {told(step)}" for number, step in enumerate(run.steps, start=1)]
    return "\n".join([f"({left_out} steps)", *lines[-_SHOWN:]] if left_out > 0 else lines)


# -- schedules as words ----------------------------------------------------------------------------------------------


def spell(schedule: Schedule) -> str:
    """Return a schedule as a word: `random:SEED`, `pct:SEED:DEPTH:LENGTH`, `plain`, or `PLACE:CHOICE,…`.

    The last names the choices that are not the plain one, each with its place from 0.
    """
    match schedule:
        case Random(seed=seed):
            return f"random:{seed}"
        case PCT(seed=seed, depth=depth, length=length):
            return f"pct:{seed}:{depth}:{length}"
        case Replay(choices=choices):
            return ",".join(f"{place}:{choice}" for place, choice in enumerate(choices) if choice) or "plain"
        case _:
            msg = f"schedule must be a Random, a PCT or a Replay, not {schedule!r}"
            raise ValueError(msg)


def read(word: str) -> Schedule:
    """Return the schedule that a word says; ValueError if it says none."""
    kind, _, numbers = word.partition(":")
    try:
        match kind, numbers.split(":"):
            case "plain", [""]:
                return Replay()
            case "random", [seed]:
                return Random(int(seed))
            case "pct", [seed, depth, length]:
                return PCT(int(seed), int(depth), int(length))
            case _:
                pairs = (turn.split(":") for turn in word.split(","))
                turns = {whole_number("place", int(place)): int(choice) for place, choice in pairs}
                return Replay(turns.get(place, 0) for place in range(max(turns) + 1))
    except ValueError as error:
        msg = f"a schedule must be random:SEED, pct:SEED:DEPTH:LENGTH, plain or PLACE:CHOICE,…, not {word!r}"
        raise ValueError(msg) from error
