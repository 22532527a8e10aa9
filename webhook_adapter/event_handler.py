"""WebhookEventHandler: events of any kind become webhooks, in a storm too.

Rules of this module: an event passes at once if the storm guard admits it and the limiter has a token for it. What is
too much is the surplus, and `overflow` says what becomes of it: it is written down now and delivered later, at the
limiter's rate, or it is dropped. Every event is counted exactly once.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import attrs

from resilience import RateLimiter, StormGuard, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import Clock
    from webhook_adapter.event_bus import EventSource
    from webhook_adapter.model import JsonValue, Message

__all__ = ["EventHandlerStatistics", "Overflow", "WebhookEventHandler"]

logger = logging.getLogger("webhook_adapter")

Overflow: TypeAlias = Literal["defer", "drop"]
_OVERFLOWS = ("defer", "drop")


class Notifier(Protocol):
    """What the handler asks of a WebhookService."""

    async def send_webhook_notification(self, event_type: str, data: JsonValue, *, delay: float = 0.0) -> Message:
        """Accept an event durably; no attempt starts before `delay` seconds have passed."""
        ...


@attrs.frozen(kw_only=True)
class EventHandlerStatistics:
    """Where the events went: received = delivered + deferred + dropped + failed + those being handled now.

    `delivered` were handed to the service at once, `deferred` with a later turn, `dropped` not at all; of `failed` ones
    the publisher got the exception. `in_storm` says whether
    the storm guard is refusing.
    """

    received: int
    delivered: int
    deferred: int
    dropped: int
    failed: int
    in_storm: bool


class WebhookEventHandler:
    """Subscribe to a bus, and send a webhook for every event on it.

    Args:
        webhook_service: accepts the events.
        event_bus: an EventBus, or anything with its two methods.
        rate: events a second in the long run.
        capacity: events at once.
        storm: a StormGuard; by default one of 60 s and 1,000 events.
        overflow: "defer" accepts the surplus durably, to be delivered later at `rate`; "drop" counts and logs it.
        pattern: the events to subscribe to; by default all.
        clock: where time comes from.

    Raises:
        ValueError: an argument that means nothing.
    """

    def __init__(
        self,
        webhook_service: Notifier,
        event_bus: EventSource,
        *,
        rate: float = 100.0,
        capacity: float = 200,
        storm: StormGuard | None = None,
        overflow: Overflow = "defer",
        pattern: str = "*",
        clock: Clock | None = None,
    ) -> None:
        if overflow not in _OVERFLOWS:
            raise ValueError(f"overflow must be one of {', '.join(map(repr, _OVERFLOWS))}, not {overflow!r}")
        clock = SystemClock() if clock is None else clock
        self._service = webhook_service
        self._limiter = RateLimiter(rate, capacity, name="events", clock=clock)
        self._storm = StormGuard(name="events", clock=clock) if storm is None else storm
        self._overflow: Overflow = overflow
        self._lock = threading.Lock()
        self._received = self._delivered = self._deferred = self._dropped = self._failed = 0
        self._unsubscribe: Callable[[], None] = event_bus.subscribe(pattern, self.handle)

    async def handle(self, event_type: str, event_data: JsonValue) -> None:
        """Take one event. A checkpoint, unless it is dropped; durable when this returns.

        Raises what the service raises if it cannot accept the event. Cancelled while it is being accepted, an event
        counts as failed, though it may have been accepted.
        """
        with self._lock:
            self._received += 1
        admitted = await self._storm.should_process_event() and self._limiter.try_acquire()
        if not admitted and self._overflow == "drop":
            with self._lock:
                self._dropped += 1
            logger.warning("an event of type %r was dropped: there are too many", event_type)
            return
        delay = 0.0 if admitted else self._limiter.schedule()
        try:
            await self._service.send_webhook_notification(event_type, event_data, delay=delay)
        except BaseException:
            with self._lock:
                self._failed += 1
            raise
        with self._lock:
            if admitted:
                self._delivered += 1
            else:
                self._deferred += 1

    def close(self) -> None:
        """End the subscription."""
        self._unsubscribe()

    @property
    def storm(self) -> StormGuard:
        """The storm guard."""
        return self._storm

    @property
    def limiter(self) -> RateLimiter:
        """The limiter."""
        return self._limiter

    def statistics(self) -> EventHandlerStatistics:
        """Return a frozen snapshot. Any thread."""
        with self._lock:
            return EventHandlerStatistics(
                received=self._received,
                delivered=self._delivered,
                deferred=self._deferred,
                dropped=self._dropped,
                failed=self._failed,
                in_storm=self._storm.in_storm,
            )
