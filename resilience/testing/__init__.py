"""For your tests as well as ours: time that moves when you say so, and proofs that cover every schedule."""

from __future__ import annotations

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

__all__ = [
    "History",
    "ManualClock",
    "Model",
    "NotLinearizableError",
    "Operation",
    "Report",
    "assert_linearizable",
    "linearize",
]
