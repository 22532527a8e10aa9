"""Retries: what is retried, what is not, and what two calls at the same time share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from benchmarks.conformance import virtual
from benchmarks.conformance.case import (
    OWN_READING,
    Endpoint,
    Gate,
    Killed,
    Service,
    ServiceError,
    case,
    consume,
    expect,
    outcome,
    prepare,
    settle,
    use,
)
from benchmarks.conformance.plain import failure, in_threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.conformance.library import Library

__all__: list[str] = []

ATTEMPTS = 3


@case(
    "retry",
    "A call that is cancelled is not retried, and ends as cancelled",
    "jd/tenacity#529",
    "jd/tenacity#505",
)
async def cancellation_is_retried(library: Library) -> None:
    """It is cancelled in its first attempt."""
    service = Service()
    task = asyncio.ensure_future(use(library.retry(attempts=ATTEMPTS)(service.function(gate=Gate()))))
    await settle()
    prepare(service.running == 1, "there is no first attempt")
    task.cancel()
    await asyncio.wait([task], timeout=60)

    expect(service.calls == 1, f"{service.calls} attempts")
    expect(task.cancelled(), "the call does not end as cancelled")


@case(
    "retry",
    "A call that is cancelled between two attempts ends at once",
    OWN_READING,
)
async def delay_swallows_cancellation(library: Library) -> None:
    """It is cancelled while it waits for its second attempt."""
    service = Service()
    task = asyncio.ensure_future(use(library.retry(attempts=ATTEMPTS)(service.function(ServiceError))))
    await asyncio.sleep(0.25)
    prepare(service.calls == 1 and not task.done(), "there is no delay before the second attempt")
    task.cancel()
    await asyncio.wait([task], timeout=0.1)

    expect(task.cancelled(), "the call goes on after it has been cancelled")
    expect(service.calls == 1, f"{service.calls} attempts")


@case(
    "retry",
    "What is no Exception is not retried",
    "groodt/retrying#12",
    "rholder/retrying#98",
)
async def base_exception_is_retried(library: Library) -> None:
    """As KeyboardInterrupt and SystemExit, with the library's default of what to retry."""
    service = Service()
    with contextlib.suppress(Killed):
        await outcome(use(library.retry(attempts=ATTEMPTS)(service.function(Killed))))

    expect(service.calls == 1, f"{service.calls} attempts")


@case(
    "retry",
    "Calls of one decorated function at the same time have their attempts each",
    "jd/tenacity#115",
    OWN_READING,
)
async def tasks_share_attempts(library: Library) -> None:
    """Five tasks."""
    service = Service()
    decorated = library.retry(attempts=ATTEMPTS)(service.function(ServiceError, takes=0.1))
    await asyncio.gather(*(outcome(use(decorated)) for _ in range(5)))

    expect(service.calls == 5 * ATTEMPTS, f"{service.calls} attempts, where 5 calls have {ATTEMPTS} each")


@case(
    "retry",
    "Calls of one decorated function at the same time have their delays each",
    OWN_READING,
)
async def tasks_share_delays(library: Library) -> None:
    """The second call begins when the first has come to its longer delays."""
    decorate = library.retry(attempts=6)
    delays: list[float] = []
    last: float | None = None

    async def fail(*, watched: bool) -> None:
        nonlocal last
        if watched:
            if last is not None:
                delays.append(virtual.now() - last)
            last = virtual.now()
        raise ServiceError

    decorated = decorate(fail)
    first = asyncio.ensure_future(outcome(use(decorated, watched=False)))
    await asyncio.sleep(5)
    second = asyncio.ensure_future(outcome(use(decorated, watched=True)))
    await asyncio.wait([first, second], timeout=600)
    prepare(delays, "there is no second attempt")

    expect(delays[0] < 1.5, f"the second call's first delay is {delays[0]:.1f} s, where 1 s is due")


@case(
    "retry",
    "Threads that call one decorated function at the same time have their attempts each",
    "jd/tenacity#115",
    OWN_READING,
)
def threads_share_attempts(library: Library) -> None:
    """Both are in their first attempt together, and in each that follows."""
    attempts: dict[int, int] = {}
    meeting = threading.Barrier(2, timeout=2)

    def fail() -> None:
        thread = threading.get_ident()
        attempts[thread] = attempts.get(thread, 0) + 1
        meeting.wait()
        raise ServiceError

    decorated = library.plain_retry(attempts=ATTEMPTS)(fail)
    in_threads(lambda: failure(decorated), count=2, timeout=5)

    expect(sorted(attempts.values()) == [ATTEMPTS, ATTEMPTS], f"the threads had {sorted(attempts.values())} attempts")


@case(
    "retry",
    "A decorated async generator is retried before its first item, or the decorator refuses it",
    "jd/tenacity#63",
    "jd/tenacity#138",
)
async def generator_is_not_retried(library: Library) -> None:
    """Its first step fails; a decorator that lets it pass by says nothing and does nothing."""
    begun = 0

    async def stream() -> AsyncIterator[str]:
        nonlocal begun
        begun += 1
        if begun < ATTEMPTS:
            raise ServiceError
        yield "item"

    async def decorate_and_consume() -> None:
        await consume(library.retry(attempts=ATTEMPTS)(stream))

    error = await outcome(decorate_and_consume())

    expect(not isinstance(error, ServiceError), f"its error comes out after {begun} attempt")


@case(
    "retry",
    "A decorated object with an async __call__ is retried, or the decorator refuses it",
    "jd/tenacity#657",
    "gptme/gptme-contrib#1288",
)
async def async_object_is_not_retried(library: Library) -> None:
    """It is no coroutine function, but calling it gives an awaitable that fails."""
    endpoint = Endpoint()
    try:
        decorated = library.retry(attempts=ATTEMPTS)(endpoint)
    except Exception:  # noqa: BLE001 - refused, in whatever way
        return
    await outcome(use(decorated))

    expect(endpoint.calls in {0, ATTEMPTS}, f"{endpoint.calls} attempt, where {ATTEMPTS} were asked for")


@case(
    "retry",
    "Exponential delays do not overflow, however many attempts there are",
    "hynek/stamina#104",
    "elastic/elastic-transport-python#111",
)
async def backoff_overflows(library: Library) -> None:
    """Two thousand attempts, with delays of at most a minute."""
    service = Service()
    await outcome(use(library.retry(attempts=2_000)(service.function(ServiceError))))

    expect(service.calls == 2_000, f"ends after {service.calls} of 2000 attempts")
