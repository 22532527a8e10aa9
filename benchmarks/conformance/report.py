"""Writing the board down: a page of tables, and a picture of all of it at once."""

from __future__ import annotations

import platform
from collections import Counter
from typing import TYPE_CHECKING, Final

from benchmarks.conformance.board import LIBRARIES, version_of
from benchmarks.conformance.case import OWN_READING, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.conformance.board import Cell, Entrant
    from benchmarks.conformance.case import Case

__all__ = ["MARKS", "drawn", "listed", "page", "summary"]

MARKS: Final = {
    Verdict.PASS: "✓",
    Verdict.FAIL: "✗",
    Verdict.DOCUMENTED: "d",
    Verdict.NOT_OFFERED: "–",
    Verdict.ERROR: "?",
}
INTRODUCTION: Final = """# Conformance

![Each row is a case, each column a library](images/conformance.svg)

Users of libraries like this one have reported the same defects over and over: floods of trials, permits that are lost
when a call is cancelled, limiters that let twice as many through at the edge of a window, cancellations that vanish.
Here each is one test, run against this library and its peers. It is written by `benchmarks/conformance`:

```console
$ make conformance
$ python -m benchmarks.conformance --library tenacity --case cancellation-is-retried
$ python -m benchmarks.conformance --write
```

## How it is measured

* A test knows no library. It speaks to a small interface (`benchmarks/conformance/library.py`), for which each library
  has an adapter of a screenful, written as that library's own documentation shows its use, with its defaults but for
  the numbers that the test asks for.
* What a test expects is what a user may expect who has not read the source, whether the library promises it or not.
  Where a decorator is given something that it cannot guard, refusing it is as good as guarding it.
* Each cell runs in a process of its own; one that hangs is a failure, and ends nothing but itself.
* Few libraries take a clock, so none is given one: `time`, `datetime` and the event loop read a virtual clock that is
  installed before any library is imported. A turn of the loop takes a microsecond and a timer is late by up to a
  millisecond, as on Linux. Where threads meet, they meet at barriers, in real time; in *half-open-flood-of-threads*
  each has a tenth of a second to come inside. One case, *threads-over-admit*, is a race that may be missed: there a
  pass is no proof. limits 5.8.0 fails it in some runs ("threads can only be started once", or one too many admitted)
  and passes it in others.
* The event loop is asyncio's, since that is the one that all of them know.
* Verdicts are those of the Python below. Before 3.12 `asyncio.wait_for` could lose a cancellation, and a library that
  builds on it loses it too (*answer-swallows-cancellation*); its authors may fairly point at Python.
* A report is where we found the defect told, often of a library in another language or of the standard library; the
  tests are ours. If a verdict is unfair to a library, the adapter or the test is wrong, and we want to know.

| | |
|---|---|
| ✓ | does what is expected |
| ✗ | does not |
| d | does not, and its documentation says so |
| – | has no such feature, so there is nothing to judge |
| ? | no verdict: the library could not be brought into the situation |
"""


def page(cells: Sequence[Cell]) -> str:
    """Return the page: the figures, then a table for each feature, then what was seen where it was not as expected."""
    libraries = _libraries(cells)
    parts = [
        INTRODUCTION,
        (
            f"## Figures\n\n{platform.python_implementation()} {platform.python_version()}, {platform.system()};"
            f" {len({cell.case.id for cell in cells})} cases.\n"
        ),
        _figures(cells, libraries),
    ]
    parts += [
        _feature(feature, [cell for cell in cells if cell.case.feature == feature])
        for feature in dict.fromkeys(cell.case.feature for cell in cells)
    ]
    parts += ["## What was seen\n", _seen(cells)]
    return "\n".join(parts)


def listed(text: str) -> list[str]:
    """Return the ids of the cases that the tables of a page have rows for, in order."""
    return [line.rpartition("(`")[2].partition("`)")[0] for line in text.splitlines() if "(`" in line and "|" in line]


def summary(cells: Sequence[Cell]) -> str:
    """Return a line for each library, for the terminal."""
    lines = []
    for library in _libraries(cells):
        counts = Counter(cell.verdict for cell in cells if cell.library == library)
        told = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
        lines.append(f"{library.name:<16}{told}")
    return "\n".join(lines)


def _libraries(cells: Iterable[Cell]) -> list[Entrant]:
    present = {cell.library for cell in cells}
    return [library for library in LIBRARIES if library in present]


def _figures(cells: Sequence[Cell], libraries: Sequence[Entrant]) -> str:
    order = (Verdict.PASS, Verdict.FAIL, Verdict.DOCUMENTED, Verdict.ERROR, Verdict.NOT_OFFERED)
    rows = [f"| | version | {' | '.join(MARKS[verdict] for verdict in order)} |", "|---|---|" + "---|" * len(order)]
    for library in libraries:
        counts = Counter(cell.verdict for cell in cells if cell.library == library)
        rows.append(
            f"| {library.name} | {version_of(library)} | "
            + " | ".join(str(counts[verdict]) if counts[verdict] else "" for verdict in order)
            + " |"
        )
    return "\n".join([*rows, ""])


def _feature(feature: str, cells: Sequence[Cell]) -> str:
    """Return a feature's table, with the libraries that offer it."""
    offering = [
        library
        for library in _libraries(cells)
        if any(cell.library == library and cell.verdict is not Verdict.NOT_OFFERED for cell in cells)
    ]
    without = [library.name for library in _libraries(cells) if library not in offering]
    marks = {(cell.case.id, cell.library): MARKS[cell.verdict] for cell in cells}
    rows = [
        f"## {feature.capitalize()}\n",
        "| | " + " | ".join(library.name for library in offering) + " | reported |",
        "|---|" + ":-:|" * len(offering) + "---|",
    ]
    for case in dict.fromkeys(cell.case for cell in cells):
        row = " | ".join(marks.get((case.id, library), "") for library in offering)
        rows.append(f"| {case.title} (`{case.id}`) | {row} | {_reports(case)} |")
    if without:
        rows.append(f"\nNot offered: {', '.join(without)}.")
    return "\n".join([*rows, ""])


def _reports(case: Case) -> str:
    return ", ".join(
        report if report == OWN_READING else f"[{report}](https://github.com/{report.replace('#', '/issues/')})"
        for report in case.reports
    )


def _seen(cells: Sequence[Cell]) -> str:
    rows = ["| case | library | seen |", "|---|---|---|"]
    for cell in cells:
        if cell.verdict not in {Verdict.PASS, Verdict.NOT_OFFERED}:
            note = cell.note.replace("|", "\\|").replace("\n", " ")
            rows.append(f"| `{cell.case.id}` | {cell.library.name} | {MARKS[cell.verdict]} {note} |")
    return "\n".join([*rows, ""])


# -- the picture ------------------------------------------------------------------------------------------------------

SIDE: Final = 17
LEFT: Final = 290
TOP: Final = 118
GAP: Final = 8
BELOW: Final = 40
FILLS: Final = {
    Verdict.PASS: "#7db893",
    Verdict.FAIL: "#c2452d",
    Verdict.DOCUMENTED: "#e3b04b",
    Verdict.NOT_OFFERED: "#eef1f4",
    Verdict.ERROR: "#9aa5b1",
}


def drawn(cells: Sequence[Cell]) -> str:
    """Return the board as SVG: a row for each case, a column for each library, crosses where it fails."""
    libraries = _libraries(cells)
    verdicts = {(cell.case.id, cell.library): cell.verdict for cell in cells}
    cases = list(dict.fromkeys(cell.case for cell in cells))
    width = LEFT + SIDE * len(libraries) + 60
    rows: list[str] = []
    y, feature = TOP, ""
    for case in cases:
        if feature and case.feature != feature:
            y += GAP
        feature = case.feature
        rows.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end" fill="#17202a">{case.id}</text>')
        rows += [
            _square(LEFT + SIDE * column, y, verdicts[case.id, library])
            for column, library in enumerate(libraries)
            if (case.id, library) in verdicts
        ]
        y += SIDE
    names = [
        f'<text transform="translate({LEFT + SIDE * column + 12} {TOP - 8}) rotate(-60)" fill="#17202a">'
        f"{library.name}</text>"
        for column, library in enumerate(libraries)
    ]
    legend = []
    x = LEFT
    for verdict in (verdict for verdict in Verdict if verdict in verdicts.values()):
        legend.append(
            _square(x, y + 14, verdict) + f'<text x="{x + SIDE + 4}" y="{y + 26}" fill="#17202a">{verdict.value}</text>'
        )
        x += SIDE + 26 + 6 * len(verdict.value)
    height = y + BELOW
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
                f' height="{height}" role="img" font-family="sans-serif" font-size="11">'
            ),
            "<title>Which library passes which case</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
            *names,
            *rows,
            *legend,
            "</svg>",
            "",
        ]
    )


def _square(x: int, y: int, verdict: Verdict) -> str:
    inner = SIDE - 2
    square = f'<rect x="{x}" y="{y}" width="{inner}" height="{inner}" rx="2" fill="{FILLS[verdict]}"/>'
    if verdict is Verdict.FAIL:
        near, far = 4, inner - 4
        square += (
            f'<path d="M{x + near} {y + near}L{x + far} {y + far}M{x + far} {y + near}L{x + near} {y + far}"'
            ' stroke="#ffffff" stroke-width="2"/>'
        )
    return square
