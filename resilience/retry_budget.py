"""RetryBudget: how many retries, and hedges, all callers of one thing may add to its load.

Rules of this module: the budget itself is `machines.budget`; this adds the clock and the lock. It knows no layer, so
that every layer that multiplies calls may share one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import attrs

from resilience.clock import MonotoneLine, SystemClock
from resilience.machines.budget import Budget
from resilience.machines.checks import positive, string

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilience.clock import Clock

__all__ = ["BudgetStatistics", "RetryBudget", "earned_by"]


@attrs.frozen(kw_only=True)
class BudgetStatistics:
    """A snapshot of one budget: retries and hedges `paid` for and `refused`, and how many more could be paid for."""

    paid: int
    refused: int
    available: float


class RetryBudget:
    """A limit on retries as a share of first attempts, shared by all the layers that are given it.

    In any t seconds there are at most `ratio * first attempts + min_per_second * (t + reserve_for)` retries.

    Args:
        ratio: retries per first attempt.
        min_per_second: retries a second that are always allowed, so that a quiet client may retry too.
        reserve_for: for how many seconds that allowance may be saved up.
        name: what metrics call it.
        clock: where time comes from.

    """

    __slots__ = ("_budget", "_line", "_lock", "_paid", "_refused", "clock", "name")

    def __init__(
        self,
        ratio: float = 0.1,
        min_per_second: float = 1.0,
        reserve_for: float = 10.0,
        *,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        positive("ratio", ratio)
        positive("min_per_second", min_per_second)
        positive("reserve_for", reserve_for)
        self.name: str = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        now_ns = self.clock.monotonic_ns()
        self._lock = threading.Lock()
        self._line = MonotoneLine(now_ns)
        self._budget = Budget(ratio, min_per_second, reserve_for, now_ns)
        self._paid = self._refused = 0

    def first_attempt(self) -> None:
        """Note a first attempt. Any thread."""
        with self._lock:
            self._budget.first_attempt(self._line.at(self.clock.monotonic_ns()))

    def try_spend(self) -> bool:
        """Pay for one retry, or return False. Any thread."""
        with self._lock:
            paid = self._budget.spend(self._line.at(self.clock.monotonic_ns()))
            self._paid += paid
            self._refused += not paid
        return paid

    def is_fresh(self) -> bool:
        """Tell whether there is as much to spend as there was at first. Any thread."""
        with self._lock:
            return self._budget.is_fresh(self._line.at(self.clock.monotonic_ns()))

    @property
    def available(self) -> float:
        """The retries that could be paid for now."""
        with self._lock:
            return self._budget.available(self._line.at(self.clock.monotonic_ns()))

    def statistics(self) -> BudgetStatistics:
        """Return a frozen snapshot, taken at one instant. Not a checkpoint; any thread."""
        with self._lock:
            available = self._budget.available(self._line.at(self.clock.monotonic_ns()))
            return BudgetStatistics(paid=self._paid, refused=self._refused, available=available)


def earned_by(layers: Iterable[object], budget: RetryBudget | None) -> bool:
    """Tell whether one of the layers around a call notes it as a first attempt of the budget already."""
    return budget is not None and any(getattr(layer, "budget", None) is budget for layer in layers)
