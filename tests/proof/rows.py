"""Rows of the catalogue: a property, what shows that it holds, and mutants that are caught by the very same trials.

A mutant that no trial catches has survived. It is caught by a failed assertion and by nothing else: a mutant that
breaks down in another way is a mistake of ours, and says so.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

from resilience.testing import FailedScheduleError, Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.proof.programs import Budget, Kind, Trial

__all__ = ["Killed", "Result", "Row", "Survived", "prove"]


@attrs.frozen(kw_only=True)
class Row:
    """One property.

    Args:
        number: as INVARIANTS.md numbers it.
        says: what must hold, in a few words.
        kind: the guard.
        trials: what shows that it holds; cheap ones first, since mutants are put to them in this order.
        mutants: guards with a bug; each says which.

    """

    number: str
    says: str
    kind: Kind
    trials: tuple[Trial, ...]
    mutants: tuple[Kind, ...]


@attrs.frozen
class Killed:
    """A mutant that was caught: by which instrument, and by what."""

    mutant: str
    instrument: str
    why: str


@attrs.frozen
class Survived:
    """A mutant that nothing caught."""

    mutant: str


@attrs.frozen(kw_only=True)
class Result:
    """What became of a row."""

    number: str
    says: str
    reports: tuple[tuple[str, Report], ...]
    """What each instrument covered."""
    mutants: tuple[Killed | Survived, ...]
    failure: str = ""
    """How the property was violated, if it was."""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the property holds and every mutant was caught."""
        return not self.failure and bool(self.mutants) and not any(isinstance(each, Survived) for each in self.mutants)


def prove(row: Row, budget: Budget) -> Result:
    """Put the guard and its mutants to the trials."""
    begun = time.monotonic()
    reports: list[tuple[str, Report]] = []
    failure = ""
    for trial in row.trials:
        try:
            reports.append((trial.instrument, trial.run(row.kind, budget)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it stands in the table
            failure = f"{trial.instrument}: {_told(error)}"
            break
    # Mutants need no more than the quick form: to be caught late is to be caught badly.
    hunt = attrs.evolve(budget, deepen=0, schedules=HUNT)
    mutants = () if failure else tuple(_hunt(row, mutant, hunt) for mutant in row.mutants)
    return Result(
        number=row.number,
        says=row.says,
        reports=tuple(reports),
        mutants=mutants,
        failure=failure,
        seconds=time.monotonic() - begun,
    )


#: How many schedules a mutant may be hunted for.
HUNT = 250


def _hunt(row: Row, mutant: Kind, budget: Budget) -> Killed | Survived:
    name = getattr(mutant, "__name__", repr(mutant)).strip("_")
    for trial in row.trials:
        try:
            trial.run(mutant, budget)
        except Exception as error:
            if not all(isinstance(each, AssertionError) for each in _causes(error)):
                error.add_note(f"{row.number}: {name} breaks down instead of failing")
                raise
            return Killed(name, trial.instrument, _told(error))
    return Survived(name)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what went wrong: the errors of a group, and what a failed schedule failed of."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    elif isinstance(error, FailedScheduleError) and error.__cause__ is not None:
        yield from _causes(error.__cause__)
    else:
        yield error


def _told(error: BaseException) -> str:
    cause = next(_causes(error))
    first = str(cause).partition("\n")[0]
    return f"{type(cause).__name__}: {first}" if first else type(cause).__name__
