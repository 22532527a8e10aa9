from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from resilience import Sample, StormGuard
from resilience.testing import ManualClock
from tests.resilience.support import settle
from webhook_adapter import EventBus, StoreUnavailableError, WebhookEventHandler

if TYPE_CHECKING:
    from webhook_adapter.event_handler import EventHandlerStatistics, Overflow
    from webhook_adapter.model import JsonValue

pytestmark = pytest.mark.anyio


class Accepting:
    """A service that notes what it was asked to accept."""

    def __init__(self) -> None:
        self.accepted: list[tuple[str, object, float]] = []
        self.keys: set[str] = set()

    async def send_webhook_notification(
        self, event_type: str, data: object, *, delay: float = 0.0, idempotency_key: str | None = None
    ) -> None:
        if idempotency_key is None or idempotency_key not in self.keys:
            self.accepted.append((event_type, data, delay))
        if idempotency_key is not None:
            self.keys.add(idempotency_key)


class Refusing:
    """A service whose database is full."""

    async def send_webhook_notification(
        self, event_type: str, data: object, *, delay: float = 0.0, idempotency_key: str | None = None
    ) -> None:
        raise OSError(f"full: {event_type} {data} {delay} {idempotency_key}")


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


@pytest.mark.parametrize("overflow", ["wait", "merge", None])
async def test_an_overflow_that_is_not_known_is_refused(overflow: Overflow) -> None:
    """The error names the argument and the value, and nothing has subscribed."""
    with pytest.raises(ValueError, match=f"overflow must be one of 'defer', 'drop', 'coalesce', not {overflow!r}"):
        handler_on(Accepting(), EventBus(), ManualClock(), overflow=overflow)


# -- coalescing --------------------------------------------------------------------------------------------------------


class Hesitating(Accepting):
    """A service that fails as it is told, and then works."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    async def send_webhook_notification(
        self, event_type: str, data: object, *, delay: float = 0.0, idempotency_key: str | None = None
    ) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await super().send_webhook_notification(event_type, data, delay=delay, idempotency_key=idempotency_key)


class Hanging(Accepting):
    """A service that never answers once it is told not to."""

    hangs = False

    async def send_webhook_notification(
        self, event_type: str, data: object, *, delay: float = 0.0, idempotency_key: str | None = None
    ) -> None:
        if self.hangs:
            await anyio.sleep_forever()
        await super().send_webhook_notification(event_type, data, delay=delay, idempotency_key=idempotency_key)


def coalescing_on(service: object, bus: EventBus, clock: ManualClock, **options: object) -> WebhookEventHandler:
    """Make a handler that lets two events pass in a minute and merges the others."""
    arguments: dict[str, object] = {"overflow": "coalesce", "storm": StormGuard(60.0, 2, clock=clock)} | options
    return handler_on(service, bus, clock, **arguments)


def balanced(handler: WebhookEventHandler) -> EventHandlerStatistics:
    """Return the statistics of a handler that is handling nothing, having seen that they add up."""
    all_of_them = handler.statistics()
    ended = all_of_them.delivered + all_of_them.deferred + all_of_them.merged + all_of_them.dropped + all_of_them.failed
    assert all_of_them.received == ended + all_of_them.held
    return all_of_them


def about(_event_type: str, data: object) -> str:
    """Tell what an event of these tests is about."""
    assert isinstance(data, dict)
    return str(data["id"])


async def test_the_surplus_is_merged_and_goes_when_there_is_room() -> None:
    """What is held for one key is one event in the end: the newest, as soon as the storm guard has room."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    async with coalescing_on(service, bus, clock, key=about) as handler:
        for version in range(6):
            await bus.publish("stock.changed", {"id": "a", "left": version})
        await bus.publish("stock.changed", {"id": "b", "left": 9})
        assert [data for _, data, _ in service.accepted] == [{"id": "a", "left": 0}, {"id": "a", "left": 1}]
        statistics = balanced(handler)
        assert (statistics.delivered, statistics.merged, statistics.held, statistics.in_storm) == (2, 3, 2, True)

        await settle()
        clock.advance(61.0)
        await settle()

        assert [data for _, data, _ in service.accepted[2:]] == [{"id": "a", "left": 5}, {"id": "b", "left": 9}]
        assert balanced(handler).held == 0


async def test_what_is_held_is_accepted_at_the_end() -> None:
    """Leaving the block hands over what no room was found for; what is published later finds nobody."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    async with coalescing_on(service, bus, clock, key=about) as handler:
        for number in range(5):
            await bus.publish("tick", {"id": number})
    await bus.publish("tick", {"id": 99})

    assert [data for _, data, _ in service.accepted] == [{"id": number} for number in range(5)]
    assert balanced(handler).received == 5


async def test_what_is_held_is_accepted_when_the_block_is_cancelled() -> None:
    """A cancellation ends the handler as any other end does."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    with anyio.CancelScope() as scope:
        async with coalescing_on(service, bus, clock, key=about) as handler:
            for number in range(4):
                await bus.publish("tick", {"id": number})
            scope.cancel()
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    assert [data for _, data, _ in service.accepted] == [{"id": number} for number in range(4)]
    assert balanced(handler).delivered + balanced(handler).deferred == 4


async def test_only_what_says_the_same_is_merged_unless_a_key_is_given() -> None:
    """By default no event with something to say of its own is lost in another."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    said: list[JsonValue] = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1}, {"a": 1}, {"b": 2, "a": 1}, {"a": 1}]
    async with coalescing_on(service, bus, clock) as handler:
        for data in said:
            await bus.publish("tick", data)
        await bus.publish("tock", {"a": 1})
        statistics = balanced(handler)
    assert (statistics.merged, statistics.held) == (2, 3)


async def test_a_merge_of_ones_own_says_what_stands_for_both() -> None:
    """The data held and the data that come make the data that go."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    async with coalescing_on(
        service, bus, clock, key=lambda event_type, _data: event_type, merge=lambda held, data: [*held, *data]
    ):
        for number in range(5):
            await bus.publish("tick", [number])
    assert [data for _, data, _ in service.accepted] == [[0], [1], [2, 3, 4]]


async def test_what_finds_no_place_is_deferred() -> None:
    """Where nothing more is held, the surplus is accepted with a later turn: it is not lost."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    async with coalescing_on(service, bus, clock, max_held=1, capacity=2) as handler:
        for number in range(4):
            await bus.publish("tick", number)
        statistics = balanced(handler)
        assert (statistics.delivered, statistics.held, statistics.deferred) == (2, 1, 1)


async def test_an_event_that_could_not_be_delivered_is_refused_before_it_is_held() -> None:
    """The publisher hears of it, and nothing has been counted."""
    service, bus, clock = Accepting(), EventBus(), ManualClock()
    async with coalescing_on(service, bus, clock) as handler:
        with pytest.raises(ExceptionGroup) as caught:
            await bus.publish("tick", float("nan"))
        assert caught.group_contains(ValueError, match="JSON")
        assert balanced(handler).received == 0


async def test_a_handler_that_merges_must_be_entered() -> None:
    """Outside of the block nobody would release what is held; so nothing is."""
    handler = coalescing_on(Accepting(), EventBus(), ManualClock())
    with pytest.raises(RuntimeError, match="entered first"):
        await handler.handle("tick", 1)
    async with handler:
        with pytest.raises(RuntimeError, match="already"):
            await handler.__aenter__()


async def test_what_was_held_waits_for_the_database() -> None:
    """What has been taken to be released is tried again while the database is out of reach, and counted once."""
    bus, clock = EventBus(), ManualClock()
    service = Hesitating()
    async with coalescing_on(service, bus, clock) as handler:
        for number in range(3):
            await bus.publish("tick", number)
        service.errors = [StoreUnavailableError("busy", retry_after=1.0)] * 2
        await settle()
        for _ in range(3):
            clock.advance(61.0)
            await settle()
        assert balanced(handler).delivered == 3
    assert [data for _, data, _ in service.accepted] == [0, 1, 2]


async def test_what_waits_for_the_database_is_tried_once_more_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """It is accepted then, or counted as failed, and logged; never forgotten."""
    for errors, failed in ((1, 0), (2, 1)):
        bus, clock, service = EventBus(), ManualClock(), Hesitating()
        async with coalescing_on(service, bus, clock) as handler:
            for number in range(3):
                await bus.publish("tick", number)
            service.errors = [StoreUnavailableError("busy", retry_after=100.0)] * errors
            await settle()
            clock.advance(61.0)
            await settle()
        assert balanced(handler).failed == failed
        assert len(service.accepted) == 3 - failed
        assert ("had been held" in caplog.text) == (failed > 0)


async def test_what_was_held_and_cannot_be_accepted_keeps_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    """An error of the service's is logged and counted, and the next event goes."""
    bus, clock, service = EventBus(), ManualClock(), Hesitating()
    async with coalescing_on(service, bus, clock) as handler:
        for number in range(4):
            await bus.publish("tick", number)
        service.errors = [ValueError("too large")]
        await settle()
        clock.advance(61.0)
        await settle()
        assert balanced(handler).failed == 1
    assert [data for _, data, _ in service.accepted] == [0, 1, 3]
    assert "too large" in caplog.text


@pytest.mark.parametrize("releasing", [False, True])
async def test_the_end_takes_five_seconds_at_most(
    caplog: pytest.LogCaptureFixture,
    releasing: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A service that hangs, now or since a release began, does not keep it from ending; what is left is counted."""
    bus, clock, service = EventBus(), ManualClock(), Hanging()
    handler = coalescing_on(service, bus, clock)
    async with anyio.create_task_group() as tasks:
        leaving, ended = anyio.Event(), anyio.Event()

        async def use() -> None:
            async with handler:
                for number in range(4):
                    await bus.publish("tick", number)
                await leaving.wait()
            ended.set()

        tasks.start_soon(use)
        await settle()
        service.hangs = True
        if releasing:
            clock.advance(61.0)
            await settle()
        leaving.set()
        await settle()
        clock.advance(4.9)
        await settle()
        assert not ended.is_set()
        clock.advance(0.2)
        await ended.wait()
    assert (balanced(handler).delivered, balanced(handler).failed) == (2, 2)
    assert "2 events" in caplog.text


class Mute(Accepting):
    """A service that accepts an event, and does not come to say so the first time that it is asked to be mute."""

    mute = False

    async def send_webhook_notification(
        self, event_type: str, data: object, *, delay: float = 0.0, idempotency_key: str | None = None
    ) -> None:
        await super().send_webhook_notification(event_type, data, delay=delay, idempotency_key=idempotency_key)
        if self.mute:
            self.mute = False
            await anyio.sleep_forever()


async def test_what_was_accepted_when_the_end_came_is_not_accepted_twice() -> None:
    """Of a release that the end interrupts nobody knows how far it came; handed over again, it is the same message."""
    bus, clock, service = EventBus(), ManualClock(), Mute()
    async with coalescing_on(service, bus, clock) as handler:
        for number in range(4):
            await bus.publish("tick", number)
        service.mute = True
        clock.advance(61.0)
        await settle()
        assert not service.mute
    assert [data for _, data, _ in service.accepted] == [0, 1, 2, 3]
    assert balanced(handler).delivered == 4


def test_what_coalescing_cannot_use_is_refused_by_its_own_name() -> None:
    """Each error names the argument of the handler, not of what is made of it."""
    clock = ManualClock()
    sampling = StormGuard(60.0, 2, surplus=Sample(10), clock=clock)
    wrong: dict[str, list[object]] = {"storm": [sampling, 3], "max_held": [0, -1, 2.5, True]}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} "):
                coalescing_on(Accepting(), EventBus(), clock, **{name: value})
    assert handler_on(Accepting(), EventBus(), clock, storm=sampling).storm is sampling


@pytest.mark.parametrize("overflow", ["defer", "drop", "coalesce"])
@pytest.mark.parametrize("name", ["key", "merge"])
async def test_key_and_merge_are_callables_of_coalescing(overflow: str, name: str) -> None:
    """What would never be called is refused, and so is what cannot be."""
    for value in (3, *(() if overflow == "coalesce" else (about,))):
        with pytest.raises(ValueError, match=name):
            handler_on(Accepting(), EventBus(), ManualClock(), overflow=overflow, **{name: value})
