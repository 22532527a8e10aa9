"""Typed events, and how they reach those who listen.

Rules of this module:

* An event is queued under its guard's lock and delivered after the lock is released, in order, by one drainer at a
  time. A listener that uses the guard again only queues; it can neither deadlock nor reorder.
* A listener that raises is logged and harms nobody: neither the guard, nor the call, nor the other listeners.
* Events carry names and plain values, never the arguments or results of the calls that are guarded.

It knows no guard.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "SUBSCRIBERS",
    "ChaosInjected",
    "Event",
    "EventQueue",
    "FellBack",
    "HedgeStarted",
    "LimitChanged",
    "Rejected",
    "RetryScheduled",
    "Section",
    "StateChanged",
    "StormEnded",
    "StormStarted",
    "Unshared",
    "announce",
    "calls_for",
    "subscribe",
]

logger: logging.Logger = logging.getLogger("resilience")


@attrs.frozen(kw_only=True)
class StateChanged:
    """A circuit breaker went from one state to another; `at_ns` is on the breaker's own line of time."""

    guard: str
    old: str
    new: str
    at_ns: int


@attrs.frozen(kw_only=True)
class Rejected:
    """A guard refused a call."""

    guard: str
    retry_after: float | None


@attrs.frozen(kw_only=True)
class RetryScheduled:
    """Attempt number `attempt` failed, and another one follows after `delay` seconds."""

    name: str
    attempt: int
    delay: float
    error: str


@attrs.frozen(kw_only=True)
class HedgeStarted:
    """No attempt has ended within `delay` seconds of the last one's start, so attempt number `attempt` begins."""

    name: str
    attempt: int
    delay: float


@attrs.frozen(kw_only=True)
class FellBack:
    """A call failed, and the fallback takes its place."""

    name: str
    error: str


@attrs.frozen(kw_only=True)
class StormStarted:
    """A storm guard refused an event, having admitted `max_events` within its window."""

    guard: str
    at_ns: int


@attrs.frozen(kw_only=True)
class StormEnded:
    """A storm guard's window has calmed down; `refused` events had been refused during the storm."""

    guard: str
    at_ns: int
    refused: int


@attrs.frozen(kw_only=True)
class LimitChanged:
    """An adaptive limiter has learnt another limit, or begins or ends a probe."""

    guard: str
    old: int
    new: int
    at_ns: int


@attrs.frozen(kw_only=True)
class ChaosInjected:
    """A call is made to go wrong on purpose, by a "latency" of `delay` seconds, a "fault", a "result" or a "hang".

    `error` is the type of a fault.
    """

    name: str
    kind: str
    delay: float | None = None
    error: str | None = None


@attrs.frozen(kw_only=True)
class Unshared:
    """A shared guard's server did not answer, so it decides as `on_store_error` says; `error` is what came instead."""

    guard: str
    on_store_error: str
    error: str


Event: TypeAlias = (
    StateChanged
    | Rejected
    | RetryScheduled
    | HedgeStarted
    | FellBack
    | StormStarted
    | StormEnded
    | LimitChanged
    | ChaosInjected
    | Unshared
)


class EventQueue:
    """What has to wait until a guard's lock is free: events on their way to listeners, and what finalizers left.

    `put` is called under the guard's lock; whoever releases the lock calls `drain` if `pending` is not empty.
    """

    __slots__ = ("_draining", "pending")

    def __init__(self) -> None:
        self.pending: deque[tuple[Callable[[], object], ...]] = deque()
        self._draining = threading.Lock()

    def put(self, *calls: Callable[[], object]) -> None:
        """Queue the calls that tell of one event. The guard's lock is held."""
        self.pending.append(calls)

    def put_from_finalizer(self, lock: threading.Lock, action: Callable[[], object]) -> None:
        """Run an action that takes `lock` as soon as that is free.

        A frame that the garbage collector closes may interrupt, in the same thread, whoever holds the lock; were it to
        wait for the lock, it would wait for ever. So the action is queued; if the lock is taken, whoever holds it
        drains the queue on leaving. Between the two nothing is lost.
        """
        self.pending.append((action,))
        if lock.acquire(blocking=False):
            lock.release()
            self.drain()

    def drain(self) -> None:
        """Deliver what is queued, unless another thread, or a caller of this very one, is at it already."""
        # An event queued just as the drainer finds the queue empty is seen by the `while`, once the lock is free.
        while self.pending and self._draining.acquire(blocking=False):
            try:
                while self.pending:
                    for call in self.pending.popleft():
                        _tell(call)
            finally:
                self._draining.release()


class Section:
    """A critical section: `with` takes the lock, and delivers what was queued once the lock is free again."""

    __slots__ = ("_lock", "_queue")

    def __init__(self, lock: threading.Lock, queue: EventQueue) -> None:
        self._lock = lock
        self._queue = queue

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: object, exception: object, trace: object) -> None:
        self._lock.release()
        if self._queue.pending:
            self._queue.drain()


def _tell(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:
        logger.exception("a listener raised; the guard and the other listeners go on")


class _Subscribers:
    """Who listens to the events of all guards: a tuple that is replaced whole, so that reading it needs no lock."""

    __slots__ = ("_lock", "listeners")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.listeners: tuple[Callable[[Event], object], ...] = ()

    def add(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        # Wrapped, so that the same function subscribed twice is two subscriptions, each taken back by its own handle.
        def entry(event: Event) -> object:
            return listener(event)

        with self._lock:
            self.listeners = (*self.listeners, entry)

        def unsubscribe() -> None:
            with self._lock:
                self.listeners = tuple(other for other in self.listeners if other is not entry)

        return unsubscribe


SUBSCRIBERS = _Subscribers()


def subscribe(listener: Callable[[Event], object]) -> Callable[[], None]:
    """Call `listener` with every event of every guard in this process; the function returned ends that.

    Listeners are called in the thread and task that caused the event, after the guard's lock was released, and must
    not block. What they raise is logged.
    """
    if not callable(listener):
        msg = f"listener must be callable, not {listener!r}"
        raise TypeError(msg)
    return SUBSCRIBERS.add(listener)


def calls_for(event: Event) -> list[Callable[[], object]]:
    """Return the calls that deliver `event` to those who listen now."""
    return [functools.partial(listener, event) for listener in SUBSCRIBERS.listeners]


def announce(event: Event) -> None:
    """Deliver an event of something that has no lock and no queue."""
    for call in calls_for(event):
        _tell(call)
