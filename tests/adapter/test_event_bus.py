from __future__ import annotations

import pytest

from webhook_adapter import EventBus

pytestmark = pytest.mark.anyio


async def test_handlers_are_called_in_the_order_in_which_they_subscribed() -> None:
    """Every handler whose pattern matches hears of an event, the first subscriber first."""
    bus, heard = EventBus(), []

    async def handler(name: str, event_type: str, data: object) -> None:
        heard.append((name, event_type, data))

    bus.subscribe("*", lambda kind, data: handler("all", kind, data))
    bus.subscribe("order.*", lambda kind, data: handler("orders", kind, data))
    bus.subscribe("user.made", lambda kind, data: handler("users", kind, data))

    await bus.publish("order.paid", {"order": 7})

    assert heard == [("all", "order.paid", {"order": 7}), ("orders", "order.paid", {"order": 7})]


async def test_a_handler_that_raises_keeps_no_other_from_hearing() -> None:
    """The publisher is told of every error, once all handlers have been called."""
    bus, heard = EventBus(), []

    async def broken(_kind: str, _data: object) -> None:
        raise KeyError("lost")

    async def fine(kind: str, _data: object) -> None:
        heard.append(kind)

    bus.subscribe("*", broken)
    bus.subscribe("*", fine)

    with pytest.raises(ExceptionGroup, match="1 handlers of 'a' failed") as caught:
        await bus.publish("a", None)

    assert [type(error) for error in caught.value.exceptions] == [KeyError]
    assert heard == ["a"]


async def test_unsubscribing_ends_one_subscription_alone() -> None:
    """The same handler subscribed twice is two subscriptions, each with an end of its own."""
    bus, heard = EventBus(), []

    async def handler(kind: str, _data: object) -> None:
        heard.append(kind)

    unsubscribe = bus.subscribe("*", handler)
    bus.subscribe("*", handler)
    unsubscribe()
    unsubscribe()
    await bus.publish("a", None)

    assert heard == ["a"]


@pytest.mark.parametrize("pattern", ["", "order..x", "order.*.x", "*.x", 7])
async def test_a_pattern_that_can_match_nothing_is_refused(pattern: str) -> None:
    """A pattern is checked when it is subscribed to, and named in the error."""
    with pytest.raises(ValueError, match="event_types"):
        EventBus().subscribe(pattern, print)  # type: ignore[arg-type]


async def test_what_cannot_be_called_is_no_handler() -> None:
    """A handler that is none is refused, and named in the error."""
    with pytest.raises(ValueError, match="handler must be an async callable, not 7"):
        EventBus().subscribe("*", 7)  # type: ignore[arg-type]
