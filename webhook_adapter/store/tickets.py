"""Tickets: how a task or a thread waits for an answer from a thread of the store.

Rules of this module:

* A ticket belongs to the task or thread that made it, and is answered once, from anywhere.
* `hand_back` wakes many waiters with one call into each event loop, so that a batch of a thousand costs an event loop
  one wake-up. A loop that has closed, and a waiter that was cancelled, have lost interest: their answers are dropped.
* A cancelled wait raises what the library raises, at once; what was asked for happens or not, whole, without it.

It knows nothing of databases.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    import trio

__all__ = ["Ticket", "blocking_ticket", "hand_back", "ticket"]

R = TypeVar("R")


class Ticket(Generic[R]):
    """A wait for one answer: a result or an error. `place` is the event loop or thread that it is waited for in."""

    __slots__ = ("_error", "_result", "place")

    def __init__(self, place: object) -> None:
        self.place = place
        self._error: BaseException | None = None
        self._result: list[R] = []

    def succeed(self, result: R) -> None:
        """Lay down the result; `hand_back` delivers it."""
        self._result.append(result)

    def fail(self, error: BaseException) -> None:
        """Lay down an error; `hand_back` delivers it."""
        self._error = error

    def unwrap(self) -> R:
        """Return the result or raise the error that was laid down."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The frame is part of the traceback, and would hold the error that holds the traceback.
                self._error = None
        return self._result[0]

    async def answer(self) -> R:
        """Wait for the answer. A checkpoint; cancelled, it leaves the answer to nobody."""
        raise NotImplementedError

    def wake(self) -> None:
        """Wake the waiter, in its own place."""
        raise NotImplementedError

    def hand_back(self, tickets: list[Ticket[R]]) -> None:
        """Wake all `tickets`, whose place is this one's."""
        raise NotImplementedError


class BlockingTicket(Ticket[R]):
    """A ticket of a plain thread."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        super().__init__(object())
        self._event = threading.Event()

    def wait(self) -> R:
        """Block until the answer is there."""
        self._event.wait()
        return self.unwrap()

    def wake(self) -> None:
        """Wake the thread."""
        self._event.set()

    def hand_back(self, tickets: list[Ticket[R]]) -> None:
        """Wake the threads."""
        for waiting in tickets:
            waiting.wake()


class _AsyncioTicket(Ticket[R]):
    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()

    async def answer(self) -> R:
        await self._future
        return self.unwrap()

    def wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def hand_back(self, tickets: list[Ticket[R]]) -> None:
        try:
            self._loop.call_soon_threadsafe(_wake_all, tickets)
        except RuntimeError:
            return  # closed: nobody waits there any more


class _TrioTicket(Ticket[R]):
    __slots__ = ("_event", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken, event: trio.Event) -> None:
        super().__init__(token)
        self._token = token
        self._event = event

    async def answer(self) -> R:
        await self._event.wait()
        return self.unwrap()

    def wake(self) -> None:
        self._event.set()

    def hand_back(self, tickets: list[Ticket[R]]) -> None:
        import trio

        try:
            self._token.run_sync_soon(_wake_all, tickets)
        except trio.RunFinishedError:
            return  # over: nobody waits there any more


def _wake_all(tickets: list[Ticket[R]]) -> None:
    for waiting in tickets:
        waiting.wake()


def ticket() -> Ticket[R]:
    """Return a ticket for the calling task; RuntimeError where no event loop runs."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        # In trio's guest mode an asyncio loop is running too, but no task of it.
        if task is not None:
            return _AsyncioTicket(task.get_loop())
    trio = sys.modules.get("trio")
    if trio is None:
        raise RuntimeError("the store is awaited within asyncio or trio")
    return _TrioTicket(trio.lowlevel.current_trio_token(), trio.Event())


def blocking_ticket() -> BlockingTicket[R]:
    """Return a ticket for the calling thread."""
    return BlockingTicket()


def hand_back(tickets: Iterable[Ticket[R]]) -> None:
    """Wake every ticket's waiter, each event loop once."""
    places: dict[int, list[Ticket[R]]] = {}
    for answered in tickets:
        places.setdefault(id(answered.place), []).append(answered)
    for here in places.values():
        here[0].hand_back(here)
