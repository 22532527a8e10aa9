"""`make prove`: every property of the guards, what it was put to, and the mutants that are caught in the same way.

`python -m tests.proof --schedules=N` covers about N schedules in all, where it can: half of them by exploring beyond
the bound, half of them drawn. Without it the quick form runs: what is explored is complete for its bound, and a few
schedules are drawn.
It fails if a property is violated, if a mutant survives, or if a property has no row.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from resilience.testing import Report
from tests.proof.catalogue.rows import ELSEWHERE, ROWS
from tests.proof.programs import Budget
from tests.proof.rows import Killed, Result, prove

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.proof.rows import Row

__all__ = ["budget_for", "main", "page", "told", "totals"]

QUICK = Budget(schedules=150)
PAGE = Path(__file__).parents[2] / "docs" / "proof.md"


def budget_for(row: Row, schedules: int | None, seed: int) -> Budget:
    """Return what a row may do, if all rows together are to cover so many schedules; None: the quick form."""
    if schedules is None:
        return attrs.evolve(QUICK, seed=seed)
    half = schedules // len(ROWS) // 2
    draws = sum(trial.draws for trial in row.trials)
    return Budget(schedules=max(QUICK.schedules, round(half / draws) if draws else 0), deepen=half, seed=seed)


def _prove(number: str, schedules: int | None, seed: int) -> Result:
    """Prove one row, in a process of its own."""
    # Listeners that raise are a part of it, and are logged.
    logging.getLogger("resilience").setLevel(logging.CRITICAL)
    (row,) = (row for row in ROWS if row.number == number)
    return prove(row, budget_for(row, schedules, seed))


def told(result: Result) -> str:
    """Return a row in words: what was covered, and what caught which mutant."""
    lines = [f"{result.number:5} {'holds' if not result.failure else 'VIOLATED'}  {result.says}"]
    lines += [f"      {instrument}: {str(report).partition(': ')[2]}" for instrument, report in result.reports]
    if result.failure:
        lines.append(f"      {result.failure}")
    for mutant in result.mutants:
        if isinstance(mutant, Killed):
            lines.append(f"      × {mutant.mutant}: caught by {mutant.instrument}, {mutant.why}")
        else:
            lines.append(f"      ! {mutant.mutant} SURVIVED")
    return "\n".join(lines)


def totals(results: Sequence[Result]) -> Report:
    """Add up what all rows have covered."""
    return Report.total("in all", [report for result in results for _, report in result.reports])


def page(results: Sequence[Result], schedules: int | None, seconds: float) -> str:
    """Return the figures as they stand on the page."""
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    seeds = sorted({report.seed for result in results for _, report in result.reports if report.seed is not None})
    total = totals(results)
    count = sum(len(result.mutants) for result in results)
    killed = sum(isinstance(mutant, Killed) for result in results for mutant in result.mutants)
    version = ".".join(map(str, sys.version_info[:3]))
    command = f"make prove SCHEDULES={schedules}" if schedules else "make prove"
    head = (
        "Property",
        "Says",
        "Schedules",
        "Distinct",
        "Histories",
        "Cancel points",
        "Faults",
        "Mutants and their captors",
    )
    lines = [
        f"Commit `{commit.stdout.strip()}`, CPython {version}, `{command}`, {seconds / 60:.0f} minutes:",
        "",
        f"* {total.schedules:,} schedules were covered, {total.distinct:,} of them distinct by their hashes;",
        f"* {total.histories:,} histories were judged;",
        f"* {total.cancel_points:,} cancel points were tried, and {total.faults:,} faults injected;",
        f"* {killed} mutants were caught, {count - killed} survived;",
        f"* schedules were drawn with the seeds from {' and '.join(map(str, seeds))} on.",
        "",
        f"| {' | '.join(head)} |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for result in results:
        covered = Report.total(result.number, [report for _, report in result.reports])
        mutants = ", ".join(
            f"{mutant.mutant} ({mutant.instrument})" if isinstance(mutant, Killed) else f"**{mutant.mutant} survived**"
            for mutant in result.mutants
        )
        figures = (covered.schedules, covered.distinct, covered.histories, covered.cancel_points, covered.faults)
        says = result.says if not result.failure else f"**violated**: {result.says}"
        lines.append(f"| {result.number} | {says} | {' | '.join(f'{each:,}' for each in figures)} | {mutants} |")
    return "\n".join(lines)


def _write(text: str) -> None:
    written, count = re.subn(
        r"(?<=<!-- figures -->\n).*?(?=\n<!-- end of figures -->)",
        lambda _: f"\n{text}\n",
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert count == 1
    PAGE.write_text(written, encoding="utf-8")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--schedules", type=int, metavar="N", help="how many to cover in all (default: the quick form)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="what schedules are drawn from")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one a core)")
    parser.add_argument("--write", action="store_true", help="renew the figures in docs/proof.md")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="numbers of properties, or of guards (RL); default: all")
    return parser.parse_args(arguments)


def _wanted(names: Iterable[str]) -> list[Row]:
    wanted = tuple(names)
    found = [row for row in ROWS if not wanted or row.number in wanted or row.number.rstrip("0123456789") in wanted]
    if not found:
        sys.exit(f"there is no row {' '.join(wanted)}; there are {' '.join(row.number for row in ROWS)}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove the rows, print what became of them, and return 1 if one is not good."""
    asked = _arguments(arguments)
    rows = _wanted(asked.rows)
    begun = time.monotonic()
    results: list[Result] = []
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(_prove, row.number, asked.schedules, asked.seed) for row in rows]
        for each in running:
            results.append(each.result())
            print(told(results[-1]), flush=True)  # noqa: T201 - a program
    seconds = time.monotonic() - begun
    if asked.write:
        _write(page(results, asked.schedules, seconds))
    mutants = [mutant for result in results for mutant in result.mutants]
    killed = sum(isinstance(mutant, Killed) for mutant in mutants)
    for number, where in ELSEWHERE.items():
        print(f"{number:5} elsewhere: {where}")  # noqa: T201 - as above
    bad = [result.number for result in results if not result.good]
    print(  # noqa: T201 - as above
        f"{totals(results)}; {killed} of {len(mutants)} mutants caught; {len(results) - len(bad)} of {len(results)} "
        f"properties good{f', not {chr(44).join(bad)}' if bad else ''}; {seconds:.0f} s"
    )
    return 1 if bad else 0
