"""Running the board: every case against every library, each cell in a process of its own that may hang or die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from benchmarks.conformance.case import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.conformance.case import Case

__all__ = ["LIBRARIES", "OURS", "ROOT", "Cell", "Entrant", "judge", "run", "version_of"]

ROOT: Final = Path(__file__).parent.parent.parent
CELL_LIMIT: Final = 60.0
"""Real seconds for one cell: many times what the slowest needs, so that only what hangs is ended by it."""


@attrs.frozen
class Entrant:
    """A library on the board: its adapter's module, its name, and the distribution that it comes in."""

    module: str
    name: str


OURS: Final = Entrant("ours", "stormguard")
LIBRARIES: Final = (
    OURS,
    Entrant("nopanic", "nopanic"),
    Entrant("interlock", "interlock-cb"),
    Entrant("hyx", "hyx"),
    Entrant("pybreaker", "pybreaker"),
    Entrant("aiobreaker", "aiobreaker"),
    Entrant("purgatory", "purgatory"),
    Entrant("circuitbreaker", "circuitbreaker"),
    Entrant("pyresilience", "pyresilience"),
    Entrant("aioresilience", "aioresilience"),
    Entrant("aiolimiter", "aiolimiter"),
    Entrant("limits", "limits"),
    Entrant("pyrate_limiter", "pyrate-limiter"),
    Entrant("throttled", "throttled-py"),
    Entrant("tenacity", "tenacity"),
    Entrant("stamina", "stamina"),
)


@attrs.frozen
class Cell:
    """One case against one library."""

    library: Entrant
    case: Case
    verdict: Verdict
    note: str = ""


def version_of(library: Entrant) -> str | None:
    """Return the installed version; None if it is not installed."""
    try:
        return metadata.version(library.name)
    except metadata.PackageNotFoundError:
        return None


def judge(library: Entrant, case: Case, *, limit: float = CELL_LIMIT) -> Cell:
    """Run one cell in a process, and read what it says."""
    program = [sys.executable, "-m", "benchmarks.conformance.cell", library.module, case.id]
    try:
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Cell(library, case, Verdict.FAIL, "hangs: it goes on and on")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"case"')]
    if done.returncode or not lines:
        last = (done.stderr.splitlines() or ["no word"])[-1]
        return Cell(library, case, Verdict.ERROR, f"the process ended with {done.returncode}: {last}")
    answer = json.loads(lines[-1])
    return Cell(library, case, Verdict(answer["verdict"]), answer["note"])


def run(libraries: Iterable[Entrant], cases: Iterable[Case], *, tell: Callable[[Cell], object]) -> list[Cell]:
    """Run the board, as many cells at a time as there are processors, and return it case by case."""
    cells: list[Cell] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for cell in pool.map(lambda pair: judge(pair[1], pair[0]), product(cases, libraries)):
            tell(cell)
            cells.append(cell)
    return cells
