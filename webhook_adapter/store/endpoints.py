"""Endpoints: their rows, and what a change of one does to what waits for it.

Rules of this module: every change takes a new revision, by which the caches of other processes find it, and has the
endpoint's queue computed anew. A deleted endpoint keeps its row, without secrets and headers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import sqlalchemy as sa

from webhook_adapter.model import DeliveryState, Endpoint
from webhook_adapter.store import rows, schema
from webhook_adapter.store.dispatching import ENDPOINT_DELETED
from webhook_adapter.store.errors import UnknownIdError
from webhook_adapter.store.unit import next_revision
from webhook_adapter.store.writer import one_by_one

if TYPE_CHECKING:
    from collections.abc import Callable

    from webhook_adapter.store.listing import Page
    from webhook_adapter.store.unit import ReadUnit, Unit

__all__ = ["Block", "Deletion", "Update", "add", "block", "delete", "disable", "get", "listed", "update", "write_block"]

_TABLE = schema.endpoints


@attrs.frozen
class Update:
    """A change of an endpoint."""

    endpoint_id: str
    change: Callable[[Endpoint], Endpoint]
    now: float


@attrs.frozen
class Deletion:
    """The end of an endpoint."""

    endpoint_id: str
    now: float


@attrs.frozen
class Block:
    """How long nothing is claimed for an endpoint."""

    endpoint_id: str
    until: float
    now: float


def _add(unit: Unit, endpoint: Endpoint) -> Endpoint:
    taken = sa.select(_TABLE.c.id).where(_TABLE.c.id == endpoint.id)
    if unit.connection.execute(taken).first() is not None:
        raise ValueError(f"id {endpoint.id!r} is taken by another endpoint")
    values = rows.endpoint_values(endpoint, unit.sealer)
    unit.connection.execute(sa.insert(_TABLE).values(**values, revision=next_revision(unit)))
    unit.connection.execute(sa.insert(schema.queues).values(endpoint_id=endpoint.id))
    unit.directory.put(endpoint)
    return endpoint


add = one_by_one(_add)


def _known(unit: Unit, endpoint_id: str) -> Endpoint:
    endpoint = unit.directory.get(endpoint_id)
    if endpoint is None:
        raise UnknownIdError("endpoint_id", endpoint_id)
    return endpoint


def _update(unit: Unit, payload: Update) -> Endpoint:
    before = _known(unit, payload.endpoint_id)
    changed = payload.change(before)
    if not isinstance(changed, Endpoint) or changed.id != before.id or changed.created_at != before.created_at:
        raise ValueError("change must return an Endpoint with the same id and created_at")
    after = attrs.evolve(changed, updated_at=payload.now)
    _write(unit, after)
    unit.dialect.requeue(unit.connection, [after.id], payload.now)
    return after


update = one_by_one(_update)


def _write(unit: Unit, endpoint: Endpoint) -> None:
    values = rows.endpoint_values(endpoint, unit.sealer)
    unit.connection.execute(
        sa.update(_TABLE).where(_TABLE.c.id == endpoint.id).values(**values, revision=next_revision(unit))
    )
    unit.directory.put(endpoint)


def _delete(unit: Unit, payload: Deletion) -> int:
    endpoint = _known(unit, payload.endpoint_id)
    unit.connection.execute(
        sa.update(_TABLE)
        .where(_TABLE.c.id == endpoint.id)
        .values(
            deleted_at=payload.now,
            updated_at=payload.now,
            secrets=b"[]",
            secrets_sealed=False,
            headers="[]",
            revision=next_revision(unit),
        )
    )
    unit.directory.drop(endpoint.id)
    cancelled = _end_pending(unit, endpoint.id, state=DeliveryState.CANCELLED, reason=ENDPOINT_DELETED, now=payload.now)
    unit.dialect.requeue(unit.connection, [endpoint.id], payload.now)
    return cancelled


delete = one_by_one(_delete)


def disable(unit: Unit, endpoint_id: str, *, reason: str, now: float) -> None:
    """Disable an endpoint whose receiver is gone, and end what is pending for it dead. The caller requeues it."""
    endpoint = unit.directory.get(endpoint_id)
    if endpoint is None:
        return
    if endpoint.enabled:
        _write(unit, attrs.evolve(endpoint, enabled=False, disabled_reason=reason, updated_at=now))
    _end_pending(unit, endpoint_id, state=DeliveryState.DEAD, reason=reason, now=now)


def _end_pending(unit: Unit, endpoint_id: str, *, state: DeliveryState, reason: str, now: float) -> int:
    table = schema.deliveries
    ended = unit.connection.execute(
        sa.update(table)
        .where(table.c.endpoint_id == endpoint_id, table.c.state == DeliveryState.PENDING.value)
        .values(state=state.value, reason=reason, finished_at=now, held=False)
    ).rowcount
    unit.counts["pending"] -= ended
    unit.counts[state.value] += ended
    return ended


def _block(unit: Unit, payload: Block) -> None:
    endpoint = unit.directory.get(payload.endpoint_id)
    if endpoint is None or endpoint.blocked_until == payload.until:
        return
    write_block(unit, endpoint, until=payload.until)
    unit.dialect.requeue(unit.connection, [endpoint.id], payload.now)


block = one_by_one(_block)


def write_block(unit: Unit, endpoint: Endpoint, *, until: float) -> None:
    """Write how long an endpoint is blocked. The caller requeues it."""
    unit.connection.execute(
        sa.update(_TABLE).where(_TABLE.c.id == endpoint.id).values(blocked_until=until, revision=next_revision(unit))
    )
    unit.directory.put(attrs.evolve(endpoint, blocked_until=until))


def get(unit: ReadUnit, endpoint_id: str) -> Endpoint:
    """Return an endpoint."""
    wanted = sa.select(_TABLE).where(_TABLE.c.id == endpoint_id, _TABLE.c.deleted_at.is_(None))
    row = unit.connection.execute(wanted).mappings().first()
    if row is None:
        raise UnknownIdError("endpoint_id", endpoint_id)
    return rows.endpoint(row, unit.sealer)


def listed(unit: ReadUnit, *, owner: str | None, page: Page) -> list[Endpoint]:
    """Return a page of endpoints."""
    wanted = page.of(sa.select(_TABLE).where(_TABLE.c.deleted_at.is_(None)), _TABLE.c.id)
    if owner is not None:
        wanted = wanted.where(_TABLE.c.owner == owner)
    return [rows.endpoint(row, unit.sealer) for row in unit.connection.execute(wanted).mappings()]
