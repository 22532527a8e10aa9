"""Every guard and strategy beside the bare await, in one task and shared among a thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.guards import SUBJECTS, Subject
from benchmarks.ratios import BARE, spread

if TYPE_CHECKING:
    from benchmarks.conftest import TimeLoop

# In the same group, so that the table sets each beside the bare await with as many tasks.
EVERYTHING = (Subject(BARE.name, lambda: BARE.loop), *SUBJECTS)


@pytest.mark.benchmark(group="1 task, 1,000 calls")
@pytest.mark.parametrize("subject", EVERYTHING, ids=lambda subject: subject.name)
def test_one_task(time_loop: TimeLoop, subject: Subject) -> None:
    """Call a thousand times in one task."""
    time_loop(subject.make())


@pytest.mark.benchmark(group="1,000 tasks, 10 calls each, starting them included")
@pytest.mark.parametrize("subject", EVERYTHING, ids=lambda subject: subject.name)
def test_a_thousand_tasks(time_loop: TimeLoop, subject: Subject) -> None:
    """Share ten thousand calls among a thousand tasks."""
    time_loop(spread(subject.make(), tasks=1_000), calls=10_000, rounds=10)
