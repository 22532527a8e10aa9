"""Shared guards while their server is killed, paused, emptied, full or a replica: what was declared, and nothing else.

The server is real and so are its faults; the time by which the guards give up and come back is virtual.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import anyio.lowlevel
import anyio.to_thread
import pytest

from resilience import CircuitState, RateLimitedError
from resilience.redis import RedisRateLimiter, RedisStore
from resilience.telemetry import Unshared
from resilience.testing import ManualClock
from tests.resilience.redis.guards import ROOM, each_kind, each_mode, make, passes, passes_plainly, quiet
from tests.resilience.support import Crew, settle, until, until_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilience.redis.shared import OnStoreError
    from resilience.telemetry import Event
    from tests.resilience.redis.unreliable import Client, UnreliableServer

pytestmark = [pytest.mark.redis, pytest.mark.anyio]

TIMEOUT = 30.0


@pytest.fixture
def clock() -> ManualClock:
    """Give the time by which guards give up and come back."""
    return ManualClock()


@pytest.fixture
async def store(server: UnreliableServer, clock: ManualClock) -> AsyncIterator[RedisStore]:
    """Give a store on this test's own server, which has all the real time it wants."""
    async with RedisStore(server.url, timeout=TIMEOUT, clock=clock) as found:
        yield found


def losses(events: list[Event]) -> list[str]:
    """Return what came instead of answers."""
    return [event.error for event in events if isinstance(event, Unshared)]


def connection_of(store: RedisStore) -> object:
    """Return what changes with each connection that is made."""
    return getattr(store._link._connection, "_sock", None)


def state_of(store: RedisStore) -> CircuitState:
    """Return what the store thinks of its server."""
    return store.breaker.state


async def assert_declared(kind: str, mode: OnStoreError, calls: Callable[[], object]) -> None:
    """Assert that five calls without a server end as was declared."""
    room = ROOM[kind]
    expected = {
        "local": [room is None or call < room for call in range(5)],
        "admit": [True] * 5,
        "reject": [False] * 5,
    }[mode]
    assert [await calls() for _ in range(5)] == expected  # type: ignore[misc]


@each_kind
@each_mode
async def test_a_killed_server_leaves_what_was_declared(
    kind: str,
    mode: OnStoreError,
    *,
    server: UnreliableServer,
    store: RedisStore,
    clock: ManualClock,
    events: list[Event],
) -> None:
    """RL12: without its server a guard does what `on_store_error` says, tells so once, and comes back by itself."""
    guard = make(kind, store, mode)
    assert await passes(guard)
    await quiet(store)
    server.kill()
    await assert_declared(kind, mode, lambda: passes(guard))
    assert guard.statistics().unshared == 5
    assert [loss.split(":")[0] for loss in losses(events)] == ["ConnectionError"]
    assert state_of(store) is CircuitState.OPEN
    server.start()
    clock.advance(store.breaker.retry_after())
    assert await passes(guard)
    assert guard.statistics().unshared == 5
    assert state_of(store) is CircuitState.CLOSED


@each_kind
@each_mode
async def test_a_paused_server_is_waited_for_in_vain_once(
    kind: str,
    mode: OnStoreError,
    *,
    server: UnreliableServer,
    store: RedisStore,
    clock: ManualClock,
    events: list[Event],
) -> None:
    """RL12: a server that stands still costs the first call its timeout, and those after it nothing."""
    guard = make(kind, store, mode)
    assert await passes(guard)
    await quiet(store)
    server.pause()
    async with Crew() as crew:
        first = crew.start(lambda: passes(guard))
        await settle()
        assert not first.ended
        clock.advance(TIMEOUT)
        await until(lambda: first.ended)
    assert first.result is (mode != "reject")
    assert losses(events) == ["no answer within 30 s"]
    assert await passes(guard) is (mode != "reject")
    assert guard.statistics().unshared == 2
    server.go_on()
    clock.advance(store.breaker.retry_after())
    assert await passes(guard)
    assert guard.statistics().unshared == 2


@each_kind
async def test_one_call_finds_out_whether_the_server_is_back(
    kind: str, server: UnreliableServer, store: RedisStore, clock: ManualClock
) -> None:
    """F14: whoever comes while that is being found out goes on without the server; nobody knocks beside it."""
    guard = make(kind, store, "admit")
    assert await passes(guard)
    await quiet(store)
    server.pause()
    async with Crew() as crew:
        first = crew.start(lambda: passes(guard))
        await settle()
        clock.advance(TIMEOUT)
        await until(lambda: first.ended)
        clock.advance(store.breaker.retry_after())
        jobs = [crew.start(lambda: passes(guard)) for _ in range(50)]
        await settle()
        assert sum(job.ended for job in jobs) == 49
        server.go_on()
        await until(lambda: all(job.ended for job in jobs))
    await quiet(store)
    assert guard.statistics().unshared == 50
    assert store.breaker.state is CircuitState.CLOSED


async def test_a_server_that_stays_away_is_asked_ever_more_rarely(
    server: UnreliableServer, store: RedisStore, clock: ManualClock
) -> None:
    """F14: each vain attempt doubles the time to the next one, less a share that each process draws for itself."""
    guard = make("limiter", store)
    server.kill()
    delays = []
    for _ in range(9):
        await passes(guard)
        delays.append(store.breaker.retry_after())
        clock.advance(delays[-1])
    assert delays[0] == 0.1
    for number, delay in enumerate(delays[1:]):
        longest = min(5.0, 0.2 * 2**number)
        assert max(0.1, longest / 2) <= delay <= longest
    assert len(set(delays[1:])) == 8


def replica(client: Client) -> None:
    """Make the server a replica of one that is not there."""
    client.replicaof("127.0.0.1", "1")


def full(client: Client) -> None:
    """Leave the server no memory to write to."""
    client.config_set("maxmemory", 1)


def stale(client: Client) -> None:
    """Make it a replica that knows that what it has is out of date."""
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", "1")


@each_kind
@each_mode
@pytest.mark.parametrize(
    ("ail", "told"),
    [(replica, "read only replica"), (full, "used memory"), (stale, "MASTER is down")],
    ids=["replica", "full", "stale"],
)
async def test_an_ailing_server_leaves_what_was_declared(
    kind: str,
    mode: OnStoreError,
    ail: Callable[[Client], None],
    told: str,
    *,
    server: UnreliableServer,
    store: RedisStore,
    events: list[Event],
) -> None:
    """RL12: a server that answers, but cannot do what it is asked, is one that is not there."""
    guard = make(kind, store, mode)
    with server.client() as client:
        ail(client)
    await assert_declared(kind, mode, lambda: passes(guard))
    assert guard.statistics().unshared == 5
    assert len(losses(events)) == 1
    assert told in losses(events)[0]
    assert store.breaker.state is CircuitState.OPEN


async def test_a_server_that_is_loading_leaves_what_was_declared(
    server: UnreliableServer, store: RedisStore, events: list[Event]
) -> None:
    """RL12: a server that has just been started and reads its data is one that is not there yet."""
    with server.client() as client:
        client.mset({f"key {number}": "value" * 100 for number in range(20_000)})
        client.save()
    server.kill()
    # Microseconds a key, so that it is at it for longer than this test.
    server.start("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    guard = make("limiter", store, "reject")
    await assert_declared("limiter", "reject", lambda: passes(guard))
    assert guard.statistics().unshared == 5
    assert [loss.split(":")[0] for loss in losses(events)] == ["BusyLoadingError"]


@each_kind
@each_mode
async def test_a_key_that_is_something_else_troubles_its_guard_alone(
    kind: str, mode: OnStoreError, server: UnreliableServer, store: RedisStore, events: list[Event]
) -> None:
    """RL12: an error in one guard's script is no reason to leave the server alone."""
    guard, other = make(kind, store, mode), make(kind, RedisStore(server.url, prefix="other"), mode)
    with server.client() as client:
        client.set(guard._keys[0], "nonsense")
    await assert_declared(kind, mode, lambda: passes(guard))
    assert guard.statistics().unshared == 5
    assert len(losses(events)) == 5
    assert store.breaker.state is CircuitState.CLOSED
    assert await passes(other)
    assert other.statistics().unshared == 0
    await other.store.aclose()


@each_kind
@each_mode
async def test_a_password_that_is_wrong_leaves_what_was_declared(
    kind: str, mode: OnStoreError, server: UnreliableServer, events: list[Event]
) -> None:
    """RL12: a server that lets nobody in is one that is not there."""
    async with RedisStore(server.url.replace("://:", "://:not"), clock=ManualClock()) as store:
        guard = make(kind, store, mode)
        await assert_declared(kind, mode, lambda: passes(guard))
        assert losses(events)[0].startswith("AuthenticationError")


@each_kind
async def test_forgotten_scripts_are_loaded_again(
    kind: str, server: UnreliableServer, store: RedisStore, events: list[Event]
) -> None:
    """RL12: SCRIPT FLUSH costs a round trip, and nothing that was counted."""
    guard = make(kind, store)
    assert await passes(guard)
    with server.client() as client:
        client.script_flush()
    room = ROOM[kind]
    assert [await passes(guard) for _ in range(4)] == [room is None or call < room for call in range(1, 5)]
    assert guard.statistics().unshared == 0
    assert losses(events) == []


@each_kind
async def test_an_empty_server_is_begun_with_anew(
    kind: str, server: UnreliableServer, store: RedisStore, clock: ManualClock
) -> None:
    """RL12: after a failover to a server that knows nothing, every guard is fresh, and none is confused."""
    guard = make(kind, store)
    room = ROOM[kind]
    for _ in range(2):
        assert [await passes(guard) for _ in range(4)] == [room is None or call < room for call in range(4)]
        await quiet(store)
        server.kill()
        server.start()
        # The connection is seen to have ended before anything is sent over it.
    assert guard.statistics().unshared == 0


@pytest.mark.parametrize("kind", ["limiter", "storm guard"])
@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
async def test_a_call_that_is_cancelled_while_it_asks_leaves_nothing_behind(
    kind: str, *, native: bool, server: UnreliableServer, store: RedisStore
) -> None:
    """RL7: what the server granted to nobody comes back, the connection stays in step, the cancellation goes on."""
    guard = make(kind, store)
    assert await passes(guard)
    with server.client() as client:
        client.flushdb()
    connection = connection_of(store)
    told = store.breaker.statistics().succeeded
    server.pause()
    async with Crew() as crew:
        job = crew.start(lambda: passes(guard))
        await settle()
        await until(store._link._queue.empty)
        job.cancel(native=native)
        await until(lambda: job.ended)
        assert job.cancelled
        server.go_on()
        await until(lambda: store.breaker.statistics().succeeded > told)
    room = ROOM[kind]
    assert [await passes(guard) for _ in range(4)] == [room is None or call < room for call in range(4)]
    assert connection_of(store) is connection
    assert guard.statistics().unshared == 0


@each_kind
@each_mode
async def test_plain_code_goes_on_without_the_server_too(
    kind: str, mode: OnStoreError, server: UnreliableServer, store: RedisStore
) -> None:
    """RL12: `with` in a thread does what was declared, and comes back, as `async with` does."""
    guard = make(kind, store, mode)

    async def in_plain_code() -> bool:
        return await anyio.to_thread.run_sync(passes_plainly, guard)

    assert await in_plain_code()
    await quiet(store)
    server.kill()
    await assert_declared(kind, mode, in_plain_code)
    assert guard.statistics().unshared == 5


async def test_turns_are_waited_for_without_the_server_too(
    server: UnreliableServer, store: RedisStore, clock: ManualClock
) -> None:
    """RL12: the limiter that takes over waits for as long as its calls may."""
    server.kill()
    limiter = RedisRateLimiter(store, 1.0, 1, name="guard", max_wait=1.0)
    assert await passes(limiter)
    async with Crew() as crew:
        jobs = [crew.start(partial(passes, limiter))]
        await until(lambda: limiter.statistics().waiting == 1)
        jobs.append(crew.start(partial(limiter.acquire, max_wait=5.0)))
        await until(lambda: limiter.statistics().waiting == 2)
        with pytest.raises(RateLimitedError) as caught:
            await limiter.call(anyio.lowlevel.checkpoint)
        assert caught.value.retry_after == 3.0
        for _ in jobs:
            clock.advance(1.0)
            await settle()
        assert [job.result for job in jobs] == [True, True]
    assert limiter.statistics().unshared == 4


async def test_what_cannot_be_given_back_is_counted(
    server: UnreliableServer, store: RedisStore, clock: ManualClock
) -> None:
    """Tokens that came back when nobody was there to take them are lost, and known to be."""
    limiter = RedisRateLimiter(store, 0.001, 3, name="guard")
    permits = [await limiter.admit_waiting() for _ in range(2)]
    server.kill()
    permits[0].ignored()
    await until(lambda: limiter.statistics().lost == 1)
    permits[1].ignored()
    assert limiter.statistics().lost == 2
    permits[1].ignored()
    assert (limiter.statistics().lost, limiter.statistics().ignored) == (2, 2)


def test_a_thread_does_not_wait_for_ever(server: UnreliableServer) -> None:
    """RL12: in plain code a server that stands still costs its timeout, and no more."""
    clock = ManualClock()
    with RedisStore(server.url, timeout=TIMEOUT, clock=clock) as store:
        limiter = RedisRateLimiter(store, 0.001, 1, name="guard", on_store_error="reject")
        assert passes_plainly(limiter)
        server.pause()
        results: list[bool] = []
        thread = threading.Thread(target=lambda: results.append(passes_plainly(limiter)))
        thread.start()
        until_blocking(lambda: clock.next_deadline() is not None)
        clock.advance(TIMEOUT)
        thread.join()
        assert results == [False]
        server.go_on()
