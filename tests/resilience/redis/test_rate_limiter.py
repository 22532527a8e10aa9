"""RedisRateLimiter as a layer, on a real server."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import pytest

from resilience import LayerKind, NotUntil, Policy, RateLimitedError, RejectedError, Retry
from resilience.redis import RedisRateLimiter, RedisStore, SharedStatistics
from resilience.redis.rate_limiter import _Take
from resilience.telemetry import Rejected
from resilience.testing import ManualClock
from tests.resilience.redis.virtual import ServerTime
from tests.resilience.support import (
    NOT_NEGATIVE,
    NOT_POSITIVE,
    Crew,
    assert_refuses,
    brief,
    in_thread,
    run,
    settle,
    until,
    until_blocking,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any

    from resilience.telemetry import Event
    from tests.resilience.redis.unreliable import Client
    from tests.resilience.support import Job

pytestmark = pytest.mark.redis

#: A token in a quarter of an hour: none comes while a test runs.
SLOW = 0.001


class VirtualLimiter(RedisRateLimiter):
    """A limiter whose server's time and own clock are both a test's."""

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
def virtual(store: RedisStore, client: Client, prefix: str) -> Callable[..., VirtualLimiter]:
    """Give what makes limiters in virtual time."""
    time = ServerTime(client, prefix)

    class Limiter(VirtualLimiter):
        script = time.virtual(RedisRateLimiter.script)

    Limiter.time = time
    return partial(Limiter, store)


async def work() -> str:
    """Return something."""
    return "done"


@pytest.mark.anyio
async def test_limiters_of_one_name_share_their_tokens(store: RedisStore) -> None:
    """RL1: whoever asks takes from the same bucket; another name is another bucket."""
    one, other = (RedisRateLimiter(store, SLOW, 3, name="api") for _ in range(2))
    assert [await limiter.acquire() for limiter in (one, other, one, other)] == [True, True, True, False]
    assert await RedisRateLimiter(store, SLOW, 3, name="another").acquire(3)


@pytest.mark.anyio
async def test_it_is_a_layer_of_every_kind(store: RedisStore) -> None:
    """It decorates, calls, stands in a Policy and in an `async with`, and refuses by RateLimitedError."""
    limiter = RedisRateLimiter(store, SLOW, 4, name="api")

    @limiter
    async def decorated() -> str:
        return "done"

    @limiter
    async def stream() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert await decorated() == "done"
    assert await limiter.call(work) == "done"
    assert [item async for item in stream()] == [1, 2]
    async with limiter as permit:
        assert permit.guard is limiter
    with pytest.raises(RateLimitedError) as caught:
        await Policy(Retry(1), limiter).call(work)
    assert caught.value.guard == "api"
    assert caught.value.retry_after == pytest.approx(1_000, abs=60)
    assert limiter.statistics() == SharedStatistics(admitted=4, rejected=1)


@pytest.mark.anyio
async def test_it_says_what_it_is(store: RedisStore) -> None:
    """A description names the terms and the store, and no password."""
    limiter = RedisRateLimiter(store, 5.0, 2, name="api", max_wait=1.5, on_store_error="reject")
    described = limiter.describe()
    assert (described.kind, described.name) == (LayerKind.RATE_LIMITER, "api")
    settings = {"store": store, "rate": 5.0, "capacity": 2, "max_wait": 1.5, "on_store_error": "reject"}
    assert described.settings == settings
    assert "RedisStore 127.0.0.1:" in str(described)
    assert ":@" not in repr(limiter)


@pytest.mark.anyio
async def test_a_refusal_is_told(store: RedisStore, events: list[Event]) -> None:
    """A refusal is an event, with the time after which it is worth asking again, and it counts."""
    limiter = RedisRateLimiter(store, SLOW, 1, name="api")
    assert [await limiter.acquire() for _ in range(2)] == [True, False]
    (event,) = events
    assert isinstance(event, Rejected)
    assert event.guard == "api"
    assert event.retry_after == pytest.approx(1_000, abs=60)


@pytest.mark.anyio
async def test_plain_properties_answer_from_what_was_heard_last(virtual: Callable[..., VirtualLimiter]) -> None:
    """They never ask: what another process took is not known before the next answer; what comes in meanwhile is."""
    limiter, other = (virtual(10, 5, name="api") for _ in range(2))
    assert (limiter.available, limiter.retry_after(5)) == (5.0, 0.0)
    assert await limiter.acquire(4)
    assert await other.acquire()
    assert (limiter.available, limiter.retry_after(2)) == (1.0, 0.1)
    assert (other.available, other.retry_after(2)) == (0.0, 0.2)
    limiter.pass_time(0.1)
    assert (limiter.available, other.available) == (2.0, 1.0)
    limiter.pass_time(10.0)
    assert limiter.available == 5.0


@pytest.mark.anyio
async def test_waiting_as_long_as_told_is_waiting_long_enough(virtual: Callable[..., VirtualLimiter]) -> None:
    """RL3: whoever waits for `retry_after` seconds is admitted."""
    limiter = virtual(3, 1, name="api")
    assert await limiter.acquire()
    for _ in range(10):
        with pytest.raises(RateLimitedError) as caught:
            await limiter.call(work)
        assert caught.value.retry_after is not None
        limiter.pass_time(caught.value.retry_after)
        assert await limiter.acquire()


async def law_of_turns(make: Callable[[], VirtualLimiter]) -> None:
    """RL5, RL10: turns come in the order in which they were asked for, in whatever process, each at its instant."""
    limiters = [make() for _ in range(2)]
    order: list[int] = []

    async def wait(number: int) -> None:
        assert await limiters[number % 2].acquire(max_wait=math.inf)
        order.append(number)

    assert await limiters[0].acquire()
    async with Crew() as crew:
        for number in range(4):
            job = crew.start(partial(wait, number))
            await until(partial(has_turn, job, limiters, number))
        assert not await limiters[0].acquire(max_wait=4.9)
        for number in range(4):
            assert order == list(range(number))
            limiters[0].pass_time(1.0)
            await settle()
        assert order == [0, 1, 2, 3]


def has_turn(job: Job, limiters: list[VirtualLimiter], number: int) -> bool:
    """Tell whether the waiter of that number has its turn, or needs none."""
    return job.ended or sum(limiter.statistics().waiting for limiter in limiters) == number + 1


@pytest.mark.anyio
async def test_whoever_waits_has_a_turn(virtual: Callable[..., VirtualLimiter]) -> None:
    """RL5, RL10: a wait is one round trip, and nobody who comes later is before."""
    await law_of_turns(partial(virtual, 1, 1, name="api"))


@pytest.mark.anyio
async def test_who_comes_at_once_instead_is_seen(
    virtual: Callable[..., VirtualLimiter], client: Client, prefix: str
) -> None:
    """A mutant whose waiters do not wait breaks the order of turns."""

    class Hasty(VirtualLimiter):
        script = virtual.func.script  # type: ignore[attr-defined]
        time = virtual.func.time  # type: ignore[attr-defined]

        async def _wait(self, turn: object) -> None:
            pass

    store = virtual.args[0]  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        await law_of_turns(partial(Hasty, store, 1, 1, name="hasty"))


@pytest.mark.anyio
@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
async def test_whoever_gives_up_waiting_leaves_the_turn_to_the_next(
    virtual: Callable[..., VirtualLimiter], *, native: bool
) -> None:
    """RL7: a turn that nobody has queued behind comes back; the cancellation goes on."""
    limiter = virtual(1, 1, name="api", max_wait=10)
    assert await limiter.acquire()
    async with Crew() as crew:
        job = crew.start(limiter.acquire)
        await until(lambda: limiter.statistics().waiting == 1)
        told = limiter.store.breaker.statistics().succeeded
        job.cancel(native=native)
        await until(lambda: job.ended)
        assert job.cancelled
        await until(lambda: limiter.store.breaker.statistics().succeeded > told)
    assert limiter.statistics().waiting == 0
    assert not await limiter.acquire(max_wait=0.9)
    assert limiter.retry_after() == pytest.approx(1.0)
    assert limiter.statistics().admitted == 1


def test_a_thread_that_is_interrupted_leaves_its_turn_to_the_next(redis_url: str, prefix: str) -> None:
    """RL7: an interrupt while a thread waits goes on, and the turn comes back."""

    class Interrupted(ManualClock):
        def sleep_blocking(self, _: float, /) -> None:
            raise KeyboardInterrupt

    with RedisStore(redis_url, prefix=prefix, timeout=30.0, clock=Interrupted()) as store:
        limiter = RedisRateLimiter(store, SLOW, 1, name="api", max_wait=math.inf)
        with limiter:
            pass
        with pytest.raises(KeyboardInterrupt), limiter:
            pass
        until_blocking(lambda: store.breaker.statistics().succeeded == 3)
        with pytest.raises(KeyboardInterrupt), limiter:
            pass
        # The same turn again: it had not been left unused.
        assert limiter.retry_after() < 2_100
        assert limiter.statistics().admitted == 1


@pytest.mark.anyio
async def test_a_frame_that_is_dropped_leaves_its_turn_to_the_next(virtual: Callable[..., VirtualLimiter]) -> None:
    """RL7: a coroutine that is closed while it waits gives its turn back, too."""
    limiter = virtual(1, 1, name="api")
    assert await limiter.acquire()
    request = _Take(limiter, 1, None)
    turn = limiter._read(request, await limiter.store.ask(request))
    told = limiter.store.breaker.statistics().succeeded
    waiting = limiter._wait(turn)
    waiting.send(None)
    waiting.close()
    await until(lambda: limiter.store.breaker.statistics().succeeded > told)
    assert limiter.statistics().waiting == 0
    assert not await limiter.acquire(max_wait=0.9)
    assert limiter.retry_after() == pytest.approx(1.0)


@pytest.mark.anyio
async def test_a_call_that_an_inner_guard_refuses_gives_its_tokens_back(virtual: Callable[..., VirtualLimiter]) -> None:
    """PO5: what did not run costs nothing, as with the local limiter."""
    limiter, inner = virtual(1, 2, name="outer"), virtual(1, 1, name="inner")
    assert await inner.acquire()
    told = limiter.store.breaker.statistics().succeeded
    with pytest.raises(RejectedError):
        await Policy(limiter, inner).call(work)
    # Two answers, and what came back.
    await until(lambda: limiter.store.breaker.statistics().succeeded == told + 3)
    assert limiter.statistics().ignored == 1
    assert await limiter.acquire(2)


@pytest.mark.anyio
async def test_new_terms_hold_from_the_next_call_on(virtual: Callable[..., VirtualLimiter]) -> None:
    """`update` changes what this process asks for, and what takes over without the server."""
    limiter = virtual(1, 1, name="api")
    assert await limiter.acquire()
    limiter.update(rate=10.0, capacity=20)
    assert (limiter.rate, limiter.capacity) == (10.0, 20)
    assert (limiter._local.rate, limiter._local.capacity) == (10.0, 20)
    # The bucket will be full in a second, as before; by then ten tokens come.
    assert limiter.available == 10.0
    assert await limiter.acquire(10)
    assert not await limiter.acquire()
    for argument in ("rate", "capacity"):
        assert_refuses(argument, 0, limiter.update)


def test_plain_code_is_guarded_too(redis_url: str, prefix: str) -> None:
    """`with` and a plain function ask in the calling thread; a turn is waited for there."""
    with RedisStore(redis_url, prefix=prefix) as store:
        limiter = RedisRateLimiter(store, 1_000, 2, name="api", max_wait=5.0)

        @limiter
        def plain() -> str:
            return "done"

        assert [plain() for _ in range(5)] == ["done"] * 5
        with limiter:
            pass
        assert in_thread(plain) == "done"
        assert limiter.statistics().admitted == 7
        slow = RedisRateLimiter(store, SLOW, 1, name="slow")
        with slow:
            pass
        with pytest.raises(RateLimitedError), slow:
            pass


@pytest.mark.anyio
async def test_plain_code_in_an_event_loop_is_an_error(store: RedisStore) -> None:
    """Blocking an event loop for a round trip is nothing that happens unnoticed."""
    limiter = RedisRateLimiter(store, SLOW, 1, name="api")
    with pytest.raises(RuntimeError, match="async with"), limiter:
        pass
    assert limiter.admit() == NotUntil(None)
    assert await limiter.acquire()


def test_a_store_serves_any_number_of_event_loops(redis_url: str, prefix: str) -> None:
    """One store, one connection: loops of both kinds, one after the other and in threads, take from one bucket."""
    with RedisStore(redis_url, prefix=prefix) as store:
        limiter = RedisRateLimiter(store, SLOW, 4, name="api")

        async def take() -> bool:
            return await limiter.acquire()

        for backend in ("asyncio", "trio"):
            assert run(backend, take)
            assert in_thread(partial(run, backend, take))
        assert not run("asyncio", take)


@pytest.mark.anyio
async def test_a_cost_is_checked_before_anything_is_asked(store: RedisStore) -> None:
    """RL2: what can never be admitted is a ValueError, at once."""
    limiter = RedisRateLimiter(store, 1.0, 2, name="api")
    for cost in (0, -1, math.nan, True, 3):
        with pytest.raises(ValueError, match="cost must be "):
            await limiter.acquire(cost)
        with pytest.raises(ValueError, match="cost must be "):
            limiter.retry_after(cost)
    with pytest.raises(ValueError, match="max_wait must be "):
        await limiter.acquire(max_wait=-1.0)
    assert limiter.statistics() == SharedStatistics()


@pytest.mark.parametrize("value", NOT_POSITIVE, ids=brief)
@pytest.mark.parametrize("name", ["rate", "capacity"])
def test_bad_terms_are_refused(name: str, value: object) -> None:
    """An illegal configuration cannot exist."""
    good: dict[str, Any] = {"rate": 1.0, "capacity": 1}
    del good[name]
    with RedisStore("redis://127.0.0.1:1") as store:
        assert_refuses(name, value, partial(RedisRateLimiter, store, name="api"), **good)


@pytest.mark.parametrize("value", NOT_NEGATIVE, ids=brief)
def test_a_bad_wait_is_refused(value: object) -> None:
    """As long as it takes is a wait; less than none is not."""
    if value == math.inf:
        return
    with RedisStore("redis://127.0.0.1:1") as store:
        assert_refuses("max_wait", value, partial(RedisRateLimiter, store, 1.0, 1, name="api"))


def test_other_bad_arguments_are_refused() -> None:
    """A guard without a name would share with any other; a store is a RedisStore."""
    with RedisStore("redis://127.0.0.1:1") as store:
        assert_refuses("name", "", partial(RedisRateLimiter, store, 1.0, 1))
        assert_refuses("name", None, partial(RedisRateLimiter, store, 1.0, 1))
        assert_refuses("on_store_error", "ignore", partial(RedisRateLimiter, store, 1.0, 1, name="api"))
        assert_refuses("capacity", 1e18, partial(RedisRateLimiter, store, 0.01, name="api"))
    assert_refuses("store", "redis://localhost", partial(RedisRateLimiter, rate=1.0, capacity=1, name="api"))
