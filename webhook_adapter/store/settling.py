"""Settling: what an attempt's outcome changes, in one transaction.

Rules of this module: an outcome counts only under the token of the delivery's present lease, and once. Attempt,
delivery, stream, endpoint and counters change together. What the outcome means has been judged before (`lifecycle`).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, assert_never

import attrs

from webhook_adapter.ids import new_id
from webhook_adapter.lifecycle import Dead, Delivered, DueAgain, Judgement
from webhook_adapter.model import Attempt, AttemptOutcome, DeliveryState
from webhook_adapter.store import endpoints
from webhook_adapter.store.dialect import AttemptRow, Leased, Settled, Stream
from webhook_adapter.store.dispatching import ENDPOINT_DELETED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from webhook_adapter.store.unit import Unit
    from webhook_adapter.store.values import Claim

__all__ = ["Settlement", "record"]


@attrs.frozen
class Settlement:
    """An outcome under a lease, and its judgement.

    Attributes:
        claim: the lease under which the attempt was made.
        outcome: how it ended.
        judgement: what `lifecycle.judge` made of that.
        now: Unix seconds.
        blocked_until: blocks the endpoint until then (a 429's Retry-After); None leaves it as it is, and a block that
            ends later stays.
    """

    claim: Claim
    outcome: AttemptOutcome
    judgement: Judgement
    now: float
    blocked_until: float | None = None


def record(unit: Unit, payloads: Sequence[Sequence[Settlement]]) -> Sequence[list[Attempt | None]]:
    """Record many outcomes with a handful of statements; None for those whose lease was lost."""
    attempts = iter(_record(unit, [each for settlements in payloads for each in settlements]))
    return [list(itertools.islice(attempts, len(settlements))) for settlements in payloads]


def _record(unit: Unit, settlements: Sequence[Settlement]) -> list[Attempt | None]:
    leased = unit.dialect.leased(unit.connection, [each.claim.delivery.id for each in settlements])
    attempts: list[Attempt | None] = []
    attempt_rows: list[AttemptRow] = []
    settled: list[Settled] = []
    streams: set[Stream] = set()
    touched: set[str] = set()
    counted: list[Settlement] = []
    for each in settlements:
        delivery = each.claim.delivery
        found = leased.get(delivery.id)
        if found is None or found.token != delivery.lease_token:
            attempts.append(None)
            continue
        # Taken out, so that the same outcome twice in one batch counts once.
        del leased[delivery.id]
        counted.append(each)
        attempt, row = _attempt(each, found)
        attempts.append(attempt)
        attempt_rows.append(row)
        end = _settled(unit, each, found)
        settled.append(end)
        unit.counts[end.state.value] += 1
        if found.stream is not None and end.finished_at is not None:
            streams.add((delivery.endpoint_id, found.stream))
            touched.add(delivery.endpoint_id)
        elif end.finished_at is None:
            touched.add(delivery.endpoint_id)
    unit.counts["leased"] -= len(settled)
    unit.counts["attempts"] += len(settled)
    unit.counts["stale"] += len(settlements) - len(settled)
    unit.dialect.settle(unit.connection, settled)
    unit.dialect.insert_attempts(unit.connection, attempt_rows)
    if streams:
        unit.dialect.promote(unit.connection, streams)
    for each in counted:
        touched |= _consequences(unit, each)
    if touched:
        unit.dialect.requeue(unit.connection, touched, max(each.now for each in counted))
    return attempts


def _attempt(each: Settlement, found: Leased) -> tuple[Attempt, AttemptRow]:
    delivery, outcome = each.claim.delivery, each.outcome
    attempt_id = new_id("atm_", each.now)
    number = found.attempts + 1
    attempt = Attempt(
        id=attempt_id,
        delivery_id=delivery.id,
        message_id=delivery.message_id,
        endpoint_id=delivery.endpoint_id,
        number=number,
        started_at=outcome.started_at,
        duration=outcome.duration,
        status_code=outcome.status_code,
        failure=outcome.failure,
        error=outcome.error,
        response_body=outcome.response_body,
    )
    row = (
        attempt_id,
        delivery.id,
        number,
        outcome.started_at,
        outcome.duration,
        outcome.status_code,
        None if outcome.failure is None else outcome.failure.value,
        outcome.error,
        outcome.response_body,
    )
    return attempt, row


def _settled(unit: Unit, each: Settlement, found: Leased) -> Settled:
    delivery = each.claim.delivery
    reason: str | None = None
    finished_at: float | None = each.now
    due_at = delivery.due_at
    match each.judgement:
        case Delivered():
            state = DeliveryState.DELIVERED
        case Dead(reason=why):
            state, reason = DeliveryState.DEAD, why
        case DueAgain(at=at):
            if unit.directory.get(delivery.endpoint_id) is None:
                state, reason = DeliveryState.CANCELLED, ENDPOINT_DELETED
            else:
                state, due_at, finished_at = DeliveryState.PENDING, at, None
        case unknown:
            assert_never(unknown)
    return Settled(delivery.id, state, due_at, found.attempts + 1, found.round_attempts + 1, reason, finished_at)


def _consequences(unit: Unit, each: Settlement) -> set[str]:
    """Change the endpoint as the outcome demands; return its id if its queue is to be looked at again."""
    endpoint_id = each.claim.delivery.endpoint_id
    touched = set()
    if isinstance(each.judgement, Dead) and each.judgement.disable_endpoint:
        endpoints.disable(unit, endpoint_id, reason=each.judgement.reason, now=each.now)
        touched.add(endpoint_id)
    if each.blocked_until is not None:
        endpoint = unit.directory.get(endpoint_id)
        if endpoint is not None and each.blocked_until > endpoint.blocked_until:
            endpoints.write_block(unit, endpoint, until=each.blocked_until)
            touched.add(endpoint_id)
    return touched
