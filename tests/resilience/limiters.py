"""Adaptive limiters whose limit a test sets, and which write down what calls teach them."""

from __future__ import annotations

from resilience import AIMD, AdaptiveLimiter

__all__ = ["Notebook", "fixed", "noted"]


def fixed(limit: int) -> AIMD:
    """Return an algorithm that stays where it is, unless a call fails."""
    return AIMD(initial_limit=limit, max_limit=limit)


class Notebook:
    """A machine that writes down its samples, and whose limit the test moves."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.samples: list[tuple[int, int, int, bool]] = []

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        """Write a sample down; return the limit that is set."""
        self.samples.append((started_ns, ended_ns, in_flight, dropped))
        return self.limit


def noted(limiter: AdaptiveLimiter) -> Notebook:
    """Put a notebook in the place of the limiter's machine."""
    notebook = Notebook(limiter.limit)
    limiter._machine = notebook
    return notebook
