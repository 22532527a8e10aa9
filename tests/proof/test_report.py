"""What a report says, and what it refuses to say."""

from __future__ import annotations

import functools

import attrs
import pytest

from resilience.testing import Report
from tests.resilience.support import assert_refuses, brief


def test_a_report_is_one_line_of_the_figures_that_are_not_zero() -> None:
    """Who reads the output of a proof sees what was covered, and how far."""
    report = Report(name="RL1", schedules=34_650, distinct=34_650, histories=12, states=7, complete=True)

    assert str(report) == "RL1: 34,650 schedules, 34,650 distinct, 12 histories, 7 states, complete"
    assert str(Report(name="DQ1", cancel_points=3, faults=2, seed=0)) == (
        "DQ1: 3 cancel points, 2 faults, seed 0, a sample"
    )


def test_reports_add_up_and_the_sum_is_complete_only_if_all_parts_are() -> None:
    """The total of many proofs claims no more than the weakest of them."""
    whole = Report(name="a", schedules=3, distinct=2, histories=5, states=7, complete=True)
    part = Report(name="b", schedules=10, distinct=9, histories=8, cancel_points=1, faults=4, seed=6)

    assert Report.total("all", [whole, part]) == Report(
        name="all", schedules=13, distinct=11, histories=13, states=7, cancel_points=1, faults=4, seed=6
    )
    assert Report.total("all", [whole, whole]).complete
    assert not Report.total("nothing", []).complete


@pytest.mark.parametrize("figure", ["schedules", "distinct", "histories", "states", "cancel_points", "faults", "seed"])
@pytest.mark.parametrize("value", [-1, 0.5, True, "x"], ids=brief)
def test_a_figure_is_a_whole_number(figure: str, value: object) -> None:
    """What is not a count is refused, by name."""
    assert_refuses(figure, value, functools.partial(Report, name="x"))


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_report_has_a_name(name: object) -> None:
    """Figures that belong to nothing say nothing."""
    assert_refuses("name", name, Report)


def test_a_report_never_changes() -> None:
    """What was covered stays what was covered."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Report(name="x").schedules = 3  # type: ignore[misc]
