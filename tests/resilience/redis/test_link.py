"""The connection and its thread: what is sent and answered, however those who ask come and go."""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING

import anyio
import pytest

from resilience.redis import RedisStore, link
from resilience.redis.link import Request, Script, StoreError
from tests.resilience.support import in_thread, run, until, until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilience.redis.link import Reply
    from tests.resilience.redis.unreliable import Client, UnreliableServer

pytestmark = pytest.mark.redis

ECHO = Script("return {tonumber(ARGV[1])}")
COUNT = Script("return {redis.call('INCR', KEYS[1])}")
BAD = Script("return {redis.call('NONSENSE')}")


@pytest.fixture
def store(redis_url: str, prefix: str) -> Iterator[RedisStore]:
    """Give a store for this test."""
    with RedisStore(redis_url, prefix=prefix, timeout=30.0) as found:
        yield found


def thread_of(store: RedisStore) -> threading.Thread:
    """Return the thread that owns the connection."""
    thread = store._link._thread
    assert thread is not None
    return thread


@pytest.mark.anyio
async def test_every_one_of_many_gets_its_own_answer(store: RedisStore) -> None:
    """However many ask at once, of however many scripts, nobody gets what another one asked for."""
    answers: list[tuple[int, Reply]] = []

    async def ask(number: int) -> None:
        answers.append((number, await store.ask(Request(ECHO, (), (number,)))))

    async with anyio.create_task_group() as group:
        for number in range(3 * link.BATCH):
            group.start_soon(ask, number)
    assert sorted(answers) == [(number, [number]) for number in range(3 * link.BATCH)]


def test_scripts_that_the_server_does_not_know_are_loaded_together(store: RedisStore, prefix: str) -> None:
    """A new script, an old one and a broken one in one write: each has its own end, and each runs once."""
    assert store.ask_blocking(Request(ECHO, (), (1,))) == [1]
    unique = Script(f"-- {prefix}\n{COUNT.source}")
    requests = [
        Request(unique, (f"{prefix}:a",), ()),
        Request(ECHO, (), (2,)),
        Request(BAD, (), ()),
        Request(unique, (f"{prefix}:a",), ()),
    ]
    store._link._try(requests)
    assert [request.reply for request in requests] == [[1], [2], None, [2]]
    assert isinstance(requests[2].error, StoreError)
    assert not requests[2].error.ailing


def test_a_server_that_forgets_at_once_is_given_up(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """A script that is unknown again as soon as it was loaded is an error, and no endless loop."""
    monkeypatch.setattr(store._link, "_load", set.copy)
    with pytest.raises(StoreError, match="forgets"):
        store.ask_blocking(Request(Script(f"-- {prefix}"), (), ()))
    assert store.breaker.state.value == "closed"


def test_what_nobody_waits_for_is_told_in_order(store: RedisStore, client: Client, prefix: str) -> None:
    """Closing a store sends what is still to be told; using it again connects again."""
    append = Script("return {redis.call('RPUSH', KEYS[1], ARGV[1])}")
    lost: list[StoreError] = []
    for number in range(600):
        assert store.tell(Request(append, (f"{prefix}:told",), (number,)), None, lost.append)
    store.close()
    assert not thread_of(store).is_alive()
    assert client.lrange(f"{prefix}:told", 0, -1) == [str(number).encode() for number in range(600)]
    assert store.ask_blocking(Request(append, (f"{prefix}:told",), ("last",))) == [601]
    assert lost == []


def test_what_could_not_be_told_is_known() -> None:
    """Whoever tells something hears that it was lost: at once while the server is left alone, else when it is seen."""
    with RedisStore("redis://127.0.0.1:1") as store:
        lost: list[StoreError] = []
        assert store.tell(Request(ECHO, (), (1,)), None, lost.append)
        until_blocking(lambda: bool(lost))
        assert lost[0].ailing
        assert not store.tell(Request(ECHO, (), (1,)), None, lost.append)
        assert len(lost) == 1


def test_the_thread_ends_when_nobody_asks(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle store costs no thread and no connection; the next request has both again."""
    monkeypatch.setattr(link, "IDLE_FOR", 0.001)
    for number in range(5):
        assert store.ask_blocking(Request(ECHO, (), (number,))) == [number]
        thread_of(store).join()
        assert not store._link._connected


def test_a_request_that_comes_as_the_thread_ends_is_not_forgotten(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever found no ticket, since the thread had not given it back yet, is served by the next thread."""
    disconnect = store._link._disconnect
    late = Request(ECHO, (), (2,))
    woken = threading.Event()
    late.wake = woken.set

    def disconnect_late() -> None:
        if not late.answered and store._link._queue.empty():
            store._link.submit(late)
        disconnect()

    monkeypatch.setattr(store._link, "_disconnect", disconnect_late)
    store.ask_blocking(Request(ECHO, (), (1,)))
    store.close()
    assert woken.wait(30)
    assert late.reply == [2]


def test_an_answer_for_a_loop_that_has_ended_is_undone(store: RedisStore) -> None:
    """What was granted to a task whose loop is closed was granted to nobody."""
    undone: list[Reply | None] = []
    request = Request(ECHO, (), (7,), undo=undone.append)
    request.wake = lambda: False
    store._link.submit(request)
    until_blocking(lambda: bool(undone))
    assert undone == [[7]]


def test_what_was_answered_before_it_was_withdrawn_is_undone_once(store: RedisStore) -> None:
    """Whichever comes first, the answer or the leaving, what was granted to nobody is taken back exactly once."""
    undone: list[Reply | None] = []
    request = Request(ECHO, (), (7,), undo=undone.append)
    store._link.submit(request)
    until_blocking(lambda: request.answered)
    store._link.withdraw(request)
    store._link.withdraw(request)
    never_sent = Request(ECHO, (), (8,), undo=undone.append)
    never_sent.gone = True
    store._link.submit(never_sent)
    store.close()
    assert undone == [[7], None]
    assert not never_sent.answered


def test_a_connection_that_the_server_closed_is_not_used_again(store: RedisStore, client: Client) -> None:
    """A server that closes idle connections costs nobody an answer."""
    store.ask_blocking(Request(ECHO, (), (1,)))
    for _ in range(3):
        client.client_kill_filter(_type="normal", skipme=True)
        assert store.ask_blocking(Request(ECHO, (), (1,))) == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_store_that_was_used_before_a_fork_works_in_both(store: RedisStore) -> None:
    """Servers fork their workers after the application was imported: each has a connection of its own."""
    assert store.ask_blocking(Request(ECHO, (), (1,))) == [1]
    with warnings.catch_warnings():
        # Of forking while threads run: the very thing that is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            answer = store.ask_blocking(Request(ECHO, (), (5,)))
        finally:
            os._exit(0 if answer == [5] else 1)
    assert store.ask_blocking(Request(ECHO, (), (2,))) == [2]
    assert os.waitpid(child, 0)[1] == 0


def test_threads_share_the_connection(store: RedisStore, client: Client, prefix: str) -> None:
    """All threads and loops of a process have one connection between them."""
    before = len(client.client_list())
    in_thread(lambda: store.ask_blocking(Request(ECHO, (), (1,))))

    async def ask() -> Reply:
        return await store.ask(Request(ECHO, (), (2,)))

    assert run("asyncio", ask) == run("trio", ask) == [2]
    assert len(client.client_list()) == before + 1


@pytest.mark.anyio
async def test_a_task_that_comes_while_another_waits_shares_its_round_trip(server: UnreliableServer) -> None:
    """Requests are gathered while an answer is on its way: what came meanwhile goes in one write."""
    async with RedisStore(server.url, timeout=30.0) as store:
        sizes: list[int] = []
        exchange = store._link._exchange

        def watched(commands: list[tuple[str | int, ...]], batch: list[Request]) -> list[Request]:
            sizes.append(len(batch))
            return exchange(commands, batch)

        store._link._exchange = watched  # type: ignore[method-assign]
        await store.ask(Request(ECHO, (), (0,)))
        server.pause()
        async with anyio.create_task_group() as group:
            group.start_soon(store.ask, Request(ECHO, (), (1,)))
            # The very first one was sent twice: the script was new to this server.
            await until(lambda: sizes == [1, 1, 1])
            for number in range(20):
                group.start_soon(store.ask, Request(ECHO, (), (number,)))
            await until(lambda: store._link._queue.qsize() == 20)
            server.go_on()
        assert sizes == [1, 1, 1, 20]


def test_a_url_that_is_none_is_refused() -> None:
    """Bad arguments are told at once, before anything is connected."""
    with pytest.raises(ValueError, match="URL"):
        RedisStore("localhost")
    for name, value in (("timeout", 0), ("timeout", True), ("prefix", 3), ("url", 3)):
        with pytest.raises(ValueError, match=f"{name} must be "):
            RedisStore(**{"url": "redis://localhost", name: value})  # type: ignore[arg-type]


def test_an_address_is_told_without_its_password() -> None:
    """What is shown of a store is where it is."""
    assert repr(RedisStore("redis://user:secret@example.com")) == "<RedisStore example.com:6379>"
    assert repr(RedisStore("unix://:secret@/run/redis.sock")) == "<RedisStore /run/redis.sock>"
