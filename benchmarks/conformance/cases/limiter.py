"""Rate limiters: never more than allowed, never less than promised, and cancellation that costs nothing."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING

from benchmarks.conformance import virtual
from benchmarks.conformance.case import OWN_READING, Failed, case, expect, outcome, prepare, settle
from benchmarks.conformance.library import not_offered
from benchmarks.conformance.plain import pass_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.conformance.library import Library, Limiter, PlainLimiter

__all__: list[str] = []

AN_HOUR = 3600.0
PATIENCE = 1e-3
"""Seconds by which a timer is late."""


async def burst(limiter: Limiter, attempts: int) -> int:
    """Try so often without time passing, and return how many were admitted."""
    return [await limiter.try_acquire(1) for _ in range(attempts)].count(True)


def most_in(times: list[float], *, within: float) -> int:
    """Return the most admissions in any closed interval of that length."""
    return max(sum(1 for time in times if start <= time <= start + within) for start in times)


@case(
    "limiter",
    "Of many tasks that try at the same time, as many are admitted as are allowed",
    "vutran1710/PyrateLimiter#191",
)
async def tasks_over_admit(library: Library) -> None:
    """Thirty tasks, ten permits."""
    limiter = library.limiter(calls=10, period=60.0)
    answers = await asyncio.gather(*(limiter.try_acquire(1) for _ in range(30)))

    expect(answers.count(True) == 10, f"{answers.count(True)} of 10 admitted")


@case(
    "limiter",
    "Of many threads that try at the same time, no more are admitted than are allowed, and none gets an error",
    OWN_READING,
)
def threads_over_admit(library: Library) -> None:
    """Eight threads that are switched as often as the interpreter can; a race may be missed, so a pass is no proof."""
    sys.setswitchinterval(1e-6)
    for _ in range(20):
        try_acquire = library.plain_limiter(calls=100, period=60.0)
        start = threading.Barrier(8)
        admitted: list[bool] = []
        errors: list[Exception] = []

        def caller(
            try_acquire: PlainLimiter = try_acquire,
            start: threading.Barrier = start,
            admitted: list[bool] = admitted,
            errors: list[Exception] = errors,
        ) -> None:
            start.wait()
            for _ in range(1_000):
                try:
                    admitted.append(try_acquire())
                except Exception as error:  # noqa: BLE001 - whatever it is, the caller would get it
                    errors.append(error)

        threads = [threading.Thread(target=caller) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        expect(admitted.count(True) <= 100, f"{admitted.count(True)} of 100 admitted")
        expect(not errors, f"a caller gets {errors[:1]!r}")


@case(
    "limiter",
    "There is no instant around which twice as many are admitted",
    "alisaifee/limits#120",
    "Benson-Kim/genesis-sacco-platform#14",
)
async def window_edge(library: Library) -> None:
    """Wherever a window may begin, a full burst is followed by what has accrued since, and not by another burst."""
    limiter = library.limiter(calls=10, period=60.0)
    await asyncio.sleep(59.0 - virtual.now() % 60.0)
    first = await burst(limiter, 30)
    await asyncio.sleep(2.0)
    second = await burst(limiter, 30)

    expect(first + second <= 11, f"{first + second} admitted within 2 s, where 10 are allowed in 60 s")


@case(
    "limiter",
    "After partial use and a long rest there is one full burst, no more and no less",
    "ADSC-Cloud/Waterwheel#37",
)
async def refill_overwrites(library: Library) -> None:
    """Five of ten are used; then nobody comes for a long time."""
    limiter = library.limiter(calls=10, period=60.0)
    prepare(await burst(limiter, 5) == 5, "the first five are not admitted")
    await asyncio.sleep(600.0)
    admitted = await burst(limiter, 30)

    expect(admitted == 10, f"a burst of {admitted}, where 10 are allowed")


@case(
    "limiter",
    "In the long run as many are admitted as the rate says, also when somebody asks all the time",
    "kent8192/reinhardt-web#2246",
    "apache/polaris#3433",
)
async def polling_changes_the_rate(library: Library) -> None:
    """For ten periods, every 50 ms; a fifth too few and one burst too many are let pass."""
    limiter = library.limiter(calls=7, period=60.0)
    await burst(limiter, 30)
    admitted = 0
    for _ in range(12_000):
        await asyncio.sleep(0.05)
        admitted += await limiter.try_acquire(1)

    expect(admitted >= 56, f"{admitted} admitted, where 70 are due")
    expect(admitted <= 77, f"{admitted} admitted, where 70 are due")


@case(
    "limiter",
    "Who waits as long as the refusal says is admitted",
    "vutran1710/PyrateLimiter#185",
    "sandbaseai/sandbase-harness#280",
)
async def told_wait_is_too_short(library: Library) -> None:
    """For rates that no binary fraction expresses exactly, and with a millisecond added, as any timer would."""
    for calls in (3, 7, 11, 13):
        limiter = library.limiter(calls=calls, period=60.0)
        if limiter.retry_after is None:
            not_offered("does not say how long to wait")
        await burst(limiter, 2 * calls)
        for _ in range(20):
            told = await limiter.retry_after()
            await asyncio.sleep(told + PATIENCE)

            expect(await limiter.try_acquire(1), f"refused after the {told:.6f} s that it asked for")


@case(
    "limiter",
    "A wall clock that is set back does not lock callers out",
    "xapi-project/sm#578",
    "openSUSE/xinetd#48",
)
async def limiter_s_wall_clock_set_back(library: Library) -> None:
    """By an hour, when the limit is used up."""
    limiter = library.limiter(calls=10, period=60.0)
    await burst(limiter, 30)
    virtual.jump_wall(-AN_HOUR)
    await asyncio.sleep(61.0)

    expect(await burst(limiter, 10) >= 10, "not admitted once the period is over")


@case(
    "limiter",
    "A wall clock that is set forward admits nobody early",
    "axiomhq/axiom-py#80",
    OWN_READING,
)
async def limiter_s_wall_clock_set_forward(library: Library) -> None:
    """By an hour, when the limit is used up."""
    limiter = library.limiter(calls=10, period=60.0)
    await burst(limiter, 30)
    virtual.jump_wall(AN_HOUR)
    admitted = await burst(limiter, 10)

    expect(admitted == 0, f"{admitted} admitted at once")


@case(
    "limiter",
    "A limiter can be made at import time, and serves one event loop after another",
    "mjpieters/aiolimiter#292",
    "agronholm/anyio#651",
)
def limiter_is_bound_to_a_loop(library: Library) -> None:
    """It is made where no loop is running."""
    try:
        limiter = library.limiter(calls=10, period=60.0)
    except RuntimeError as error:
        raise Failed(f"cannot be made outside a loop: {error}") from error
    for loop in ("first", "second"):
        expect(virtual.run(burst(limiter, 5)) == 5, f"refused in the {loop} loop")


@case(
    "limiter",
    "However many keys there are, none gets its quota anew before the period is over",
    "PrefectHQ/fastmcp#4057",
    "ELares/IronTraffic#217",
)
async def eviction_resets_the_quota(library: Library) -> None:
    """More keys than are kept come by while one of them has used up its limit."""
    try_acquire = library.keyed_limiter(calls=3, period=60.0, keys=4)
    for _ in range(6):
        await outcome(try_acquire("greedy"))
    prepare(not await try_acquire("greedy"), "the limit is not reached")
    for number in range(20):
        await outcome(try_acquire(f"other {number}"))

    expect(not await try_acquire("greedy"), "the key that has used up its limit is admitted again")


async def used_up(library: Library, *, calls: int, period: float = 1.0) -> Callable[[int], Awaitable[object]]:
    """Return a waiting limiter whose permits are used up."""
    acquire = library.waiting_limiter(calls=calls, period=period)
    for _ in range(calls):
        await acquire(1)
    return acquire


@case(
    "limiter",
    "A waiter that is cancelled ends at once, as cancelled, and costs those behind it nothing",
    "mvanhorn/cli-printing-press#4441",
    "google/duet#68",
)
async def cancelled_waiter_keeps_its_turn(library: Library) -> None:
    """The next to come is admitted when it would have been admitted if nobody had waited before."""

    async def wait_after(seconds: float, *, company: bool) -> float:
        acquire = await used_up(library, calls=1, period=60.0)
        waiter = asyncio.ensure_future(acquire(1)) if company else None
        await asyncio.sleep(seconds)
        if waiter is not None:
            prepare(not waiter.done(), "it does not wait")
            waiter.cancel()
            await asyncio.wait([waiter], timeout=0.1)
            expect(waiter.cancelled(), "the waiter goes on after it has been cancelled")
        begun = virtual.now()
        await acquire(1)
        return virtual.now() - begun

    alone = await wait_after(10, company=False)
    after_company = await wait_after(10, company=True)

    expect(after_company <= alone + 1, f"it waits {after_company:.0f} s, where {alone:.0f} s are usual")


@case(
    "limiter",
    "Waiters that are cancelled let nobody in early",
    "mvanhorn/cli-printing-press#4441",
    OWN_READING,
)
async def cancelled_waiters_over_admit(library: Library) -> None:
    """Some of a queue are cancelled, others come; no two are admitted together where one a second is allowed."""
    acquire = await used_up(library, calls=1)
    admitted: list[float] = [virtual.now()]

    async def wait() -> None:
        await acquire(1)
        admitted.append(virtual.now())

    queue = [asyncio.create_task(wait()) for _ in range(8)]
    await asyncio.sleep(0.5)
    for waiter in queue[::2]:
        waiter.cancel()
    queue += [asyncio.create_task(wait()) for _ in range(4)]
    await asyncio.sleep(30)

    most = most_in(admitted, within=0.9)
    expect(most <= 1, f"{most} admitted within 0.9 s, where one a second is allowed")
    expect(len(admitted) == 9, f"{len(admitted) - 1} of the 8 who stayed were admitted in 30 s")


@case(
    "limiter",
    "A queue is served at the rate: never faster, and no turn is lost",
    "vutran1710/PyrateLimiter#191",
    "mjpieters/aiolimiter#110",
)
async def queue_is_served_wrongly(library: Library) -> None:
    """Twenty wait for two a second."""
    acquire = await used_up(library, calls=2)
    begun = virtual.now()
    admitted: list[float] = []

    async def wait() -> None:
        await acquire(1)
        admitted.append(virtual.now())

    queue = [asyncio.create_task(wait()) for _ in range(20)]
    await asyncio.wait(queue, timeout=60)
    prepare(admitted, "nobody is admitted")
    most = most_in(admitted, within=0.4)
    took = max(admitted) - begun

    expect(most <= 2, f"{most} admitted within 0.4 s, where two a second are allowed")
    expect(len(admitted) == 20, f"{len(admitted)} of 20 admitted in a minute")
    expect(8.9 <= took <= 11.0, f"20 were admitted in {took:.2f} s, where 10 s are due")


@case(
    "limiter",
    "Waiters are admitted in the order in which they came",
    "python/cpython#90155",
    OWN_READING,
)
async def waiters_overtake(library: Library) -> None:
    """Five wait; each is admitted before the next."""
    acquire = await used_up(library, calls=1)
    order: list[int] = []

    async def wait(number: int) -> None:
        await acquire(1)
        order.append(number)

    queue = []
    for number in range(5):
        queue.append(asyncio.create_task(wait(number)))
        await asyncio.sleep(0.01)
    await asyncio.wait(queue, timeout=60)

    expect(order == [0, 1, 2, 3, 4], f"admitted in the order {order}")


@case(
    "limiter",
    "A large request is admitted in the end, however many small ones keep coming",
    "pacman82/throttle#4",
    "pelikan-io/rustcommon#129",
)
async def large_request_starves(library: Library) -> None:
    """It needs the whole capacity; small ones come faster than the rate."""
    acquire = await used_up(library, calls=10)
    large = asyncio.ensure_future(acquire(10))
    small: list[asyncio.Future[object]] = []
    for _ in range(200):
        await asyncio.sleep(0.05)
        small.append(asyncio.ensure_future(acquire(1)))
        if large.done():
            break
    finished = large.done()
    large.cancel()
    for waiter in small:
        waiter.cancel()
    await settle()

    expect(finished, "it is still waiting after 10 s, where 1 s is due")


@case(
    "limiter",
    "A request that is larger than the limit is refused, and does not wait for ever",
    OWN_READING,
)
async def impossible_request_waits(library: Library) -> None:
    """Eleven of ten."""
    acquire = library.waiting_limiter(calls=10, period=1.0)
    request = asyncio.ensure_future(outcome(acquire(11)))
    await asyncio.wait([request], timeout=600)

    expect(request.done(), "it is still waiting after ten minutes")


@case(
    "limiter",
    "A loop that ends while somebody waits leaves the limiter usable in the next",
    "mjpieters/aiolimiter#292",
    "mjpieters/aiolimiter#293",
)
def waiter_of_a_closed_loop_blocks(library: Library) -> None:
    """The first loop ends, and cancels its waiters, as asyncio.run does."""
    acquire: Callable[[int], Awaitable[object]] | None = None

    async def leave() -> None:
        nonlocal acquire
        acquire = await used_up(library, calls=1, period=60.0)
        waiters = [asyncio.ensure_future(acquire(1)) for _ in range(3)]
        await asyncio.sleep(1)
        prepare(not waiters[0].done(), "it does not wait")

    async def come() -> float:
        assert acquire is not None
        begun = virtual.now()
        await acquire(1)
        return virtual.now() - begun

    virtual.run(leave())
    pass_time(1)
    waited = virtual.run(come())

    # Those who count whole seconds may be late; one turn more would be a minute.
    expect(waited <= 90, f"admitted in the second loop after {waited:.0f} s, where 58 s are due")
