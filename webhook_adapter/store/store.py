"""The one Store: every operation on the database, by name.

Rules of this module: it says what an operation promises and hands it to the writer or to a reader; how it is done is
in the module of its subject (`acceptance`, `dispatching`, `settling`, `endpoints`, `upkeep`, `listing`).

What is true of all of them: an awaited operation is a checkpoint. Cancelled while it waits, it may or may not happen;
whichever it is, it happens whole. They raise StoreUnavailableError if the database is locked, full or out of reach
(nothing has happened then, and it is worth trying again), and StoreClosedError after `close`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from webhook_adapter.store import acceptance, dispatching, endpoints, listing, settling, upkeep
from webhook_adapter.store.database import open_database
from webhook_adapter.store.readers import Readers
from webhook_adapter.store.sealing import Sealer
from webhook_adapter.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from webhook_adapter.model import Attempt, Delivery, DeliveryState, Endpoint, Message
    from webhook_adapter.store.settling import Settlement
    from webhook_adapter.store.values import Accepted, Claim, Claimed, NewMessage, Release, StoreStatistics

__all__ = ["Store"]

_NO_CAPACITIES: Mapping[str, int] = MappingProxyType({})


class Store:
    """The database, its writer thread and its readers. `Store.open` makes one; `close` ends it.

    May be shared between tasks, threads and event loops.
    """

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    @classmethod
    def open(
        cls,
        database: str | Path | None = None,
        *,
        secret_key: str | None = None,
        busy_timeout: float = 5.0,
        max_batch: int = 1000,
        readers: int = 2,
    ) -> Store:
        """Open the database, making or migrating it, and start its threads. Blocks: call it in a thread.

        Args:
            database: a file, a "sqlite:///" URL, or None for one in memory that ends with this store.
            secret_key: seals signing secrets at rest; None stores them as they are.
            busy_timeout: seconds to wait for another process that is writing, before giving up.
            max_batch: how many operations may share one commit; more only makes the first of them wait longer.
            readers: how many reads may run at a time.

        Raises:
            DatabaseUnusableError: it cannot be written, is damaged, is newer than this code, or its secrets do not
                open with this `secret_key`.
            ValueError: an argument that has no meaning.
        """
        if isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1:
            raise ValueError(f"max_batch must be a whole number of at least 1, not {max_batch!r}")
        if isinstance(readers, bool) or not isinstance(readers, int) or readers < 1:
            raise ValueError(f"readers must be a whole number of at least 1, not {readers!r}")
        opened = open_database(database, sealer=Sealer(secret_key), busy_timeout=busy_timeout)
        writer = Writer(opened, max_batch=max_batch)
        return cls(writer, Readers(opened, writer, count=readers))

    def close(self) -> None:
        """Let what has been submitted finish, and end the threads. Blocks; safe to call again."""
        self._readers.close()
        self._writer.close()

    # Endpoints

    async def add_endpoint(self, endpoint: Endpoint) -> Endpoint:
        """Register an endpoint; ValueError if its id is taken."""
        return await self._writer.call(endpoints.add, endpoint)

    async def update_endpoint(
        self, endpoint_id: str, change: Callable[[Endpoint], Endpoint], *, now: float
    ) -> Endpoint:
        """Replace an endpoint by `change(endpoint)`, in one transaction, and return the new one.

        Enabling, disabling, pausing, resuming and rotating secrets are all changes like any other. What waits for a
        disabled or paused endpoint is held.

        Args:
            endpoint_id: which.
            change: a plain quick function, called in the writer thread; it may be called again if the transaction
                has to be repeated, and may not change `id` or `created_at`. What it raises is raised here.
            now: becomes `updated_at`.

        Raises:
            UnknownIdError: there is no such endpoint.
        """
        return await self._writer.call(endpoints.update, endpoints.Update(endpoint_id, change, now))

    async def delete_endpoint(self, endpoint_id: str, *, now: float) -> int:
        """Delete an endpoint with its secrets, cancel what is pending for it, and return how many that were.

        An attempt in flight ends as it ends; its outcome counts, but a retry does not follow.

        Raises:
            UnknownIdError: there is no such endpoint.
        """
        return await self._writer.call(endpoints.delete, endpoints.Deletion(endpoint_id, now))

    async def block_endpoint(self, endpoint_id: str, *, until: float, now: float) -> None:
        """Claim nothing for an endpoint before `until`; one in the past lifts it. Unknown ids are let be."""
        await self._writer.call(endpoints.block, endpoints.Block(endpoint_id, until, now))

    async def get_endpoint(self, endpoint_id: str) -> Endpoint:
        """Return an endpoint; UnknownIdError if there is none, or none any more."""
        return await self._readers.call(lambda unit: endpoints.get(unit, endpoint_id))

    async def list_endpoints(
        self, *, owner: str | None = None, limit: int = 100, after: str | None = None
    ) -> list[Endpoint]:
        """Return up to `limit` endpoints in the order of their ids, from behind `after`."""
        page = listing.Page(limit, after)
        return await self._readers.call(lambda unit: endpoints.listed(unit, owner=owner, page=page))

    # Accepting

    async def accept(self, new: NewMessage, *, now: float) -> Accepted:
        """Take in a message with a delivery for every endpoint that wants it; durable when this returns.

        Raises:
            IdempotencyConflictError: its key stands for another body.
            UnknownIdError: `only_to` is no endpoint.
        """
        return await self._writer.call(acceptance.accept, acceptance.Offer(new, now))

    def accept_blocking(self, new: NewMessage, *, now: float) -> Accepted:
        """Do what `accept` does, in a plain thread."""
        return self._writer.call_blocking(acceptance.accept, acceptance.Offer(new, now))

    # Dispatching

    async def claim(
        self,
        *,
        now: float,
        limit: int,
        lease_for: float,
        endpoint_limit: int,
        capacities: Mapping[str, int] = _NO_CAPACITIES,
        ahead: Mapping[str, int] = _NO_CAPACITIES,
    ) -> Claimed:
        """Lease up to `limit` due deliveries, fairly between endpoints, and return them with what attempts need.

        Not claimed is what is not due, or is for an endpoint that is blocked, disabled, paused or has no capacity;
        nor anything of an ordered endpoint or key behind what is still on its way. What has expired ends dead in
        passing. Endpoints that were served longest ago come first.

        Args:
            now: Unix seconds.
            limit: how many at most.
            lease_for: how long they are this caller's, in seconds.
            endpoint_limit: how many at most for one endpoint.
            capacities: other limits for some endpoints (those with attempts in flight, say); 0 leaves one out.
            ahead: how many more for endpoints that are left out so: beyond `limit`, and behind all others.
        """
        order = dispatching.Order(now, limit, lease_for, endpoint_limit, dict(capacities), dict(ahead))
        return await self._writer.call(dispatching.claim, order)

    async def extend(self, claim: Claim, *, until: float) -> bool:
        """Let a lease end at `until` instead; False if it has been lost."""
        return await self._writer.call(dispatching.extend, dispatching.Extension(claim, until))

    async def release(self, releases: Collection[Release], *, now: float) -> int:
        """Give leases back without an attempt having been made; return how many still were this caller's."""
        return await self._writer.call(dispatching.release, dispatching.Releases(tuple(releases), now))

    async def recover_leases(self, *, now: float) -> int:
        """Make due again what was leased until `now` or before, and return how many that were."""
        return await self._writer.call(dispatching.recover, now)

    async def next_due_at(self, *, exclude: Collection[str] = ()) -> float | None:
        """Return the instant at which the next claim can find something, or None if nothing is pending.

        It may be in the past (there is something now). Endpoints in `exclude` are left out.
        """
        excluded = tuple(exclude)
        return await self._readers.call(lambda unit: dispatching.next_due_at(unit, excluded))

    async def record(self, settlements: Sequence[Settlement]) -> list[Attempt | None]:
        """Record how attempts ended and what becomes of their deliveries, in one transaction.

        A judgement that disables the endpoint ends what is pending for it dead, too.

        Returns:
            For each the attempt, or None if its lease had been lost: then nothing of it has been recorded, and whoever
            has the delivery now decides.
        """
        return await self._writer.call(settling.record, settlements)

    # Upkeep

    async def retry_dead(
        self, *, now: float, expires_at: float | None, endpoint_id: str | None = None, since: float | None = None
    ) -> int:
        """Begin a new round for dead deliveries, due now and outside the order; return how many.

        Args:
            now: Unix seconds.
            expires_at: their new expiry; the old one may have killed them.
            endpoint_id: only this endpoint's; None is all. Deleted endpoints' stay dead.
            since: only those that died at or after this instant.
        """
        return await self._writer.call(upkeep.retry_dead, upkeep.Retry(now, expires_at, endpoint_id, since))

    async def replay(
        self, *, now: float, expires_at: float | None, message_id: str | None = None, since: float | None = None
    ) -> int:
        """Deliver again what has ended, whichever way, in a new round and outside the order; return how many.

        Exactly one of `message_id` and `since` (messages accepted at or after it) is given.

        Raises:
            UnknownIdError: there is no such message.
            ValueError: both or none are given.
        """
        if (message_id is None) == (since is None):
            raise ValueError("exactly one of message_id and since must be given")
        return await self._writer.call(upkeep.replay, upkeep.Replay(now, expires_at, message_id, since))

    async def cancel(self, delivery_id: str, *, now: float, reason: str = "cancelled") -> bool:
        """End a delivery that is pending; False if it is in flight or has ended.

        Raises:
            UnknownIdError: there is no such delivery.
        """
        return await self._writer.call(upkeep.cancel, upkeep.Cancellation(delivery_id, now, reason))

    async def expire(self, *, now: float, limit: int = 1000) -> int:
        """End pending deliveries whose time is over as dead, "expired"; return how many. `claim` does it in passing."""
        return await self._writer.call(upkeep.expire, upkeep.Expiry(now, limit))

    async def prune(self, *, before: float, limit: int = 1000) -> int:
        """Delete up to `limit` messages accepted before this instant, with their deliveries and attempts.

        Messages with a delivery on its way are kept. Returns how many were deleted; call again until it is 0.
        """
        return await self._writer.call(upkeep.prune, upkeep.Pruning(before, limit))

    # Reading

    async def get_message(self, message_id: str) -> Message:
        """Return a message; UnknownIdError if there is none, or none any more."""
        return await self._readers.call(lambda unit: listing.get_message(unit, message_id))

    async def get_delivery(self, delivery_id: str) -> Delivery:
        """Return a delivery; UnknownIdError if there is none, or none any more."""
        return await self._readers.call(lambda unit: listing.get_delivery(unit, delivery_id))

    async def list_messages(
        self, *, owner: str | None = None, limit: int = 100, after: str | None = None
    ) -> list[Message]:
        """Return up to `limit` messages in the order of acceptance, from behind `after`."""
        page = listing.Page(limit, after)
        return await self._readers.call(lambda unit: listing.messages(unit, owner=owner, page=page))

    async def list_deliveries(
        self,
        *,
        state: DeliveryState | None = None,
        endpoint_id: str | None = None,
        message_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Delivery]:
        """Return up to `limit` deliveries in the order of their making, from behind `after`; all filters must fit."""
        wanted = listing.DeliveryFilter(state, endpoint_id, message_id)
        page = listing.Page(limit, after)
        return await self._readers.call(lambda unit: listing.deliveries(unit, wanted, page=page))

    async def list_attempts(
        self,
        *,
        message_id: str | None = None,
        delivery_id: str | None = None,
        endpoint_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Attempt]:
        """Return up to `limit` attempts in the order of their recording, from behind `after`; all filters must fit."""
        wanted = listing.AttemptFilter(message_id, delivery_id, endpoint_id)
        page = listing.Page(limit, after)
        return await self._readers.call(lambda unit: listing.attempts(unit, wanted, page=page))

    async def statistics(self) -> StoreStatistics:
        """Return the counters, as of the last commit of any process; scans nothing."""
        return await self._readers.call(listing.statistics)

    async def check(self) -> None:
        """Return if the database can be written: a transaction that changes one row. For health endpoints."""
        await self._writer.call(upkeep.check, None)
