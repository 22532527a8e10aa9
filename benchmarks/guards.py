"""What one call costs through each guard and strategy: the cases that both benchmark programs time.

Every function makes its guards afresh and returns the loop to time. They are so large that no round comes near their
bounds, or so small that nothing is ever admitted: what is measured is the decision, and never a wait.
"""

from __future__ import annotations

import threading
from itertools import repeat
from typing import TYPE_CHECKING

import attrs

from benchmarks.ratios import Case, repeated
from resilience import (
    AsyncGuardedDeque,
    Bulkhead,
    CircuitBreaker,
    CircuitOpenError,
    Coalescer,
    Keyed,
    Layer,
    Policy,
    RateLimiter,
    RejectedError,
    Retry,
    StormGuard,
    Timeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.ratios import Loop

__all__ = ["SUBJECTS", "Subject", "cases"]

PLENTY = 1_000_000_000
AN_HOUR = 3_600.0


@attrs.frozen
class Subject:
    """Something to time: `make()` returns a loop over fresh guards; `target` is the most a call may cost, if set."""

    name: str
    make: Callable[[], Loop]
    target: float | None = None


async def _work() -> None:
    """Stand for the callable that is guarded."""


def _calls(layer: Layer) -> Loop:
    """Return the loop that calls through `layer`."""

    async def loop(calls: int) -> None:
        call = layer.call
        for _ in repeat(None, calls):
            await call(_work)

    return loop


def _refused_calls(layer: Layer, error: type[RejectedError]) -> Loop:
    """Return the loop that is refused every time; making and catching the exception is part of its cost."""

    async def loop(calls: int) -> None:
        call = layer.call
        for _ in repeat(None, calls):
            try:
                await call(_work)
            except error:
                pass
            else:
                raise AssertionError("the guard was meant to refuse")

    return loop


def plain_lock() -> Loop:
    """Take and release a lock that nobody else wants: the least that a guard for threads can cost."""
    lock = threading.Lock()

    async def loop(calls: int) -> None:
        for _ in repeat(None, calls):
            with lock:
                pass

    return loop


def limiter_admitted() -> Loop:
    """Acquire from a bucket that is never empty."""
    return repeated(RateLimiter(PLENTY, PLENTY).acquire)


def limiter_refused() -> Loop:
    """Acquire from a bucket that is empty, without waiting."""
    limiter = RateLimiter(1 / AN_HOUR, 1)
    limiter.try_acquire()
    return repeated(limiter.acquire)


def breaker_closed() -> Loop:
    """Call through a closed circuit."""
    return _calls(CircuitBreaker())


def breaker_open() -> Loop:
    """Call through an open circuit."""
    breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=AN_HOUR)
    permit = breaker.try_admit()
    assert permit is not None
    permit.failure()
    return _refused_calls(breaker, CircuitOpenError)


def storm_admitted() -> Loop:
    """Ask whether to process an event, with room in the window."""
    # The window is short, so that the ring's entries have left it whenever it comes round.
    return repeated(StormGuard(window_size=1e-6, max_events=100_000).should_process_event)


def storm_refused() -> Loop:
    """Ask the same in a storm."""
    guard = StormGuard(window_size=AN_HOUR, max_events=1)
    guard.try_admit()
    return repeated(guard.should_process_event)


def storm_keyed() -> Loop:
    """Ask on behalf of a key, with room in the window and in its share; the key is another one every time."""
    guard = StormGuard(window_size=1e-6, max_events=100_000, key_share=0.1)

    async def loop(calls: int) -> None:
        for key in range(calls):
            await guard.should_process_event(key)

    return loop


def storm_merged() -> Loop:
    """Submit an event whose key is held already."""
    events: Coalescer[str, int] = Coalescer(StormGuard(window_size=AN_HOUR, max_events=1))

    async def loop(calls: int) -> None:
        for number in range(calls):
            events.submit(number, "key")

    return loop


def bulkhead_free() -> Loop:
    """Call through a bulkhead with a permit to spare."""
    return _calls(Bulkhead(PLENTY))


def _look_ups(max_awake: int) -> Loop:
    """Return the loop that asks for two keys in turns, whose limiters have been used and will not recover."""
    guards = Keyed[str, RateLimiter](lambda _: RateLimiter(1 / AN_HOUR, 2), max_awake=max_awake)
    for key in "ab":
        guards[key].try_acquire()

    async def loop(calls: int) -> None:
        for _ in repeat(None, calls // 2):
            guards["a"]
            guards["b"]

    return loop


def keyed_awake() -> Loop:
    """Look up a guard that is there as an object."""
    return _look_ups(max_awake=2)


def keyed_asleep() -> Loop:
    """Look up a guard of which only the remains are there: it is made again, and another one put to sleep."""
    return _look_ups(max_awake=1)


def append_and_popleft() -> Loop:
    """Put one item and take it again."""
    queue: AsyncGuardedDeque[int] = AsyncGuardedDeque(maxlen=PLENTY)

    async def loop(calls: int) -> None:
        for _ in repeat(None, calls):
            await queue.append(1)
            await queue.popleft()

    return loop


def retry_unneeded() -> Loop:
    """Call once through a Retry: the attempt succeeds."""
    return _calls(Retry(3))


def timeout_unreached() -> Loop:
    """Call through a Timeout that never passes."""
    return _calls(Timeout(AN_HOUR))


def policy_of_five() -> Loop:
    """Call through two strategies and three guards, which share a frame."""
    return _calls(Policy(Timeout(AN_HOUR), Retry(3), CircuitBreaker(), RateLimiter(PLENTY, PLENTY), Bulkhead(PLENTY)))


SUBJECTS = (
    Subject("threading.Lock, uncontended", plain_lock),
    Subject("RateLimiter.acquire, admitted", limiter_admitted, target=7),
    Subject("RateLimiter.acquire, refused", limiter_refused),
    Subject("CircuitBreaker.call, closed", breaker_closed, target=11),
    Subject("CircuitBreaker.call, open", breaker_open),
    Subject("StormGuard.should_process_event, admitted", storm_admitted, target=7),
    Subject("StormGuard.should_process_event, refused", storm_refused),
    Subject("StormGuard.should_process_event of a key, admitted", storm_keyed),
    Subject("Coalescer.submit, merged", storm_merged),
    Subject("Bulkhead.call", bulkhead_free),
    Subject("Keyed, look-up of a key that is awake", keyed_awake),
    Subject("Keyed, look-up of a key that sleeps", keyed_asleep),
    Subject("AsyncGuardedDeque.append + popleft", append_and_popleft),
    Subject("Retry.call, first attempt", retry_unneeded),
    Subject("Timeout.call, in time", timeout_unreached),
    Subject("Policy of five, call", policy_of_five, target=60),
)


def cases() -> list[Case]:
    """Make every subject once, for the table of ratios."""
    return [Case(subject.name, subject.make(), target=subject.target) for subject in SUBJECTS]
