"""Run the conformance board: `python -m benchmarks.conformance`.

Without options every case is run against every library; one that is not installed ends the command before it begins.
The exit code is 1 if this project's own library fails one; what peers do decides nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.conformance.board import LIBRARIES, OURS, ROOT, Cell, run, version_of
from benchmarks.conformance.case import Verdict
from benchmarks.conformance.cases import CASES
from benchmarks.conformance.report import MARKS, drawn, page, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path("docs/conformance.md")
PICTURE = Path("docs/images/conformance.svg")


def tell(cell: Cell) -> None:
    """Print a cell in which there is something to see."""
    if cell.verdict is not Verdict.NOT_OFFERED:
        print(f"{MARKS[cell.verdict]} {cell.library.name:<16}{cell.case.id:<40}{cell.note}".rstrip(), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, print it, and write it down if told to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description="Run the conformance board.")
    names = [library.name for library in LIBRARIES]
    parser.add_argument("--library", action="append", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--case", action="append", choices=list(CASES), metavar="CASE", help="its name in the table")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE} and {PICTURE}, from the whole board")
    options = parser.parse_args(arguments)
    if options.write and (options.library or options.case):
        parser.error("--write needs the whole board")
    chosen = [library for library in LIBRARIES if not options.library or library.name in options.library]
    missing = [library.name for library in chosen if version_of(library) is None]
    if missing:
        parser.error(f"not installed: {', '.join(missing)} (make conformance installs them)")
    cells = run(chosen, [CASES[name] for name in options.case or CASES], tell=tell)
    print("\n" + summary(cells))
    if options.write:
        (ROOT / PAGE).write_text(page(cells), encoding="utf-8")
        (ROOT / PICTURE).write_text(drawn(cells), encoding="utf-8")
    good = {Verdict.PASS, Verdict.NOT_OFFERED}
    return int(any(cell.library == OURS and cell.verdict not in good for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
