"""RedisStore: the server that guards share their state through, and what this process knows of its health.

Rules of this module: a guard asks, and is answered or told that there is no answer, within `timeout`. A server that
does not answer is left alone for a while (a circuit breaker sees to that): guards hear so at once, nobody waits for it,
and a single request finds out whether it is back. Each process draws its own delays, so that they do not come back as
one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from resilience import CircuitBreaker, ExponentialBackoff, Permit, SystemClock
from resilience.clock import nanoseconds
from resilience.machines.checks import positive, string
from resilience.parking import async_waiter, running_loop, thread_waiter
from resilience.redis.link import Link, Reply, Request, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from resilience.clock import Clock
    from resilience.parking import Waiter

__all__ = ["RedisStore"]

#: Seconds for which a server that did not answer is left alone at first, and at most.
RECOVERY_TIMEOUT = 0.1
RECOVERY_CAP = 5.0


class RedisStore:
    """A Redis or Valkey server, version 6 or later, for any number of guards.

    Make one for a process and hand it to all guards. It connects when it is first used, with one connection and one
    thread, whatever tasks, threads and event loops use it; it may be made before a fork.

    Args:
        url: `redis://user:password@host:port/db`, `rediss://` for TLS, or `unix://path`, with redis-py's options in the
            query. One server, or a name that leads to the primary; not a cluster.
        timeout: seconds after which a guard goes on without an answer.
        prefix: what the keys of all guards begin with.
        clock: where the time comes from by which the timeout and the server's recovery are measured. Whatever guards
            decide goes by the server's own clock.

    Raises:
        ValueError: the URL is not one, or another argument is out of range.

    """

    __slots__ = ("__weakref__", "_breaker", "_link", "_timeout_ns", "clock", "prefix", "timeout")

    def __init__(
        self, url: str, *, timeout: float = 0.25, prefix: str = "resilience", clock: Clock | None = None
    ) -> None:
        string("url", url)
        self.timeout: float = positive("timeout", timeout)
        self.prefix: str = string("prefix", prefix)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._timeout_ns = nanoseconds(timeout)
        self._link = Link(url, timeout)
        self._breaker = CircuitBreaker(
            failure_threshold=1,
            recovery_timeout=RECOVERY_TIMEOUT,
            name=f"redis {self._link.address}",
            is_failure=lambda error: isinstance(error, StoreError) and error.ailing,
            # An answer that is on its way has its whole time.
            probe_timeout=2 * timeout,
            recovery_backoff=ExponentialBackoff(base=2 * RECOVERY_TIMEOUT, cap=RECOVERY_CAP, jitter="equal"),
            clock=self.clock,
        )

    @property
    def breaker(self) -> CircuitBreaker:
        """What leaves a server alone that does not answer; its state and statistics tell how the server is."""
        return self._breaker

    async def ask(self, request: Request) -> Reply:
        """Send a request and return the answer. A checkpoint; a cancellation has the request undone, and goes on.

        Raises:
            StoreError: there is no answer, or an error in its stead.

        """
        permit = self._admit(request)
        try:
            waiter = async_waiter()
            deadline_ns = self._submit(request, waiter)
            while not request.answered:
                await waiter.wait(self.clock, self._left(deadline_ns))
            reply = _answer(request)
        except BaseException as error:
            self._link.withdraw(request)
            self._breaker.settle_exception(permit, error)
            raise
        request.accept()
        permit.success()
        return reply

    def ask_blocking(self, request: Request) -> Reply:
        """Do the same in plain code, blocking the thread.

        Raises:
            RuntimeError: an event loop runs in this thread; it would stand still for as long.

        """
        if running_loop():
            msg = "a shared guard asks its server: where an event loop runs, await it or use async with"
            raise RuntimeError(msg)
        permit = self._admit(request)
        try:
            waiter = thread_waiter()
            deadline_ns = self._submit(request, waiter)
            while not request.answered:
                waiter.wait_blocking(self.clock, self._left(deadline_ns))
            reply = _answer(request)
        except BaseException as error:
            self._link.withdraw(request)
            self._breaker.settle_exception(permit, error)
            raise
        request.accept()
        permit.success()
        return reply

    def _admit(self, request: Request) -> Permit:
        permit = self._breaker.admit()
        if isinstance(permit, Permit):
            return permit
        request.undo()
        raise StoreError(f"{self._link.address} did not answer and is left alone", ailing=True, asked=False)

    def _submit(self, request: Request, waiter: Waiter) -> int:
        """Have the request sent; return the instant at which its time is over."""
        request.wake = waiter.wake
        self._link.submit(request)
        return self.clock.monotonic_ns() + self._timeout_ns

    def _left(self, deadline_ns: int) -> int:
        left_ns = deadline_ns - self.clock.monotonic_ns()
        if left_ns <= 0:
            raise StoreError(f"no answer within {self.timeout:g} s", ailing=True)
        return left_ns

    def tell(
        self, request: Request, heard: Callable[[Reply], object] | None, lost: Callable[[StoreError], object]
    ) -> bool:
        """Send a request whose answer nobody waits for; False if the server is being left alone. Any thread.

        `heard` is called with the answer, `lost` if there is none, both in the thread of the link.
        """
        permit = self._breaker.admit()
        if not isinstance(permit, Permit):
            return False

        def told() -> None:
            if request.error is not None:
                self._breaker.settle_exception(permit, request.error)
                lost(request.error)
                return
            if heard is not None:
                heard(_answer(request))
            permit.success()

        request.wake = told
        self._link.submit(request)
        return True

    def remind(self, delay_ns: int, callback: Callable[[bool], object]) -> None:
        """Have `callback` called after that time, or with True when the store is closed, in the link's thread."""
        self._link.remind(delay_ns, callback)

    def close(self) -> None:
        """Send what is still to be told and disconnect, waiting for that. Using it again connects again."""
        self._link.close()

    async def aclose(self) -> None:
        """Do the same without blocking the event loop. A checkpoint."""
        await anyio.to_thread.run_sync(self._link.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<RedisStore {self._link.address}>"


def _answer(request: Request) -> Reply:
    if request.error is not None:
        raise request.error
    assert request.reply is not None  # noqa: S101 - answered
    return request.reply
