"""The measure of memory: that it sees what a key takes, and which figures miss the goal."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.memory import CASES, GOAL, Case, Taken, exceeded, fill, main, table

if TYPE_CHECKING:
    from collections.abc import Callable


def _blocks(size: int) -> Callable[[int], Callable[[str], object]]:
    def make(_: int) -> Callable[[str], object]:
        kept: list[bytes] = []
        return lambda _: kept.append(bytes(size))

    return make


BLOCKS = Case("blocks", _blocks(1_000))


def test_what_each_key_takes_is_seen() -> None:
    """A kilobyte a key is told as such, and its place in a list; the keys themselves do not count."""
    taken = fill(BLOCKS, 2_000, traced=True)
    assert taken == pytest.approx(1_000 + sys.getsizeof(b"") + 8, rel=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="told by /proc alone")
def test_a_process_grows_by_what_its_keys_take() -> None:
    """Twenty megabytes of blocks are twenty megabytes of memory."""
    program = "from tests.test_memory import BLOCKS, fill; print(fill(BLOCKS, 20_000, traced=False))"
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert float(told.stdout) == pytest.approx(1_050, rel=0.1)


@pytest.mark.parametrize("case", [case for case in CASES if case.module is None], ids=lambda case: case.name)
def test_every_case_keeps_something_of_each_key(case: Case) -> None:
    """A key that was used once takes something: it has not been dropped as good as new."""
    taken = fill(case, 1_500, traced=True)
    assert taken is not None
    assert 50 < taken < 400


def test_one_case_is_filled_where_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The process of a case prints one number."""
    assert main(["0", "1000", "traced"]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(fill(CASES[0], 1_000, traced=True), rel=0.1)


def test_only_ours_can_miss_the_goal_and_in_either_measure() -> None:
    """At the goal is within it; what others take, or what was not measured, misses nothing."""
    ours, other = Case("ours", _blocks(1), ours=True), Case("other", _blocks(1))
    within, unmeasured = Taken(ours, GOAL, GOAL), Taken(ours, None, GOAL)
    grown, traced = Taken(ours, GOAL + 1, 1.0), Taken(ours, None, GOAL + 1)
    assert exceeded([within, unmeasured, grown, traced, Taken(other, 900.0, 900.0)]) == [grown, traced]
    assert [line.endswith("MISSED") for line in table([within, grown]).splitlines()] == [False, False, True]
