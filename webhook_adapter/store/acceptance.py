"""Accepting: a message, and a delivery for everyone who wants it, in one transaction.

Rules of this module:

* A message and its deliveries are written together, or not at all. One that nobody wants is accepted, and counted.
* An idempotency key stands for one message of one owner. It comes back with the same body: the same message. With
  another: refused, and nothing else is.
* What belongs to a stream gets the next number of its endpoint's counter and is held; then the first of the stream
  goes. A disabled or paused endpoint gets its deliveries too: they are held for it.

`enqueue` does the same inside a transaction of the caller's, which it neither commits nor ever aborts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, TypeAlias

import attrs
import sqlalchemy as sa

from webhook_adapter.ids import new_id
from webhook_adapter.model import Endpoint, Message, matches_event_type
from webhook_adapter.store import rows, schema
from webhook_adapter.store.errors import IdempotencyConflictError, UnknownIdError
from webhook_adapter.store.sqlite import SQLite
from webhook_adapter.store.values import Accepted, NewMessage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from webhook_adapter.store.dialect import DeliveryRow, Dialect, MessageRow, Stream
    from webhook_adapter.store.unit import Unit

__all__ = ["Offer", "accept", "enqueue"]

_WHOLE_ENDPOINT = ""
_KEYS_AT_ONCE = 500
_Key: TypeAlias = tuple[str, str]


@attrs.frozen
class Offer:
    """A message that is offered at an instant."""

    new: NewMessage
    now: float


@attrs.frozen
class _Target:
    """What accepting must know of an endpoint. An `Endpoint` is one, too."""

    id: str
    enabled: bool
    paused: bool
    ordered: bool
    blocked_until: float


def accept(unit: Unit, offers: Sequence[Offer]) -> Sequence[Accepted | Exception]:
    """Accept many messages with a handful of statements."""
    known = _known_keys(unit.connection, offers)
    written = _Written()
    answers: list[Accepted | Exception] = []
    for offer in offers:
        new = offer.new
        if new.only_to is None:
            targets = unit.directory.route(new.owner, new.event_type, new.channels)
        else:
            only = unit.directory.get(new.only_to)
            if only is None:
                answers.append(UnknownIdError("endpoint_id", new.only_to))
                continue
            targets = [only]
        key = None if new.idempotency_key is None else (new.owner, new.idempotency_key)
        if key is not None and key in known:
            answers.append(_repeated(new, *known[key]))
            written.counts["repeated"] += 1
            continue
        message = _message(new, offer.now)
        written.add(new, message, targets)
        if key is not None:
            known[key] = (message, new.fingerprint)
        answers.append(Accepted(message, created=True, deliveries=len(targets)))
    written.write(unit.connection, unit.dialect)
    unit.counts.update(written.counts)
    for message in written.messages:
        unit.caches.recent.put(message)
    return answers


def enqueue(connection: sa.Connection | Session, new: NewMessage, *, now: float) -> Accepted:
    """Accept a message inside the caller's own transaction (an outbox): it is accepted when they commit, or never.

    The tables must be in the caller's database, and the transaction must be able to write. The caller's transaction is
    neither committed nor rolled back, nor ever aborted by a key that is known.

    Args:
        connection: the caller's SQLAlchemy connection or session, in its transaction.
        new: the message.
        now: Unix seconds.

    Raises:
        IdempotencyConflictError: its key stands for another body; nothing has been written.
        UnknownIdError: `only_to` is no endpoint; nothing has been written.
        ValueError: the connection is to a database that this version does not know.
    """
    inside = connection if isinstance(connection, sa.Connection) else connection.connection()
    if inside.dialect.name != "sqlite":
        raise ValueError(f"connection must be to SQLite, not to {inside.dialect.name}")
    dialect: Dialect = SQLite()
    targets = _targets(inside, new)
    message = _message(new, now)
    if not dialect.insert_message_if_new(inside, _message_row(message, new.fingerprint)):
        known = _known_keys(inside, [Offer(new, now)])[new.owner, new.idempotency_key or ""]
        answer = _repeated(new, *known)
        if isinstance(answer, Exception):
            raise answer
        dialect.add_counts(inside, {"repeated": 1})
        return answer
    written = _Written()
    written.add(new, message, targets)
    written.write(inside, dialect, with_messages=False)
    dialect.add_counts(inside, {name: delta for name, delta in written.counts.items() if delta})
    return Accepted(message, created=True, deliveries=len(targets))


class _Written:
    """What a transaction is going to write, collected first, so that each table takes one statement."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.counts: Counter[str] = Counter()
        self._message_rows: list[MessageRow] = []
        self._free: list[DeliveryRow] = []
        # By endpoint: the deliveries that get a number.
        self._numbered: defaultdict[str, list[tuple[Message, str]]] = defaultdict(list)
        self._due: dict[str, float] = {}

    def add(self, new: NewMessage, message: Message, targets: Iterable[_Target | Endpoint]) -> None:
        """Add a message and its deliveries."""
        self.messages.append(message)
        self._message_rows.append(_message_row(message, new.fingerprint))
        count = 0
        for target in targets:
            count += 1
            if target.ordered or message.ordering_key is not None:
                stream = _WHOLE_ENDPOINT if target.ordered else f"key:{message.ordering_key}"
                self._numbered[target.id].append((message, stream))
            else:
                self._free.append(_delivery_row(message, target.id, None, None))
            if target.enabled and not target.paused:
                at = max(message.deliver_at, target.blocked_until)
                if at < self._due.get(target.id, at + 1.0):
                    self._due[target.id] = at
        self.counts["messages"] += 1
        self.counts["pending"] += count
        if not count:
            self.counts["unrouted"] += 1

    def write(self, connection: sa.Connection, dialect: Dialect, *, with_messages: bool = True) -> None:
        """Write everything but the counters."""
        if with_messages:
            dialect.insert_messages(connection, self._message_rows)
        deliveries = self._free
        streams: set[Stream] = set()
        if self._numbered:
            wanted = {endpoint_id: len(group) for endpoint_id, group in self._numbered.items()}
            last = dialect.take_sequences(connection, wanted)
            for endpoint_id, group in self._numbered.items():
                for sequence, (message, stream) in enumerate(group, start=last[endpoint_id] + 1):
                    deliveries.append(_delivery_row(message, endpoint_id, stream, sequence))
                    streams.add((endpoint_id, stream))
        dialect.insert_deliveries(connection, deliveries)
        if streams:
            dialect.promote(connection, streams)
        dialect.hasten(connection, self._due)


def _message(new: NewMessage, now: float) -> Message:
    return Message(
        id=new_id("msg_", now),
        event_type=new.event_type,
        body=new.body,
        idempotency_key=new.idempotency_key,
        ordering_key=new.ordering_key,
        occurred_at=new.occurred_at,
        accepted_at=now,
        deliver_at=now if new.deliver_at is None else new.deliver_at,
        expires_at=new.expires_at,
        owner=new.owner,
        channels=new.channels,
        metadata=new.metadata,
    )


def _message_row(message: Message, fingerprint: bytes) -> MessageRow:
    return (
        message.id,
        message.owner,
        message.event_type,
        message.body,
        fingerprint or None,
        message.idempotency_key,
        message.ordering_key,
        message.occurred_at,
        message.accepted_at,
        message.deliver_at,
        message.expires_at,
        rows.to_json(message.channels) if message.channels else "[]",
        rows.to_json(dict(message.metadata)) if message.metadata else "{}",
    )


def _delivery_row(message: Message, endpoint_id: str, stream: str | None, sequence: int | None) -> DeliveryRow:
    return (
        new_id("dlv_", message.accepted_at),
        message.id,
        endpoint_id,
        message.deliver_at,
        message.expires_at,
        stream,
        sequence,
        stream is not None,
        message.ordering_key,
        message.accepted_at,
    )


def _known_keys(connection: sa.Connection, offers: Iterable[Offer]) -> dict[_Key, tuple[Message, bytes]]:
    """Return the messages that keys of these offers already stand for, with their fingerprints."""
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for offer in offers:
        if offer.new.idempotency_key is not None:
            wanted[offer.new.owner].append(offer.new.idempotency_key)
    table = schema.messages
    known: dict[_Key, tuple[Message, bytes]] = {}
    for owner, keys in wanted.items():
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            part = keys[start : start + _KEYS_AT_ONCE]
            found = sa.select(table).where(table.c.owner == owner, table.c.idempotency_key.in_(part))
            for row in connection.execute(found).mappings():
                known[owner, row["idempotency_key"]] = (rows.message(row), row["fingerprint"])
    return known


def _repeated(new: NewMessage, known: Message, fingerprint: bytes) -> Accepted | IdempotencyConflictError:
    if fingerprint != new.fingerprint:
        return IdempotencyConflictError(new.idempotency_key or "", known.id)
    return Accepted(known, created=False, deliveries=0)


def _targets(connection: sa.Connection, new: NewMessage) -> list[_Target]:
    """Return who wants a message, as the caller's transaction sees it."""
    table = schema.endpoints
    wanted = sa.select(
        table.c.id,
        table.c.enabled,
        table.c.paused,
        table.c.ordered,
        table.c.blocked_until,
        table.c.event_types,
        table.c.channels,
    ).where(table.c.deleted_at.is_(None))
    if new.only_to is not None:
        wanted = wanted.where(table.c.id == new.only_to)
    else:
        wanted = wanted.where(table.c.owner == new.owner)
    targets = []
    for row in connection.execute(wanted.order_by(table.c.id)).mappings():
        if new.only_to is None and not _wants(row, new):
            continue
        targets.append(_Target(row["id"], row["enabled"], row["paused"], row["ordered"], row["blocked_until"]))
    if new.only_to is not None and not targets:
        raise UnknownIdError("endpoint_id", new.only_to)
    return targets


def _wants(row: sa.RowMapping, new: NewMessage) -> bool:
    channels = rows.from_json(row["channels"])
    if channels and new.channels and not set(channels) & set(new.channels):
        return False
    return any(matches_event_type(pattern, new.event_type) for pattern in rows.from_json(row["event_types"]))
