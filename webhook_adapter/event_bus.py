"""EventBus: the smallest bus that does the job; any object with the same two methods will do in its place.

Rules of this module: handlers are called one after the other, in the order in which they subscribed, in the task that
publishes. One that raises keeps no other from hearing of the event; the publisher is told of all that went wrong, so
that an event which was not taken is never taken for one that was. It knows no webhook.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from webhook_adapter.model import JsonValue, check_event_pattern, check_event_type, matches_event_type

__all__ = ["EventBus", "EventSource", "Handler"]

Handler: TypeAlias = Callable[[str, JsonValue], Awaitable[object]]


class EventSource(Protocol):
    """What `WebhookEventHandler` asks of a bus."""

    def subscribe(self, pattern: str, handler: Handler, /) -> Callable[[], None]:
        """Call `handler` with (event_type, event_data) of each event that `pattern` matches."""
        ...

    async def publish(self, event_type: str, event_data: JsonValue, /) -> None:
        """Tell of an event."""
        ...


class EventBus:
    """Publish and subscribe within one process. Any thread and event loop may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced whole when it changes, so that publishing needs no lock and never sees half a change.
        self._subscriptions: tuple[tuple[str, Handler], ...] = ()

    def subscribe(self, pattern: str, handler: Handler, /) -> Callable[[], None]:
        """Call `await handler(event_type, event_data)` for each event that `pattern` matches.

        Args:
            pattern: an event type, "*" for all, or a prefix such as "order.*".
            handler: an async callable.

        Returns:
            A function that ends the subscription; events being published at that moment may still arrive.

        Raises:
            ValueError: `pattern` is none, or `handler` cannot be called.
        """
        check_event_pattern(pattern)
        if not callable(handler):
            raise ValueError(f"handler must be an async callable, not {handler!r}")
        entry = (pattern, handler)
        with self._lock:
            self._subscriptions = (*self._subscriptions, entry)

        def unsubscribe() -> None:
            with self._lock:
                self._subscriptions = tuple(other for other in self._subscriptions if other is not entry)

        return unsubscribe

    async def publish(self, event_type: str, event_data: JsonValue, /) -> None:
        """Tell every handler whose pattern matches, one after the other. A checkpoint if they are.

        Raises:
            ValueError: `event_type` is none.
            ExceptionGroup: of what handlers raised, once all of them have been called.

        A cancellation ends it at once; handlers that come later do not hear of the event.
        """
        check_event_type(event_type)
        errors: list[Exception] = []
        for pattern, handler in self._subscriptions:
            if not matches_event_type(pattern, event_type):
                continue
            try:
                await handler(event_type, event_data)
            except Exception as error:  # noqa: BLE001 - collected, and raised below
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"{len(errors)} handlers of {event_type!r} failed", errors)
