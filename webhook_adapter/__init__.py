"""A thin, complete webhook sender: durable, signed, retried, and polite to those who receive.

`WebhookService` accepts events and delivers them; `WebhookEventHandler` feeds it from an event bus; `verify` is for
those who receive. It starts with no server at all: SQLite in a directory.
"""

from __future__ import annotations

from webhook_adapter.dispatcher import DispatcherStatistics
from webhook_adapter.egress import AddressRefusedError, EgressPolicy, Resolver
from webhook_adapter.event_bus import EventBus, EventSource, Handler
from webhook_adapter.event_handler import EventHandlerStatistics, WebhookEventHandler
from webhook_adapter.keys import new_secret, public_key
from webhook_adapter.model import (
    Attempt,
    AttemptOutcome,
    Delivery,
    DeliveryState,
    Endpoint,
    FailureKind,
    Message,
    SigningSecret,
)
from webhook_adapter.service import Health, PayloadTooLargeError, WebhookService
from webhook_adapter.settings import Settings
from webhook_adapter.signing import VerificationError, sign, verify
from webhook_adapter.store import (
    DatabaseCorruptError,
    DatabaseTooNewError,
    DatabaseUnusableError,
    IdempotencyConflictError,
    SecretKeyError,
    StoreClosedError,
    StoreError,
    StoreStatistics,
    StoreUnavailableError,
    UnknownIdError,
)

__all__ = [
    "AddressRefusedError",
    "Attempt",
    "AttemptOutcome",
    "DatabaseCorruptError",
    "DatabaseTooNewError",
    "DatabaseUnusableError",
    "Delivery",
    "DeliveryState",
    "DispatcherStatistics",
    "EgressPolicy",
    "Endpoint",
    "EventBus",
    "EventHandlerStatistics",
    "EventSource",
    "FailureKind",
    "Handler",
    "Health",
    "IdempotencyConflictError",
    "Message",
    "PayloadTooLargeError",
    "Resolver",
    "SecretKeyError",
    "Settings",
    "SigningSecret",
    "StoreClosedError",
    "StoreError",
    "StoreStatistics",
    "StoreUnavailableError",
    "UnknownIdError",
    "VerificationError",
    "WebhookEventHandler",
    "WebhookService",
    "new_secret",
    "public_key",
    "sign",
    "verify",
]
