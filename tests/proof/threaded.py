"""Real guards between threads, one instruction at a time: many schedules, programs of operations, guards without locks.

The schedules are some by chance, some by priorities, and all that differ from the plain one in a choice or two.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from resilience.events import Section
from resilience.testing import PCT, Exhaustive, History, ManualClock, Model, Random, assert_linearizable
from resilience.testing.interleaving import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from resilience.layer import Permit
    from resilience.testing import Run, Schedule
    from resilience.testing.instructions import Watched
    from resilience.testing.interleaving import Threads

#: How many programs are drawn.
_PROGRAMS = 15

W = TypeVar("W", bound="World")
K = TypeVar("K")

Act: TypeAlias = "Callable[[W], object]"
"""One operation on a world."""
Programs: TypeAlias = "Sequence[Sequence[Act[W]]]"
"""What each thread does, one act after the other."""


class World:
    """Fresh for each run: a guard, a clock, the history of what was done, and the permits that each thread holds."""

    def __init__(self) -> None:
        self.history = History()
        self.clock = ManualClock()
        self._permits: defaultdict[str, list[tuple[str, Permit]]] = defaultdict(list)
        self._names = itertools.count()

    def name(self) -> str:
        """Return a name that nothing else has."""
        return f"permit {next(self._names)}"

    def keep(self, name: str, permit: Permit) -> None:
        """Keep a permit for the calling thread."""
        self._permits[threading.current_thread().name].append((name, permit))

    def kept(self) -> tuple[str, Permit] | None:
        """Take the calling thread's last permit, with its name; None if it has none."""
        mine = self._permits[threading.current_thread().name]
        return mine.pop() if mine else None


def holds(
    scenario: Callable[[Threads], object],
    *,
    watch: Sequence[Watched],
    draws: int = 15,
    deviations: int = 1,
    limit: int | None = None,
) -> None:
    """Run a scenario under `draws` schedules by chance, as many by priorities, and all of few deviations.

    Fails as the first run that fails does. One is run twice and compared; the others are believed
    to be as repeatable.
    """
    plain = record(scenario, watch=watch)
    length = max(1, len(plain.choices))
    schedules: Iterable[Schedule] = itertools.chain(
        map(Random, range(draws)),
        (PCT(seed, 2 + seed % 2, length) for seed in range(draws)),
        Exhaustive(deviations=deviations, limit=limit),
    )
    for schedule in schedules:
        _held(record(scenario, watch=watch, schedule=schedule, twice=False))


#: What a race may end in, beside a wrong answer. A TypeError or an AttributeError is a mutant that is out of date.
_RACES = (LookupError, RuntimeError, ValueError)


def _held(run: Run[object]) -> None:
    if isinstance(run.error, _RACES):
        msg = f"under schedule={run.schedule!r} a thread raised {run.error!r}"
        raise AssertionError(msg) from run.error
    run.outcome()


def acting(make: Callable[[], W], programs: Programs[W], judge: Callable[[W], object]) -> Callable[[Threads], None]:
    """Make a scenario: a thread for each program does its acts one after the other, and the world is judged."""

    def scenario(threads: Threads) -> None:
        world = make()
        for program in programs:
            threads.start(_act, world, program)
        threads.join()
        judge(world)

    return scenario


def _act(world: W, program: Sequence[Act[W]]) -> None:
    for act in program:
        act(world)


def drawn(acts: Sequence[Act[W]], seed: int, *, threads: int = 3, length: int = 3) -> Programs[W]:
    """Draw programs of these acts."""
    dice = random.Random(seed)
    return [[dice.choice(acts) for _ in range(length)] for _ in range(threads)]


def linearizable(
    make: Callable[[], W],
    model: Model[Any],
    *,
    acts: Sequence[Act[W]],
    fixed: Sequence[Programs[W]],
    watch: Sequence[Watched],
    draws: int = 15,
    also: Callable[[W], object] = bool,
) -> None:
    """Assert that all histories are linearizable: of the `fixed` programs under many schedules, and of drawn ones.

    `also` is asked about the world when all threads have ended.
    """

    def judge(world: W) -> None:
        also(world)
        assert_linearizable(world.history, model)

    for programs in fixed:
        holds(acting(make, programs, judge), watch=watch, draws=draws)
    for seed in range(_PROGRAMS):
        scenario = acting(make, drawn(acts, seed), judge)
        for schedule in (Random(seed), Random(seed + 1), PCT(seed), PCT(seed + 1, 2)):
            _held(record(scenario, watch=watch, schedule=schedule, twice=False))


# -- mutants ----------------------------------------------------------------------------------------------------------


class NoLock:
    """Takes part as a lock does, and keeps nobody out."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ARG002, FBT001, FBT002 - as a lock
        return True

    def release(self) -> None:
        """Do nothing."""

    def locked(self) -> bool:
        return False

    __enter__ = acquire

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


def unlocked(kind: type[K]) -> type[K]:
    """Return a mutant of this class of guards: the same with its lock taken out."""

    def __init__(self: Any, *args: object, **kwargs: object) -> None:  # noqa: ANN401, N807 - of any guard
        kind.__init__(self, *args, **kwargs)
        self._lock = lock = NoLock()
        if hasattr(self, "_section"):
            self._section = Section(lock, self._events)  # type: ignore[arg-type]
        if hasattr(self, "_try_lock"):
            self._try_lock, self._unlock = lock.acquire, lock.release

    return type(f"Unlocked{kind.__name__}", (kind,), {"__init__": __init__, "__slots__": ()})
