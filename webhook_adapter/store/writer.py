"""The writer: one thread through which all of the service's writes go, and which commits them in groups.

Theory of operation. Operations queue up while a commit is being made durable; the next commit takes all of them, so
that an fsync is shared by as many as came in its time, and nobody waits for a timer. Within a batch, operations of one
kind are done together by one function, which may use one statement for all of them. Each gets its own answer, and
only after the commit.

If something goes wrong, then in one of three ways:

* The function answers an operation with an exception as its value: that one is refused, its neighbours go on.
* The database is locked, full or gone: the transaction is rolled back, and all operations of the batch are told so.
  The thread lives on.
* Anything else is raised: the transaction is rolled back and its operations are done again one by one, each in a
  transaction of its own, so that the one at fault fails alone.

Rules of this module: it knows transactions and tickets, and nothing of what is written. Whatever the functions keep in
memory they keep in the `Unit`'s caches, which are dropped after every rollback.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import attrs

from webhook_adapter.store.errors import StoreClosedError, StoreError, StoreUnavailableError
from webhook_adapter.store.tickets import Ticket, blocking_ticket, hand_back, ticket
from webhook_adapter.store.unit import Caches, Unit

if TYPE_CHECKING:
    from webhook_adapter.store.database import Database

__all__ = ["Kind", "Writer", "one_by_one"]

P = TypeVar("P")
R = TypeVar("R")

Kind: TypeAlias = Callable[[Unit, Sequence[P]], Sequence[R | Exception]]
"""Does many operations in one transaction; answers each, in order, with its result or with why it is refused."""


def one_by_one(function: Callable[[Unit, P], R]) -> Kind[P, R]:
    """Return a kind whose operations are done one after another, for those that are rare."""

    def kind(unit: Unit, payloads: Sequence[P]) -> Sequence[R | Exception]:
        return [function(unit, payload) for payload in payloads]

    return kind


@attrs.frozen(eq=False)
class _Operation(Generic[P, R]):
    kind: Kind[P, R]
    payload: P
    ticket: Ticket[R]


class Writer:
    """The writer thread of one database. `close` ends it after what has been submitted."""

    def __init__(self, database: Database, *, max_batch: int = 1000) -> None:
        self._database = database
        self._max_batch = max_batch
        self._caches = Caches(sealer=database.sealer)
        # None is the end of it.
        self._queue: queue.SimpleQueue[_Operation[object, object] | None] = queue.SimpleQueue()
        # Held to put something in, so that nothing is put in behind the end.
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="webhook-store-writer", daemon=True)
        self._thread.start()

    async def call(self, kind: Kind[P, R], payload: P) -> R:
        """Have one operation done, and return its result after the commit. A checkpoint.

        Cancelled, it may or may not happen; what it would have returned is dropped.
        """
        waiting: Ticket[R] = ticket()
        self._submit(_Operation(kind, payload, waiting))
        return await waiting.answer()

    def call_blocking(self, kind: Kind[P, R], payload: P) -> R:
        """Have one operation done from a plain thread, and return its result after the commit."""
        waiting = blocking_ticket()  # type: ignore[var-annotated]
        self._submit(_Operation(kind, payload, waiting))
        result: R = waiting.wait()
        return result

    def close(self) -> None:
        """Do what has been submitted, and end the thread. Blocks; safe to call again."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()
        self._database.close()

    def _submit(self, operation: _Operation[P, R]) -> None:
        with self._closing:
            if self._closed:
                raise StoreClosedError("the store is closed")
            self._queue.put(operation)  # type: ignore[arg-type]  # only this operation's own kind sees its payload

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._do(batch)
        finally:
            self._abandon()

    def _next_batch(self) -> list[_Operation[object, object]]:
        """Return what has queued up, waiting for the first; nothing at the end."""
        first = self._queue.get()
        if first is None:
            return []
        batch = [first]
        while len(batch) < self._max_batch:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._queue.put(None)
                break
            batch.append(following)
        return batch

    def _do(self, batch: list[_Operation[object, object]]) -> None:
        try:
            self._attempt(batch)
        except StoreError as exc:
            self._refuse(batch, exc)
        except Exception as exc:  # noqa: BLE001 - the thread must live on, and the caller be told
            if len(batch) == 1:
                batch[0].ticket.fail(exc)
            else:
                for operation in batch:
                    self._do([operation])
                return
        except BaseException:
            self._refuse(batch, StoreClosedError("the writer has died"))
            hand_back([operation.ticket for operation in batch])
            raise
        hand_back([operation.ticket for operation in batch])

    def _attempt(self, batch: list[_Operation[object, object]]) -> None:
        """Do the batch in one transaction; raise, with nothing done, if it cannot be committed whole."""
        kinds: dict[Kind[object, object], list[_Operation[object, object]]] = {}
        for operation in batch:
            kinds.setdefault(operation.kind, []).append(operation)
        answers: list[tuple[Ticket[object], object]] = []
        try:
            with self._database.writing(self._caches) as unit:
                for kind, operations in kinds.items():
                    results = kind(unit, [operation.payload for operation in operations])
                    for operation, result in zip(operations, results, strict=True):
                        answers.append((operation.ticket, result))
        except BaseException:
            self._caches.forget()
            raise
        for waiting, result in answers:
            if isinstance(result, Exception):
                waiting.fail(result)
            else:
                waiting.succeed(result)

    @staticmethod
    def _refuse(batch: list[_Operation[object, object]], error: StoreError) -> None:
        """Tell every operation the error, each with an exception of its own: a traceback belongs to one task."""
        for operation in batch:
            if isinstance(error, StoreUnavailableError):
                fresh: StoreError = StoreUnavailableError(str(error), retry_after=error.retry_after)
            else:
                fresh = type(error)(str(error))
            fresh.__cause__ = error.__cause__
            operation.ticket.fail(fresh)

    def _abandon(self) -> None:
        """Refuse what is still queued when the thread ends; after a regular close that is nothing."""
        with self._closing:
            self._closed = True
        left: list[_Operation[object, object]] = []
        while True:
            try:
                operation = self._queue.get_nowait()
            except queue.Empty:
                break
            if operation is not None:
                left.append(operation)
        self._refuse(left, StoreClosedError("the store is closed"))
        hand_back([operation.ticket for operation in left])
