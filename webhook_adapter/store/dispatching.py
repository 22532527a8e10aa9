"""Leases: claiming what is due, extending, giving back, and taking up again what was lost.

Theory of operation. A claim looks at the queues that are due, the ones served longest ago first, takes an equal share
from each, and puts the queues it has looked at behind the others; a second look at those that have more fills up
what is left. So a claim costs what it returns, whatever the backlog, and no backlog starves another endpoint.

Rules of this module: what has expired is never leased. A lease is fenced by a token that counts up with every lease of
a delivery. A lease that is given back or lost uses up no attempt.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import attrs
import sqlalchemy as sa

from webhook_adapter.lifecycle import GONE
from webhook_adapter.model import Delivery, DeliveryState, Message
from webhook_adapter.store import rows, schema, upkeep
from webhook_adapter.store.dialect import Settled, Stream
from webhook_adapter.store.values import Claim, Claimed, Release
from webhook_adapter.store.writer import one_by_one

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from webhook_adapter.store.unit import ReadUnit, Unit

__all__ = ["ENDPOINT_DELETED", "Extension", "Order", "Releases", "claim", "extend", "next_due_at", "recover", "release"]

ENDPOINT_DELETED = "endpoint deleted"
_EXPIRED_AT_ONCE = 1000
_IDS_AT_ONCE = 500


@attrs.frozen
class Order:
    """How much is to be claimed, and for how long; `Store.claim` says what each means."""

    now: float
    limit: int = attrs.field(validator=attrs.validators.ge(0))
    lease_for: float = attrs.field(validator=attrs.validators.gt(0))
    endpoint_limit: int = attrs.field(validator=attrs.validators.ge(1))
    capacities: Mapping[str, int]
    ahead: Mapping[str, int]


@attrs.frozen
class Extension:
    """A lease that is to end later."""

    claim: Claim
    until: float


@attrs.frozen
class Releases:
    """Leases that are given back at an instant."""

    releases: tuple[Release, ...]
    now: float


def _claim(unit: Unit, order: Order) -> Claimed:
    upkeep.expire_due(unit, now=order.now, limit=_EXPIRED_AT_ONCE)
    lessor = _Lessor(unit, order)
    lessor.share()
    lessor.take_ahead()
    deliveries, next_due_at = lessor.taken, lessor.next_due_at()
    messages = _messages(unit, deliveries)
    claims = []
    for delivery in deliveries:
        endpoint = unit.directory.get(delivery.endpoint_id)
        assert endpoint is not None  # noqa: S101 - `_Lessor` has looked
        claims.append(Claim(delivery, messages[delivery.message_id], endpoint))
    unit.counts["pending"] -= len(claims)
    unit.counts["leased"] += len(claims)
    return Claimed(claims, next_due_at)


claim = one_by_one(_claim)


class _Lessor:
    """Leases what an order asks for."""

    def __init__(self, unit: Unit, order: Order) -> None:
        self._unit = unit
        self._order = order
        self._until = order.now + order.lease_for
        # What is left of each endpoint's capacity; 0 is full, or has nothing more.
        self._left = {endpoint_id: max(0, capacity) for endpoint_id, capacity in order.capacities.items()}
        self._left.update(dict.fromkeys(order.ahead, 0))
        self._full = {endpoint_id for endpoint_id, capacity in self._left.items() if not capacity}
        self._looked_at: set[str] = set()
        self.taken: list[Delivery] = []

    def share(self) -> None:
        """Lease from all endpoints that have something, an equal share from each."""
        dialect, connection, order = self._unit.dialect, self._unit.connection, self._order
        while len(self.taken) < order.limit:
            wanted = order.limit - len(self.taken)
            closed = [endpoint_id for endpoint_id, capacity in self._left.items() if not capacity]
            due = dialect.due_endpoints(connection, now=order.now, excluded=closed, limit=wanted)
            if not due:
                break
            # Shares are rounded up, so that the last ones may get less: they are the first next time.
            share = -(-wanted // len(due))
            quotas = {}
            for endpoint_id in due:
                if self._claimable(endpoint_id):
                    quotas[endpoint_id] = min(share, self._left.setdefault(endpoint_id, order.endpoint_limit))
                else:
                    self._left[endpoint_id] = 0
                    self._looked_at.add(endpoint_id)
            self._take(quotas, wanted)
            if len(due) < wanted and not any(self._left[endpoint_id] for endpoint_id in due):
                break  # these were all, and none has more

    def take_ahead(self) -> None:
        """Lease for endpoints that have all they may have under way, so that they go on without a pause."""
        ahead = self._order.ahead
        quotas = {endpoint_id: most for endpoint_id, most in ahead.items() if most > 0 and self._claimable(endpoint_id)}
        if quotas:
            self._left.update(quotas)
            self._take(quotas, sum(quotas.values()))

    def next_due_at(self) -> float | None:
        """Bring the queues that were looked at up to date, and return the earliest of those that are not full."""
        dialect, connection = self._unit.dialect, self._unit.connection
        if self._looked_at:
            dialect.requeue(connection, self._looked_at, self._order.now)
        return dialect.next_due_at(connection, self._full)

    def _take(self, quotas: Mapping[str, int], most: int) -> None:
        dialect, connection = self._unit.dialect, self._unit.connection
        taken: list[Delivery] = []
        found = dialect.due_deliveries(connection, quotas, now=self._order.now, until=self._until)
        for endpoint_id, deliveries in found.items():
            got = deliveries[: most - len(taken)]
            taken += got
            exhausted = len(deliveries) < quotas[endpoint_id]
            left = self._left[endpoint_id] - len(got)
            self._left[endpoint_id] = 0 if exhausted else left
            if left:
                self._full.discard(endpoint_id)
            else:
                self._full.add(endpoint_id)
        self._looked_at.update(quotas)
        if taken:
            dialect.lease(connection, [delivery.id for delivery in taken], until=self._until)
            self.taken += taken

    def _claimable(self, endpoint_id: str) -> bool:
        endpoint = self._unit.directory.get(endpoint_id)
        return (
            endpoint is not None
            and endpoint.enabled
            and not endpoint.paused
            and endpoint.blocked_until <= self._order.now
        )


def _messages(unit: Unit, deliveries: Sequence[Delivery]) -> dict[str, Message]:
    """Return the messages of deliveries, from memory where they are."""
    messages: dict[str, Message] = {}
    missing: list[str] = []
    for message_id in {delivery.message_id for delivery in deliveries}:
        recent = unit.caches.recent.get(message_id)
        if recent is None:
            missing.append(message_id)
        else:
            messages[message_id] = recent
    table = schema.messages
    for start in range(0, len(missing), _IDS_AT_ONCE):
        part = missing[start : start + _IDS_AT_ONCE]
        for row in unit.connection.execute(sa.select(table).where(table.c.id.in_(part))).mappings():
            messages[row["id"]] = rows.message(row)
    return messages


def _extend(unit: Unit, extension: Extension) -> bool:
    table = schema.deliveries
    delivery = extension.claim.delivery
    extended = (
        sa.update(table)
        .where(
            table.c.id == delivery.id,
            table.c.state == DeliveryState.LEASED.value,
            table.c.lease_token == delivery.lease_token,
        )
        .values(lease_until=extension.until)
    )
    return unit.connection.execute(extended).rowcount == 1


extend = one_by_one(_extend)


def release(unit: Unit, payloads: Sequence[Releases]) -> Sequence[int]:
    """Give many leases back."""
    leased = unit.dialect.leased(
        unit.connection, [each.claim.delivery.id for payload in payloads for each in payload.releases]
    )
    settled: list[Settled] = []
    touched: set[str] = set()
    streams: set[Stream] = set()
    answers = []
    now = 0.0
    for payload in payloads:
        now = max(now, payload.now)
        count = 0
        for each in payload.releases:
            delivery = each.claim.delivery
            found = leased.get(delivery.id)
            if found is None or found.token != delivery.lease_token:
                continue
            del leased[delivery.id]
            count += 1
            touched.add(delivery.endpoint_id)
            state, reason = _given_back(unit, delivery.endpoint_id)
            unit.counts[state.value] += 1
            ended_at = None if reason is None else payload.now
            settled.append(
                Settled(delivery.id, state, each.due_at, found.attempts, found.round_attempts, reason, ended_at)
            )
            if found.stream is not None and ended_at is not None:
                streams.add((delivery.endpoint_id, found.stream))
        answers.append(count)
    unit.counts["leased"] -= len(settled)
    unit.dialect.settle(unit.connection, settled)
    if streams:
        unit.dialect.promote(unit.connection, streams)
    if touched:
        unit.dialect.requeue(unit.connection, touched, now)
    return answers


def _given_back(unit: Unit, endpoint_id: str) -> tuple[DeliveryState, str | None]:
    """Return what becomes of a delivery whose lease is given back, and why it ends if it does."""
    endpoint = unit.directory.get(endpoint_id)
    if endpoint is None:
        return DeliveryState.CANCELLED, ENDPOINT_DELETED
    if not endpoint.enabled and endpoint.disabled_reason == GONE:
        # It was under way when all else that was pending ended.
        return DeliveryState.DEAD, GONE
    return DeliveryState.PENDING, None


def _recover(unit: Unit, now: float) -> int:
    table = schema.deliveries
    lost = sa.select(table.c.id, table.c.endpoint_id).where(
        table.c.state == DeliveryState.LEASED.value, table.c.lease_until <= now
    )
    by_endpoint: defaultdict[str, list[str]] = defaultdict(list)
    for delivery_id, endpoint_id in unit.connection.execute(lost):
        by_endpoint[endpoint_id].append(delivery_id)
    counts: Counter[str] = Counter()
    for endpoint_id, delivery_ids in by_endpoint.items():
        gone = unit.directory.get(endpoint_id) is None
        state = DeliveryState.CANCELLED if gone else DeliveryState.PENDING
        ended = {"reason": ENDPOINT_DELETED, "finished_at": now} if gone else {}
        for start in range(0, len(delivery_ids), _IDS_AT_ONCE):
            part = delivery_ids[start : start + _IDS_AT_ONCE]
            unit.connection.execute(
                sa.update(table)
                .where(table.c.id.in_(part), table.c.state == DeliveryState.LEASED.value)
                .values(state=state.value, lease_until=None, **ended)
            )
        counts[state.value] += len(delivery_ids)
        counts["leased"] -= len(delivery_ids)
    if unit.caches.first_recovery:
        # The wall clock may have stepped back since the queues were written: look at all of them afresh.
        unit.dialect.requeue(unit.connection, unit.directory.ids(), now)
        unit.caches.first_recovery = False
    elif by_endpoint:
        unit.dialect.requeue(unit.connection, by_endpoint, now)
    unit.counts.update(counts)
    recovered = -counts["leased"]
    unit.counts["expired_leases"] += recovered
    return recovered


recover = one_by_one(_recover)


def next_due_at(unit: ReadUnit, excluded: tuple[str, ...]) -> float | None:
    """Return the instant at which the next claim can find something."""
    return unit.dialect.next_due_at(unit.connection, excluded)
