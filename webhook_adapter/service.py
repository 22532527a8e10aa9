"""WebhookService: the facade of the adapter.

Rules of this module: what is wrong with an argument is said at once, before anything is written; what is accepted has
been committed when the call returns. It puts the parts together and adds no rule of its own.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import attrs

from resilience import SystemClock
from webhook_adapter import store as storage
from webhook_adapter.dispatcher import AnchoredWall, Dispatcher, DispatcherStatistics
from webhook_adapter.egress import EgressPolicy, check_url, default_transport
from webhook_adapter.ids import new_id
from webhook_adapter.keys import check_secret, new_secret
from webhook_adapter.model import Attempt, Delivery, DeliveryState, Endpoint, JsonValue, Message, SigningSecret
from webhook_adapter.sender import Sender
from webhook_adapter.settings import Settings
from webhook_adapter.store import NewMessage, Store, StoreError, StoreStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    import httpx
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from resilience import Clock
    from webhook_adapter.egress import Resolver

__all__ = ["Health", "PayloadTooLargeError", "WebhookService"]

logger = logging.getLogger("webhook_adapter")

_DATABASE_FILE = "webhooks.sqlite3"
_EXAMPLE_TYPE = "webhook.example"


class _Unset:
    def __repr__(self) -> str:
        return "unchanged"


_UNSET: Final = _Unset()


class PayloadTooLargeError(ValueError):
    """The encoded message is larger than `max_payload_bytes`; nothing was written."""


@attrs.frozen(kw_only=True)
class Health:
    """Whether the service can do its work, and what keeps it from it."""

    ok: bool
    store: str
    dispatcher: str


class WebhookService:
    """Accept events durably, and deliver them as signed webhooks.

    Use it as an async context manager; leaving it lets what is in flight end. With neither `data_dir` nor `database`
    everything is in memory, for tests.

    Args:
        data_dir: a directory for the SQLite database; made if it is not there.
        database: a "sqlite:///" URL or a file instead.
        settings: everything that can be configured; by default what the environment says (`WEBHOOK_ADAPTER_*`).
        clock: where time comes from.
        transport: an httpx transport to send with instead of the vetting one; it is trusted with the connection, and
            closed by whoever made it. URLs are still judged.
        resolver: turns names into addresses, for the default transport.
        dispatch: False only accepts: another process on the same database delivers.

    Methods may be awaited in any thread and event loop, on asyncio and on trio, while the service is entered.

    Example:
        async with WebhookService("./data") as service:
            await service.register_endpoint("https://example.com/hooks")
            await service.send_webhook_notification("order.paid", {"order": 7})
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        database: str | None = None,
        redis: str | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        resolver: Resolver | None = None,
        dispatch: bool = True,
    ) -> None:
        if data_dir is not None and database is not None:
            raise ValueError(f"database must be None when data_dir is given, not {database!r}")
        if database is not None and not (isinstance(database, str) and database.startswith("sqlite:///")):
            raise ValueError(f"database must be a 'sqlite:///' URL in this version, not {_scheme(database)!r}")
        if redis is not None:
            raise ValueError("redis must be None in this version: guards are shared within one process")
        self._data_dir = None if data_dir is None else Path(data_dir)
        self._database = database
        self.settings = Settings.load(environment=os.environ) if settings is None else settings
        self._clock: Clock = SystemClock() if clock is None else clock
        self._policy = EgressPolicy(allow=self.settings.egress_allow, deny=self.settings.egress_deny)
        self._given_transport = transport
        self._resolver = resolver
        self._dispatches = dispatch
        self._stack: AsyncExitStack | None = None
        self._opened: Store | None = None
        self._dispatcher: Dispatcher | None = None
        self._now: AnchoredWall = AnchoredWall(self._clock)

    # -- beginning and end ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the database, take up what an earlier process left, and start delivering.

        Raises:
            StoreError: the database cannot be used; one sentence says why.
        """
        if self._stack is not None:
            raise RuntimeError("the service has been entered already")
        async with AsyncExitStack() as stack:
            store = await anyio.to_thread.run_sync(self._open)
            stack.push_async_callback(_close, store)
            self._now = AnchoredWall(self._clock)
            transport = self._given_transport
            if transport is None:
                transport = default_transport(self._policy, resolver=self._resolver)
                stack.push_async_callback(transport.aclose)
            sender = Sender(
                transport,
                attempt_timeout=self.settings.attempt_timeout,
                max_response_bytes=self.settings.max_response_bytes,
                clock=self._clock,
            )
            self._opened = store
            self._dispatcher = Dispatcher(store, sender, self.settings, clock=self._clock, wall=self._now)
            await store.recover_leases(now=self._now())
            if self._dispatches:
                tasks = await stack.enter_async_context(anyio.create_task_group())
                # Left in the opposite order: stop first, then wait for what is in flight, then close.
                stack.callback(self._dispatcher.stop)
                tasks.start_soon(self._dispatcher.run)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        stack, self._stack = self._stack, None
        assert stack is not None  # noqa: S101 - entered, or this would not be called
        try:
            return await stack.__aexit__(kind, exception, trace)
        finally:
            self._opened = None
            self._dispatcher = None

    def _open(self) -> Store:
        database: str | Path | None = self._database
        if self._data_dir is not None:
            try:
                self._data_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage.DatabaseUnusableError(
                    f"the data directory {str(self._data_dir)!r} cannot be made: {error.strerror}"
                ) from error
            database = self._data_dir / _DATABASE_FILE
        return Store.open(database, secret_key=self.settings.secret_key)

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise RuntimeError("the service must be entered first: async with service:")
        return self._opened

    def _wake(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.wake()

    # -- sending ----------------------------------------------------------------------------------------------------

    async def send_webhook_notification(
        self,
        event_type: str,
        data: JsonValue,
        *,
        idempotency_key: str | None = None,
        ordering_key: str | None = None,
        occurred_at: float | None = None,
        deliver_at: float | None = None,
        delay: float = 0.0,
        expires_at: float | None = None,
        owner: str = "",
        channels: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Message:
        """Accept an event for every endpoint that wants it; it is durable when this returns. A checkpoint.

        Cancelled while it waits, it may or may not have been accepted: send again with the same idempotency key.

        Args:
            event_type: such as "order.paid".
            data: whatever JSON can say.
            idempotency_key: the same key with the same type and data is the same message, however often it is sent.
            ordering_key: messages with the same key reach an endpoint one at a time, in the order of acceptance.
            occurred_at: Unix seconds; by default now.
            deliver_at: Unix seconds before which no attempt is made; by default at once.
            delay: the same in seconds from now; not with `deliver_at`.
            expires_at: Unix seconds after which no attempt is made; by default `expire_after` from now.
            owner: only endpoints of the same owner get it.
            channels: only endpoints that take one of these, or all channels, get it.
            metadata: kept with the message, not sent.

        Raises:
            ValueError: an argument that could not be delivered.
            PayloadTooLargeError: the encoded message is larger than `max_payload_bytes`.
            IdempotencyConflictError: the key stands for other data.
            StoreUnavailableError: the database takes nothing just now; nothing was accepted.
        """
        if not _is_number(delay) or delay < 0 or (delay and deliver_at is not None):
            raise ValueError(
                f"delay must be a finite number of seconds of at least 0, without deliver_at, not {delay!r}"
            )
        new, now = self._new_message(
            event_type,
            data,
            idempotency_key=idempotency_key,
            ordering_key=ordering_key,
            occurred_at=occurred_at,
            deliver_at=self._now() + delay if delay else deliver_at,
            expires_at=expires_at,
            owner=owner,
            channels=channels,
            metadata=metadata,
        )
        accepted = await self._store.accept(new, now=now)
        if accepted.deliveries:
            self._wake()
        return accepted.message

    def enqueue(
        self,
        connection: Connection | Session,
        event_type: str,
        data: JsonValue,
        *,
        idempotency_key: str | None = None,
        ordering_key: str | None = None,
        occurred_at: float | None = None,
        deliver_at: float | None = None,
        expires_at: float | None = None,
        owner: str = "",
        channels: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Message:
        """Accept an event in the caller's own transaction on the same database: it exists if and only if that commits.

        Blocks for as long as the statements take; not a checkpoint. Delivery begins when the dispatcher next looks,
        within about a second. Arguments and errors are those of `send_webhook_notification`; a key that is known
        already never aborts the caller's transaction.
        """
        new, now = self._new_message(
            event_type,
            data,
            idempotency_key=idempotency_key,
            ordering_key=ordering_key,
            occurred_at=occurred_at,
            deliver_at=deliver_at,
            expires_at=expires_at,
            owner=owner,
            channels=channels,
            metadata=metadata,
        )
        return storage.enqueue(connection, new, now=now).message

    def _new_message(
        self,
        event_type: str,
        data: JsonValue,
        *,
        idempotency_key: str | None,
        ordering_key: str | None,
        occurred_at: float | None,
        deliver_at: float | None,
        expires_at: float | None,
        owner: str,
        channels: Sequence[str],
        metadata: Mapping[str, str] | None,
        only_to: str | None = None,
    ) -> tuple[NewMessage, float]:
        now = self._now()
        if expires_at is None:
            # What deliver_at may be is checked with the rest; what it may not be is no instant to count from.
            begins_at = max(now, deliver_at) if deliver_at is not None and _is_number(deliver_at) else now
            expires_at = begins_at + self.settings.expire_after
        new = NewMessage.of(
            event_type,
            data,
            occurred_at=now if occurred_at is None else occurred_at,
            idempotency_key=idempotency_key,
            ordering_key=ordering_key,
            deliver_at=deliver_at,
            expires_at=expires_at,
            owner=owner,
            channels=channels,
            metadata=metadata,
            only_to=only_to,
        )
        if len(new.body) > self.settings.max_payload_bytes:
            raise PayloadTooLargeError(
                f"data must make a message of at most {self.settings.max_payload_bytes} bytes, not {len(new.body)}"
            )
        return new, now

    async def send_example(self, endpoint_id: str) -> Message:
        """Send an example event to one endpoint, whatever it subscribes to, to see whether it works. A checkpoint.

        Raises:
            UnknownIdError: there is no such endpoint.
        """
        endpoint = await self._store.get_endpoint(endpoint_id)
        new, now = self._new_message(
            _EXAMPLE_TYPE,
            {"message": "This is what a webhook from us looks like."},
            idempotency_key=None,
            ordering_key=None,
            occurred_at=None,
            deliver_at=None,
            expires_at=None,
            owner=endpoint.owner,
            channels=(),
            metadata=None,
            only_to=endpoint_id,
        )
        accepted = await self._store.accept(new, now=now)
        self._wake()
        return accepted.message

    async def retry_failed_deliveries(self, *, endpoint_id: str | None = None, since: float | None = None) -> int:
        """Begin a new round of attempts for dead deliveries, due now; return how many. A checkpoint.

        Args:
            endpoint_id: only this endpoint's; by default all.
            since: only those that died at or after this Unix time.

        Raises:
            ValueError: `since` is no instant.
        """
        _check_instant("since", since)
        now = self._now()
        count = await self._store.retry_dead(
            now=now, expires_at=now + self.settings.expire_after, endpoint_id=endpoint_id, since=since
        )
        self._wake()
        return count

    async def replay(self, *, message_id: str | None = None, since: float | None = None) -> int:
        """Deliver again what has ended, whichever way: one message, or all accepted since. A checkpoint.

        Returns how many deliveries that are. Exactly one of the two arguments is given.

        Raises:
            ValueError: both or none are given, or `since` is no instant.
            UnknownIdError: there is no such message.
        """
        _check_instant("since", since)
        now = self._now()
        count = await self._store.replay(
            now=now, expires_at=now + self.settings.expire_after, message_id=message_id, since=since
        )
        self._wake()
        return count

    # -- endpoints --------------------------------------------------------------------------------------------------

    async def register_endpoint(
        self,
        url: str,
        *,
        event_types: Sequence[str] = ("*",),
        description: str = "",
        headers: Mapping[str, str] | None = None,
        secret: str | None = None,
        rate_limit: float | None = None,
        ordered: bool = False,
        owner: str = "",
        metadata: Mapping[str, str] | None = None,
        channels: Sequence[str] = (),
    ) -> Endpoint:
        """Register where events go to. A checkpoint.

        Args:
            url: https, or http to what `egress_allow` names when `allow_http` is set; judged here and at every attempt.
            event_types: exact types, "*", or prefixes such as "order.*".
            description: for people.
            headers: sent with every attempt.
            secret: "whsec_…" to sign with; by default a new one, to be read from the endpoint returned.
            rate_limit: attempts per second.
            ordered: one delivery at a time, in the order of acceptance.
            owner: whose it is.
            metadata: kept with it.
            channels: take only messages of these channels, and those of none.

        Raises:
            ValueError: an argument that could not be used later.
        """
        canonical = self._checked_url(url)
        now = self._now()
        endpoint = Endpoint(
            new_id("ep_", now),
            canonical,
            description=description,
            event_types=event_types,
            headers=headers or {},
            secrets=(SigningSecret(new_secret() if secret is None else check_secret(secret)),),
            rate_limit=rate_limit,
            ordered=ordered,
            owner=owner,
            metadata=metadata or {},
            channels=channels,
            created_at=now,
            updated_at=now,
        )
        return await self._store.add_endpoint(endpoint)

    async def update_endpoint(
        self,
        endpoint_id: str,
        *,
        url: str | _Unset = _UNSET,
        event_types: Sequence[str] | _Unset = _UNSET,
        description: str | _Unset = _UNSET,
        headers: Mapping[str, str] | _Unset = _UNSET,
        rate_limit: float | _Unset | None = _UNSET,
        ordered: bool | _Unset = _UNSET,
        paused: bool | _Unset = _UNSET,
        metadata: Mapping[str, str] | _Unset = _UNSET,
        channels: Sequence[str] | _Unset = _UNSET,
    ) -> Endpoint:
        """Change what is given of an endpoint, and return it as it is now. A checkpoint. Later attempts use it.

        Raises:
            ValueError: an argument that could not be used later; nothing has changed.
            UnknownIdError: there is no such endpoint.
        """
        changes: dict[str, Any] = {
            name: value
            for name, value in (
                ("url", url if isinstance(url, _Unset) else self._checked_url(url)),
                ("event_types", event_types),
                ("description", description),
                ("headers", headers),
                ("rate_limit", rate_limit),
                ("ordered", ordered),
                ("paused", paused),
                ("metadata", metadata),
                ("channels", channels),
            )
            if not isinstance(value, _Unset)
        }
        return await self._change(endpoint_id, lambda endpoint: attrs.evolve(endpoint, **changes))

    async def enable_endpoint(self, endpoint_id: str) -> Endpoint:
        """Enable an endpoint: what was held for it is delivered. A checkpoint; UnknownIdError if there is none."""
        enabled = await self._change(
            endpoint_id, lambda endpoint: attrs.evolve(endpoint, enabled=True, disabled_reason=None, blocked_until=0.0)
        )
        if self._dispatcher is not None:
            self._dispatcher.guards.lift_hold(endpoint_id)
            self._wake()
        return enabled

    async def disable_endpoint(self, endpoint_id: str, *, reason: str = "disabled by hand") -> Endpoint:
        """Disable an endpoint: what is pending for it is held until it is enabled, or expires. A checkpoint."""
        return await self._change(
            endpoint_id, lambda endpoint: attrs.evolve(endpoint, enabled=False, disabled_reason=reason)
        )

    async def rotate_secret(self, endpoint_id: str, *, secret: str | None = None) -> str:
        """Give an endpoint a new signing secret and return it; both sign for `secret_overlap_for`. A checkpoint.

        Raises:
            ValueError: `secret` cannot be signed with.
            UnknownIdError: there is no such endpoint.
        """
        fresh = new_secret() if secret is None else check_secret(secret)
        now = self._now()
        overlap_ends_at = now + self.settings.secret_overlap_for

        def rotate(endpoint: Endpoint) -> Endpoint:
            kept = tuple(
                attrs.evolve(old, expires_at=overlap_ends_at) if old.expires_at is None else old
                for old in endpoint.secrets
                if old.value != fresh and (old.expires_at is None or old.expires_at > now)
            )
            return attrs.evolve(endpoint, secrets=(SigningSecret(fresh), *kept))

        await self._change(endpoint_id, rotate)
        return fresh

    async def delete_endpoint(self, endpoint_id: str) -> int:
        """Delete an endpoint, cancel what is pending for it, and return how many deliveries that were. A checkpoint."""
        cancelled = await self._store.delete_endpoint(endpoint_id, now=self._now())
        if self._dispatcher is not None:
            self._dispatcher.guards.forget(endpoint_id)
        return cancelled

    async def get_endpoint(self, endpoint_id: str) -> Endpoint:
        """Return an endpoint; UnknownIdError if there is none. A checkpoint."""
        return await self._store.get_endpoint(endpoint_id)

    async def list_endpoints(
        self, *, owner: str | None = None, limit: int = 100, after: str | None = None
    ) -> list[Endpoint]:
        """Return up to `limit` endpoints in the order of their ids, from behind the id `after`. A checkpoint."""
        return await self._store.list_endpoints(owner=owner, limit=limit, after=after)

    async def _change(self, endpoint_id: str, change: Callable[[Endpoint], Endpoint]) -> Endpoint:
        endpoint = await self._store.update_endpoint(endpoint_id, change, now=self._now())
        self._wake()
        return endpoint

    def _checked_url(self, url: str) -> str:
        if not isinstance(url, str):
            raise ValueError(f"url must be a string, not {url!r:.80}")
        return str(check_url(url, policy=self._policy, allow_http=self.settings.allow_http))

    # -- looking ----------------------------------------------------------------------------------------------------

    async def get_message(self, message_id: str) -> Message:
        """Return a message; UnknownIdError if there is none. A checkpoint."""
        return await self._store.get_message(message_id)

    async def list_messages(
        self, *, owner: str | None = None, limit: int = 100, after: str | None = None
    ) -> list[Message]:
        """Return up to `limit` messages in the order of acceptance, from behind the id `after`. A checkpoint."""
        return await self._store.list_messages(owner=owner, limit=limit, after=after)

    async def list_deliveries(
        self,
        *,
        state: DeliveryState | None = None,
        endpoint_id: str | None = None,
        message_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Delivery]:
        """Return up to `limit` deliveries that fit all filters, in the order of their making. A checkpoint."""
        return await self._store.list_deliveries(
            state=state, endpoint_id=endpoint_id, message_id=message_id, limit=limit, after=after
        )

    async def list_attempts(
        self,
        *,
        message_id: str | None = None,
        delivery_id: str | None = None,
        endpoint_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Attempt]:
        """Return up to `limit` attempts that fit all filters, in the order in which they ended. A checkpoint."""
        return await self._store.list_attempts(
            message_id=message_id, delivery_id=delivery_id, endpoint_id=endpoint_id, limit=limit, after=after
        )

    async def health(self) -> Health:
        """Say whether the database takes writes and the dispatcher runs. A checkpoint."""
        store = "ok"
        try:
            await self._store.check()
        except StoreError as error:
            store = str(error)
        dispatcher = "not in this process"
        if self._dispatches:
            healthy = self._dispatcher is not None and self._dispatcher.healthy
            dispatcher = "ok" if healthy else "outcomes cannot be recorded, or it is stopping"
        return Health(
            ok=store == "ok" and dispatcher in {"ok", "not in this process"}, store=store, dispatcher=dispatcher
        )

    async def wait_until_idle(self) -> None:
        """Wait until no delivery is pending or in flight, retries included. A checkpoint.

        What is held for disabled and paused endpoints is not waited for; what is scheduled for later is. A cancellation
        only ends the waiting.

        Raises:
            RuntimeError: this service does not dispatch, or ends before.
        """
        dispatcher = self._dispatcher
        if dispatcher is None or not self._dispatches:
            raise RuntimeError("wait_until_idle needs a service that is entered and dispatches")
        await dispatcher.wait_until_idle()

    async def prune(self, *, before: float | None = None) -> int:
        """Delete messages accepted before this Unix time (by default `retention_for` ago), but none on its way.

        A service that dispatches does it by itself for what is older than `retention_for`; this is for more than that.
        Returns how many were deleted. A checkpoint; cancelled, it keeps what it has deleted so far deleted.
        """
        _check_instant("before", before)
        horizon = self._now() - self.settings.retention_for if before is None else before
        total = 0
        while count := await self._store.prune(before=horizon):
            total += count
        return total

    async def store_statistics(self) -> StoreStatistics:
        """Return the counters of the database, as of the last commit of any process. A checkpoint."""
        return await self._store.statistics()

    def statistics(self) -> DispatcherStatistics:
        """Return what this process has done, as a frozen snapshot. Any thread; not a checkpoint."""
        if self._dispatcher is None:
            raise RuntimeError("the service must be entered first: async with service:")
        return self._dispatcher.statistics()


async def _close(store: Store) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(store.close)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_instant(name: str, value: float | None) -> None:
    if value is not None and not _is_number(value):
        raise ValueError(f"{name} must be Unix time in seconds, not {value!r:.80}")


def _scheme(database: object) -> str:
    """Return what may be shown of a database URL: not its password."""
    return str(database).partition("://")[0] + "://…" if isinstance(database, str) else repr(database)
