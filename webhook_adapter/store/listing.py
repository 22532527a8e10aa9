"""Reading records: by id, and in pages.

Rules of this module: a page goes on behind an id, and ids sort by time, so that nothing is skipped or seen twice while
rows come in. Nothing here writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import sqlalchemy as sa

from webhook_adapter.store import rows, schema
from webhook_adapter.store.errors import UnknownIdError
from webhook_adapter.store.values import StoreStatistics

if TYPE_CHECKING:
    from webhook_adapter.model import Attempt, Delivery, DeliveryState, Message
    from webhook_adapter.store.unit import ReadUnit

__all__ = [
    "AttemptFilter",
    "DeliveryFilter",
    "Page",
    "attempts",
    "deliveries",
    "get_delivery",
    "get_message",
    "messages",
    "statistics",
]

_LARGEST = 10_000
_COUNTERS = frozenset(field.name for field in attrs.fields(StoreStatistics))


@attrs.frozen
class Page:
    """Up to `limit` rows, from behind the id `after`."""

    limit: int = attrs.field()
    after: str | None

    @limit.validator
    def _check_limit(self, _attribute: attrs.Attribute[int], value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            raise ValueError(f"limit must be a whole number from 1 to {_LARGEST}, not {value!r}")

    def of(self, wanted: sa.Select[*tuple[object, ...]], column: sa.Column[str]) -> sa.Select[*tuple[object, ...]]:
        """Return the query, cut to this page."""
        if self.after is not None:
            wanted = wanted.where(column > self.after)
        return wanted.order_by(column).limit(self.limit)


@attrs.frozen
class DeliveryFilter:
    """Which deliveries; None is all."""

    state: DeliveryState | None
    endpoint_id: str | None
    message_id: str | None


@attrs.frozen
class AttemptFilter:
    """Which attempts; None is all."""

    message_id: str | None
    delivery_id: str | None
    endpoint_id: str | None


def get_message(unit: ReadUnit, message_id: str) -> Message:
    """Return a message."""
    wanted = sa.select(schema.messages).where(schema.messages.c.id == message_id)
    row = unit.connection.execute(wanted).mappings().first()
    if row is None:
        raise UnknownIdError("message_id", message_id)
    return rows.message(row)


def get_delivery(unit: ReadUnit, delivery_id: str) -> Delivery:
    """Return a delivery."""
    wanted = sa.select(schema.deliveries).where(schema.deliveries.c.id == delivery_id)
    row = unit.connection.execute(wanted).mappings().first()
    if row is None:
        raise UnknownIdError("delivery_id", delivery_id)
    return rows.delivery(row)


def messages(unit: ReadUnit, *, owner: str | None, page: Page) -> list[Message]:
    """Return a page of messages."""
    table = schema.messages
    wanted = page.of(sa.select(table), table.c.id)
    if owner is not None:
        wanted = wanted.where(table.c.owner == owner)
    return [rows.message(row) for row in unit.connection.execute(wanted).mappings()]


def deliveries(unit: ReadUnit, which: DeliveryFilter, *, page: Page) -> list[Delivery]:
    """Return a page of deliveries."""
    table = schema.deliveries
    wanted = page.of(sa.select(table), table.c.id)
    if which.state is not None:
        wanted = wanted.where(table.c.state == which.state.value)
    if which.endpoint_id is not None:
        wanted = wanted.where(table.c.endpoint_id == which.endpoint_id)
    if which.message_id is not None:
        wanted = wanted.where(table.c.message_id == which.message_id)
    return [rows.delivery(row) for row in unit.connection.execute(wanted).mappings()]


def attempts(unit: ReadUnit, which: AttemptFilter, *, page: Page) -> list[Attempt]:
    """Return a page of attempts."""
    table, deliveries_ = schema.attempts, schema.deliveries
    joined = sa.select(table, deliveries_.c.message_id, deliveries_.c.endpoint_id).join(deliveries_)
    wanted = page.of(joined, table.c.id)
    if which.message_id is not None:
        wanted = wanted.where(deliveries_.c.message_id == which.message_id)
    if which.delivery_id is not None:
        wanted = wanted.where(table.c.delivery_id == which.delivery_id)
    if which.endpoint_id is not None:
        wanted = wanted.where(deliveries_.c.endpoint_id == which.endpoint_id)
    return [rows.attempt(row) for row in unit.connection.execute(wanted).mappings()]


def statistics(unit: ReadUnit) -> StoreStatistics:
    """Return the counters."""
    table = schema.counts
    found = unit.connection.execute(sa.select(table.c.name, table.c.value))
    return StoreStatistics(**{name: value for name, value in found if name in _COUNTERS})
