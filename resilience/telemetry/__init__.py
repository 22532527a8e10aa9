"""Telemetry: hear of what guards do, without slowing them down.

`subscribe` delivers typed events after a guard's lock was released; `statistics()` on a guard is a frozen snapshot.
Exporters read statistics when they are scraped, so that a guard nobody looks at pays nothing.
"""

from __future__ import annotations

from resilience.events import (
    ChaosInjected,
    Event,
    FellBack,
    HedgeStarted,
    LimitChanged,
    Rejected,
    RetryScheduled,
    StateChanged,
    StormEnded,
    StormStarted,
    Unshared,
    subscribe,
)

__all__ = [
    "ChaosInjected",
    "Event",
    "FellBack",
    "HedgeStarted",
    "LimitChanged",
    "Rejected",
    "RetryScheduled",
    "StateChanged",
    "StormEnded",
    "StormStarted",
    "Unshared",
    "subscribe",
]
