"""What the proof says of a property that holds, one that does not, and a mutant that nobody catches."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import attrs
import pytest

from resilience.testing import Faults, Report
from tests.documents import ROOT
from tests.proof import programs
from tests.proof.catalogue.rows import ELSEWHERE, ROWS
from tests.proof.programs import Budget, Program, cancelled, explored, interleaved, once, seeded
from tests.proof.proving import PAGE, budget_for, page, told, totals
from tests.proof.rows import Killed, Row, Survived, prove

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.proof.programs import Tasks

Pause: TypeAlias = "Callable[[], Awaitable[None]]"

#: As INVARIANTS.md numbers them.
NUMBERED = {"RL": 12, "CB": 10, "SG": 6, "DQ": 9, "PO": 7}


class Counter:
    """Counts in one step, and under a lock."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()

    async def add(self, pause: Pause) -> None:
        """Add one, having let others go first."""
        await pause()
        with self.lock:
            self.count += 1


class Racing(Counter):
    """Lets others go between reading and writing."""

    async def add(self, pause: Pause) -> None:
        """Add one, or lose one."""
        seen = self.count
        await pause()
        self.count = seen + 1


class RacingThreads(Counter):
    """Counts in several instructions, though in one step."""

    async def add(self, pause: Pause) -> None:
        """Add one, or lose one."""
        await pause()
        self.count += 1


class Deaf(Counter):
    """Adds when it is cancelled, too."""

    async def add(self, pause: Pause) -> None:
        """Add one, or two."""
        self.count += 1
        try:
            await pause()
        except BaseException:
            self.count += 1
            raise


class Broken(Counter):
    """Does not even run."""

    async def add(self, pause: Pause) -> None:
        """Fail."""
        await pause()
        raise KeyError


class Counting(Program):
    """Two tasks that count."""

    def build(self, kind: Any) -> None:  # noqa: ANN401 - any counter
        """Make the counter."""
        self.counter = kind()

    async def add(self) -> None:
        """Add one."""
        await self.counter.add(self.stage.pause)

    def check(self) -> None:
        """Judge the count."""
        assert self.counter.count == 2 or (self.cancelled and self.counter.count < 2), "wrong count"

    tasks: ClassVar[Tasks] = (add, add)


TRIALS = {
    "every order": (explored(Counting), Racing),
    "asyncio": (seeded(Counting, cancels=False), Racing),
    "trio": (seeded(Counting, backend="trio", cancels=False), Racing),
    "asyncio, every cancel point": (cancelled(Counting), Deaf),
    "trio, every cancel point": (cancelled(Counting, backend="trio"), Deaf),
    "threads": (interleaved(Counting, [programs]), RacingThreads),
}


def a_row(**changes: Any) -> Row:  # noqa: ANN401 - any field
    """Return a row that is good, but for the changes."""
    row = Row(number="XX1", says="it counts", kind=Counter, trials=(explored(Counting),), mutants=(Racing,))
    return attrs.evolve(row, **changes)


@pytest.mark.parametrize("instrument", TRIALS)
def test_every_instrument_passes_what_holds_and_catches_what_does_not(instrument: str) -> None:
    """The same program on each of them."""
    trial, mutant = TRIALS[instrument]
    result = prove(a_row(trials=(trial,), mutants=(mutant,)), Budget(schedules=60))

    assert result.good
    ((name, report),) = result.reports
    assert name == instrument
    assert report.histories > 0
    assert isinstance(result.mutants[0], Killed)
    assert result.mutants[0].instrument == instrument
    assert "× " in told(result)
    assert "holds" in told(result)


def test_a_law_of_its_own_kind_is_a_trial() -> None:
    """It says how much it has judged."""

    def law(kind: Any, seed: int) -> int:  # noqa: ANN401 - any counter
        assert not issubclass(kind, Racing)
        return seed + 3

    result = prove(a_row(trials=(once("a law", law),)), Budget(seed=4))
    assert result.good
    assert result.reports == (("a law", Report(name="a law", histories=7, seed=4)),)


def test_a_mutant_that_survives_is_told_and_is_not_good() -> None:
    """Neither is a row without mutants: a property that nothing violates says nothing."""
    result = prove(a_row(mutants=(Racing, Counter)), Budget())

    assert not result.good
    assert result.mutants[1] == Survived("Counter")
    assert "! Counter SURVIVED" in told(result)
    assert "**Counter survived**" in page([result], None, 1.0)
    assert "1 mutants were caught, 1 survived" in page([result], None, 1.0)
    assert not prove(a_row(mutants=()), Budget()).good


def test_a_violated_property_is_told_and_is_not_good() -> None:
    """With what failed, and on which instrument."""
    result = prove(a_row(kind=Racing, trials=(explored(Counting), seeded(Counting))), Budget())

    assert not result.good
    assert result.failure == "every order: AssertionError: wrong count"
    assert "VIOLATED" in told(result)
    assert "every order: AssertionError: wrong count" in told(result)
    assert "**violated**" in page([result], 10**6, 1.0)


@pytest.mark.parametrize("trial", [explored(Counting), seeded(Counting)], ids=["explored", "seeded"])
def test_a_mutant_that_breaks_down_is_no_mutant(trial: programs.Trial) -> None:
    """It would be caught by anything at all."""
    with pytest.raises(Exception) as caught:
        prove(a_row(trials=(trial,), mutants=(Broken,)), Budget())
    assert "XX1: Broken breaks down instead of failing" in caught.value.__notes__


def test_figures_add_up() -> None:
    """The sum is complete only if everything is."""
    result = prove(a_row(trials=(explored(Counting), seeded(Counting, faults=[Faults(late=1.0, odds=2)]))), Budget())
    total = totals([result, result])

    assert total.schedules == 2 * sum(report.schedules for _, report in result.reports)
    assert total.cancel_points > 0
    assert total.faults > 0
    assert not total.complete


def test_the_long_form_explores_beyond_the_bound() -> None:
    """Until enough has been covered, or until everything has."""
    quick = explored(Counting, preemptions=0).run(Counter, Budget())
    more = explored(Counting, preemptions=0).run(Counter, Budget(deepen=10**6))
    assert quick.complete
    assert more.complete
    assert more.schedules > quick.schedules
    assert more.name == "Counting, any number of preemptions"
    assert explored(Counting, preemptions=0).run(Counter, Budget(deepen=quick.schedules)) == quick


def test_schedules_are_shared_out() -> None:
    """Half of a row's share is drawn and half explored; the quick form is the same for all."""
    row = ROWS[0]
    share = 10**6
    long = budget_for(row, share * len(ROWS), 7)
    assert long.deepen == share // 2
    assert long.seed == 7
    assert abs(long.schedules * sum(trial.draws for trial in row.trials) - share / 2) < 10
    assert budget_for(row, None, 7) == Budget(schedules=150, seed=7)


def test_every_property_has_a_row_and_every_row_its_mutants() -> None:
    """What is shown in another place is named."""
    numbers = [row.number for row in ROWS]
    expected = {f"{guard}{number}" for guard, last in NUMBERED.items() for number in range(1, last + 1)}
    assert sorted(numbers) == sorted(expected - set(ELSEWHERE))
    assert all(row.mutants and row.trials for row in ROWS)


def test_the_page_has_the_figures_of_every_row() -> None:
    """A row that was written since has not been through a long run, and so it says."""
    figures = re.findall(r"^\| ([A-Z]{2}\d+) \| (.+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert figures == [(row.number, row.says) for row in ROWS]


def test_a_row_that_is_not_there_is_told() -> None:
    """With those that are."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.proof", "XX"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("there is no row XX; there are RL1 RL2 ")
