"""RedisCircuitBreaker as a layer, on a real server."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from resilience import (
    CircuitOpenError,
    CircuitState,
    CountWindow,
    FailureRate,
    LayerKind,
    Policy,
    RateLimitedError,
    Retry,
    ScheduleBackoff,
    SlowCallRate,
    Verdict,
)
from resilience.redis import RedisCircuitBreaker, RedisStore, StoreError
from resilience.redis.link import Request
from resilience.telemetry import StateChanged, Unshared
from resilience.testing import ManualClock
from tests.resilience.redis.guards import quiet
from tests.resilience.redis.virtual import START, ServerTime
from tests.resilience.support import Crew, assert_refuses, settle, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilience.telemetry import Event
    from tests.resilience.redis.unreliable import Client, UnreliableServer

pytestmark = pytest.mark.redis

CLOSED, OPEN, HALF_OPEN, ISOLATED = CircuitState


class VirtualBreaker(RedisCircuitBreaker):
    """A breaker whose server's time and own clock are both a test's."""

    time: ServerTime

    def pass_time(self, seconds: float) -> None:
        """Let that much time pass on both sides."""
        clock = self.store.clock
        assert isinstance(clock, ManualClock)
        self.time.advance(round(seconds * 1_000_000))
        clock.advance(seconds)


@pytest.fixture
async def store(redis_url: str, prefix: str) -> AsyncIterator[RedisStore]:
    """Give a store for this test, whose own clock stands still."""
    async with RedisStore(redis_url, prefix=prefix, timeout=30.0, clock=ManualClock()) as found:
        yield found


@pytest.fixture
def virtual(store: RedisStore, client: Client, prefix: str) -> Callable[..., VirtualBreaker]:
    """Give what makes breakers in virtual time."""
    time = ServerTime(client, prefix)

    class Breaker(VirtualBreaker):
        script = time.virtual(RedisCircuitBreaker.script)

    Breaker.time = time
    return partial(Breaker, store)


async def work() -> str:
    """Return something."""
    return "done"


async def fail() -> None:
    """Fail."""
    raise ConnectionError


async def fails(breaker: RedisCircuitBreaker) -> None:
    """Make a call that runs and fails, and wait until the server knows."""
    with pytest.raises(ConnectionError):
        await breaker.call(fail)
    await quiet(breaker.store)


def changes(events: list[Event]) -> list[tuple[str, str]]:
    """Return the changes of circuits that were told, without the store's own."""
    return [(event.old, event.new) for event in events if isinstance(event, StateChanged) and event.guard == "api"]


@pytest.mark.anyio
async def test_failures_anywhere_open_the_circuit_everywhere(virtual: Callable[..., VirtualBreaker]) -> None:
    """CB5: processes count together, and once it is open nobody calls."""
    one, other = (virtual(3, 60.0, name="api") for _ in range(2))
    for breaker in (one, other, one):
        await fails(breaker)
    assert (one.state, one.failure_count, one.retry_after()) == (OPEN, 3, 60.0)
    # The other one has not asked since.
    assert (other.state, other.failure_count) == (CLOSED, 2)
    with pytest.raises(CircuitOpenError) as caught:
        await other.call(work)
    assert (caught.value.guard, caught.value.retry_after) == ("api", 60.0)
    assert other.state is OPEN
    assert one.last_failure_time == START / 1_000_000
    assert (other.statistics().failed, other.statistics().rejected, other.statistics().state) == (1, 1, OPEN)


@pytest.mark.anyio
async def test_a_success_anywhere_begins_the_count_anew(virtual: Callable[..., VirtualBreaker]) -> None:
    """Failures are consecutive in the order in which the server heard of them."""
    one, other = (virtual(2, 60.0, name="api") for _ in range(2))
    await fails(one)
    assert await other.call(work) == "done"
    await quiet(one.store)
    await fails(one)
    assert one.state is CLOSED


async def law_of_probes(make: Callable[[], VirtualBreaker]) -> None:
    """CB1: as many probes as were allowed are under way in all processes together, and their success closes it."""
    one, other = make(), make()
    await fails(one)
    one.pass_time(60.0)
    assert (one.state, one.retry_after()) == (HALF_OPEN, 0.0)
    doors = [anyio.Event() for _ in range(6)]

    async def wait(breaker: VirtualBreaker, door: anyio.Event) -> str:
        await breaker.call(door.wait)
        return "done"

    async with Crew() as crew:
        jobs = [crew.start(partial(wait, (one, other)[number % 2], door)) for number, door in enumerate(doors)]
        await until(lambda: sum(job.ended for job in jobs) == 4)
        refused = [job.error for job in jobs if job.ended]
        assert all(isinstance(error, CircuitOpenError) and error.retry_after is None for error in refused)
        for door in doors:
            door.set()
        await until(lambda: all(job.ended for job in jobs))
    await quiet(one.store)
    assert await other.call(work) == "done"
    assert other.state is CLOSED


@pytest.mark.anyio
async def test_as_many_probes_as_allowed_are_under_way(virtual: Callable[..., VirtualBreaker]) -> None:
    """CB1: in however many processes they are."""
    await law_of_probes(partial(virtual, 1, 60.0, name="api", half_open_max_calls=2, success_threshold=2))


@pytest.mark.anyio
@pytest.mark.parametrize("end", [Verdict.IGNORED, Verdict.CANCELLED])
async def test_a_probe_that_says_nothing_gives_its_place_back(
    virtual: Callable[..., VirtualBreaker], end: Verdict
) -> None:
    """CB2: a rejection further inside, or a cancellation, lets the next one probe."""
    breaker = virtual(1, 60.0, name="api")
    await fails(breaker)
    breaker.pass_time(60.0)
    permit = await breaker.admit_waiting()
    assert breaker.statistics().in_use == 1
    with pytest.raises(CircuitOpenError):
        await breaker.call(work)
    breaker.settle(permit, end)
    breaker.settle(permit, Verdict.FAILURE)
    await quiet(breaker.store)
    assert breaker.statistics().in_use == 0
    assert await breaker.call(work) == "done"
    await quiet(breaker.store)
    assert breaker.state is CLOSED
    assert (breaker.statistics().ignored, breaker.statistics().cancelled) == (
        int(end is Verdict.IGNORED),
        int(end is Verdict.CANCELLED),
    )


@pytest.mark.anyio
async def test_a_probe_of_a_process_that_died_is_lost_in_time(virtual: Callable[..., VirtualBreaker]) -> None:
    """CB2, CB3: its lease ends, the circuit opens at that instant, and what comes of it later changes nothing."""
    one, other = (virtual(1, 60.0, name="api", probe_timeout=5.0) for _ in range(2))
    await fails(one)
    one.pass_time(60.0)
    lost = await one.admit_waiting()
    one.pass_time(7.0)
    with pytest.raises(CircuitOpenError) as caught:
        await other.call(work)
    assert caught.value.retry_after == pytest.approx(58.0)
    other.pass_time(58.0)
    probe = await other.admit_waiting()
    lost.success()
    await quiet(one.store)
    assert (one.statistics().late, one.state) == (1, HALF_OPEN)
    probe.success()
    await quiet(one.store)
    assert other.state is CLOSED


@pytest.mark.anyio
async def test_a_stream_that_gives_items_keeps_its_probe(virtual: Callable[..., VirtualBreaker]) -> None:
    """CB2: a lease is renewed by signs of life, three times a lease at most."""
    breaker = virtual(1, 60.0, name="api", probe_timeout=6.0)
    await fails(breaker)
    breaker.pass_time(60.0)

    @breaker
    async def stream() -> AsyncIterator[int]:
        for item in range(10):
            yield item

    exchanges = 0
    async for _ in stream():
        await quiet(breaker.store)
        exchanges = exchanges or breaker.store.breaker.statistics().succeeded
        breaker.pass_time(1.0)
    await quiet(breaker.store)
    assert breaker.state is CLOSED
    # Renewed at 2, 4, 6 and 8 seconds; then its success was told.
    assert breaker.store.breaker.statistics().succeeded - exchanges == 5


@pytest.mark.anyio
async def test_what_is_slow_counts_as_such(virtual: Callable[..., VirtualBreaker]) -> None:
    """A call is slow by the clock of the process that made it."""
    breaker = virtual(
        name="api", trip=SlowCallRate(0.5, CountWindow(4), min_calls=2), slow_call_duration=1.0, recovery_timeout=9.0
    )

    async def slow() -> None:
        breaker.pass_time(1.0)

    await breaker.call(work)
    await breaker.call(slow)
    await quiet(breaker.store)
    assert breaker.state is OPEN
    assert breaker.statistics().succeeded == 2


@pytest.mark.anyio
async def test_a_probe_that_fails_opens_it_again(virtual: Callable[..., VirtualBreaker]) -> None:
    """CB4: for as long as the first time, where no backoff was asked for."""
    breaker = virtual(3, 10.0, name="api")
    for _ in range(3):
        await fails(breaker)
    breaker.pass_time(10.0)
    await fails(breaker)
    assert (breaker.state, breaker.retry_after()) == (OPEN, 10.0)


@pytest.mark.anyio
async def test_breaks_grow_while_probes_fail(virtual: Callable[..., VirtualBreaker]) -> None:
    """`recovery_backoff` is as for the local breaker."""
    breaker = virtual(1, 10.0, name="api", recovery_backoff=ScheduleBackoff([20.0, 40.0]))
    told = []
    for _ in range(4):
        await fails(breaker)
        told.append(breaker.retry_after())
        breaker.pass_time(told[-1])
    assert told == [10.0, 20.0, 40.0, 40.0]


@pytest.mark.anyio
async def test_every_change_is_told_once_and_in_order_in_each_process(
    virtual: Callable[..., VirtualBreaker], events: list[Event]
) -> None:
    """CB4: also the changes that others made, when an answer tells of them."""
    heard: list[tuple[object, CircuitState, CircuitState]] = []
    one, other = (virtual(1, 60.0, name="api", on_state_change=lambda *change: heard.append(change)) for _ in range(2))
    await fails(one)
    one.pass_time(60.0)
    await one.call(work)
    await quiet(one.store)
    assert changes(events) == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
    assert all(change[0] is one for change in heard)
    heard.clear()
    events.clear()
    await other.call(work)
    await quiet(one.store)
    # It meets a circuit that is closed, as it had thought.
    assert (changes(events), heard) == ([], [])
    await fails(one)
    one.pass_time(60.0)
    heard.clear()
    await other.call(work)
    await quiet(one.store)
    assert [change[1:] for change in heard] == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]
    assert all(change[0] is other for change in heard)
    assert other.statistics().transitions == {(CLOSED, OPEN): 1, (OPEN, HALF_OPEN): 1, (HALF_OPEN, CLOSED): 1}


@pytest.mark.anyio
async def test_who_comes_late_hears_how_it_came_to_be(
    virtual: Callable[..., VirtualBreaker], events: list[Event]
) -> None:
    """CB4: a circuit that is met open, or half-open, came there by the changes that there are."""
    one = virtual(1, 60.0, name="api")
    await fails(one)
    events.clear()
    other = virtual(1, 60.0, name="api")
    with pytest.raises(CircuitOpenError):
        await other.call(work)
    assert changes(events) == [("closed", "open")]
    one.pass_time(60.0)
    probe = await one.admit_waiting()
    events.clear()
    third = virtual(1, 60.0, name="api")
    with pytest.raises(CircuitOpenError):
        await third.call(work)
    assert changes(events) == [("closed", "open"), ("open", "half_open")]
    probe.cancelled()
    # A failover to a server that knows nothing.
    await quiet(one.store)
    one.time.client.delete(*one._keys)
    one.pass_time(1.0)
    events.clear()
    assert await third.call(work) == "done"
    assert changes(events) == [("half_open", "closed")]


@pytest.mark.anyio
async def test_answers_that_overtake_one_another_are_sorted_out(virtual: Callable[..., VirtualBreaker]) -> None:
    """CB4: what is known already is not unlearnt by an answer of before."""
    breaker = virtual(1, 60.0, name="api")
    early = await breaker.store.ask(breaker._request(1))
    await fails(breaker)
    assert breaker.state is OPEN
    breaker._hear(early)
    assert breaker.state is OPEN
    assert breaker.statistics().transitions == {(CLOSED, OPEN): 1}


@pytest.mark.anyio
async def test_it_is_isolated_by_hand_for_everybody(virtual: Callable[..., VirtualBreaker]) -> None:
    """Every isolation has to be lifted, in whatever process, and once."""
    one, other = (virtual(3, 60.0, name="api") for _ in range(2))
    first = await one.isolate()
    async with await other.isolate():
        assert (other.state, other.retry_after()) == (ISOLATED, math.inf)
        with pytest.raises(CircuitOpenError) as caught:
            await one.call(work)
        assert caught.value.retry_after is None
        await first.lift()
        await first.lift()
        assert one.state is ISOLATED
    assert await one.call(work) == "done"
    assert one.state is CLOSED


@pytest.mark.anyio
async def test_it_is_reset_by_hand_for_everybody(virtual: Callable[..., VirtualBreaker]) -> None:
    """CB3: what is under way does not count any more."""
    one, other = (virtual(1, 60.0, name="api") for _ in range(2))
    under_way = await one.admit_waiting()
    await fails(one)
    await other.reset()
    assert await one.call(work) == "done"
    under_way.failure()
    await quiet(one.store)
    assert (one.state, one.failure_count, one.statistics().late) == (CLOSED, 0, 1)


@pytest.mark.anyio
async def test_by_hand_nothing_is_done_without_the_server() -> None:
    """Whoever isolates or resets a circuit has to know whether it was."""
    async with RedisStore("redis://127.0.0.1:1", clock=ManualClock()) as store:
        breaker = RedisCircuitBreaker(store, name="api")
        for act in (breaker.reset, breaker.isolate):
            with pytest.raises(StoreError):
                await act()
        assert breaker.state is CLOSED


@pytest.mark.anyio
async def test_an_isolation_that_could_not_be_lifted_is_lifted_later(
    server: UnreliableServer, events: list[Event]
) -> None:
    """An isolation outlives a server that does not answer when it is lifted."""
    clock = ManualClock()
    async with RedisStore(server.url, timeout=30.0, clock=clock) as store:
        breaker = RedisCircuitBreaker(store, name="api")
        isolation = await breaker.isolate()
        server.pause()
        async with Crew() as crew:
            job = crew.start(isolation.lift)
            await settle()
            clock.advance(30.0)
            await until(lambda: job.ended)
            assert isinstance(job.error, StoreError)
        server.go_on()
        assert breaker.state is ISOLATED


@pytest.mark.anyio
@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
async def test_a_probe_that_was_admitted_for_nobody_gives_its_place_back(
    *, native: bool, server: UnreliableServer
) -> None:
    """CB2: whoever is cancelled while it asks leaves no lease behind."""
    clock = ManualClock()
    async with RedisStore(server.url, timeout=30.0, clock=clock) as store:
        breaker = RedisCircuitBreaker(store, 1, 0.05, probe_timeout=1_000.0, name="api")
        await fails(breaker)
        await anyio.to_thread.run_sync(until_due, server.url)
        server.pause()
        async with Crew() as crew:
            job = crew.start(partial(breaker.call, work))
            await settle()
            await until(store._link._queue.empty)
            job.cancel(native=native)
            await until(lambda: job.ended)
            assert job.cancelled
            told = store.breaker.statistics().succeeded
            server.go_on()
            await until(lambda: store.breaker.statistics().succeeded > told)
        assert await breaker.call(work) == "done"


def until_due(url: str) -> None:
    """Wait in real time until the server's circuit is half-open."""
    with RedisStore(url, timeout=30.0) as store:
        look = RedisCircuitBreaker(store, 1, 0.05, probe_timeout=1_000.0, name="api")
        while look.state is not HALF_OPEN:
            look._hear(store.ask_blocking(look_request(look)))


def look_request(breaker: RedisCircuitBreaker) -> Request:
    """Return a request that only looks: it gives back a probe that there is not."""
    return Request(breaker.script, breaker._keys, ("release", breaker._json, 0, 0))


@pytest.mark.anyio
async def test_outcomes_that_cannot_be_told_are_counted(server: UnreliableServer, events: list[Event]) -> None:
    """RL12: an outcome that the server never heard of is lost, and known to be."""
    async with RedisStore(server.url, timeout=30.0, clock=ManualClock()) as store:
        breaker = RedisCircuitBreaker(store, 1, name="api")
        permits = [await breaker.admit_waiting() for _ in range(2)]
        server.kill()
        permits[0].failure()
        await until(lambda: breaker.statistics().lost == 1)
        permits[1].success()
        statistics = breaker.statistics()
        assert (statistics.lost, statistics.failed, statistics.succeeded) == (2, 0, 0)
        assert [event.guard for event in events if isinstance(event, Unshared)] == ["api"]


@pytest.mark.anyio
async def test_the_breaker_that_takes_over_is_of_the_same_terms() -> None:
    """RL12: it judges, trips, keeps leases and tells of changes as the shared one does."""
    clock = ManualClock()
    heard: list[tuple[object, CircuitState, CircuitState]] = []
    async with RedisStore("redis://127.0.0.1:1", clock=clock) as store:
        breaker = RedisCircuitBreaker(
            store,
            1,
            60.0,
            name="api",
            is_failure=lambda error: isinstance(error, ConnectionError),
            is_failure_result=lambda result: result == "bad",
            on_state_change=lambda *change: heard.append(change),
        )

        async def wrong() -> None:
            raise ZeroDivisionError

        async def bad() -> str:
            return "bad"

        with pytest.raises(ZeroDivisionError):
            await breaker.call(wrong)
        assert await breaker.call(bad) == "bad"
        with pytest.raises(CircuitOpenError):
            await breaker.call(work)
        clock.advance(60.0)
        permit = await breaker.admit_waiting()
        breaker.renew(permit)
        permit.success()
        assert [change[1:] for change in heard] == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]
        assert all(change[0] is breaker for change in heard)
        assert breaker.statistics().unshared == 4


@pytest.mark.anyio
async def test_it_is_a_layer_of_every_kind(store: RedisStore) -> None:
    """It decorates, stands in a Policy and in an `async with`; a rejection further inside says nothing."""
    breaker = RedisCircuitBreaker(store, 1, name="api")

    async def refused() -> None:
        raise RateLimitedError("inner", 1.0)

    assert await breaker(work)() == "done"
    assert await Policy(Retry(2), breaker).call(work) == "done"
    async with breaker as permit:
        assert permit.guard is breaker
    with pytest.raises(RateLimitedError):
        await breaker.call(refused)
    await quiet(store)
    statistics = breaker.statistics()
    assert (statistics.admitted, statistics.succeeded, statistics.ignored) == (4, 3, 1)
    assert breaker.state is CLOSED


@pytest.mark.anyio
async def test_it_says_what_it_is(store: RedisStore) -> None:
    """A description names what differs from the defaults."""
    trip = FailureRate(0.5, CountWindow(20))
    breaker = RedisCircuitBreaker(store, name="api", trip=trip, recovery_timeout=5.0, on_store_error="admit")
    described = breaker.describe()
    assert described.kind is LayerKind.CIRCUIT_BREAKER
    assert dict(described.settings) == {
        "store": store, "trip": (trip,), "recovery_timeout": 5.0, "on_store_error": "admit",
    }  # fmt: skip
    assert repr(breaker) == f"<RedisCircuitBreaker 'api' on {store!r}, closed>"


def test_bad_arguments_are_refused() -> None:
    """What the local breaker refuses, this one does, and a missing name."""
    with RedisStore("redis://127.0.0.1:1") as store:
        for name, value in {
            "failure_threshold": 0, "recovery_timeout": -1.0, "half_open_max_calls": 1.5, "trip": 3, "name": "",
            "is_failure": 3, "on_state_change": 3, "random": 3, "on_store_error": "ignore",
        }.items():  # fmt: skip
            assert_refuses(name, value, partial(RedisCircuitBreaker, store, name="api"))
    assert_refuses("store", None, partial(RedisCircuitBreaker, name="api"))
