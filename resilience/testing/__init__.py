"""For your tests as well as ours: time that moves when you say so."""

from __future__ import annotations

from resilience.testing.manual_clock import ManualClock
from resilience.testing.report import Report

__all__ = ["ManualClock", "Report"]
