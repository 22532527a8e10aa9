"""What an operation works with: a connection inside a transaction, and the writer's caches.

Rules of this module:

* A cache holds copies of committed rows, or of rows of the running transaction; after a rollback it is dropped. What
  another process has changed is found by the endpoints' `revision`, when the database says that somebody else wrote.
* Counters are summed up over a transaction and written at its end.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

import attrs
import sqlalchemy as sa

from webhook_adapter.store import rows, schema

if TYPE_CHECKING:
    from webhook_adapter.model import Endpoint, Message
    from webhook_adapter.store.dialect import Dialect
    from webhook_adapter.store.sealing import Sealer

__all__ = ["Caches", "Directory", "ReadUnit", "RecentMessages", "Unit", "next_revision"]

_REVISION = "endpoint_revision"
_MAX_RECENT_BYTES = 32 * 1024 * 1024
_MAX_ROUTES = 10_000
# What a message weighs beside its body, roughly.
_OVERHEAD = 1024


@attrs.define(eq=False)
class ReadUnit:
    """A connection inside a transaction that only looks."""

    connection: sa.Connection
    dialect: Dialect
    sealer: Sealer


@attrs.define(eq=False)
class Unit(ReadUnit):
    """A connection inside a transaction that writes."""

    caches: Caches
    counts: Counter[str] = attrs.field(factory=Counter)

    @property
    def directory(self) -> Directory:
        """The endpoints."""
        return self.caches.directory

    def begin(self) -> None:
        """Bring the caches up to date with what others have committed. At the start of every transaction."""
        stamp = self.dialect.foreign_changes(self.connection)
        caches = self.caches
        if stamp != caches.stamp:
            caches.directory.refresh(self)
            caches.stamp = stamp

    def end(self) -> None:
        """Write the counters. At the end of every transaction."""
        changed = {name: delta for name, delta in self.counts.items() if delta}
        if changed:
            self.dialect.add_counts(self.connection, changed)


class Caches:
    """What the writer keeps in memory between transactions."""

    def __init__(self, *, sealer: Sealer) -> None:
        self.directory = Directory(sealer)
        self.recent = RecentMessages()
        # Of the last look for others' writes; None before the first, and after a rollback.
        self.stamp: int | None = None
        self.first_recovery = True

    def forget(self) -> None:
        """Drop everything: a transaction that it came from did not happen."""
        self.directory.forget()
        self.recent.forget()
        self.stamp = None


def next_revision(unit: Unit) -> int:
    """Return the revision for a change of an endpoint's row; above every one before it."""
    count = schema.counts
    changed = sa.update(count).where(count.c.name == _REVISION).values(value=count.c.value + 1).returning(count.c.value)
    return int(unit.connection.execute(changed).scalar_one())


class Directory:
    """The endpoints that are not deleted, by id, and which of them want what."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._endpoints: dict[str, Endpoint] = {}
        self._revision = -1
        # By owner, type and channels: the ids of who wants it. Blocks come and go often; who wants what rarely changes.
        self._routes: dict[tuple[str, str, tuple[str, ...]], tuple[str, ...]] = {}

    def refresh(self, unit: ReadUnit) -> None:
        """Read the rows that have changed since the last time."""
        table = schema.endpoints
        changed = sa.select(table).where(table.c.revision > self._revision).order_by(table.c.revision)
        for row in unit.connection.execute(changed).mappings():
            self._revision = row["revision"]
            if row["deleted_at"] is None:
                self._endpoints[row["id"]] = rows.endpoint(row, self._sealer)
            else:
                self._endpoints.pop(row["id"], None)
            self._routes.clear()

    def forget(self) -> None:
        """Drop everything; the next `refresh` reads all rows."""
        self._endpoints.clear()
        self._routes.clear()
        self._revision = -1

    def get(self, endpoint_id: str) -> Endpoint | None:
        """Return an endpoint, or None if there is none or none any more."""
        return self._endpoints.get(endpoint_id)

    def ids(self) -> list[str]:
        """Return the ids of all endpoints."""
        return list(self._endpoints)

    def put(self, endpoint: Endpoint) -> None:
        """Take note of a row that this transaction has written."""
        known = self._endpoints.get(endpoint.id)
        self._endpoints[endpoint.id] = endpoint
        if known is None or _routing(known) != _routing(endpoint):
            self._routes.clear()

    def drop(self, endpoint_id: str) -> None:
        """Take note of a deletion."""
        self._endpoints.pop(endpoint_id, None)
        self._routes.clear()

    def route(self, owner: str, event_type: str, channels: tuple[str, ...]) -> list[Endpoint]:
        """Return the endpoints that want such a message."""
        key = (owner, event_type, channels)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= _MAX_ROUTES:
                # Event types come from callers: what they can make up must not fill the memory.
                self._routes.clear()
            route = tuple(
                endpoint.id
                for endpoint in self._endpoints.values()
                if endpoint.owner == owner and endpoint.wants(event_type, channels)
            )
            self._routes[key] = route
        endpoints = self._endpoints
        return [endpoints[endpoint_id] for endpoint_id in route]


def _routing(endpoint: Endpoint) -> object:
    return endpoint.owner, endpoint.event_types, endpoint.channels


class RecentMessages:
    """The messages accepted last, so that a claim right behind need not read their bodies back. Bounded in bytes."""

    def __init__(self) -> None:
        self._messages: OrderedDict[str, Message] = OrderedDict()
        self._bytes = 0

    def put(self, message: Message) -> None:
        """Keep a message, letting the oldest go."""
        self._messages[message.id] = message
        self._bytes += len(message.body) + _OVERHEAD
        while self._bytes > _MAX_RECENT_BYTES:
            _id, oldest = self._messages.popitem(last=False)
            self._bytes -= len(oldest.body) + _OVERHEAD

    def get(self, message_id: str) -> Message | None:
        """Return a message if it is still kept."""
        return self._messages.get(message_id)

    def forget(self) -> None:
        """Drop everything."""
        self._messages.clear()
        self._bytes = 0
