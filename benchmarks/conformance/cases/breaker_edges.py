"""Circuit breakers: clocks, listeners, threads, event loops, streams, and what a refusal looks like."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import attrs

from benchmarks.conformance import virtual
from benchmarks.conformance.case import (
    OWN_READING,
    Endpoint,
    Service,
    ServiceError,
    case,
    consume,
    expect,
    open_circuit,
    outcome,
    prepare,
    use,
)
from benchmarks.conformance.cases.breaker import AFTER_RECOVERY, CIRCUIT, FAILURES, comes_back, most_at_once, opened
from benchmarks.conformance.library import not_offered
from benchmarks.conformance.plain import fail_through, failure, in_threads, reached_through

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.conformance.library import Library

__all__: list[str] = []

AN_HOUR = 3600.0


@case(
    "breaker",
    "A wall clock that is set back does not keep the circuit open for longer",
    "fabfuel/circuitbreaker#31",
    "exaring/hoglet#25",
)
async def wall_clock_set_back(library: Library) -> None:
    """By an hour, while the circuit is open."""
    breaker = await opened(library)
    virtual.jump_wall(-AN_HOUR)
    await asyncio.sleep(AFTER_RECOVERY)

    expect(await Service().reached_through(breaker), "no trial once the recovery time is over")


@case(
    "breaker",
    "A wall clock that is set forward does not end the recovery time early",
    "fabfuel/circuitbreaker#31",
    "NousResearch/hermes-agent#73167",
)
async def wall_clock_set_forward(library: Library) -> None:
    """By an hour, while the circuit is open."""
    breaker = await opened(library)
    virtual.jump_wall(AN_HOUR)

    expect(not await Service().reached_through(breaker), "a call is admitted at once")


@case(
    "breaker",
    "A listener that raises changes neither what the caller sees nor the circuit",
    "danielfm/pybreaker#41",
)
async def listener_raises(library: Library) -> None:
    """It raises at every change of state, and nobody but the log is to know."""

    class ListenerError(Exception):
        pass

    def listener() -> None:
        raise ListenerError

    breaker = library.breaker(attrs.evolve(CIRCUIT, listener=listener))
    seen = [await outcome(breaker.call(Service().function(ServiceError))) for _ in range(FAILURES)]

    expect(not any(isinstance(error, ListenerError) for error in seen), "the listener's error reaches the caller")
    expect(not await Service().reached_through(breaker), "the circuit does not open")
    await asyncio.sleep(AFTER_RECOVERY)
    service = Service()
    error = await outcome(breaker.call(service.function()))
    expect(not isinstance(error, ListenerError), "the listener's error reaches the caller of the trial")
    expect(service.calls == 1 and await Service().reached_through(breaker), "the circuit does not close again")


@case(
    "breaker",
    "A listener may use the breaker that it is told about",
    OWN_READING,
)
def listener_calls_back(library: Library) -> None:
    """It makes a call of its own from inside the notification."""
    told = 0
    inside = False

    def listener() -> None:
        nonlocal told, inside
        told += 1
        if not inside:
            inside = True
            failure(lambda: call(lambda: None))
            inside = False

    call = library.plain_breaker(attrs.evolve(CIRCUIT, listener=listener))

    fail_through(call, times=FAILURES)
    reached = reached_through(call)
    prepare(told, "the listener is not told")

    expect(not reached, "the circuit does not open")


@case(
    "breaker",
    "Two threads may be inside at the same time while the circuit is closed",
    "danielfm/pybreaker#3",
    "danielfm/pybreaker#57",
)
def threads_run_one_after_another(library: Library) -> None:
    """Each waits inside for the other."""
    call = library.plain_breaker(CIRCUIT)
    meeting = threading.Barrier(2, timeout=2)
    met: list[int] = []

    def inside() -> None:
        met.append(meeting.wait())

    in_threads(lambda: failure(lambda: call(inside)), count=2, timeout=5)

    expect(len(met) == 2, "one thread waits until the other has come out")


@case(
    "breaker",
    "Each refusal is an exception of its own, and does not grow with their number",
    "ipython/ipython#8017",
    "pyserial/pyserial#437",
    "patx/pickledb#70",
)
async def refusals_share_an_exception(library: Library) -> None:
    """Callers may annotate, chain and keep what they catch."""
    breaker = await opened(library)
    refusals = []
    lengths = []
    for _ in range(20):
        error = await outcome(breaker.call(Service().function()))
        prepare(error is not None, "calls are not refused with an exception")
        refusals.append(error)
        lengths.append(len(traceback.extract_tb(error.__traceback__)) if error else 0)

    expect(lengths[-1] <= lengths[1], f"the traceback grows from {lengths[1]} to {lengths[-1]} entries in 20 refusals")
    expect(len({id(error) for error in refusals}) == len(refusals), "all callers get the same exception object")


@case(
    "breaker",
    "A decorated async generator is guarded, or the decorator refuses it",
    "jd/tenacity#63",
)
async def generator_is_not_guarded(library: Library) -> None:
    """It fails in the middle, again and again; a decorator that lets it pass by says nothing and does nothing."""
    breaker = library.breaker(CIRCUIT)
    begun = 0

    async def stream() -> AsyncIterator[str]:
        nonlocal begun
        begun += 1
        yield "item"
        raise ServiceError

    try:
        guarded = breaker.decorated(stream)
    except Exception:  # noqa: BLE001 - refused, in whatever way
        return
    for _ in range(FAILURES + 3):
        error = await outcome(consume(guarded))
        if not begun or isinstance(error, TypeError):
            return  # refused when it is called, or when it is iterated

    expect(begun == FAILURES, f"it was begun {begun} times though it failed every time")


@case(
    "breaker",
    "A stream on trial that its reader leaves early does not keep the circuit shut for ever",
    "diegosouzapw/OmniRoute#7908",
)
async def dropped_stream_wedges(library: Library) -> None:
    """The reader takes one item and closes the stream."""
    breaker = library.breaker(CIRCUIT)

    async def stream() -> AsyncIterator[str]:
        yield "item"
        yield "item"

    try:
        guarded = breaker.decorated(stream)
    except Exception:  # noqa: BLE001 - refused, in whatever way
        not_offered("no streams")
    await open_circuit(breaker, failures=FAILURES)
    try:
        refused = guarded()
    except Exception:  # noqa: BLE001 - what is guarded is making the generator, not what it does
        not_offered("no streams")
    if not isinstance(refused, AsyncGenerator) or await outcome(anext(refused)) is None:
        close = getattr(refused, "close", None)
        if close is not None:
            close()
        not_offered("no streams")
    await asyncio.sleep(AFTER_RECOVERY)
    running = guarded()
    assert isinstance(running, AsyncGenerator)
    prepare(await outcome(anext(running)) is None, "the trial is not admitted")
    await running.aclose()

    expect(await comes_back(breaker), "no call is admitted any more")


@case(
    "breaker",
    "A decorated object with an async __call__ is guarded, or the decorator refuses it",
    "jd/tenacity#132",
    "jd/tenacity#657",
)
async def async_object_is_not_guarded(library: Library) -> None:
    """It is no coroutine function, but calling it gives an awaitable that fails."""
    breaker = library.breaker(CIRCUIT)
    endpoint = Endpoint()
    try:
        guarded = breaker.decorated(endpoint)
    except Exception:  # noqa: BLE001 - refused, in whatever way
        return
    for _ in range(FAILURES + 3):
        await outcome(use(guarded))

    expect(endpoint.calls <= FAILURES, f"it was called {endpoint.calls} times though it failed every time")


@case(
    "breaker",
    "A breaker made at import time serves one event loop after another",
    "mjpieters/aiolimiter#292",
    OWN_READING,
)
def breaker_is_bound_to_a_loop(library: Library) -> None:
    """The circuit opens in one loop, recovers in the next, with many callers, and is closed in the third."""
    breaker = library.breaker(CIRCUIT)

    async def break_it() -> None:
        await open_circuit(breaker, failures=FAILURES)

    async def recover() -> bool:
        await asyncio.sleep(AFTER_RECOVERY)
        await most_at_once(breaker)
        return await Service().reached_through(breaker)

    async def go_on() -> bool:
        return await most_at_once(breaker) > 1

    virtual.run(break_it())
    expect(virtual.run(recover()), "the circuit does not close in the second loop")
    expect(virtual.run(go_on()), "calls are not admitted in the third loop")


@case(
    "keyed breaker",
    "However many keys there are, none gets through a circuit that is open for it",
    OWN_READING,
)
async def eviction_readmits(library: Library) -> None:
    """More keys than are kept come by while the circuit of one of them is open."""
    breaker_of = library.keyed_breaker(CIRCUIT, keys=4)
    await open_circuit(breaker_of("down"), failures=FAILURES)
    for number in range(20):
        await outcome(breaker_of(f"other {number}").call(Service().function()))

    expect(not await Service().reached_through(breaker_of("down")), "the key that is down is admitted again")
