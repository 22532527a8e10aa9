"""Schema 1: the tables, for every database.

Theory of operation:

* A delivery that waits its turn behind another one of its stream (an ordered endpoint, or an ordering key) is `held`.
  In each stream exactly one delivery that has not finished is not held: the one with the lowest `sequence`. Whoever
  finishes it lets the next go. So "one in flight, in order" costs one look-up, however long the backlog.
* `webhook_queues` has a row per endpoint: `next_at`, the earliest instant at which a claim can find something for it
  (None: nothing pending, or disabled, or paused), and `last_sequence`, the ordering counter. The claim takes the rows
  with the lowest `next_at` and puts the ones that it served at the end, so that no backlog starves another endpoint,
  and what is blocked or not due costs nothing.
* Partial indexes hold only what has not finished: they stay as small as the backlog.
* Deleted endpoints keep their row, without secrets: deliveries refer to it.

Names start with `webhook_`, since the tables may live in an application's own database. Instants are Unix seconds.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ["VERSION", "attempts", "counts", "deliveries", "endpoints", "messages", "metadata", "queues", "versions"]

VERSION = 1

metadata = sa.MetaData()

versions = sa.Table(
    "webhook_schema",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
)

counts = sa.Table(
    "webhook_counts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False, server_default=sa.text("0")),
)

endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("event_types", sa.Text, nullable=False, comment="JSON array"),
    sa.Column("channels", sa.Text, nullable=False, comment="JSON array"),
    sa.Column("headers", sa.Text, nullable=False, comment="JSON array of pairs"),
    sa.Column("metadata", sa.Text, nullable=False, comment="JSON object"),
    sa.Column("secrets", sa.LargeBinary, nullable=False, comment="JSON array of pairs; sealed if secrets_sealed"),
    sa.Column("secrets_sealed", sa.Boolean, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("ordered", sa.Boolean, nullable=False),
    sa.Column("rate_limit", sa.Double),
    sa.Column("blocked_until", sa.Double, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("deleted_at", sa.Double),
    # Of the last change of the row, counted over all rows: by it caches of other processes find what has changed.
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)

queues = sa.Table(
    "webhook_queues",
    metadata,
    sa.Column("endpoint_id", sa.Text, sa.ForeignKey(endpoints.c.id), primary_key=True),
    sa.Column("next_at", sa.Double),
    sa.Column("last_sequence", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sqlite_with_rowid=False,
)
sa.Index("webhook_queues_next", queues.c.next_at, sqlite_where=queues.c.next_at.is_not(None))

messages = sa.Table(
    "webhook_messages",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("fingerprint", sa.LargeBinary),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("ordering_key", sa.Text),
    sa.Column("occurred_at", sa.Double, nullable=False),
    sa.Column("accepted_at", sa.Double, nullable=False),
    sa.Column("deliver_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("channels", sa.Text, nullable=False, comment="JSON array"),
    sa.Column("metadata", sa.Text, nullable=False, comment="JSON object"),
)
sa.Index(
    "webhook_messages_key",
    messages.c.owner,
    messages.c.idempotency_key,
    unique=True,
    sqlite_where=messages.c.idempotency_key.is_not(None),
)

deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("message_id", sa.Text, sa.ForeignKey(messages.c.id), nullable=False),
    sa.Column("endpoint_id", sa.Text, sa.ForeignKey(endpoints.c.id), nullable=False),
    sa.Column(
        "state",
        sa.Text,
        sa.CheckConstraint("state IN ('pending', 'leased', 'delivered', 'dead', 'cancelled')"),
        nullable=False,
    ),
    sa.Column("due_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("round_attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("reason", sa.Text),
    sa.Column("lease_token", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("lease_until", sa.Double),
    sa.Column("stream", sa.Text, comment="within the endpoint; NULL: not ordered"),
    sa.Column("sequence", sa.BigInteger),
    sa.Column("held", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("ordering_key", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double),
    sa.UniqueConstraint("message_id", "endpoint_id"),
)
sa.Index(
    "webhook_deliveries_due",
    deliveries.c.endpoint_id,
    deliveries.c.due_at,
    sqlite_where=sa.text("state = 'pending' AND NOT held"),
)
sa.Index(
    "webhook_deliveries_expiring",
    deliveries.c.expires_at,
    sqlite_where=sa.text("finished_at IS NULL AND expires_at IS NOT NULL"),
)
sa.Index("webhook_deliveries_leased", deliveries.c.lease_until, sqlite_where=sa.text("state = 'leased'"))
sa.Index(
    "webhook_deliveries_dead",
    deliveries.c.endpoint_id,
    deliveries.c.finished_at,
    sqlite_where=sa.text("state = 'dead'"),
)
sa.Index(
    "webhook_deliveries_stream",
    deliveries.c.endpoint_id,
    deliveries.c.stream,
    deliveries.c.sequence,
    sqlite_where=sa.text("stream IS NOT NULL AND finished_at IS NULL"),
)

attempts = sa.Table(
    "webhook_attempts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("delivery_id", sa.Text, sa.ForeignKey(deliveries.c.id), nullable=False),
    sa.Column("number", sa.Integer, sa.CheckConstraint("number >= 1"), nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("duration", sa.Double, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("failure", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("response_body", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("delivery_id", "number"),
)
