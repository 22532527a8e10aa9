"""Group commit: one transaction for what has queued up, an answer for each, and a thread that lives on."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Self

import anyio
import anyio.to_thread
import pytest
import sqlalchemy as sa

from tests.adapter.store.support import NOW, OK, a_message, an_endpoint, claim, record
from webhook_adapter.lifecycle import Delivered
from webhook_adapter.store import (
    Accepted,
    IdempotencyConflictError,
    NewMessage,
    Store,
    StoreClosedError,
    StoreUnavailableError,
    acceptance,
)
from webhook_adapter.store.writer import one_by_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from webhook_adapter.store.unit import Unit

pytestmark = pytest.mark.anyio


class Gate:
    """An operation that holds the writer until it is opened, so that what comes meanwhile makes one batch."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entered = threading.Event()
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def __enter__(self) -> Self:
        self._thread.start()
        self._entered.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._thread.join()

    def open(self) -> None:
        """Let the writer go on."""
        self._open.set()

    def _hold(self) -> None:
        def wait(_unit: Unit, _payload: None) -> None:
            self._entered.set()
            self._open.wait()

        self._store._writer.call_blocking(one_by_one(wait), None)


@pytest.fixture
def commits(store: Store) -> Iterator[list[str]]:
    """Return a list that grows by one with every commit of the writer."""
    seen: list[str] = []

    def note(_connection: sa.Connection) -> None:
        seen.append("commit")

    engine = store._writer._database._writing
    sa.event.listen(engine, "commit", note)
    yield seen
    sa.event.remove(engine, "commit", note)


async def test_what_queues_up_shares_a_commit(store: Store, commits: list[str]) -> None:
    """A hundred callers that come during one commit are committed by the next one, together."""
    await store.add_endpoint(an_endpoint())
    answers: list[Accepted] = []

    async def accept(number: int) -> None:
        answers.append(await store.accept(a_message(data=number), now=NOW))

    with Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(accept, number)
            await anyio.wait_all_tasks_blocked()
            before = len(commits)
            gate.open()
    assert len(answers) == len(await store.list_messages()) == 100
    # One for the gate itself, one for all of the others.
    assert len(commits) - before == 2


async def test_a_batch_has_a_largest_size(path: Path) -> None:
    """No more than `max_batch` operations share a commit, so that the first of them does not wait for the rest."""
    store = Store.open(path, max_batch=10)
    sizes: list[int] = []

    def count(_unit: Unit, payloads: Sequence[None]) -> Sequence[None]:
        sizes.append(len(payloads))
        return payloads

    async def call() -> None:
        await store._writer.call(count, None)

    with closing(store), Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            for _ in range(25):
                tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            gate.open()
    assert sizes == [10, 10, 5]


async def test_nothing_is_answered_before_its_commit(store: Store, path: Path) -> None:
    """WH1: whoever has been answered can be found by another connection at that moment."""
    with closing(sqlite3.connect(path)) as connection:
        for number in range(5):
            accepted = await store.accept(a_message(data=number), now=NOW)
            found = connection.execute("SELECT count(*) FROM webhook_messages WHERE id = ?", (accepted.message.id,))
            assert found.fetchone() == (1,)


async def test_a_refused_one_spares_its_neighbours(store: Store) -> None:
    """WH3: in one batch the same key with another body is refused alone, and the same one is the same message."""
    results: dict[str, object] = {}

    async def accept(name: str, new: NewMessage) -> None:
        try:
            results[name] = await store.accept(new, now=NOW)
        except IdempotencyConflictError as exc:
            results[name] = exc

    with Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            for name, new in (
                ("first", a_message(data=1, key="k")),
                ("same", a_message(data=1, key="k")),
                ("other", a_message(data=2, key="k")),
                ("free", a_message(data=3)),
            ):
                tasks.start_soon(accept, name, new)
                await anyio.wait_all_tasks_blocked()
            gate.open()
    first, same = results["first"], results["same"]
    assert isinstance(first, Accepted)
    assert isinstance(same, Accepted)
    assert (first.created, same.created, same.message.id) == (True, False, first.message.id)
    assert isinstance(results["other"], IdempotencyConflictError)
    assert isinstance(results["free"], Accepted)
    assert len(await store.list_messages()) == 2


async def test_a_bug_in_one_operation_fails_it_alone(store: Store) -> None:
    """An operation that raises rolls the batch back; its neighbours are done again, each on its own."""

    def broken(_unit: Unit, _payload: None) -> None:
        raise ZeroDivisionError

    failures: list[Exception] = []

    async def fail() -> None:
        try:
            await store._writer.call(one_by_one(broken), None)
        except ZeroDivisionError as exc:
            failures.append(exc)

    with Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(partial(store.accept, a_message(data=number), now=NOW))
                tasks.start_soon(fail)
            await anyio.wait_all_tasks_blocked()
            gate.open()
    assert len(failures) == 3
    assert len(await store.list_messages()) == (await store.statistics()).messages == 3


async def test_a_failed_batch_leaves_nothing_in_memory(store: Store) -> None:
    """What a rolled back transaction had put into the caches is forgotten: the endpoint of it does not exist."""

    def add_and_fail(unit: Unit, _payload: None) -> None:
        unit.directory.put(an_endpoint("ep_ghost"))
        raise ZeroDivisionError

    await store.add_endpoint(an_endpoint())
    with pytest.raises(ZeroDivisionError):
        await store._writer.call(one_by_one(add_and_fail), None)
    assert (await store.accept(a_message(), now=NOW)).deliveries == 1


async def test_a_cancelled_caller_leaves_its_neighbours_alone(store: Store) -> None:
    """A caller that is cancelled while it waits is gone at once; its operation and the others' are whole."""
    answers: list[Accepted] = []

    async def accept(number: int) -> None:
        answers.append(await store.accept(a_message(data=number), now=NOW))

    with Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as doomed:
                doomed.start_soon(accept, 1)
                await anyio.wait_all_tasks_blocked()
                doomed.cancel_scope.cancel()
            tasks.start_soon(accept, 2)
            await anyio.wait_all_tasks_blocked()
            gate.open()
    assert [each.message.data for each in answers] == [{"n": 2}]
    assert len(await store.list_messages()) in {1, 2}


async def test_threads_and_loops_share_a_store(store: Store) -> None:
    """Plain threads and other event loops submit to the same writer, and each gets its own answer."""
    await store.add_endpoint(an_endpoint())

    def from_a_thread() -> list[str]:
        return [store.accept_blocking(a_message(data=number), now=NOW).message.id for number in range(5)]

    def from_another_loop() -> list[str]:
        async def main() -> list[str]:
            return [(await store.accept(a_message(data=number), now=NOW)).message.id for number in range(5)]

        return anyio.run(main)

    ids: list[str] = []

    async def collect(work: Callable[[], list[str]]) -> None:
        ids.extend(await anyio.to_thread.run_sync(work))

    async with anyio.create_task_group() as tasks:
        for work in (from_a_thread, from_another_loop, from_a_thread, from_another_loop):
            tasks.start_soon(collect, work)
    assert len(set(ids)) == 20
    assert len(await claim(store)) == 20


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_loop_that_has_closed_is_tolerated(store: Store, backend: str) -> None:
    """The answer for a loop that is gone is dropped, and the writer goes on."""

    async def give_up() -> None:
        with anyio.move_on_after(0):
            await store.accept(a_message(), now=NOW)
            await anyio.sleep_forever()

    with Gate(store) as gate:
        await anyio.to_thread.run_sync(partial(anyio.run, give_up, backend=backend))
        gate.open()
    assert (await store.accept(a_message(), now=NOW)).created


async def test_a_full_disk_refuses_the_batch_and_is_survived(store: Store, path: Path) -> None:
    """F7, F8: nothing of the batch has happened, everyone is told, and it goes on when there is room again."""
    await store.add_endpoint(an_endpoint())
    await store.accept(a_message(), now=NOW)
    [got] = await claim(store)

    def fill(unit: Unit, pages: int) -> None:
        unit.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await store._writer.call(one_by_one(fill), 1)
    before = len(await store.list_messages())
    refused: list[StoreUnavailableError] = []

    async def accept() -> None:
        try:
            await store.accept(NewMessage.of("order.paid", "x" * 50_000, occurred_at=NOW), now=NOW)
        except StoreUnavailableError as exc:
            refused.append(exc)

    with Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            gate.open()
    assert [str(each) for each in refused] == ["the disk is full"] * 5
    assert len({id(each) for each in refused}) == 5
    assert len(await store.list_messages()) == before
    await store._writer.call(one_by_one(fill), 1_000_000)
    assert await record(store, got, OK, Delivered(), now=NOW) is not None
    assert (await store.accept(a_message(), now=NOW)).created


async def test_a_long_writer_elsewhere_is_waited_for_but_not_for_ever(path: Path) -> None:
    """F9: while another process holds the lock, callers are refused after the busy timeout; reads go on."""
    with closing(Store.open(path, busy_timeout=0.05)) as store:
        await store.accept(a_message(), now=NOW)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked by another process") as caught:
                await store.accept(a_message(), now=NOW)
            assert caught.value.retry_after > 0
            with pytest.raises(StoreUnavailableError):
                await store.check()
            assert len(await store.list_messages()) == 1
            other.execute("ROLLBACK")
        assert (await store.accept(a_message(), now=NOW)).created


async def test_a_failed_commit_rejects_everyone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that fails is nobody's success, and nothing of it is there."""

    def fail(_connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", None, _disk_error())

    engine = store._writer._database._writing
    sa.event.listen(engine, "commit", fail)
    try:
        with pytest.raises(StoreUnavailableError, match="cannot be read or written"):
            await store.accept(a_message(), now=NOW)
    finally:
        sa.event.remove(engine, "commit", fail)
    assert await store.list_messages() == []
    assert (await store.accept(a_message(), now=NOW)).created


def _disk_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    return error


async def test_closing_finishes_what_was_submitted(path: Path) -> None:
    """What has been submitted before `close` is done; what comes after is refused, and closing twice is once."""
    store = Store.open(path)
    answers: list[Accepted] = []

    async def accept(number: int) -> None:
        answers.append(await store.accept(a_message(data=number), now=NOW))

    with Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(accept, number)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(anyio.to_thread.run_sync, store.close)
            gate.open()
    assert len(answers) == 5
    store.close()
    with pytest.raises(StoreClosedError):
        await store.accept(a_message(), now=NOW)
    with pytest.raises(StoreClosedError):
        await store.list_messages()


async def test_a_writer_that_dies_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kills the writer thread, nobody is left waiting for it."""
    store = Store.open(path)
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)

    def die(_unit: Unit, _payload: None) -> None:
        raise SystemExit

    results: list[StoreClosedError] = []

    async def call(kind: Callable[[Unit, None], None]) -> None:
        try:
            await store._writer.call(one_by_one(kind), None)
        except StoreClosedError as exc:
            results.append(exc)

    with Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call, die)
            await anyio.wait_all_tasks_blocked()
            gate.open()
    assert len(results) == 3
    with pytest.raises(StoreClosedError):
        await store.check()
    store.close()


async def test_a_key_that_slips_through_fails_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant that forgets known keys meets the unique index: the doubles fail, the rest of the batch does not."""
    monkeypatch.setattr(acceptance, "_known_keys", lambda _connection, _offers: {})
    await store.accept(a_message(key="k"), now=NOW)
    failures: list[sqlite3.IntegrityError] = []

    async def repeat() -> None:
        try:
            await store.accept(a_message(key="k"), now=NOW)
        except sqlite3.IntegrityError as exc:
            failures.append(exc)

    with Gate(store) as gate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(repeat)
            tasks.start_soon(partial(store.accept, a_message(data=2), now=NOW))
            await anyio.wait_all_tasks_blocked()
            gate.open()
    assert len(failures) == 1
    assert len(await store.list_messages()) == 2
