"""What goes into the store and comes out of it, beyond the records of `webhook_adapter.model`.

Rules of this module: frozen values only. `NewMessage` is validated when it is made, by whoever makes it and in their
own thread, so that the writer finds nothing left to refuse.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import attrs

from webhook_adapter.model import (
    Delivery,
    Endpoint,
    JsonValue,
    Message,
    as_channels,
    as_metadata,
    check_event_type,
    encode_body,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["Accepted", "Claim", "Claimed", "NewMessage", "Release", "StoreStatistics"]

_MAX_KEY = 256


@attrs.frozen(kw_only=True)
class NewMessage:
    """A message that is to be accepted; `NewMessage.of` makes one from an event type and data.

    Attributes:
        fingerprint: what must be the same when an idempotency key comes again; empty without a key.
        deliver_at: Unix seconds; None is at once.
        expires_at: Unix seconds; None is never.
        only_to: the id of the one endpoint that it goes to, whatever that wants; None is everyone who wants it.
    """

    event_type: str
    body: bytes = attrs.field(repr=False)
    occurred_at: float
    fingerprint: bytes = attrs.field(default=b"", repr=False)
    idempotency_key: str | None = None
    ordering_key: str | None = None
    deliver_at: float | None = None
    expires_at: float | None = None
    owner: str = ""
    channels: tuple[str, ...] = attrs.field(default=(), converter=as_channels)
    metadata: Mapping[str, str] = attrs.field(factory=dict, converter=as_metadata, hash=False)
    only_to: str | None = None

    def __attrs_post_init__(self) -> None:
        check_event_type(self.event_type)
        _check_key("idempotency_key", self.idempotency_key)
        _check_key("ordering_key", self.ordering_key)
        if not isinstance(self.owner, str):
            raise ValueError(f"owner must be text, not {self.owner!r:.80}")
        if (self.idempotency_key is not None) != bool(self.fingerprint):
            raise ValueError("fingerprint must be given with an idempotency_key, and only then")
        for name, at in (
            ("occurred_at", self.occurred_at),
            ("deliver_at", self.deliver_at),
            ("expires_at", self.expires_at),
        ):
            if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at)):
                raise ValueError(f"{name} must be Unix time in seconds, not {at!r}")

    @classmethod
    def of(
        cls,
        event_type: str,
        data: JsonValue,
        *,
        occurred_at: float,
        idempotency_key: str | None = None,
        ordering_key: str | None = None,
        deliver_at: float | None = None,
        expires_at: float | None = None,
        owner: str = "",
        channels: Collection[str] = (),
        metadata: Mapping[str, str] | None = None,
        only_to: str | None = None,
    ) -> NewMessage:
        """Return a message about `data`, its body encoded.

        Two messages have the same body, as idempotency understands it, if their type and data are the same; when it
        occurred does not count, since it differs at every retry of a caller who does not say.

        Raises:
            ValueError: an argument that could not be delivered later, such as data that JSON cannot say.
        """
        check_event_type(event_type)
        return cls(
            event_type=event_type,
            body=encode_body(event_type, occurred_at, data),
            occurred_at=occurred_at,
            fingerprint=b"" if idempotency_key is None else _fingerprint(event_type, data),
            idempotency_key=idempotency_key,
            ordering_key=ordering_key,
            deliver_at=deliver_at,
            expires_at=expires_at,
            owner=owner,
            channels=channels,
            metadata={} if metadata is None else metadata,
            only_to=only_to,
        )


def _fingerprint(event_type: str, data: JsonValue) -> bytes:
    # Through JSON and back: keys that are numbers become text, and can be sorted among the others.
    canonical = json.dumps(json.loads(json.dumps(data)), sort_keys=True, separators=(",", ":"))
    text = f"{event_type}\n{canonical}"
    return hashlib.sha256(text.encode()).digest()


def _check_key(name: str, key: str | None) -> None:
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY or not key.isprintable()):
        raise ValueError(f"{name} must be 1 to {_MAX_KEY} printable characters, not {key!r:.80}")


@attrs.frozen
class Accepted:
    """What became of a message that was offered.

    Attributes:
        message: it, or the one that its idempotency key already stands for.
        created: False if it was already there.
        deliveries: to how many endpoints it goes; 0 if nobody subscribes, or if it was already there.
    """

    message: Message
    created: bool
    deliveries: int


@attrs.frozen
class Claim:
    """A delivery under a lease, with all that an attempt needs."""

    delivery: Delivery
    message: Message
    endpoint: Endpoint


@attrs.frozen
class Claimed:
    """What a claim has found.

    Attributes:
        claims: what was leased.
        next_due_at: when the next claim can find something that this one was not kept from for want of capacity, in
            Unix seconds; in the past if there is something now, None if nothing is pending.
    """

    claims: list[Claim]
    next_due_at: float | None


@attrs.frozen
class Release:
    """Give a lease back without an attempt having been made: the delivery is due again at `due_at`."""

    claim: Claim
    due_at: float


@attrs.frozen(kw_only=True)
class StoreStatistics:
    """How many there are and have been. Kept with every transaction, so reading them costs nothing.

    Attributes:
        messages: accepted since the database was made.
        unrouted: of these, how many nobody subscribed to.
        repeated: offered again under an idempotency key that was known.
        pending, leased, delivered, dead, cancelled: deliveries in each state now.
        attempts: recorded since the database was made.
        stale: outcomes that came after their lease was lost, and did not count; each may be a duplicate.
        expired_leases: leases that ended without an outcome.
    """

    messages: int = 0
    unrouted: int = 0
    repeated: int = 0
    pending: int = 0
    leased: int = 0
    delivered: int = 0
    dead: int = 0
    cancelled: int = 0
    attempts: int = 0
    stale: int = 0
    expired_leases: int = 0
