"""Timeouts, hedges and fallbacks: whose cancellation it was, and what is left running."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.conformance import virtual
from benchmarks.conformance.case import (
    OWN_READING,
    Failed,
    Gate,
    Service,
    called,
    case,
    consume,
    expect,
    outcome,
    prepare,
    settle,
    use,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.conformance.library import Library

__all__: list[str] = []

SECONDS = 10.0


@case(
    "timeout",
    "A call that is cancelled ends as cancelled, also at the instant when its time is over",
    "python/cpython#86296",
    "python/cpython#87555",
)
async def cancellation_becomes_a_timeout(library: Library) -> None:
    """The caller's cancellation and the timer fall on the same turn of the loop, in either order."""
    for early in (True, False):
        task: asyncio.Future[object]
        if early:
            asyncio.get_running_loop().call_later(SECONDS, lambda: task.cancel())  # noqa: B023, PLW0108 - made below
        task = asyncio.ensure_future(use(library.timeout(seconds=SECONDS)(Service().function(gate=Gate()))))
        await settle()
        if not early:
            asyncio.get_running_loop().call_later(SECONDS, task.cancel)
        await asyncio.wait([task], timeout=60)

        expect(task.done(), "the call goes on after it has been cancelled")
        if not task.cancelled():
            raise Failed(f"it ends with {type(task.exception()).__name__}")


async def worker_survives(library: Library, *, steps: int) -> bool:
    """Cancel a worker so many steps after its call is answered, and tell whether it goes on."""
    gate, survived = Gate(), asyncio.Event()

    async def worker() -> None:
        await called(library.timeout(seconds=SECONDS)(Service().function(gate=gate)))
        # The next thing that waits is where a cancellation must end it, if the call itself did not.
        await asyncio.sleep(1)
        survived.set()

    task = asyncio.create_task(worker())
    await settle()
    gate.open()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=60)
    return survived.is_set()


@case(
    "timeout",
    "A cancellation at the instant when the call is answered is not lost",
    "python/cpython#86296",
    "chrisguidry/docket#456",
)
async def answer_swallows_cancellation(library: Library) -> None:
    """A worker that is told to stop just then would go on for ever."""
    for steps in range(4):
        survives = await worker_survives(library, steps=steps)

        expect(not survives, f"the worker goes on after it has been cancelled ({steps} steps)")


@case(
    "timeout",
    "A TimeoutError of the callee's own comes out as it is",
    "python/cpython#124308",
    "aio-libs-abandoned/async-timeout#16",
)
async def callee_s_error_is_taken_for_a_timeout(library: Library) -> None:
    """It raises it at once, long before the time is over."""

    class OwnTimeoutError(TimeoutError):
        pass

    error = await outcome(use(library.timeout(seconds=SECONDS)(Service().function(OwnTimeoutError))))

    expect(isinstance(error, OwnTimeoutError), f"it comes out as {type(error).__name__}")


@case(
    "timeout",
    "When the timeout is reported the callee has ended, clean-up included",
    "python/cpython#7216",
    "python/asyncio#253",
)
async def callee_runs_on(library: Library) -> None:
    """Its clean-up takes a moment."""
    cleaned_up = False

    async def callee() -> None:
        nonlocal cleaned_up
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned_up = True

    error = await outcome(use(library.timeout(seconds=SECONDS)(callee)))
    prepare(error is not None, "there is no timeout")

    expect(cleaned_up, "the callee is still running")


@case(
    "timeout",
    "After a timeout the task is no longer being cancelled",
    "python/cpython#86296",
    OWN_READING,
)
async def timeout_leaves_a_cancellation(library: Library) -> None:
    """Task groups and timeouts around the call go by the count that the task keeps."""
    error = await outcome(use(library.timeout(seconds=SECONDS)(Service().function(gate=Gate()))))
    prepare(error is not None, "there is no timeout")
    task = asyncio.current_task()
    assert task is not None

    expect(task.cancelling() == 0, f"{task.cancelling()} cancellation is still counted")


@case("timeout", "Calls of one decorated function at the same time have their time each", OWN_READING)
async def tasks_share_a_deadline(library: Library) -> None:
    """The second begins when half of the first one's time is over."""
    decorated = library.timeout(seconds=SECONDS)(Service().function(takes=SECONDS - 1))
    first = asyncio.ensure_future(outcome(use(decorated)))
    await asyncio.sleep(SECONDS / 2)
    second = asyncio.ensure_future(outcome(use(decorated)))

    expect(await first is None, "the first call times out early")
    expect(await second is None, "the second call times out early")


@case(
    "timeout",
    "A decorated async generator is bounded, or the decorator refuses it",
    "jd/tenacity#63",
    OWN_READING,
)
async def generator_is_not_bounded(library: Library) -> None:
    """Its first item never comes."""

    async def stream() -> AsyncIterator[str]:
        await asyncio.sleep(3600)
        yield "item"

    async def decorate_and_consume() -> None:
        await consume(library.timeout(seconds=SECONDS)(stream))

    begun = virtual.now()
    await outcome(decorate_and_consume())

    expect(virtual.now() - begun < 60, "it is still waiting after an hour")


@case(
    "hedge",
    "When one attempt has answered the others are cancelled",
    "joshrotenberg/tower-resilience#369",
    "authzed/spicedb#235",
)
async def loser_runs_on(library: Library) -> None:
    """The first is slow, the second answers."""
    service, slow = Service(), Gate()
    attempts = 0

    async def ask() -> object:
        nonlocal attempts
        attempts += 1
        return await service.function(gate=slow if attempts == 1 else None)()

    task = asyncio.ensure_future(use(library.hedge(delay=1.0)(ask)))
    await asyncio.wait([task], timeout=60)
    prepare(attempts == 2 and task.done(), "there is no second attempt")
    await settle()

    expect(service.running == 0, "the slow attempt is still running")


@case(
    "hedge",
    "When the call is cancelled all its attempts are",
    "joshrotenberg/tower-resilience#369",
    "thomhurst/Kevlar#14",
)
async def cancelled_hedge_runs_on(library: Library) -> None:
    """Two attempts are running."""
    service = Service()
    task = asyncio.ensure_future(use(library.hedge(delay=1.0)(service.function(gate=Gate()))))
    await asyncio.sleep(1.5)
    prepare(service.running == 2, "there is no second attempt")
    task.cancel()
    await asyncio.wait([task], timeout=60)
    await settle()

    expect(task.cancelled(), "the call does not end as cancelled")
    expect(service.running == 0, f"{service.running} attempts are still running")


@case("fallback", "A call that is cancelled is not answered by the fallback", OWN_READING)
async def fallback_answers_cancellation(library: Library) -> None:
    """It ends as cancelled."""
    service = Service()
    task = asyncio.ensure_future(use(library.fallback(answer="instead")(service.function(gate=Gate()))))
    await settle()
    prepare(service.running == 1, "the call is not made")
    task.cancel()
    await asyncio.wait([task], timeout=60)

    expect(task.cancelled(), "it does not end as cancelled")
