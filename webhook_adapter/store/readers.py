"""Readers: threads with a connection each, for what only looks.

Rules of this module: a read sees the last commit, in one consistent snapshot, and never waits for the writer. A
database in memory has one connection only: there, reads are operations of the writer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from webhook_adapter.store.errors import StoreClosedError
from webhook_adapter.store.tickets import Ticket, hand_back, ticket

if TYPE_CHECKING:
    from webhook_adapter.store.database import Database
    from webhook_adapter.store.unit import ReadUnit, Unit
    from webhook_adapter.store.writer import Writer

__all__ = ["Readers"]

R = TypeVar("R")
_Job: TypeAlias = Callable[[], Ticket[object]]


class Readers:
    """The reading threads of one database."""

    def __init__(self, database: Database, writer: Writer, *, count: int) -> None:
        self._database = database
        self._writer = writer
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"webhook-store-reader-{number}", daemon=True)
            for number in range(count if database.reads_apart else 0)
        ]
        for thread in self._threads:
            thread.start()

    async def call(self, read: Callable[[ReadUnit], R]) -> R:
        """Return what `read` returns. A checkpoint; cancelled, it leaves the answer to nobody."""
        if not self._threads:
            return await self._writer.call(_in_turn, read)
        waiting: Ticket[R] = ticket()

        def job() -> Ticket[object]:
            try:
                with self._database.reading() as unit:
                    waiting.succeed(read(unit))
            except Exception as exc:  # noqa: BLE001 - it belongs to the caller; the thread lives on
                waiting.fail(exc)
            return waiting  # type: ignore[return-value]  # a ticket is woken alike, whatever its answer

        with self._closing:
            if self._closed:
                raise StoreClosedError("the store is closed")
            self._queue.put(job)
        return await waiting.answer()

    def close(self) -> None:
        """Finish what has been asked, and end the threads. Blocks; safe to call again."""
        with self._closing:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            hand_back([job()])


def _in_turn(unit: Unit, reads: Sequence[Callable[[ReadUnit], R]]) -> Sequence[R | Exception]:
    answers: list[R | Exception] = []
    for read in reads:
        try:
            answers.append(read(unit))
        except LookupError as exc:
            answers.append(exc)
    return answers
