"""What the tests of the store share: endpoints, messages and outcomes of no interest, and a portal to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from webhook_adapter.model import AttemptOutcome, Endpoint, SigningSecret
from webhook_adapter.store import Claim, NewMessage, Settlement, Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from webhook_adapter.lifecycle import Judgement
    from webhook_adapter.model import Attempt

NOW = 1_700_000_000.0
SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
OK = AttemptOutcome(started_at=NOW, duration=0.25, status_code=204)
FAILED = AttemptOutcome(started_at=NOW, duration=0.25, status_code=500, response_body=b"oops", error="status 500")


def an_endpoint(
    name: str = "ep_1",
    *,
    event_types: tuple[str, ...] = ("*",),
    ordered: bool = False,
    owner: str = "",
    channels: tuple[str, ...] = (),
) -> Endpoint:
    """Return an endpoint with a secret and a header."""
    return Endpoint(
        name,
        "https://receiver.example/hook",
        event_types=event_types,
        ordered=ordered,
        owner=owner,
        channels=channels,
        headers=(("X-Token", "canary-header"),),
        secrets=(SigningSecret(SECRET),),
        created_at=NOW,
        updated_at=NOW,
    )


def a_message(
    event_type: str = "order.paid",
    data: int = 1,
    *,
    key: str | None = None,
    ordering_key: str | None = None,
    deliver_at: float | None = None,
    expires_at: float | None = None,
    owner: str = "",
    channels: tuple[str, ...] = (),
    only_to: str | None = None,
) -> NewMessage:
    """Return a message that is to be accepted."""
    return NewMessage.of(
        event_type,
        {"n": data},
        occurred_at=NOW,
        idempotency_key=key,
        ordering_key=ordering_key,
        deliver_at=deliver_at,
        expires_at=expires_at,
        owner=owner,
        channels=channels,
        only_to=only_to,
    )


async def claim(
    store: Store,
    *,
    now: float = NOW,
    limit: int = 100,
    endpoint_limit: int = 100,
    capacities: Mapping[str, int] | None = None,
    ahead: Mapping[str, int] | None = None,
) -> list[Claim]:
    """Claim with a lease of 30 seconds."""
    claimed = await store.claim(
        now=now,
        limit=limit,
        lease_for=30.0,
        endpoint_limit=endpoint_limit,
        capacities=capacities or {},
        ahead=ahead or {},
    )
    return claimed.claims


async def record(
    store: Store,
    claim: Claim,
    outcome: AttemptOutcome,
    judgement: Judgement,
    *,
    now: float = NOW,
    blocked_until: float | None = None,
) -> Attempt | None:
    """Record one outcome."""
    (attempt,) = await store.record([Settlement(claim, outcome, judgement, now, blocked_until)])
    return attempt
