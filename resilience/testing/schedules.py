"""Schedules: who runs next, as a value that can be written down, replayed, searched and shrunk.

Rules of this module:

* A run asks for one *choice* after another: which of `n` comes next. A *schedule* is a frozen value that answers them
  all, the same way each time that it is started; so it is its own replay.
* Choice 0 is what would happen anyway (the one that has waited longest; the thread that runs already). The schedule of
  nothing but zeros is therefore the plain one, and a schedule shrinks towards it.
* What may be chosen has names, small numbers that stay with a task or a thread for the whole run. Most schedules do
  not look at them; PCT gives each name its priority.

It knows no event loop and no thread.
"""

from __future__ import annotations

import random as random_module
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from resilience.machines.checks import positive_int, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hypothesis import strategies as st

__all__ = ["PCT", "Choices", "Exhaustive", "Random", "Replay", "Schedule", "schedules"]


class Choices(Protocol):
    """A schedule that was started: it answers the choices of one run."""

    def choose(self, n: int, names: Sequence[int] = (), /) -> int:
        """Return which of `n` comes next, from 0; `names` says whose turns they are, where they have names."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """A value that says who runs when. Starting it twice gives the same answers to the same questions."""

    def start(self) -> Choices:
        """Return the choices for one run."""
        ...


def _seed(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    whole_number(attribute.name, value)


def _positive(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    positive_int(attribute.name, value)


# -- at random --------------------------------------------------------------------------------------------------------


@attrs.frozen
class Random:
    """Every choice is equally likely: the best that can be said of a schedule about which nothing is known.

    Example:
        >>> choices = Random(7).start()
        >>> [choices.choose(3) for _ in range(6)] == [choices.choose(3) for _ in range(6)]
        False

    """

    seed: int = attrs.field(default=0, validator=_seed)

    def start(self) -> Choices:
        """Return the choices for one run."""
        return _Dice(self.seed)


class _Dice:
    __slots__ = ("_roll",)

    def __init__(self, seed: int) -> None:
        self._roll = random_module.Random(seed).random

    def choose(self, n: int, names: Sequence[int] = (), /) -> int:  # noqa: ARG002 - all are alike
        return int(self._roll() * n) if n > 1 else 0


# -- by priorities ----------------------------------------------------------------------------------------------------


@attrs.frozen
class PCT:
    """Probabilistic concurrency testing: random priorities, which change at `depth - 1` random steps.

    A bug that needs `depth` steps in a certain order, among n tasks that take `length` steps together, is found by one
    schedule with a probability of at least 1 / (n * length ** (depth - 1)), which blind chance does not come near.

    Args:
        seed: what priorities and change points are drawn from.
        depth: how many ordering constraints the bug needs: 1 finds a missing order, 2 a lost update.
        length: about how many steps the run has; change points lie among these.

    Source: S. Burckhardt, P. Kothari, M. Musuvathi, S. Nagarakatte, "A Randomized Scheduler with Probabilistic
    Guarantees of Finding Bugs", ASPLOS 2010. They suppose that every thread ends or blocks. One that spins while
    others wait would spin for ever, so who could have run `PATIENCE` times on end and was not chosen has its turn.

    """

    seed: int = attrs.field(default=0, validator=_seed)
    depth: int = attrs.field(default=3, validator=_positive)
    length: int = attrs.field(default=200, validator=_positive)

    def start(self) -> Choices:
        """Return the choices for one run."""
        return _Priorities(self.seed, self.depth, self.length)


#: How often on end PCT passes over somebody who could run.
PATIENCE = 1_000


class _Priorities:
    __slots__ = ("_changes", "_dice", "_priorities", "_step", "_waiting_since")

    def __init__(self, seed: int, depth: int, length: int) -> None:
        self._dice = dice = random_module.Random(seed)
        # Step to the priority that its name falls to: all of these lie below 1, the first priorities above.
        self._changes = {dice.randint(1, length): number / depth for number in range(1, depth)}
        self._priorities: dict[int, float] = {}
        self._step = 0
        # Those who could run at the last choice, and were not chosen, each with the step since which that is so.
        self._waiting_since: dict[int, int] = {}

    def choose(self, n: int, names: Sequence[int] = (), /) -> int:
        if not names:
            return self._dice.randrange(n) if n > 1 else 0
        self._step += 1
        chosen = self._highest(names)
        lowered = self._changes.get(self._step)
        if lowered is not None:
            self._priorities[names[chosen]] = lowered
            chosen = self._highest(names)
        since = {name: self._waiting_since.get(name, self._step) for name in names}
        self._waiting_since = since
        patient = min(range(n), key=lambda index: since[names[index]])
        if self._step - since[names[patient]] > PATIENCE:
            chosen = patient
        del since[names[chosen]]
        return chosen

    def _highest(self, names: Sequence[int]) -> int:
        priorities = self._priorities
        for name in names:
            if name not in priorities:
                priorities[name] = 1.0 + self._dice.random()
        return max(range(len(names)), key=lambda index: priorities[names[index]])


# -- as written -------------------------------------------------------------------------------------------------------


def _as_tuple(choices: Iterable[int]) -> tuple[int, ...]:
    return tuple(choices)


@attrs.frozen
class Replay:
    """The choices as they are written here, and 0 ever after: the plain order.

    A number too large for its question counts on from 0 again, so that every sequence of numbers is a schedule.

    Example:
        >>> choices = Replay((1, 5)).start()
        >>> choices.choose(2), choices.choose(3), choices.choose(4)
        (1, 2, 0)

    """

    choices: tuple[int, ...] = attrs.field(default=(), converter=_as_tuple)

    @choices.validator
    def _check(self, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
        for choice in value:
            whole_number(attribute.name, choice)

    def start(self) -> Choices:
        """Return the choices for one run."""
        return _Tape(self.choices)


class _Tape:
    __slots__ = ("_next",)

    def __init__(self, choices: tuple[int, ...]) -> None:
        self._next = iter(choices)

    def choose(self, n: int, names: Sequence[int] = (), /) -> int:  # noqa: ARG002 - they are written down already
        return next(self._next, 0) % n if n > 1 else 0


# -- all of them ------------------------------------------------------------------------------------------------------


class Exhaustive:
    """Every schedule that differs from the plain one in at most `deviations` choices, each of them once.

    Iterate over it, and run each schedule before you ask for the next: what the run was asked tells which others there
    are. `complete` says whether they all have been, and stays False if `limit` ended the search.

    Args:
        deviations: how many choices may be other than 0. Two find most bugs; the number of schedules grows like the
            length of the run to this power.
        limit: the most schedules; None for no limit.

    Example:
        >>> search = Exhaustive(deviations=1)
        >>> for schedule in search:
        ...     choices = schedule.start()
        ...     print([choices.choose(2) for _ in range(3)])
        [0, 0, 0]
        [0, 0, 1]
        [0, 1, 0]
        [1, 0, 0]
        >>> search.complete
        True

    Source: delay bounding, M. Emmi, S. Qadeer, Z. Rakamaric, "Delay-Bounded Scheduling", POPL 2011. Where choice 0 is
    the thread that runs already, a deviation is a preemption.

    """

    def __init__(self, *, deviations: int = 2, limit: int | None = None) -> None:
        self.deviations: int = whole_number("deviations", deviations)
        self.limit: int | None = None if limit is None else positive_int("limit", limit)
        self.complete: bool = False

    def __iter__(self) -> Iterator[Schedule]:
        """Yield schedule after schedule, depth first."""
        self.complete = False
        left: list[tuple[tuple[int, int], ...]] = [()]
        given = 0
        while left:
            if given == self.limit:
                return
            path = _Path(left.pop())
            yield path
            given += 1
            if len(path.turns) < self.deviations:
                start = path.turns[-1][0] + 1 if path.turns else 0
                left.extend(
                    (*path.turns, (at, other))
                    for at in range(start, len(path.widths))
                    for other in range(1, path.widths[at])
                )
        self.complete = True


class _Path:
    """A schedule that is 0 but for a few turns; it remembers how wide the choices of its last run were."""

    __slots__ = ("turns", "widths")

    def __init__(self, turns: tuple[tuple[int, int], ...]) -> None:
        self.turns = turns
        self.widths: list[int] = []

    def start(self) -> Choices:
        self.widths = []
        return _Turns(dict(self.turns), self.widths)

    def __repr__(self) -> str:
        choices = [0] * (self.turns[-1][0] + 1 if self.turns else 0)
        for at, other in self.turns:
            choices[at] = other
        return f"Replay(choices={tuple(choices)!r})"


class _Turns:
    __slots__ = ("_turns", "_widths")

    def __init__(self, turns: dict[int, int], widths: list[int]) -> None:
        self._turns = turns
        self._widths = widths

    def choose(self, n: int, names: Sequence[int] = (), /) -> int:  # noqa: ARG002 - all are tried
        if n == 1:
            return 0
        self._widths.append(n)
        return self._turns.get(len(self._widths) - 1, 0) % n


# -- from Hypothesis --------------------------------------------------------------------------------------------------


def schedules() -> st.SearchStrategy[Schedule]:
    """Return a Hypothesis strategy for schedules, which shrink towards the plain order like any other input.

    Each choice is drawn when it is asked for, so a schedule is as long as its run. What is drawn is put down: the same
    schedule may be run twice.

    Raises:
        ImportError: Hypothesis is not installed.

    """
    try:
        from hypothesis import strategies
    except ImportError as error:
        error.add_note("resilience.testing.schedules() draws from Hypothesis: pip install hypothesis")
        raise

    @strategies.composite
    def drawn(draw: st.DrawFn) -> Schedule:
        return _Drawn(draw(strategies.data()))

    return drawn()


class _Drawn:
    """A schedule whose choices Hypothesis draws, the first time that they are asked for."""

    __slots__ = ("_data", "choices")

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.choices: list[int] = []

    def start(self) -> Choices:
        return _Drawing(self)

    def draw(self, n: int) -> int:
        from hypothesis import strategies

        # Below `data.draw`, which would print a line for each of them; the whole schedule is noted with the failure.
        self.choices.append(self._data.conjecture_data.draw(strategies.integers(0, n - 1)))
        return self.choices[-1]

    def __repr__(self) -> str:
        return f"Replay(choices={tuple(self.choices)!r})"


class _Drawing:
    __slots__ = ("_asked", "_drawn")

    def __init__(self, drawn: _Drawn) -> None:
        self._drawn = drawn
        self._asked = 0

    def choose(self, n: int, names: Sequence[int] = (), /) -> int:  # noqa: ARG002 - Hypothesis has its own reasons
        if n == 1:
            return 0
        self._asked += 1
        if self._asked <= len(self._drawn.choices):
            return self._drawn.choices[self._asked - 1] % n
        return self._drawn.draw(n)
