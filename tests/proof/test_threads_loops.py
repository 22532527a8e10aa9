"""Guards between threads that each run an event loop of their own: hand-offs, cancellations at the very instant."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio
import attrs
import pytest
import trio

from resilience import (
    AsyncGuardedDeque,
    Bulkhead,
    RateLimiter,
    SystemClock,
    bulkhead,
    events,
    guarded_deque,
    handing,
    parking,
    queueing,
    rate_limiter,
    turns,
)
from resilience.testing import History, Model, Operation, assert_linearizable
from tests.proof.threaded import holds
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from resilience.parking import Waiter
    from resilience.testing.interleaving import Threads


#: The event loops of the two threads that have one.
Loops: TypeAlias = 'tuple[Literal["asyncio", "trio"], Literal["asyncio", "trio"]]'
ON_ASYNCIO: Loops = ("asyncio", "asyncio")
every_loop = pytest.mark.parametrize("loops", [ON_ASYNCIO, ("trio", "asyncio"), ("trio", "trio")], ids="-".join)


async def for_a_second(call: Callable[[], Awaitable[object]]) -> None:
    """Await a call, and cancel it after a second; that is no deadline, of which a guard might know."""

    async def cancel(scope: anyio.CancelScope) -> None:
        await anyio.sleep(1)
        scope.cancel()

    async with anyio.create_task_group() as group:
        if trio.lowlevel.in_trio_run():
            group.start_soon(cancel, group.cancel_scope)
        else:
            # Sooner than a task could, so that it comes between a grant and the step of whoever was granted.
            asyncio.get_running_loop().call_later(1, group.cancel_scope.cancel)
        await call()
        group.cancel_scope.cancel()


def admits_a_token_a_second(kind: type[RateLimiter], loops: Loops = ON_ASYNCIO) -> Callable[[], None]:
    """Make the property that two loops and a thread have a token each second, though one of them may give up."""

    def scenario(threads: Threads) -> None:
        limiter = kind(1, 1, max_wait=math.inf)
        begun_ns = limiter.clock.monotonic_ns()
        admitted: list[float] = []

        def note() -> None:
            admitted.append((limiter.clock.monotonic_ns() - begun_ns) / 10**9)

        async def acquire() -> None:
            assert await limiter.acquire()
            note()

        def block() -> None:
            limiter.admit_blocking()
            note()

        threads.start_loop(lambda: for_a_second(acquire), backend=loops[0])
        threads.start_loop(acquire, backend=loops[1])
        threads.start(block)
        threads.join()
        assert admitted == [float(second) for second in range(len(admitted))]
        assert limiter.statistics().admitted == len(admitted) >= 2
        assert limiter.statistics().waiting == 0

    return lambda: holds(scenario, watch=[rate_limiter, turns, parking, events, kind], limit=100)


@every_loop
def test_a_limiter_between_loops_loses_no_token(loops: Loops) -> None:
    """RL1, RL7, RL8: who gives up just as it is granted gives the token to the next, in whichever loop that waits."""
    admits_a_token_a_second(RateLimiter, loops)()


class KeepsTheToken(RateLimiter):
    """A mutant: who gives up keeps what it was granted already."""

    def _abandon(self, waiter: Waiter) -> None:
        if not waiter.granted:
            super()._abandon(waiter)


class WakesNobody(RateLimiter):
    """A mutant: who gives up has nobody look whose turn it is now."""

    def _abandon(self, waiter: Waiter) -> None:
        with self._section:
            if waiter.granted:
                waiter.granted = False
                self._bucket.give_back(waiter.units)
            elif self._queue.leave(waiter):
                self._queued_units -= waiter.units


def lets_in_one_at_a_time(kind: type[Bulkhead], loops: Loops = ON_ASYNCIO) -> Callable[[], None]:
    """Make the property that two loops and a thread are in one at a time, though one of them may give up."""

    def scenario(threads: Threads) -> None:
        room = kind(1, max_queue=2)
        inside: list[str] = []

        def be_alone(name: str) -> None:
            inside.append(name)
            assert inside == [name]

        async def stay() -> None:
            async with room:
                be_alone("who stays")
                await anyio.sleep(1)
                inside.remove("who stays")

        async def look_in() -> None:
            async with room:
                be_alone("who looks in")
                inside.remove("who looks in")

        def block() -> None:
            with room:
                be_alone("the thread")
                SystemClock().sleep_blocking(1)
                inside.remove("the thread")

        threads.start_loop(stay, backend=loops[0])
        threads.start_loop(lambda: for_a_second(look_in), backend=loops[1])
        threads.start(block)
        threads.join()
        seen = room.statistics()
        assert (seen.in_use, seen.waiting) == (0, 0)

    return lambda: holds(scenario, watch=[bulkhead, queueing, parking, events, kind], limit=100)


@every_loop
def test_a_bulkhead_between_loops_loses_no_permit(loops: Loops) -> None:
    """One at a time, and who gives up just as it is let in lets the next one in."""
    lets_in_one_at_a_time(Bulkhead, loops)()


class KeepsThePermit(Bulkhead):
    """A mutant: who gives up keeps what it was granted already."""

    def _abandon(self, waiter: Waiter) -> None:
        if not waiter.granted:
            super()._abandon(waiter)


@attrs.frozen
class Queued:
    """The items in the line, and those that were handed to somebody who gives them back."""

    line: tuple[int, ...] = ()
    handed: tuple[tuple[int, int], ...] = ()


class QueueModel(Model[Queued]):
    """A line of items, numbered as they come. Who gives up may have held one, which goes back to where it was."""

    def initial(self) -> Queued:
        return Queued()

    def split(self, operation: Operation) -> Sequence[Operation]:
        given_back = operation.name == "get" and not operation.known
        return [operation, attrs.evolve(operation, name="give back")] if given_back else [operation]

    def apply(self, state: Queued, operation: Operation) -> Iterable[Queued]:
        match operation.name, operation.arguments:
            case "put", (int(item),):
                return [attrs.evolve(state, line=(*state.line, item))]
            case "left", _:
                return [state] if operation.result == state.line else []
            case "give back", _:
                back = [item for number, item in state.handed if number == operation.number]
                handed = tuple(entry for entry in state.handed if entry[0] != operation.number)
                return [Queued(tuple(sorted([*state.line, *back])), handed)]
            case "get", _ if state.line and (not operation.known or operation.result == state.line[0]):
                handed = state.handed if operation.known else (*state.handed, (operation.number, state.line[0]))
                return [Queued(state.line[1:], handed)]
            case _:
                return []


def hands_on_every_item(kind: type[AsyncGuardedDeque[int]], loops: Loops = ON_ASYNCIO) -> Callable[[], None]:
    """Make the property that two loops get what a thread puts, in its order, though one of them may give up."""

    def scenario(threads: Threads) -> None:
        line = kind()
        history = History()

        async def get() -> None:
            with history.operation("get") as call:
                call.result = await line.popleft()

        def put() -> None:
            SystemClock().sleep_blocking(1)
            for item in range(3):
                with history.operation("put", item):
                    line.append_nowait(item)

        threads.start_loop(lambda: for_a_second(get), backend=loops[0])
        threads.start_loop(get, backend=loops[1])
        threads.start(put)
        threads.join()
        with history.operation("left") as call:
            call.result = line.snapshot()
        assert_linearizable(history, QueueModel())
        seen = line.statistics()
        assert seen.put == seen.got + seen.depth == 3

    return lambda: holds(scenario, watch=[guarded_deque, handing, parking, events, kind], limit=100)


@every_loop
def test_a_deque_between_loops_loses_no_item(loops: Loops) -> None:
    """DQ1, DQ2, DQ5, DQ6: who gives up just as it is handed an item gives that back to where it was."""
    hands_on_every_item(AsyncGuardedDeque, loops)()


class KeepsTheItem(AsyncGuardedDeque[int]):
    """A mutant: who gives up keeps the item that it was handed already."""

    def _put_back(self, getter: handing.Getter) -> None:
        if self._handed.pop(getter, None) is not None:
            self._got += 1


class PutsItBehind(AsyncGuardedDeque[int]):
    """A mutant: an item that goes back goes to the end of the line."""

    def _put_back(self, getter: handing.Getter) -> None:
        if (entry := self._handed.pop(getter, None)) is not None:
            self._items.append(entry)


@pytest.mark.parametrize(
    "law",
    [
        pytest.param(admits_a_token_a_second(KeepsTheToken), id="KeepsTheToken"),
        pytest.param(admits_a_token_a_second(WakesNobody), id="WakesNobody"),
        pytest.param(lets_in_one_at_a_time(KeepsThePermit), id="KeepsThePermit"),
        pytest.param(hands_on_every_item(KeepsTheItem), id="KeepsTheItem"),
        pytest.param(hands_on_every_item(PutsItBehind), id="PutsItBehind"),
    ],
)
def test_what_is_lost_with_a_cancellation_is_caught(law: Callable[[], None]) -> None:
    """Some schedule has the cancellation come just after the grant, and shows that it was not handed on."""
    assert_caught(law)


class WakesAsItsOwn(parking._AsyncioWaiter):
    """A mutant: a task of another thread's loop is woken as one of this thread's, which a loop that sleeps may miss."""

    def wake(self) -> bool:
        self._set()
        return True


@pytest.mark.parametrize(
    "law",
    [
        pytest.param(lets_in_one_at_a_time(Bulkhead), id="Bulkhead"),
        pytest.param(hands_on_every_item(AsyncGuardedDeque), id="AsyncGuardedDeque"),
    ],
)
def test_a_loop_that_is_not_woken_is_caught(law: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """DQ9: whoever hands on between loops does so in the one way that wakes a loop that sleeps."""
    monkeypatch.setattr(parking, "_AsyncioWaiter", WakesAsItsOwn)
    assert_caught(law)
