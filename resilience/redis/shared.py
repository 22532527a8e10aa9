"""What guards that share their state through a server have in common: what they know of it, and do without it.

Rules of this module:

* A decision is one round trip, and the server's; nothing that it keeps is decided twice.
* Without an answer a guard does what `on_store_error` says, and nothing else: "local" asks a guard of this process,
  made of the same terms; "admit" lets everything through; "reject" refuses everything.
* Plain properties answer from what the server last said, and never ask.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeAlias, TypeVar

import attrs

from resilience import EVERYTHING, Everything, Guard, NotUntil, Permit, Statistics
from resilience.clock import nanoseconds
from resilience.events import SUBSCRIBERS, Unshared, calls_for
from resilience.machines.checks import instance, string
from resilience.redis.link import Request, StoreError
from resilience.redis.store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import NeverFits, Verdict
    from resilience.clock import Clock
    from resilience.redis.link import Reply, Script

__all__ = ["OnStoreError", "SharedGuard", "SharedStatistics"]

OnStoreError: TypeAlias = Literal["local", "admit", "reject"]
"""What a shared guard does without its server."""

L = TypeVar("L", bound=Guard)


@attrs.frozen(kw_only=True)
class SharedStatistics(Statistics):
    """A snapshot of what a shared guard decided in this process.

    `unshared` is how many of these decisions were made without the server; `lost` is how much of what was to be told to
    the server, without anybody waiting for it, was not.
    """

    unshared: int = 0
    lost: int = 0


class SharedGuard(Guard, Generic[L]):
    """A guard whose state is kept on a server.

    A subclass makes the guard that takes over, and says what it asks (`script`, `_request`) and how to read the answer.
    """

    __slots__ = ("_keys", "_local", "_lost", "_unshared", "clock", "on_store_error", "store")

    #: It has to ask, so nothing is admitted at once.
    waits = True
    script: ClassVar[Script]

    def __init__(self, store: RedisStore, name: str, on_store_error: OnStoreError, kind: str, local: L) -> None:
        instance("store", store, RedisStore)
        if not string("name", name):
            msg = f"name must be what the guards that share their state have in common, not {name!r}"
            raise ValueError(msg)
        if on_store_error not in ("local", "admit", "reject"):
            msg = f"on_store_error must be 'local', 'admit' or 'reject', not {on_store_error!r}"
            raise ValueError(msg)
        super().__init__(name)
        self.store: RedisStore = store
        self.clock: Clock = store.clock
        self.on_store_error: OnStoreError = on_store_error
        self._keys: tuple[str, ...] = (f"{store.prefix}:{kind}:{name}",)
        self._local = local
        # Decisions without the server that are not the local guard's; and what the server was to be told, and was not.
        self._unshared = self._lost = 0

    # -- what a subclass says -----------------------------------------------------------------------------------------

    @abstractmethod
    def _request(self, cost: float) -> Request:
        """Return what asks for an admission."""

    @abstractmethod
    def _read(self, request: Request, reply: Reply) -> Permit:
        """Return what was admitted, or raise the refusal."""

    @abstractmethod
    def _admit_locally(self, request: Request) -> Permit:
        """Ask the guard that takes over; return what it admits, or raise its refusal."""

    # -- as a layer ---------------------------------------------------------------------------------------------------

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002 - nothing is known here
        """Return that it has to be asked: by `admit_waiting`, or by `admit_blocking`."""
        return NotUntil(None)

    async def admit_waiting(self, cost: float = 1) -> Permit:
        """Admit, or raise the refusal. A checkpoint: one round trip, of at most the store's `timeout`.

        A cancellation meanwhile goes on, and what was admitted is taken back.
        """
        return await self._ask(self._request(cost))

    async def _ask(self, request: Request) -> Permit:
        try:
            reply = await self.store.ask(request)
        except StoreError as error:
            return self._admit_alone(error, request)
        return self._read(request, reply)

    def admit_blocking(self, cost: float = 1) -> Permit:
        """Do the same in plain code, blocking the thread; RuntimeError where an event loop runs in it."""
        request = self._request(cost)
        try:
            reply = self.store.ask_blocking(request)
        except StoreError as error:
            return self._admit_alone(error, request)
        return self._read(request, reply)

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Hear how an admitted call ended."""
        if permit.guard is self._local:
            self._local.settle(permit, verdict)
        else:
            permit.use_up()

    # -- without the server -------------------------------------------------------------------------------------------

    def _admit_alone(self, error: StoreError, request: Request) -> Permit:
        """Do what `on_store_error` says."""
        self._announce_unshared(error)
        if self.on_store_error == "local":
            return self._admit_locally(request)
        with self._section:
            self._unshared += 1
            self._admitted += self.on_store_error == "admit"
        if self.on_store_error == "admit":
            return Permit(self)
        raise self._refusal_in(nanoseconds(self.store.breaker.retry_after()))

    def _refusal_in(self, delay_ns: int | None) -> Exception:
        """Count a refusal, and return what says in what time it is worth asking again, if that is known."""
        return self.refuse(NotUntil(None if delay_ns is None else self.clock.monotonic_ns() + delay_ns))

    def _tell(self, keys: tuple[str, ...], *args: str | int, heard: Callable[[Reply], object] | None = None) -> None:
        """Tell the server something without waiting for it; `heard` is called with its answer. Any thread."""
        if not self.store.tell(Request(self.script, keys, args), heard, self._lose):
            self._lost += 1

    def _lose(self, error: StoreError) -> None:
        self._lost += 1
        self._announce_unshared(error)

    def _announce_unshared(self, error: StoreError) -> None:
        if error.asked and SUBSCRIBERS.listeners:
            event = Unshared(guard=self.label, on_store_error=self.on_store_error, error=str(error))
            with self._section:
                self._events.put(*calls_for(event))

    def remains(self) -> Everything | None:
        """Return None if all that calls have left behind is on the server, so that another guard would do as well."""
        # What is queued for listeners waits for the next call: this guard's own lock is held.
        with self._local._lock:  # noqa: SLF001 - its guard
            left_here = self._local.remains() is not None
        return EVERYTHING if left_here or self._holds() else None

    def _holds(self) -> bool:
        """Tell whether this process keeps something that a new guard would not have. The lock is held."""
        return False

    def statistics(self) -> SharedStatistics:
        """Return a frozen snapshot of what was decided in this process. Not a checkpoint; any thread."""
        local = self._local.statistics()
        return SharedStatistics(
            ignored=local.ignored,
            admitted=self._admitted + local.admitted,
            rejected=self._rejected + local.rejected,
            contended=self._contended + local.contended,
            waiting=local.waiting,
            unshared=self._unshared + local.admitted + local.rejected,
            lost=self._lost,
        )
