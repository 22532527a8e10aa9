"""For your tests as well as ours: time that moves when you say so, calls that go wrong, any schedule you like.

Here are the names that cost little to import. The instruments that drive event loops and threads are modules of their
own: `seeded_asyncio`, `seeded_trio`, `interleaving`; and so is `cancellation`.
"""

from __future__ import annotations

from resilience.testing.chaos import Chaos, ChaosStatistics
from resilience.testing.exploration import Cancel, FailedScheduleError, explore_program, pause, until
from resilience.testing.exploring import explore
from resilience.testing.linearizability import (
    History,
    Model,
    NotLinearizableError,
    Operation,
    assert_linearizable,
    linearize,
)
from resilience.testing.manual_clock import ManualClock
from resilience.testing.report import Report
from resilience.testing.runs import DeadlockError, NondeterminismError, NoProgressError, RealWorldError, Run
from resilience.testing.schedules import PCT, Exhaustive, Random, Replay, Schedule, schedules
from resilience.testing.virtual_time import Faults

__all__ = [
    "PCT",
    "Cancel",
    "Chaos",
    "ChaosStatistics",
    "DeadlockError",
    "Exhaustive",
    "FailedScheduleError",
    "Faults",
    "History",
    "ManualClock",
    "Model",
    "NoProgressError",
    "NondeterminismError",
    "NotLinearizableError",
    "Operation",
    "Random",
    "RealWorldError",
    "Replay",
    "Report",
    "Run",
    "Schedule",
    "assert_linearizable",
    "explore",
    "explore_program",
    "linearize",
    "pause",
    "schedules",
    "until",
]
