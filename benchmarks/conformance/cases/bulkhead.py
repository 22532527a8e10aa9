"""Bulkheads: permits that come back, whatever happens to those who hold them or wait for them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

from benchmarks.conformance import virtual
from benchmarks.conformance.case import OWN_READING, Gate, Killed, Service, case, expect, outcome, prepare, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.conformance.library import Breaker, Library

__all__: list[str] = []


async def hold(bulkhead: Breaker) -> tuple[Gate, asyncio.Future[object]]:
    """Begin a call that holds a permit until its gate is opened."""
    gate, service = Gate(), Service()
    task = asyncio.ensure_future(bulkhead.call(service.function(gate=gate)))
    await settle()
    prepare(service.running == 1, "the call is not admitted")
    return gate, task


async def still_serves(bulkhead: Breaker) -> bool:
    """Tell whether a call comes through within a minute."""
    service = Service()
    call = asyncio.ensure_future(outcome(bulkhead.call(service.function())))
    await asyncio.wait([call], timeout=60)
    call.cancel()
    return service.calls == 1


@case(
    "bulkhead",
    "A call that is cancelled gives its permit back",
    "agronholm/anyio#947",
    OWN_READING,
)
async def cancelled_call_keeps_its_permit(library: Library) -> None:
    """There is one permit; the call that has it is cancelled."""
    bulkhead = library.bulkhead(limit=1)
    _, task = await hold(bulkhead)
    task.cancel()
    await asyncio.wait([task])

    expect(await still_serves(bulkhead), "no call is admitted any more")


@case("bulkhead", "A call that ends with a BaseException gives its permit back", OWN_READING)
async def killed_call_keeps_its_permit(library: Library) -> None:
    """As KeyboardInterrupt and SystemExit would."""
    bulkhead = library.bulkhead(limit=1)
    with contextlib.suppress(Killed):
        await outcome(bulkhead.call(Service().function(Killed)))

    expect(await still_serves(bulkhead), "no call is admitted any more")


@case(
    "bulkhead",
    "A waiter that is cancelled at the instant when a permit is handed to it loses none",
    "python/asyncio#270",
    "python/cpython#90155",
    "agronholm/anyio#1145",
)
async def cancelled_waiter_takes_a_permit(library: Library) -> None:
    """At every step between the end of the holder and the waiter's first line."""
    for steps in range(8):
        bulkhead = library.bulkhead(limit=1, queue=2)
        gate, holder = await hold(bulkhead)
        waiter = asyncio.ensure_future(outcome(bulkhead.call(Service().function())))
        await settle()
        gate.open()
        for _ in range(steps):
            await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(holder, waiter, return_exceptions=True)

        expect(await still_serves(bulkhead), f"no call is admitted any more ({steps} steps)")


@case(
    "bulkhead",
    "A waiter whose time is over at the instant when a permit is handed to it loses none",
    "python/cpython#90155",
    "agronholm/anyio#947",
)
async def timed_out_waiter_takes_a_permit(library: Library) -> None:
    """The holder ends just when the waiter gives up, a little before and a little after."""
    for difference in (-1e-6, 0.0, 1e-6):
        bulkhead = library.bulkhead(limit=1, queue=1, max_wait=5.0)
        holder = asyncio.ensure_future(bulkhead.call(Service().function(takes=5.0 + difference)))
        await settle()
        waiter = asyncio.ensure_future(outcome(bulkhead.call(Service().function())))
        await asyncio.gather(holder, waiter, return_exceptions=True)
        await settle()

        expect(await still_serves(bulkhead), "no call is admitted any more")


@case(
    "bulkhead",
    "A waiter that is cancelled gives its place in the queue back",
    "failsafe-lib/failsafe#328",
    OWN_READING,
)
async def cancelled_waiter_keeps_its_place(library: Library) -> None:
    """One runs and one waits, again and again."""
    bulkhead = library.bulkhead(limit=1, queue=1)
    gate, holder = await hold(bulkhead)
    for number in range(5):
        waiter = asyncio.ensure_future(outcome(bulkhead.call(Service().function())))
        await settle()
        prepare(number or not waiter.done(), "it does not wait")
        expect(not waiter.done(), "nobody may wait any more")
        waiter.cancel()
        await asyncio.wait([waiter])
    service = Service()
    last = asyncio.ensure_future(outcome(bulkhead.call(service.function())))
    await settle()
    gate.open()
    await asyncio.gather(holder, last)

    expect(service.calls == 1, "nobody may wait any more")


@case("bulkhead", "There are never more calls at a time than permits, whatever is cancelled", OWN_READING)
async def cancellation_over_admits(library: Library) -> None:
    """Holders and waiters are cancelled in turn while others come."""
    bulkhead, service = library.bulkhead(limit=3, queue=100), Service()
    calls: list[asyncio.Future[Exception | None]] = []
    for number in range(60):
        calls.append(asyncio.ensure_future(outcome(bulkhead.call(service.function(takes=1.0)))))
        await asyncio.sleep(0.1)
        if number % 3 == 2:
            calls[number // 2].cancel()
            calls[number - 1].cancel()
    await asyncio.wait(calls, timeout=120)

    expect(service.peak <= 3, f"{service.peak} calls at a time, where 3 are allowed")
    expect(all(call.done() for call in calls), "some calls are still waiting after two minutes")
    expect(await still_serves(bulkhead), "no call is admitted any more")


@case(
    "bulkhead",
    "A bulkhead made at import time serves one event loop after another",
    "mjpieters/aiolimiter#292",
    OWN_READING,
)
def bulkhead_is_bound_to_a_loop(library: Library) -> None:
    """Callers wait in the first loop, and in the second."""
    bulkhead = library.bulkhead(limit=1, queue=10)

    async def serve() -> int:
        service = Service()
        await asyncio.gather(*(outcome(bulkhead.call(service.function(takes=1.0))) for _ in range(3)))
        return service.calls

    for loop in ("first", "second"):
        served = virtual.run(serve())
        expect(served == 3, f"{served} of 3 calls were served in the {loop} loop")


@case(
    "bulkhead",
    "A decorated async generator is guarded until it ends, or the decorator refuses it",
    "jd/tenacity#63",
    OWN_READING,
)
async def open_streams_over_admit(library: Library) -> None:
    """Two streams are opened, where one is allowed."""
    bulkhead = library.bulkhead(limit=1)
    running = 0

    async def stream() -> AsyncIterator[str]:
        nonlocal running
        running += 1
        try:
            yield "item"
            yield "item"
        finally:
            running -= 1

    try:
        guarded = bulkhead.decorated(stream)
    except Exception:  # noqa: BLE001 - refused, in whatever way
        return

    async def first_item() -> AsyncIterator[object]:
        items = cast("AsyncIterator[object]", guarded())
        await anext(items)
        return items

    opened = [asyncio.ensure_future(first_item()) for _ in range(2)]
    await settle()
    together = running
    for task in opened:
        task.cancel()

    expect(together <= 1, f"{together} streams are open at a time")
