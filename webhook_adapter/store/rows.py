"""Between rows and records.

Rules of this module: pure translation, for every database. Collections are JSON text; a signing secret passes through
the sealer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

from webhook_adapter.model import Attempt, Delivery, DeliveryState, Endpoint, FailureKind, Message, SigningSecret

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sqlalchemy as sa

    from webhook_adapter.store.sealing import Sealer

__all__ = ["attempt", "delivery", "endpoint", "endpoint_values", "from_json", "message", "to_json"]

Values: TypeAlias = "dict[str, str | bytes | float | bool | None]"

to_json = json.JSONEncoder(separators=(",", ":")).encode


def from_json(text: str) -> tuple[str, ...]:
    """Return a JSON array of texts as a tuple."""
    return () if text == "[]" else tuple(json.loads(text))


def _mapping(text: str) -> Mapping[str, str]:
    if text == "{}":
        return {}
    parsed: dict[str, str] = json.loads(text)
    return parsed


def endpoint(row: sa.RowMapping, sealer: Sealer) -> Endpoint:
    """Return the endpoint of a row."""
    secrets = json.loads(sealer.open(row["secrets"], sealed=row["secrets_sealed"], belongs_to=row["id"]))
    return Endpoint(
        row["id"],
        row["url"],
        description=row["description"],
        event_types=from_json(row["event_types"]),
        headers=tuple((name, value) for name, value in json.loads(row["headers"])),
        secrets=tuple(SigningSecret(value, expires_at) for value, expires_at in secrets),
        enabled=row["enabled"],
        disabled_reason=row["disabled_reason"],
        paused=row["paused"],
        ordered=row["ordered"],
        rate_limit=row["rate_limit"],
        owner=row["owner"],
        metadata=_mapping(row["metadata"]),
        channels=from_json(row["channels"]),
        blocked_until=row["blocked_until"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def endpoint_values(endpoint: Endpoint, sealer: Sealer) -> Values:
    """Return the columns of an endpoint's row, but for `revision` and `deleted_at`."""
    secrets = to_json([[secret.value, secret.expires_at] for secret in endpoint.secrets]).encode()
    return {
        "id": endpoint.id,
        "owner": endpoint.owner,
        "url": endpoint.url,
        "description": endpoint.description,
        "event_types": to_json(endpoint.event_types),
        "channels": to_json(endpoint.channels),
        "headers": to_json(endpoint.headers),
        "metadata": to_json(dict(endpoint.metadata)),
        "secrets": sealer.seal(secrets, belongs_to=endpoint.id),
        "secrets_sealed": sealer.seals,
        "enabled": endpoint.enabled,
        "disabled_reason": endpoint.disabled_reason,
        "paused": endpoint.paused,
        "ordered": endpoint.ordered,
        "rate_limit": endpoint.rate_limit,
        "blocked_until": endpoint.blocked_until,
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
    }


def message(row: sa.RowMapping) -> Message:
    """Return the message of a row."""
    return Message(
        id=row["id"],
        event_type=row["event_type"],
        body=row["body"],
        idempotency_key=row["idempotency_key"],
        ordering_key=row["ordering_key"],
        occurred_at=row["occurred_at"],
        accepted_at=row["accepted_at"],
        deliver_at=row["deliver_at"],
        expires_at=row["expires_at"],
        owner=row["owner"],
        channels=from_json(row["channels"]),
        metadata=_mapping(row["metadata"]),
    )


def delivery(row: sa.RowMapping) -> Delivery:
    """Return the delivery of a row."""
    return Delivery(
        id=row["id"],
        message_id=row["message_id"],
        endpoint_id=row["endpoint_id"],
        state=DeliveryState(row["state"]),
        due_at=row["due_at"],
        expires_at=row["expires_at"],
        attempts=row["attempts"],
        round_attempts=row["round_attempts"],
        reason=row["reason"],
        lease_token=row["lease_token"],
        lease_until=row["lease_until"],
        sequence=row["sequence"],
        ordering_key=row["ordering_key"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
    )


def attempt(row: sa.RowMapping) -> Attempt:
    """Return the attempt of a row that is joined with its delivery's."""
    return Attempt(
        id=row["id"],
        delivery_id=row["delivery_id"],
        message_id=row["message_id"],
        endpoint_id=row["endpoint_id"],
        number=row["number"],
        started_at=row["started_at"],
        duration=row["duration"],
        status_code=row["status_code"],
        failure=None if row["failure"] is None else FailureKind(row["failure"]),
        error=row["error"],
        response_body=row["response_body"],
    )
