"""Tokens that are taken in advance: what they save, how far they may lead astray, and that they go back."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.redis import RedisRateLimiter, RedisStore
from resilience.redis.batching import Stash
from resilience.redis.terms import Terms
from resilience.testing import ManualClock
from tests.resilience.redis.guards import passes, passes_plainly, quiet
from tests.resilience.redis.virtual import HUNT, LAW, ServerTime, mutant
from tests.resilience.support import Crew, assert_caught, assert_refuses, settle, until, until_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from hypothesis import settings

    from resilience.redis.link import Script
    from tests.resilience.redis.unreliable import Client, UnreliableServer

pytestmark = pytest.mark.redis

#: A token in a quarter of an hour: none comes while a test runs.
SLOW = 0.001
BATCH, PROCESSES = 4, 3
RATE, CAPACITY = 10, 6
_fresh = count()


class Process:
    """What one process does: it spends what it has, or asks, and hears the answer later."""

    def __init__(self, time: ServerTime, script: Script, key: str, make: type[Stash]) -> None:
        self.terms = Terms.of(RATE, CAPACITY)
        # Half a second, in microseconds: this process's own clock shows the server's time.
        self.stash = make(self.terms, BATCH, 500_000)
        self._time = time
        self._ask = partial(time.run, script, key)
        self._answers: list[tuple[int, list[int]]] = []

    def call(self) -> bool:
        """Call once: by a token that is there, or by asking for one, and for more; tell whether it is admitted."""
        terms, now = self.terms, self._time.now
        if self.stash.spend(terms, terms.token, now):
            return True
        more = self.stash.want(now)
        if more:
            self._put_back(self.stash.empty())
        told = (terms.scale, terms.burst, terms.token)
        answer = self._ask("take", *told, 0, more * terms.token, terms.token)
        self._answers.append((more, answer))
        return answer[0] == 1

    def call_and_hear(self) -> bool:
        """Call, and hear all answers at once."""
        admitted = self.call()
        while self._answers:
            self.hear()
        return admitted

    def hear(self) -> None:
        """Hear the first answer that is on its way."""
        if self._answers:
            more, answer = self._answers.pop(0)
            if more:
                self.stash.fill(self.terms, answer[5], self._time.now)

    def look(self) -> None:
        """Put back what was not spent in its time."""
        if self.stash.due(self._time.now):
            self._put_back(self.stash.empty())

    def _put_back(self, rest: tuple[Terms, int] | None) -> None:
        if rest is not None:
            self._ask("put_back", self.terms.scale, self.terms.burst, rest[1])

    @property
    def held(self) -> Fraction:
        """The tokens that are here, or on their way."""
        on_the_way = sum(answer[5] for more, answer in self._answers if more)
        return Fraction(self.stash.units + on_the_way, self.terms.token)


def law_of_the_error(time: ServerTime, script: Script, make: type[Stash] = Stash, effort: settings = LAW) -> None:
    """RL1: no interval has more than the bucket allows and what was held when it began, and that is bounded."""

    @effort
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 0, 10_000, 100_000, 600_000]),
                st.sampled_from([0, 0, 0, *range(1, PROCESSES)]),
                st.sampled_from(["call_and_hear", "call_and_hear", "call_and_hear", "call", "hear", "look"]),
            ),
            max_size=60,
        )
    )
    def law(steps: list[tuple[int, int, str]]) -> None:
        key = f"{time._key}:{next(_fresh)}"
        processes = [Process(time, script, key, make) for _ in range(PROCESSES)]
        admitted: list[tuple[int, Fraction]] = []
        for step, which, what in steps:
            time.advance(step)
            held = [process.held for process in processes]
            assert max(held) <= BATCH - 1
            if getattr(processes[which], what)():
                admitted.append((time.now, sum(held, Fraction(0))))
        for index, (start, held_then) in enumerate(admitted):
            for further, (at, _) in enumerate(admitted[index:], 1):
                assert further <= CAPACITY + held_then + Fraction(RATE * (at - start), 1_000_000)

    law()


@pytest.fixture
def time(client: Client, prefix: str) -> ServerTime:
    """Give the virtual time of the server."""
    return ServerTime(client, prefix)


def test_the_error_is_bounded(time: ServerTime) -> None:
    """RL1: n processes admit at most n * (batch - 1) more than one bucket, in any interval."""
    law_of_the_error(time, time.virtual(RedisRateLimiter.script))


class Endless(Stash):
    """A mutant that gives and has."""

    __slots__ = ()

    def spend(self, terms: Terms, units: int, now_ns: int) -> bool:
        """Give without taking away."""
        had = self.units
        spent = super().spend(terms, units, now_ns)
        self.units = had
        return spent


class Greedy(Stash):
    """A mutant that asks again while an answer is on its way."""

    __slots__ = ()

    def want(self, now_ns: int) -> int:
        """Forget what it has asked for."""
        self._asking = False
        return super().want(now_ns)


@pytest.mark.parametrize("make", [Endless, Greedy])
def test_a_faulty_stash_is_seen(time: ServerTime, make: type[Stash]) -> None:
    """RL1: tokens that are spent twice, or asked for twice, break the bound."""
    assert_caught(partial(law_of_the_error, time, time.virtual(RedisRateLimiter.script), make, HUNT))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  missing = missing + more\n", ""),
        ("math.max(0, burst - missing)", "burst"),
    ],
    ids=["for nothing", "more than there is"],
)
def test_a_faulty_script_is_seen(time: ServerTime, old: str, new: str) -> None:
    """RL1: what is taken in advance is taken from the bucket, and no more goes back than was taken."""
    script = mutant(time.virtual(RedisRateLimiter.script), old, new)
    assert_caught(partial(law_of_the_error, time, script, Stash, HUNT))


def law_of_what_goes_back(time: ServerTime, script: Script) -> None:
    """RL8: just what is put back is there again, and never more than the bucket holds."""
    terms = Terms.of(RATE, CAPACITY)
    run = partial(time.run, script, f"{time._key}:{next(_fresh)}")
    told = (terms.scale, terms.burst)
    take = partial(run, "take", *told, terms.token, 0, 0, terms.token)
    assert run("take", *told, terms.token, 0, 2 * terms.token, terms.token)[5] == 2 * terms.token
    assert [take()[0] for _ in range(4)] == [1, 1, 1, 0]
    assert run("put_back", *told, 2 * terms.token) == [1]
    assert [take()[0] for _ in range(3)] == [1, 1, 0]
    time.advance(550_000)
    run("put_back", *told, 2 * terms.token)
    assert [take()[0] for _ in range(7)] == [1] * 6 + [0]


def test_just_what_was_not_spent_goes_back(time: ServerTime) -> None:
    """RL8: tokens that were taken in advance and put back are neither lost nor multiplied."""
    script = time.virtual(RedisRateLimiter.script)
    law_of_what_goes_back(time, script)
    put_back = "math.max(0, missing - units)\n    keep()\n  end"
    for fault in ("0\n    keep()\n  end", "math.max(0, missing - 2 * units)\n    keep()\n  end", "missing\n  end"):
        assert_caught(partial(law_of_what_goes_back, time, mutant(script, put_back, fault)))


@pytest.fixture
async def store(redis_url: str, prefix: str) -> AsyncIterator[RedisStore]:
    """Give a store for this test, whose own clock stands still."""
    async with RedisStore(redis_url, prefix=prefix, timeout=30.0, clock=ManualClock()) as found:
        yield found


def exchanges(store: RedisStore) -> int:
    """Count what was asked and told."""
    return store.breaker.statistics().admitted


@pytest.mark.anyio
async def test_a_busy_process_asks_ever_more_rarely(store: RedisStore) -> None:
    """Each batch is twice the one before, up to the largest; all of it is of one bucket."""
    limiter = RedisRateLimiter(store, SLOW, 64, name="api", batch=16)
    # Calls for one answer each: 1, 2, 4, 8, 16 and 16; then 16 more, and the last one of the bucket.
    for calls, answers in ((1, 1), (2, 2), (4, 3), (8, 4), (16, 5), (16, 6), (16, 7), (1, 8)):
        assert [await passes(limiter) for _ in range(calls)] == [True] * calls
        assert exchanges(store) == answers
    assert limiter.statistics().admitted == 64
    assert not await limiter.acquire()
    assert exchanges(store) == 9


@pytest.mark.anyio
async def test_a_process_that_is_not_busy_takes_what_it_needs(store: RedisStore) -> None:
    """One call in a while leaves everything else to others."""
    clock = store.clock
    assert isinstance(clock, ManualClock)
    limiter, other = (RedisRateLimiter(store, SLOW, 10, name="api", batch=5, batch_for=1.0) for _ in range(2))
    for _ in range(4):
        assert await limiter.acquire()
        clock.advance(1.0)
    assert await other.acquire(6)


@pytest.mark.anyio
async def test_what_is_not_spent_in_its_time_goes_back(store: RedisStore) -> None:
    """The rest of a batch is somebody else's as soon as it is old, and is not spent here any more."""
    clock = store.clock
    assert isinstance(clock, ManualClock)
    limiter, other = (RedisRateLimiter(store, SLOW, 10, name="api", batch=8, batch_for=0.02) for _ in range(2))
    for _ in range(4):
        assert await limiter.acquire()
    # Three in advance, of which two are left.
    assert not await other.acquire(5)
    clock.advance(0.02)
    told = exchanges(store)
    await until(lambda: exchanges(store) > told)
    await quiet(store)
    assert await other.acquire(6)
    assert not await limiter.acquire()


@pytest.mark.anyio
async def test_a_store_that_is_closed_has_put_everything_back(redis_url: str, prefix: str, client: Client) -> None:
    """A process that ends leaves to the others what it has not spent."""
    async with RedisStore(redis_url, prefix=prefix, timeout=30.0) as store:
        limiter = RedisRateLimiter(store, SLOW, 10, name="api", batch=8, batch_for=1_000.0)
        for _ in range(4):
            assert await limiter.acquire()
    async with RedisStore(redis_url, prefix=prefix, timeout=30.0) as store:
        assert await RedisRateLimiter(store, SLOW, 10, name="api").acquire(6)


@pytest.mark.anyio
async def test_tokens_of_other_terms_are_not_spent(store: RedisStore) -> None:
    """After an update what was taken in advance goes back, and what is spent is of the new terms."""
    limiter = RedisRateLimiter(store, SLOW, 10, name="api", batch=8, batch_for=1_000.0)
    for _ in range(4):
        assert await limiter.acquire()
    limiter.update(capacity=11)
    told = exchanges(store)
    assert await limiter.acquire()
    await quiet(store)
    # They were put back before more was asked for.
    assert exchanges(store) - told == 2
    assert limiter._stash.terms is limiter._terms


@pytest.mark.anyio
async def test_a_cost_may_be_more_than_what_is_there(store: RedisStore) -> None:
    """A call takes all its tokens from one place; what was there goes back before it asks."""
    limiter = RedisRateLimiter(store, SLOW, 10, name="api", batch=8, batch_for=1_000.0)
    for _ in range(4):
        assert await limiter.acquire()
    assert await limiter.acquire(5)
    await quiet(store)
    assert await limiter.acquire(0.5)
    assert await limiter.acquire(0.5)
    assert not await limiter.acquire(0.1)


@pytest.mark.anyio
@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
async def test_a_batch_for_a_call_that_was_cancelled_is_kept(*, native: bool, server: UnreliableServer) -> None:
    """RL7: the call's own tokens come back, and the others are spent by those who come next."""
    clock = ManualClock()
    async with RedisStore(server.url, timeout=30.0, clock=clock) as store:
        limiter = RedisRateLimiter(store, SLOW, 10, name="api", batch=8, batch_for=1_000.0)
        for _ in range(3):
            assert await limiter.acquire()
        server.pause()
        async with Crew() as crew:
            job = crew.start(limiter.acquire)
            await settle()
            await until(store._link._queue.empty)
            job.cancel(native=native)
            await until(lambda: job.ended)
            # While an answer is on its way nobody asks for more.
            assert limiter._stash.want(clock.monotonic_ns()) == 0
            server.go_on()
            await until(lambda: limiter._stash.units > 0)
        await quiet(store)
        # Three were had before, and three lie here; the cancelled call's own came back.
        told = exchanges(store)
        assert [await limiter.acquire() for _ in range(3)] == [True] * 3
        assert exchanges(store) == told
        assert await limiter.acquire(4)


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_in_vain_lets_others_ask(server: UnreliableServer) -> None:
    """No answer will come for it any more: that it had asked for more is forgotten."""
    clock = ManualClock()
    async with RedisStore(server.url, timeout=30.0, clock=clock) as store:
        limiter = RedisRateLimiter(store, SLOW, 10, name="api", batch=8, batch_for=1_000.0)
        for _ in range(3):
            assert await limiter.acquire()
        server.pause()
        async with Crew() as crew:
            job = crew.start(limiter.acquire)
            await settle()
            await until(store._link._queue.empty)
            job.cancel()
            await until(lambda: job.ended)
            server.kill()
            await until(lambda: not limiter._stash._asking)


@pytest.mark.anyio
async def test_what_may_still_be_spent_stays(store: RedisStore) -> None:
    """A reminder that comes too early, as the batch is a later one, leaves it, and comes again."""
    limiter = RedisRateLimiter(store, SLOW, 10, name="api", batch=8, batch_for=1_000.0)
    for _ in range(4):
        assert await limiter.acquire()
    held = limiter._stash.units
    limiter._put_back_what_is_due(False)  # noqa: FBT003 - as the store calls it
    assert (limiter._stash.units, limiter._reminded) == (held, True)


@pytest.mark.anyio
async def test_without_the_server_what_is_there_is_spent(server: UnreliableServer) -> None:
    """RL12: tokens that were had are had; then it is as was declared, and it asks for more again once it is back."""
    clock = ManualClock()
    async with RedisStore(server.url, timeout=30.0, clock=clock) as store:
        limiter = RedisRateLimiter(store, SLOW, 9, name="api", batch=8, batch_for=1_000.0, on_store_error="reject")
        assert [await limiter.acquire() for _ in range(5)] == [True] * 5
        server.kill()
        assert [await limiter.acquire() for _ in range(4)] == [True, True, False, False]
        server.start()
        clock.advance(store.breaker.retry_after())
        assert [await limiter.acquire() for _ in range(9)] == [True] * 9
        await quiet(store)
        # One for its own and seven in advance, and then the last.
        assert not await limiter.acquire()


def test_plain_code_spends_them_too(redis_url: str, prefix: str) -> None:
    """Threads take from the same stash."""
    with RedisStore(redis_url, prefix=prefix, timeout=30.0) as store:
        limiter = RedisRateLimiter(store, SLOW, 8, name="api", batch=8, batch_for=1_000.0)
        assert [passes_plainly(limiter) for _ in range(7)] == [True] * 7
        assert exchanges(store) == 3
        until_blocking(lambda: store.breaker.statistics().succeeded == 3)


def test_bad_batches_are_refused() -> None:
    """A batch is a number of tokens that the bucket can hold."""
    with RedisStore("redis://127.0.0.1:1") as store:
        make = partial(RedisRateLimiter, store, 1.0, 5, name="api")
        for value in (0, 1.5, True, 6):
            assert_refuses("batch", value, make)
        for value in (0, -1.0, float("nan")):
            assert_refuses("batch_for", value, make)
