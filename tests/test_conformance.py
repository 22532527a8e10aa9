"""The conformance board: ours passes every case, careless guards fail every one, and the page lists them all."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import attrs
import pytest

from benchmarks.conformance import __main__ as command
from benchmarks.conformance.__main__ import main
from benchmarks.conformance.board import LIBRARIES, OURS, Cell, judge
from benchmarks.conformance.case import Case, Verdict
from benchmarks.conformance.cases import CASES
from benchmarks.conformance.report import MARKS, drawn, listed, page
from tests.documents import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "images" / "conformance.svg").read_text(encoding="utf-8")


def verdicts(library: str, *case_ids: str) -> dict[str, tuple[str, str]]:
    """Judge cases in one process, whose clock is replaced, and return the verdict and the note of each."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.conformance.cell", library, *case_ids],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line]
    return {answer["case"]: (answer["verdict"], answer["note"]) for answer in answers}


@pytest.fixture(scope="module")
def ours() -> Mapping[str, tuple[str, str]]:
    """Judge this library in every case."""
    return verdicts(OURS.module, *CASES)


@pytest.mark.parametrize("case_id", CASES)
def test_ours_passes(case_id: str, ours: Mapping[str, tuple[str, str]]) -> None:
    """This library offers every feature that a case is about, and does what is expected."""
    assert ours[case_id] == ("pass", "")


@pytest.fixture(scope="module")
def careless() -> list[Mapping[str, tuple[str, str]]]:
    """Judge three careless libraries in every case."""
    names = [f"tests.careless:{name}" for name in ("LOOSE", "STIFF", "GREEDY")]
    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(lambda name: verdicts(name, *CASES), names))


@pytest.mark.parametrize("case_id", CASES)
def test_a_case_can_be_failed(case_id: str, careless: list[Mapping[str, tuple[str, str]]]) -> None:
    """At least one careless library does not do what is expected."""
    assert "fail" in {judged[case_id][0] for judged in careless}


def test_the_page_lists_the_cases_there_are() -> None:
    """The committed tables have a row for each case, and no other."""
    assert listed(PAGE) == list(CASES)


def test_the_page_shows_ours_passing_all() -> None:
    """Nobody has written down a board on which this library fails."""
    rows = [line for line in PAGE.splitlines() if "(`" in line and line.startswith("| ")]

    assert {row.split(" | ")[1].strip() for row in rows} == {MARKS[Verdict.PASS]}


def test_the_picture_shows_the_cases_and_the_libraries() -> None:
    """Each has its label."""
    assert [case for case in CASES if f">{case}</text>" not in PICTURE] == []
    assert [library.name for library in LIBRARIES if f">{library.name}</text>" not in PICTURE] == []


def test_every_adapter_is_of_the_library_that_it_is_entered_as() -> None:
    """The board's list and the folder of adapters are the same."""
    folder = ROOT / "benchmarks" / "conformance" / "libraries"

    assert sorted(library.module for library in LIBRARIES) == sorted(
        path.stem for path in folder.glob("*.py") if path.stem != "__init__"
    )


def test_a_cell_that_hangs_is_a_failure() -> None:
    """The board ends it, and goes on."""
    case = next(iter(CASES.values()))

    cell = judge(OURS, case, limit=0.001)

    assert (cell.verdict, cell.note) == (Verdict.FAIL, "hangs: it goes on and on")


def test_a_cell_whose_process_dies_is_no_verdict() -> None:
    """What breaks the process says nothing about the library."""
    case = attrs.evolve(next(iter(CASES.values())), id="no-such-case")

    cell = judge(OURS, case)

    assert cell.verdict is Verdict.ERROR
    assert cell.note == "the process ended with 1: KeyError: 'no-such-case'"


def test_the_page_tells_each_verdict() -> None:
    """A mark for each, and what was seen where it was not as expected."""
    one, two = LIBRARIES[:2]
    case = next(iter(CASES.values()))
    cells = [Cell(one, case, Verdict.PASS), Cell(two, case, Verdict.FAIL, "two | trials")]

    text = page(cells)

    assert listed(text) == [case.id]
    assert f"(`{case.id}`) | ✓ | ✗ | [" in text
    assert f"| `{case.id}` | {two.name} | ✗ two \\| trials |" in text
    assert drawn(cells).count("<path") == 2  # the cell, and the legend


def test_a_report_that_is_no_report_is_refused() -> None:
    """A case says where it was reported so that it can be looked up."""
    with pytest.raises(ValueError, match="reports must be owner/repository#number"):
        Case("id", "limiter", "title", ("somewhere",), lambda _: None)


def test_the_command_runs_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """One library, one case; the exit code says how this project's own did."""
    assert main(["--library", OURS.name, "--case", "half-open-flood"]) == 0
    assert capsys.readouterr().out == (f"✓ {OURS.name:<16}half-open-flood\n\n{OURS.name:<16}1 pass\n")


def test_the_command_tells_of_a_failure_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board on which this library fails is a failure of the command."""
    failed = Cell(OURS, CASES["half-open-flood"], Verdict.FAIL, "2 trials at once")
    monkeypatch.setattr(command, "run", lambda *_, **__: [failed])

    assert main(["--library", OURS.name]) == 1


def test_the_command_writes_the_whole_board_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Part of it would wipe out the rest."""
    (tmp_path / "docs" / "images").mkdir(parents=True)
    cells = [Cell(OURS, CASES["half-open-flood"], Verdict.PASS)]
    monkeypatch.setattr(command, "run", lambda *_, **__: cells)
    monkeypatch.setattr(command, "version_of", lambda _: "1")
    monkeypatch.setattr(command, "ROOT", tmp_path)

    with pytest.raises(SystemExit):
        main(["--write", "--library", OURS.name])
    assert "--write needs the whole board" in capsys.readouterr().err
    assert main(["--write"]) == 0
    assert (tmp_path / "docs" / "conformance.md").read_text(encoding="utf-8") == page(cells)
    assert (tmp_path / "docs" / "images" / "conformance.svg").read_text(encoding="utf-8") == drawn(cells)


def test_the_command_says_which_library_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer that is not installed has not failed."""
    monkeypatch.setattr(command, "version_of", lambda _: None)

    with pytest.raises(SystemExit):
        main(["--library", "tenacity"])
    assert "not installed: tenacity" in capsys.readouterr().err
