from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resilience import StormGuard
from resilience.testing import ManualClock
from webhook_adapter import EventBus, WebhookEventHandler

if TYPE_CHECKING:
    from webhook_adapter.event_handler import Overflow

pytestmark = pytest.mark.anyio


class Accepting:
    """A service that notes what it was asked to accept."""

    def __init__(self) -> None:
        self.accepted: list[tuple[str, object, float]] = []

    async def send_webhook_notification(self, event_type: str, data: object, *, delay: float = 0.0) -> None:
        self.accepted.append((event_type, data, delay))


class Refusing:
    """A service whose database is full."""

    async def send_webhook_notification(self, event_type: str, data: object, *, delay: float = 0.0) -> None:
        raise OSError(f"full: {event_type} {data} {delay}")


def handler_on(service: object, bus: EventBus, clock: ManualClock, **options: object) -> WebhookEventHandler:
    """Make a handler of 10 events a second, 5 at once."""
    arguments: dict[str, object] = {"rate": 10.0, "capacity": 5, "clock": clock} | options
    return WebhookEventHandler(service, bus, **arguments)  # type: ignore[arg-type]


async def test_events_of_any_kind_become_notifications() -> None:
    """Whatever is published is handed to the service at once, while there is no storm."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    handler = handler_on(service, bus, clock)

    await bus.publish("order.paid", {"order": 7})
    await bus.publish("user.made", None)

    assert service.accepted == [("order.paid", {"order": 7}, 0.0), ("user.made", None, 0.0)]
    assert handler.statistics().delivered == 2


async def test_the_surplus_is_deferred_at_the_rate() -> None:
    """What is beyond the burst gets a turn of its own, one after the other at the limiter's rate; none is lost."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    handler = handler_on(service, bus, clock)

    for number in range(8):
        await bus.publish("tick", number)

    assert [delay for _, _, delay in service.accepted] == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2, 0.3])
    statistics = handler.statistics()
    assert (statistics.received, statistics.delivered, statistics.deferred) == (8, 5, 3)


async def test_newcomers_queue_behind_what_was_deferred() -> None:
    """An event that comes while others have their turns ahead of it takes the next free one, even as tokens come."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    handler_on(service, bus, clock)
    for number in range(8):
        await bus.publish("tick", number)

    clock.advance(0.15)
    await bus.publish("tick", 8)

    assert service.accepted[-1][2] == pytest.approx(0.25)


async def test_ten_thousand_events_in_rapid_succession_are_all_accounted_for() -> None:
    """In a storm every event is delivered or deferred, turns are unique and spaced at the rate, and the storm shows."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    handler = handler_on(service, bus, clock, rate=100.0, capacity=200)

    for number in range(10_000):
        await bus.publish("tick", number)

    statistics = handler.statistics()
    assert statistics.received == 10_000 == statistics.delivered + statistics.deferred
    assert [data for _, data, _ in service.accepted] == list(range(10_000))
    delays = [delay for _, _, delay in service.accepted if delay]
    assert delays == sorted(delays)
    assert delays[-1] == pytest.approx((10_000 - 200) / 100.0)
    assert handler.storm.in_storm


async def test_the_surplus_is_dropped_and_counted_where_that_is_asked_for() -> None:
    """With overflow="drop" the surplus never reaches the service, and is counted."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    handler = handler_on(service, bus, clock, overflow="drop")

    for number in range(8):
        await bus.publish("tick", number)

    assert len(service.accepted) == 5
    statistics = handler.statistics()
    assert (statistics.received, statistics.delivered, statistics.dropped) == (8, 5, 3)


async def test_a_storm_defers_even_while_there_are_tokens() -> None:
    """The storm guard's refusal makes an event surplus, whatever the limiter says."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    handler = handler_on(service, bus, clock, storm=StormGuard(60.0, 2, clock=clock))

    for number in range(3):
        await bus.publish("tick", number)

    statistics = handler.statistics()
    assert (statistics.delivered, statistics.deferred, statistics.in_storm) == (2, 1, True)


async def test_an_event_that_was_not_accepted_is_the_publishers_to_hear_of() -> None:
    """The error goes to the publisher, and the event counts as failed rather than as delivered."""
    bus = EventBus()
    handler = handler_on(Refusing(), bus, ManualClock())

    with pytest.raises(ExceptionGroup):
        await bus.publish("tick", 1)

    assert (handler.statistics().failed, handler.statistics().delivered) == (1, 0)


async def test_a_closed_handler_hears_no_more() -> None:
    """After close the bus calls it no longer."""
    service, bus = Accepting(), EventBus()
    handler_on(service, bus, ManualClock()).close()

    await bus.publish("tick", 1)

    assert service.accepted == []


@pytest.mark.parametrize("overflow", ["wait", "coalesce", None])
async def test_an_overflow_that_is_not_known_is_refused(overflow: Overflow) -> None:
    """The error names the argument and the value, and nothing has subscribed."""
    with pytest.raises(ValueError, match=f"overflow must be one of 'defer', 'drop', not {overflow!r}"):
        handler_on(Accepting(), EventBus(), ManualClock(), overflow=overflow)
