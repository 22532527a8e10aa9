"""Rate limiters that wait: a queue served in order and at the rate, and cancellation that costs nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.conformance import virtual
from benchmarks.conformance.case import OWN_READING, case, expect, outcome, prepare, settle
from benchmarks.conformance.plain import pass_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.conformance.library import Library

__all__: list[str] = []


def most_in(times: list[float], *, within: float) -> int:
    """Return the most admissions in any closed interval of that length."""
    return max(sum(1 for time in times if start <= time <= start + within) for start in times)


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
