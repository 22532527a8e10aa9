"""What differs between databases, as a protocol; one file each implements it.

Rules of this module: the statements that run for every delivery are here, since a database's own SQL makes them fast;
each takes many rows and is one statement, or few. Whatever runs rarely is written once, in SQLAlchemy Core, elsewhere.
Every method runs inside the caller's transaction. `Stream` names an order: an endpoint and a stream within it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import sqlalchemy as sa

    from webhook_adapter.model import Delivery, DeliveryState
    from webhook_adapter.store.errors import StoreError

__all__ = ["AttemptRow", "DeliveryRow", "Dialect", "Ended", "Leased", "MessageRow", "Settled", "Stream"]

MessageRow: TypeAlias = tuple[
    str, str, str, bytes, bytes | None, str | None, str | None, float, float, float, float | None, str, str
]
"""As in the schema: id, owner, event_type, body, fingerprint, idempotency_key, ordering_key, occurred_at, accepted_at,
deliver_at, expires_at, channels, metadata."""

DeliveryRow: TypeAlias = tuple[str, str, str, float, float | None, str | None, int | None, bool, str | None, float]
"""id, message_id, endpoint_id, due_at, expires_at, stream, sequence, held, ordering_key, created_at; it is pending."""

AttemptRow: TypeAlias = tuple[str, str, int, float, float, int | None, str | None, str | None, bytes]
"""As in the schema: id, delivery_id, number, started_at, duration, status_code, failure, error, response_body."""

Ended: TypeAlias = tuple[str, str, str | None]
"""A delivery by its id, endpoint and stream."""

Stream: TypeAlias = tuple[str, str]


@attrs.frozen
class Leased:
    """What must be known of a leased delivery to settle it."""

    token: int
    attempts: int
    round_attempts: int
    stream: str | None


@attrs.frozen
class Settled:
    """How a lease ends. `attempts` and `round_attempts` are the new values."""

    delivery_id: str
    state: DeliveryState
    due_at: float
    attempts: int
    round_attempts: int
    reason: str | None
    finished_at: float | None


class Dialect(Protocol):
    """The statements of one database."""

    def translate(self, error: Exception) -> StoreError | None:
        """Return what an error of the driver means for the store; None if it is nobody's fault but the code's."""
        ...

    def foreign_changes(self, connection: sa.Connection) -> int:
        """Return a number that differs from the last one if another connection has committed since."""
        ...

    def insert_messages(self, connection: sa.Connection, rows: Sequence[MessageRow]) -> None:
        """Insert messages."""
        ...

    def insert_message_if_new(self, connection: sa.Connection, row: MessageRow) -> bool:
        """Insert a message unless its owner and key are known, without ever aborting the transaction."""
        ...

    def insert_deliveries(self, connection: sa.Connection, rows: Sequence[DeliveryRow]) -> None:
        """Insert pending deliveries."""
        ...

    def insert_attempts(self, connection: sa.Connection, rows: Sequence[AttemptRow]) -> None:
        """Insert attempts."""
        ...

    def take_sequences(self, connection: sa.Connection, wanted: Mapping[str, int]) -> dict[str, int]:
        """Raise the ordering counters of endpoints by so many; return the last number before each."""
        ...

    def hasten(self, connection: sa.Connection, due: Mapping[str, float]) -> None:
        """Let the queues of endpoints be looked at by these instants at the latest."""
        ...

    def requeue(self, connection: sa.Connection, endpoint_ids: Collection[str], now: float) -> None:
        """Compute anew when the queues of endpoints are to be looked at, and not before `now`."""
        ...

    def due_endpoints(
        self, connection: sa.Connection, *, now: float, excluded: Collection[str], limit: int
    ) -> list[str]:
        """Return the endpoints for which something may be due, the ones served longest ago first."""
        ...

    def next_due_at(self, connection: sa.Connection, excluded: Collection[str]) -> float | None:
        """Return the lowest instant at which a queue is to be looked at."""
        ...

    def due_deliveries(
        self, connection: sa.Connection, quotas: Mapping[str, int], *, now: float, until: float
    ) -> dict[str, list[Delivery]]:
        """Return what is due and has not expired, up to each endpoint's quota, earliest first.

        The records are what the rows will be once they are leased `until` then.
        """
        ...

    def lease(self, connection: sa.Connection, delivery_ids: Sequence[str], *, until: float) -> None:
        """Lease deliveries that `due_deliveries` has just returned, each under a new token."""
        ...

    def leased(self, connection: sa.Connection, delivery_ids: Collection[str]) -> dict[str, Leased]:
        """Return those of the deliveries that are leased."""
        ...

    def expired(self, connection: sa.Connection, *, now: float, limit: int) -> list[Ended]:
        """Return up to `limit` pending deliveries whose time is over."""
        ...

    def settle(self, connection: sa.Connection, settled: Sequence[Settled]) -> None:
        """End leases that `leased` has just confirmed."""
        ...

    def promote(self, connection: sa.Connection, streams: Collection[Stream]) -> None:
        """In each stream, let the first that has not finished go, if it is held."""
        ...

    def add_counts(self, connection: sa.Connection, deltas: Mapping[str, int]) -> None:
        """Add to the counters."""
        ...
