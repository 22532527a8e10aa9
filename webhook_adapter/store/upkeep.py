"""Upkeep: what happens to deliveries beside their attempts. Retries and replays by hand, expiry, cancelling, pruning.

Rules of this module: what is delivered again by hand leaves the order, begins a new round, and is due at once; its
attempts are numbered on. Whatever ends a delivery of a stream lets the next one go, in the same transaction.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs
import sqlalchemy as sa

from webhook_adapter.ids import first_id
from webhook_adapter.lifecycle import EXPIRED
from webhook_adapter.model import DeliveryState
from webhook_adapter.store import schema
from webhook_adapter.store.errors import UnknownIdError
from webhook_adapter.store.writer import one_by_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from webhook_adapter.store.dialect import Ended
    from webhook_adapter.store.unit import Unit

__all__ = [
    "Cancellation",
    "Expiry",
    "Pruning",
    "Replay",
    "Retry",
    "cancel",
    "check",
    "expire",
    "expire_due",
    "prune",
    "replay",
    "retry_dead",
]

_TABLE = schema.deliveries
_FINAL = (DeliveryState.DELIVERED.value, DeliveryState.DEAD.value, DeliveryState.CANCELLED.value)
_IDS_AT_ONCE = 500


@attrs.frozen
class Retry:
    """A new round for dead deliveries."""

    now: float
    expires_at: float | None
    endpoint_id: str | None
    since: float | None


@attrs.frozen
class Replay:
    """A new round for whatever has ended."""

    now: float
    expires_at: float | None
    message_id: str | None
    since: float | None


@attrs.frozen
class Cancellation:
    """The end of a pending delivery, by hand."""

    delivery_id: str
    now: float
    reason: str


@attrs.frozen
class Expiry:
    """The end of what has waited too long."""

    now: float
    limit: int


@attrs.frozen
class Pruning:
    """The end of what is older than this."""

    before: float
    limit: int


def _retry_dead(unit: Unit, payload: Retry) -> int:
    which: list[sa.ColumnElement[bool]] = [_TABLE.c.state == DeliveryState.DEAD.value]
    if payload.endpoint_id is not None:
        which.append(_TABLE.c.endpoint_id == payload.endpoint_id)
    if payload.since is not None:
        which.append(_TABLE.c.finished_at >= payload.since)
    return _begin_round(unit, which, now=payload.now, expires_at=payload.expires_at)


retry_dead = one_by_one(_retry_dead)


def _replay(unit: Unit, payload: Replay) -> int:
    which: list[sa.ColumnElement[bool]] = [_TABLE.c.state.in_(_FINAL)]
    if payload.message_id is not None:
        known = sa.select(schema.messages.c.id).where(schema.messages.c.id == payload.message_id)
        if unit.connection.execute(known).first() is None:
            raise UnknownIdError("message_id", payload.message_id)
        which.append(_TABLE.c.message_id == payload.message_id)
    if payload.since is not None:
        # Ids begin with the millisecond; the rest of it is told apart by the instant itself.
        which.append(_TABLE.c.message_id >= first_id("msg_", payload.since))
        which.append(_TABLE.c.created_at >= payload.since)
    return _begin_round(unit, which, now=payload.now, expires_at=payload.expires_at)


replay = one_by_one(_replay)


def _begin_round(unit: Unit, which: Sequence[sa.ColumnElement[bool]], *, now: float, expires_at: float | None) -> int:
    live = sa.select(schema.endpoints.c.id).where(schema.endpoints.c.deleted_at.is_(None))
    chosen = sa.and_(*which, _TABLE.c.endpoint_id.in_(live))
    found = (
        sa.select(_TABLE.c.endpoint_id, _TABLE.c.state, sa.func.count())
        .where(chosen)
        .group_by(_TABLE.c.endpoint_id, _TABLE.c.state)
    )
    touched: set[str] = set()
    total = 0
    for endpoint_id, state, count in unit.connection.execute(found):
        touched.add(endpoint_id)
        unit.counts[state] -= count
        total += count
    if not total:
        return 0
    unit.connection.execute(
        sa.update(_TABLE)
        .where(chosen)
        .values(
            state=DeliveryState.PENDING.value,
            due_at=now,
            expires_at=expires_at,
            round_attempts=0,
            reason=None,
            stream=None,
            held=False,
            finished_at=None,
        )
    )
    unit.counts["pending"] += total
    unit.dialect.requeue(unit.connection, touched, now)
    return total


def _cancel(unit: Unit, payload: Cancellation) -> bool:
    wanted = sa.select(_TABLE.c.state, _TABLE.c.endpoint_id, _TABLE.c.stream).where(_TABLE.c.id == payload.delivery_id)
    row = unit.connection.execute(wanted).first()
    if row is None:
        raise UnknownIdError("delivery_id", payload.delivery_id)
    if row.state != DeliveryState.PENDING.value:
        return False
    _end(
        unit,
        [(payload.delivery_id, row.endpoint_id, row.stream)],
        state=DeliveryState.CANCELLED,
        reason=payload.reason,
        now=payload.now,
    )
    return True


cancel = one_by_one(_cancel)


def expire_due(unit: Unit, *, now: float, limit: int) -> int:
    """End up to `limit` pending deliveries whose time is over."""
    ended = unit.dialect.expired(unit.connection, now=now, limit=limit)
    if ended:
        _end(unit, ended, state=DeliveryState.DEAD, reason=EXPIRED, now=now)
    return len(ended)


def _expire(unit: Unit, payload: Expiry) -> int:
    return expire_due(unit, now=payload.now, limit=payload.limit)


expire = one_by_one(_expire)


def _end(
    unit: Unit,
    pending: Sequence[Ended],
    *,
    state: DeliveryState,
    reason: str,
    now: float,
) -> None:
    """End pending deliveries, given by id, endpoint and stream."""
    ids = [delivery_id for delivery_id, _endpoint_id, _stream in pending]
    for start in range(0, len(ids), _IDS_AT_ONCE):
        unit.connection.execute(
            sa.update(_TABLE)
            .where(_TABLE.c.id.in_(ids[start : start + _IDS_AT_ONCE]))
            .values(state=state.value, reason=reason, finished_at=now, held=False)
        )
    unit.counts["pending"] -= len(ids)
    unit.counts[state.value] += len(ids)
    streams = {(endpoint_id, stream) for _id, endpoint_id, stream in pending if stream is not None}
    if streams:
        unit.dialect.promote(unit.connection, streams)
    unit.dialect.requeue(unit.connection, {endpoint_id for _id, endpoint_id, _stream in pending}, now)


def _prune(unit: Unit, payload: Pruning) -> int:
    messages, attempts = schema.messages, schema.attempts
    alive = sa.exists().where(_TABLE.c.message_id == messages.c.id, _TABLE.c.finished_at.is_(None))
    old = (
        sa.select(messages.c.id)
        .where(messages.c.id < first_id("msg_", payload.before), ~alive)
        .order_by(messages.c.id)
        .limit(payload.limit)
    )
    ids = list(unit.connection.execute(old).scalars())
    for start in range(0, len(ids), _IDS_AT_ONCE):
        part = ids[start : start + _IDS_AT_ONCE]
        theirs = sa.select(_TABLE.c.id).where(_TABLE.c.message_id.in_(part))
        states = Counter(
            unit.connection.execute(sa.select(_TABLE.c.state).where(_TABLE.c.message_id.in_(part))).scalars()
        )
        unit.connection.execute(sa.delete(attempts).where(attempts.c.delivery_id.in_(theirs)))
        unit.connection.execute(sa.delete(_TABLE).where(_TABLE.c.message_id.in_(part)))
        unit.connection.execute(sa.delete(messages).where(messages.c.id.in_(part)))
        unit.counts.subtract(states)
    return len(ids)


prune = one_by_one(_prune)


def _check(unit: Unit, _payload: None) -> None:
    unit.counts["checks"] += 1


check = one_by_one(_check)
