"""Cancel points: each is reached once, in three ways, on both loops, and code that minds is caught."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from resilience import Bulkhead
from resilience.testing import Random, seeded_asyncio, seeded_trio
from resilience.testing.cancellation import WAYS, CancelPoint, Way, cancel_at, every_cancel_point
from tests.resilience.support import assert_refuses, both_loops

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RUN = {"asyncio": seeded_asyncio.run, "trio": seeded_trio.run}
every_way = pytest.mark.parametrize("way", WAYS)


async def three_steps(log: list[str]) -> str:
    """Suspend three times."""
    for number in range(3):
        log.append(f"before {number}")
        await anyio.sleep(0.1)
    return "the end"


@both_loops
@every_way
def test_every_point_is_reached_once(backend: str, way: Way) -> None:
    """A call that suspends three times can be cancelled at four points; what came before each has been done."""
    seen: list[tuple[list[str], bool, str | None]] = []

    def trial(point: CancelPoint) -> None:
        async def body() -> tuple[list[str], bool, str | None]:
            log: list[str] = []
            result = await point.call(three_steps, log)
            await anyio.sleep(0.1)
            return log, point.cancelled, result

        seen.append(RUN[backend](body))

    assert every_cancel_point(trial, way=way) == 4
    assert seen[-1] == (["before 0", "before 1", "before 2"], False, "the end")
    if (backend, way) == ("asyncio", "woken"):
        # Whether the cancellation comes before the call goes on is the schedule's choice.
        assert [len(log) for log, cancelled, _ in seen if cancelled][:2] in ([1, 1], [1, 2])
    else:
        assert [(len(log), cancelled, result) for log, cancelled, result in seen[:-1]] == [
            (1, True, None),
            (1, True, None),
            (2, True, None),
            (3, True, None),
        ]


class Leaky:
    """A mutant of a semaphore: whoever is cancelled just after being handed the permit keeps it."""

    def __init__(self) -> None:
        self.free = 0
        self.queue: list[asyncio.Future[None]] = []

    async def acquire(self) -> None:
        if self.free:
            self.free -= 1
            return
        future = asyncio.get_running_loop().create_future()
        self.queue.append(future)
        try:
            await future
        except BaseException:
            self.give_up(future)
            raise

    def give_up(self, future: asyncio.Future[None]) -> None:
        if future in self.queue:
            self.queue.remove(future)

    def release(self) -> None:
        while self.queue:
            future = self.queue.pop(0)
            if not future.done():
                future.set_result(None)
                return
        self.free += 1


class Sound(Leaky):
    """The semaphore itself: hands on what it was handed."""

    def give_up(self, future: asyncio.Future[None]) -> None:
        super().give_up(future)
        if not future.cancelled():
            self.release()


def leaks(kind: type[Leaky], way: Way) -> bool:
    """Tell whether some cancel point of an acquire under some schedule loses the permit."""

    def trial(seed: int, point: CancelPoint) -> None:
        async def body() -> None:
            semaphore = kind()

            async def releases() -> None:
                await asyncio.sleep(0)
                semaphore.release()

            async with asyncio.TaskGroup() as group:
                group.create_task(releases())
                await point.call(semaphore.acquire)
            if not point.cancelled:
                semaphore.release()
            assert semaphore.free == 1

        seeded_asyncio.run(body, schedule=Random(seed))

    try:
        for seed in range(20):
            every_cancel_point(functools.partial(trial, seed), way=way)
    except AssertionError:
        return True
    return False


def test_a_permit_lost_between_grant_and_resumption_is_found() -> None:
    """It is lost only if the cancellation comes after the grant, so only "woken" is sure to see it."""
    assert leaks(Leaky, "woken")
    assert not leaks(Sound, "woken")
    assert not leaks(Leaky, "native")


def test_a_guard_passes_where_the_mutant_fails() -> None:
    """A bulkhead's permit is back, whichever way its waiter was cancelled."""
    for way in WAYS:
        for backend in ("asyncio", "trio"):

            def trial(point: CancelPoint, backend: str = backend) -> None:
                async def body() -> None:
                    bulkhead = Bulkhead(1, max_queue=5)

                    async def hold() -> None:
                        async with bulkhead:
                            await anyio.sleep(1)

                    async with anyio.create_task_group() as group:
                        group.start_soon(hold)
                        await anyio.sleep(0.5)
                        await point.call(hold)
                    assert bulkhead.available == 1

                RUN[backend](body, schedule=Random(1))

            assert every_cancel_point(trial, way=way) == 3


@both_loops
def test_a_cancellation_from_elsewhere_goes_on(backend: str) -> None:
    """Only its own cancellation ends at the point."""

    async def body() -> bool:
        point = cancel_at(9)
        with anyio.move_on_after(0.5):
            await point.call(anyio.sleep, 1)
            return False
        return not point.cancelled

    assert RUN[backend](body)


def test_a_native_cancellation_from_elsewhere_goes_on() -> None:
    """Nor is a task's own cancellation taken for the point's."""

    async def body() -> list[str]:
        log = []

        async def called() -> None:
            try:
                await cancel_at(9, "native").call(asyncio.sleep, 1)
            except asyncio.CancelledError:
                log.append("cancelled")
                raise

        task = asyncio.get_running_loop().create_task(called())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return log

    assert seeded_asyncio.run(body) == ["cancelled"]


@both_loops
@every_way
def test_an_error_of_the_call_comes_through(backend: str, way: Way) -> None:
    """What the call raises is not hidden, and names the point that it was cancelled at."""

    async def minds() -> None:
        try:
            await anyio.sleep(1)
        except BaseException as error:
            raise LookupError from error

    def trial(point: CancelPoint) -> None:
        async def body() -> None:
            await point.call(minds)

        RUN[backend](body)

    with pytest.raises(LookupError) as caught:
        every_cancel_point(trial, way=way)
    assert f"way={way!r}" in caught.value.__notes__[-1]


def test_a_call_without_end_has_no_last_point() -> None:
    """The limit ends the search in words; so does a trial that calls nothing."""

    async def spins() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    def trial(point: CancelPoint) -> None:
        seeded_asyncio.run(functools.partial(_call, point, spins))

    with pytest.raises(AssertionError, match="no end after 5 cancel points"):
        every_cancel_point(trial, limit=5)
    with pytest.raises(ValueError, match=r"^trial must await point.call\(\)"):
        every_cancel_point(lambda _: None)


async def _call(point: CancelPoint, func: Callable[[], Awaitable[object]]) -> None:
    await point.call(func)


def test_a_point_serves_for_one_call_at_a_time() -> None:
    """Two calls at once would not know whose steps they are."""

    async def body() -> None:
        point = cancel_at(5)

        async def inner() -> None:
            await point.call(anyio.sleep, 0)

        with pytest.raises(RuntimeError, match="one call at a time"):
            await point.call(inner)

    seeded_asyncio.run(body)


def test_bad_arguments_are_refused() -> None:
    """Each is named with its value."""
    assert_refuses("number", -1, cancel_at)
    assert_refuses("way", "gently", cancel_at, 1)
    assert_refuses("limit", 0, every_cancel_point, print)
