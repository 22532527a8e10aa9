"""Events from the real guards and strategies: told once the lock is free, and never the listener's fault."""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, get_args

import attrs
import pytest

from resilience import (
    AIMD,
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    ConstantBackoff,
    Fallback,
    Guard,
    Hedge,
    Layer,
    Retry,
    StormGuard,
)
from resilience.redis import RedisRateLimiter, RedisStore
from resilience.telemetry import (
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
from resilience.testing import Chaos, ManualClock
from tests.documents import ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilience.machines.decision import NeverFits, NotUntil

#: What an event comes from, and what makes it happen.
Scene: TypeAlias = "tuple[Layer, Callable[[], Awaitable[object]]]"


async def _fail() -> str:
    raise KeyError


def _tripping() -> Scene:
    breaker = CircuitBreaker(1, clock=ManualClock())

    async def act() -> None:
        with pytest.raises(KeyError):
            await breaker.call(_fail)
        assert breaker.state.value == "open"

    return breaker, act


def _refusing(bulkhead_class: type[Bulkhead] = Bulkhead) -> Scene:
    bulkhead = bulkhead_class(1, clock=ManualClock())

    async def act() -> None:
        with bulkhead:
            assert bulkhead.try_admit() is None
        assert bulkhead.available == 1

    return bulkhead, act


def _storming() -> Scene:
    guard = StormGuard(1.0, 1, clock=ManualClock())

    async def act() -> None:
        assert [await guard.should_process_event() for _ in range(3)] == [True, False, False]

    return guard, act


def _calming() -> Scene:
    clock = ManualClock()
    guard = StormGuard(1.0, 1, clock=clock)
    guard.try_admit()
    guard.try_admit()

    async def act() -> None:
        clock.advance(2.0)
        assert await guard.should_process_event()

    return guard, act


def _learning() -> Scene:
    limiter = AdaptiveLimiter(AIMD(initial_limit=20), clock=ManualClock())

    async def act() -> None:
        permit = limiter.try_admit()
        assert permit is not None
        permit.failure()
        assert limiter.limit < 20

    return limiter, act


def _retrying() -> Scene:
    retry = Retry(2, backoff=ConstantBackoff(0.001), clock=ManualClock(autojump=True))

    async def act() -> None:
        with pytest.raises(KeyError):
            await retry.call(_fail)

    return retry, act


def _hedging() -> Scene:
    clock = ManualClock(autojump=True)
    hedge = Hedge(0.5, clock=clock)

    async def act() -> None:
        await hedge.call(clock.sleep, 0.75)

    return hedge, act


def _falling_back() -> Scene:
    fallback = Fallback("spare")

    async def act() -> None:
        assert await fallback.call(_fail) == "spare"

    return fallback, act


def _injecting() -> Scene:
    chaos = Chaos(result="another")

    async def act() -> None:
        assert await chaos.call(_fail) == "another"

    return chaos, act


def _losing_the_server() -> Scene:
    # Nobody listens on port 1.
    limiter = RedisRateLimiter(RedisStore("redis://127.0.0.1:1"), 1.0, 1, name="api")

    async def act() -> None:
        assert await limiter.acquire()

    return limiter, act


SCENES: dict[type, Callable[[], Scene]] = {
    StateChanged: _tripping,
    Rejected: _refusing,
    RetryScheduled: _retrying,
    HedgeStarted: _hedging,
    FellBack: _falling_back,
    StormStarted: _storming,
    StormEnded: _calming,
    LimitChanged: _learning,
    ChaosInjected: _injecting,
    Unshared: _losing_the_server,
}


async def law_of_listeners(event_class: type, make: Callable[[], Scene]) -> None:
    """An event is told when the lock of what it comes from is free, and the call ends as it would have (TE8)."""
    layer, act = make()
    heard: list[Event] = []
    held: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        if isinstance(layer, Guard):
            if layer._lock.locked():
                held.append(event)
            else:
                # Whoever is free to be used, is: this is what a listener may do.
                layer.statistics()
        raise LookupError(event)

    unsubscribe = subscribe(listen)
    try:
        await act()
    finally:
        unsubscribe()
    assert held == []
    assert event_class in {type(event) for event in heard}


@pytest.mark.anyio
@pytest.mark.parametrize("event_class", SCENES, ids=lambda event_class: event_class.__name__)
async def test_event_is_told_when_the_lock_is_free(event_class: type, caplog: pytest.LogCaptureFixture) -> None:
    """TE8: its listener may use the guard; that it raises is logged, and changes nothing."""
    with caplog.at_level(logging.ERROR, logger="resilience"):
        await law_of_listeners(event_class, SCENES[event_class])
    assert caplog.records
    assert {record.getMessage() for record in caplog.records} == {
        "a listener raised; the guard and the other listeners go on"
    }


def test_every_event_has_its_scene() -> None:
    """An event that is new to the family needs one, or nobody would have heard it."""
    assert set(SCENES) == set(get_args(Event))


class _TellsAtOnce(Bulkhead):
    """A mutant: tells of a refusal while it holds its lock."""

    def refuse(self, decision: NotUntil | NeverFits) -> Exception:
        with self._lock:
            self._announce_rejection(None)
            self._events.drain()
        return super().refuse(decision)


@pytest.mark.anyio
async def test_telling_under_the_lock_is_caught() -> None:
    """TE8: the law sees a guard that tells too early."""
    with pytest.raises(AssertionError):
        await law_of_listeners(Rejected, partial(_refusing, _TellsAtOnce))


def test_the_page_shows_every_event() -> None:
    """The table on the page has each event, with its fields."""
    text = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([A-Z]\w+)` \| (.*?) \|", text, flags=re.MULTILINE)
    assert shown == [
        (event_class.__name__, ", ".join(f"`{field.name}`" for field in attrs.fields(event_class)))
        for event_class in SCENES
    ]
