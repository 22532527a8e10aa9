"""WebhookEventHandler: events of any kind become webhooks, in a storm too.

Rules of this module: an event passes at once if the storm guard admits it and the limiter has a token for it. What is
too much is the surplus, and `overflow` says what becomes of it: it is written down now and delivered later, at the
limiter's rate; or it is dropped; or it is held and merged with the others about the same thing until the storm guard
has room. Every event is counted exactly once.
"""

from __future__ import annotations

import logging
import threading
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import anyio
import attrs

from resilience import Coalescer, Fate, RateLimiter, StormGuard, SystemClock
from resilience.machines.checks import instance, positive_int
from webhook_adapter.model import check_event_type, encode_body
from webhook_adapter.store import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType
    from typing import Self

    from resilience import Clock
    from webhook_adapter.event_bus import EventSource
    from webhook_adapter.model import JsonValue, Message

    _Event: TypeAlias = tuple[str, JsonValue]

__all__ = ["EventHandlerStatistics", "Overflow", "WebhookEventHandler"]

logger = logging.getLogger("webhook_adapter")

Overflow: TypeAlias = Literal["defer", "drop", "coalesce"]
_OVERFLOWS = ("defer", "drop", "coalesce")
# How long handing over what is held may take when the end comes, in seconds.
_GRACE = 5.0


class Notifier(Protocol):
    """What the handler asks of a WebhookService."""

    async def send_webhook_notification(
        self, event_type: str, data: JsonValue, *, delay: float = 0.0, idempotency_key: str | None = None
    ) -> Message:
        """Accept an event durably, once for each key; no attempt starts before `delay` seconds have passed."""
        ...


@attrs.frozen
class _Held:
    """An event that was held and is handed over now.

    Should that be cancelled, nobody knows whether it was accepted: under its own key it is accepted once, however often
    it is tried.
    """

    event: _Event
    key: str = attrs.field(factory=lambda: f"held-{uuid.uuid4()}")


@attrs.frozen(kw_only=True)
class EventHandlerStatistics:
    """Where the events went: received = delivered + deferred + merged + dropped + failed + held + being handled now.

    `delivered` were handed to the service at once or when they were released, `deferred` with a later turn, `dropped`
    not at all. `merged` went into another event about the same thing; `held` are those that wait for a storm to leave
    room. Of `failed` ones the publisher got the exception, or the log where they had been held. `in_storm` says whether
    the storm guard is refusing.
    """

    received: int
    delivered: int
    deferred: int
    merged: int
    dropped: int
    failed: int
    held: int
    in_storm: bool


class WebhookEventHandler:
    """Subscribe to a bus, and send a webhook for every event on it.

    Args:
        webhook_service: accepts the events.
        event_bus: an EventBus, or anything with its two methods.
        rate: events a second in the long run.
        capacity: events at once.
        storm: a StormGuard; by default one of 60 s and 1,000 events.
        overflow: "defer" accepts the surplus durably, to be delivered later at `rate`; "drop" counts and logs it;
            "coalesce" holds what the storm guard refuses, merged by `key`, until there is room for it, and defers what
            only the limiter has no token for.
        pattern: the events to subscribe to; by default all.
        key: with "coalesce", what an event is about, given its type and data; by default only events whose JSON is
            the same to the letter are about the same.
        merge: with "coalesce", returns the data that stand for both, given those held and those that have just come, of
            events with one key; by default the newer ones. The type is the newer one's.
        max_held: with "coalesce", how many are held; what would be one more is deferred.
        clock: where time comes from.

    Raises:
        ValueError: an argument that means nothing.

    With "coalesce" it is used as `async with handler:`, since what is held has to be released by somebody. What is held
    is in memory: it is accepted when the block is left, and lost if the process is killed.
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
        key: Callable[[str, JsonValue], Hashable] | None = None,
        merge: Callable[[JsonValue, JsonValue], JsonValue] | None = None,
        max_held: int = 1000,
        clock: Clock | None = None,
    ) -> None:
        if overflow not in _OVERFLOWS:
            raise ValueError(f"overflow must be one of {', '.join(map(repr, _OVERFLOWS))}, not {overflow!r}")
        for name, function in (("key", key), ("merge", merge)):
            if function is not None and (overflow != "coalesce" or not callable(function)):
                raise ValueError(
                    f'{name} must be a callable, and goes with overflow="coalesce" alone, not {function!r}'
                )
        self._clock: Clock = SystemClock() if clock is None else clock
        self._service = webhook_service
        self._limiter = RateLimiter(rate, capacity, name="events", clock=self._clock)
        if storm is None:
            storm = StormGuard(name="events", clock=self._clock)
        elif instance("storm", storm, StormGuard).surplus is not None and overflow == "coalesce":
            raise ValueError(f'storm must have no surplus of its own, with overflow="coalesce", not {storm.surplus!r}')
        self._storm = storm
        self._overflow: Overflow = overflow
        self._key = key
        positive_int("max_held", max_held)
        self._coalescer: Coalescer[Hashable, _Event] | None = None
        if overflow == "coalesce":
            self._coalescer = Coalescer(storm, merge=_merging(merge), max_keys=max_held)
        self._releasing: AsyncExitStack | None = None
        # What has been taken from the coalescer and has not been accepted yet.
        self._in_hand: _Held | None = None
        self._lock = threading.Lock()
        self._received = self._delivered = self._deferred = self._merged = self._dropped = self._failed = 0
        self._unsubscribe: Callable[[], None] = event_bus.subscribe(pattern, self.handle)

    async def handle(self, event_type: str, event_data: JsonValue) -> None:
        """Take one event. A checkpoint, unless it is dropped, held or merged; else durable when this returns.

        Raises what the service raises if it cannot accept the event. Cancelled while it is being accepted, an event
        counts as failed, though it may have been accepted.

        Raises:
            ValueError: with "coalesce", the event could not be delivered.
            RuntimeError: with "coalesce", outside of `async with handler:`.
        """
        if self._coalescer is not None:
            await self._coalesce(self._coalescer, event_type, event_data)
            return
        with self._lock:
            self._received += 1
        admitted = await self._storm.should_process_event() and self._limiter.try_acquire()
        if not admitted and self._overflow == "drop":
            with self._lock:
                self._dropped += 1
            logger.warning("an event of type %r was dropped: there are too many", event_type)
            return
        await self._accept((event_type, event_data), admitted=admitted)

    async def _coalesce(self, coalescer: Coalescer[Hashable, _Event], event_type: str, event_data: JsonValue) -> None:
        if self._releasing is None:
            raise RuntimeError('a handler with overflow="coalesce" must be entered first: async with handler:')
        # Here, where the publisher can be told, and not when it is released.
        body = encode_body(check_event_type(event_type), 0.0, event_data)
        event = (event_type, event_data)
        fate = coalescer.submit(event, body if self._key is None else self._key(event_type, event_data))
        with self._lock:
            self._received += 1
            self._merged += fate is Fate.MERGED
        if fate is Fate.PASSED:
            await self._accept(event, admitted=self._limiter.try_acquire())
        elif fate is Fate.DROPPED:
            await self._accept(event, admitted=False)

    async def _accept(self, event: _Event, *, admitted: bool) -> None:
        """Hand an event to the service, now or with a later turn; the publisher hears of what goes wrong."""
        delay = 0.0 if admitted else self._limiter.schedule()
        try:
            await self._send(event, delay, admitted=admitted)
        except BaseException:
            self._count_failed()
            raise

    async def _send(self, event: _Event, delay: float, *, admitted: bool, key: str | None = None) -> None:
        await self._service.send_webhook_notification(*event, delay=delay, idempotency_key=key)
        with self._lock:
            self._delivered += admitted
            self._deferred += not admitted

    def _count_failed(self) -> None:
        with self._lock:
            self._failed += 1

    # -- what was held ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Begin to release what is held. A checkpoint."""
        if self._releasing is not None:
            raise RuntimeError("the handler has been entered already")
        async with AsyncExitStack() as stack:
            if self._coalescer is not None:
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(self._release, self._coalescer)
            self._releasing = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the subscription, and hand what is held to the service, also when cancelled. A checkpoint.

        It takes five seconds at the most; what is left then is counted as failed, and logged.
        """
        stack, self._releasing = self._releasing, None
        assert stack is not None  # noqa: S101 - entered, or this would not be called
        self.close()
        try:
            await stack.aclose()
        finally:
            await self._drain()

    async def _release(self, coalescer: Coalescer[Hashable, _Event]) -> None:
        async for each in coalescer:
            self._in_hand = _Held(each.event)
            await self._hand_over(self._in_hand, patiently=True)
            self._in_hand = None

    async def _drain(self) -> None:
        left = [] if self._in_hand is None else [self._in_hand]
        self._in_hand = None
        if self._coalescer is not None:
            left += [_Held(each.event) for each in self._coalescer.drain()]
        try:
            with anyio.CancelScope(shield=True), self._clock.fail_after(_GRACE):
                while left:
                    await self._hand_over(left[0], patiently=False)
                    del left[0]
        except TimeoutError:
            with self._lock:
                self._failed += len(left)
            logger.error("%d events that had been held were not accepted in time", len(left))  # noqa: TRY400 - says all

    async def _hand_over(self, held: _Held, *, patiently: bool) -> None:
        """Hand over an event that nobody waits for: what goes wrong is logged, or tried again."""
        admitted = self._limiter.try_acquire()
        delay = 0.0 if admitted else self._limiter.schedule()
        while True:
            try:
                await self._send(held.event, delay, admitted=admitted, key=held.key)
            except Exception as error:
                if not patiently or not isinstance(error, StoreUnavailableError):
                    self._count_failed()
                    logger.exception("an event of type %r that had been held was not accepted", held.event[0])
                    return
                await self._clock.sleep(error.retry_after)
            else:
                return

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
                merged=self._merged,
                dropped=self._dropped,
                failed=self._failed,
                held=0 if self._coalescer is None else len(self._coalescer),
                in_storm=self._storm.in_storm,
            )


def _merging(merge: Callable[[JsonValue, JsonValue], JsonValue] | None) -> Callable[[_Event, _Event], _Event] | None:
    if merge is None:
        return None
    return lambda held, event: (event[0], merge(held[1], event[1]))
