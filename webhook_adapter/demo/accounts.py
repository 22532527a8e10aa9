"""The closing account: what the receivers have seen, against what the store says.

Rules of this module: pure. The receivers' records decide what was delivered; the store says what there was to deliver.
A *pair* is an event and an endpoint that subscribes to its type. A pair is lost if its receiver never answered it with
2xx, whatever the sender believes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from webhook_adapter import Delivery, DeliveryState, Endpoint, Message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from webhook_adapter.demo.events import Event

__all__ = ["Account", "EndpointAccount", "Seen", "draw_up", "percentile", "read_records"]


@attrs.frozen
class Seen:
    """What a receiver has recorded of one message: requests, how many it answered with 2xx, and when first so."""

    received: int
    accepted: int
    first_accepted_at: float | None


@attrs.frozen(kw_only=True)
class EndpointAccount:
    """What became of one endpoint's pairs.

    Attributes:
        expected: events that it subscribes to.
        delivered: of these, how many its receiver answered with 2xx.
        retried: requests that its receiver got beyond the first for a message, duplicates aside.
        dead: deliveries that had been given up, before they were retried by hand.
        duplicates: requests answered with 2xx although their message had been.
        lost: pairs that its receiver never answered with 2xx.
        p50, p99: seconds from when a delivery was first due to the receiver's first 2xx, without those that were dead;
            None if there are none.
    """

    name: str
    expected: int
    delivered: int
    retried: int
    dead: int
    duplicates: int
    lost: int
    p50: float | None
    p99: float | None


@attrs.frozen(kw_only=True)
class Account:
    """The figures of one run. Durations are seconds.

    Attributes:
        published: events that the application published.
        accepted: messages of these that the store has.
        deferred: of these, how many got a later turn when they were accepted.
        deliveries, delivered, retried, dead, duplicates, lost: sums over the endpoints.
        disagreements: deliveries that a receiver answered with 2xx and of which the store does not say so. The kill
            makes some for a moment; each is sent again, is a duplicate then, and a disagreement no more.
        unverified: requests whose signature the receivers refused.
        p50, p99: over all endpoints.
        breaker_transitions: by "old -> new".
        limiter_hits: events that the limiter had no token for.
        storm_hits: events that the storm guard refused.
        revived: deliveries that `retry_failed_deliveries` made due again.
        kills: how often the delivery process was killed.
        elapsed: how long it all took.
    """

    source: str
    published: int
    accepted: int
    deferred: int
    deliveries: int
    delivered: int
    retried: int
    dead: int
    duplicates: int
    lost: int
    disagreements: int
    unverified: int
    p50: float | None
    p99: float | None
    breaker_transitions: Mapping[str, int]
    limiter_hits: int
    storm_hits: int
    revived: int
    kills: int
    elapsed: float
    endpoints: tuple[EndpointAccount, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, every signature was good, and store and receivers agree."""
        return not (self.lost or self.unverified or self.disagreements or self.accepted != self.published)

    def as_json(self) -> dict[str, object]:
        """Return all figures as plain data."""
        figures: dict[str, object] = attrs.asdict(self)
        return figures


def read_records(described: Mapping[str, object], path: str) -> dict[str, Seen]:
    """Return what the receivers' records, as their program prints them, say of the messages on one path.

    Raises:
        ValueError: they are not such records.
    """
    try:
        paths = described["paths"]
        by_message = paths[path]["by_message"] if path in paths else {}  # type: ignore[index,operator]
        return {
            message_id: Seen(int(received), int(accepted), None if at is None else float(at))
            for message_id, (received, accepted, _first, at) in by_message.items()
        }
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError("the receivers' records cannot be read") from exc


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest of the ordered values that at least `share` of them do not exceed; None of none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def draw_up(
    *,
    source: str,
    published: Sequence[Event],
    messages: Sequence[Message],
    endpoints: Mapping[str, Endpoint],
    deliveries: Sequence[Delivery],
    died: frozenset[str],
    seen: Mapping[str, Mapping[str, Seen]],
    unverified: int,
    breaker_transitions: Mapping[str, int],
    limiter_hits: int,
    storm_hits: int,
    revived: int,
    kills: int,
    elapsed: float,
) -> Account:
    """Return the account of a run that has ended.

    Args:
        source: where the real events were found.
        published: what the application published, whether the store has it or not.
        messages: all that the store has.
        endpoints: by the name of the receiver.
        deliveries: all that the store has.
        died: the ids of deliveries that were dead before they were retried by hand.
        seen: by the name of the receiver and message id.
        unverified: requests whose signature was refused.
        breaker_transitions: by "old -> new".
        limiter_hits: events that the limiter had no token for.
        storm_hits: events that the storm guard refused.
        revived: deliveries that were made due again by hand.
        kills: how often the delivery process was killed.
        elapsed: seconds in all.
    """
    by_number: dict[int, Message] = {}
    for message in messages:
        data = message.data
        if isinstance(data, dict) and isinstance(number := data.get("number"), int):
            by_number[number] = message
    by_pair = {(delivery.message_id, delivery.endpoint_id): delivery for delivery in deliveries}
    accounts: list[EndpointAccount] = []
    latencies: list[float] = []
    disagreements = 0
    for name, endpoint in endpoints.items():
        account, taken, differing = _of_endpoint(
            name, endpoint, published=published, by_number=by_number, by_pair=by_pair, died=died, seen=seen[name]
        )
        accounts.append(account)
        latencies += taken
        disagreements += differing
    latencies.sort()
    return Account(
        source=source,
        published=len(published),
        accepted=sum(1 for event in published if event.number in by_number),
        deferred=sum(1 for message in messages if message.deliver_at > message.accepted_at),
        deliveries=len(deliveries),
        delivered=sum(each.delivered for each in accounts),
        retried=sum(each.retried for each in accounts),
        dead=sum(each.dead for each in accounts),
        duplicates=sum(each.duplicates for each in accounts),
        lost=sum(each.lost for each in accounts),
        disagreements=disagreements,
        unverified=unverified,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        breaker_transitions=breaker_transitions,
        limiter_hits=limiter_hits,
        storm_hits=storm_hits,
        revived=revived,
        kills=kills,
        elapsed=elapsed,
        endpoints=tuple(accounts),
    )


def _of_endpoint(
    name: str,
    endpoint: Endpoint,
    *,
    published: Sequence[Event],
    by_number: Mapping[int, Message],
    by_pair: Mapping[tuple[str, str], Delivery],
    died: frozenset[str],
    seen: Mapping[str, Seen],
) -> tuple[EndpointAccount, list[float], int]:
    """Return an endpoint's account, the latencies of its deliveries, and how many of them are told differently."""
    expected = delivered = disagreements = dead = 0
    latencies: list[float] = []
    for event in published:
        if not endpoint.wants(event.type):
            continue
        expected += 1
        message = by_number.get(event.number)
        if message is None:
            continue
        delivery = by_pair.get((message.id, endpoint.id))
        count = seen.get(message.id)
        arrived = count is not None and count.accepted > 0
        delivered += arrived
        disagreements += arrived and (delivery is None or delivery.state is not DeliveryState.DELIVERED)
        was_dead = delivery is not None and delivery.id in died
        dead += was_dead
        if count is not None and count.first_accepted_at is not None and not was_dead:
            latencies.append(max(0.0, count.first_accepted_at - max(message.accepted_at, message.deliver_at)))
    latencies.sort()
    requests = sum(count.received for count in seen.values())
    duplicates = sum(max(0, count.accepted - 1) for count in seen.values())
    account = EndpointAccount(
        name=name,
        expected=expected,
        delivered=delivered,
        retried=requests - len(seen) - duplicates,
        dead=dead,
        duplicates=duplicates,
        lost=expected - delivered,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
    )
    return account, latencies, disagreements
