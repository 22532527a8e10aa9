"""AsyncGuardedDeque by hand: its four ways to overflow, threads, and several event loops."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections import deque
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import anyio
import pytest

from resilience import AsyncGuardedDeque
from resilience.testing import ManualClock
from tests.resilience.support import NOT_A_COUNT, Crew, assert_refuses, both_loops, brief, run, settle, until_blocking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilience.guarded_deque import Overflow

every_loop = pytest.mark.anyio
Queue: TypeAlias = AsyncGuardedDeque[int]


# -- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [value for value in NOT_A_COUNT if value is not None], ids=brief)
def test_refuses_bad_bounds(bad: object) -> None:
    """A bound that is no count is a ValueError that names it; None is no bound."""
    assert_refuses("maxlen", bad, AsyncGuardedDeque)
    assert AsyncGuardedDeque().maxlen is None


@pytest.mark.parametrize("bad", ["", "block", None, 3, ["wait"]])
def test_refuses_unknown_overflows(bad: object) -> None:
    """There are four ways to overflow, and the message lists them."""
    with pytest.raises(
        ValueError, match=r"^overflow must be one of 'wait', 'reject', 'drop_oldest', 'drop_newest', not"
    ):
        AsyncGuardedDeque(overflow=bad)  # type: ignore[arg-type]


def test_refuses_bad_first_items_and_names() -> None:
    """What cannot be iterated holds no first items, more than the bound do not fit, and a name is a string."""
    assert_refuses("iterable", 3, AsyncGuardedDeque)
    assert_refuses("name", 3, AsyncGuardedDeque)
    with pytest.raises(ValueError, match=r"^iterable must hold at most maxlen=2 items, not 3$"):
        AsyncGuardedDeque("abc", maxlen=2)


def test_says_what_it_is() -> None:
    """Its description tells the name, how full it is, and whether it is closed, also where the lock is held."""
    queue = AsyncGuardedDeque("ab", name="letters")
    assert repr(queue) == "<AsyncGuardedDeque 'letters', 2 items>"
    bounded = AsyncGuardedDeque("ab", maxlen=3, clock=ManualClock())
    bounded.close()
    with bounded._section:
        shown = repr(bounded)
    assert shown == "<AsyncGuardedDeque '', 2 of 3 items, closed>"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_is_shared_and_never_copied(duplicate: Callable[[Queue], object]) -> None:
    """A copy would share the items but not the counts, and then lose some."""
    queue = AsyncGuardedDeque([1])
    with pytest.raises(TypeError, match="never copied"):
        duplicate(queue)


@pytest.mark.parametrize(
    ("overflow", "append_leaves", "appendleft_leaves"),
    [("drop_oldest", (2, 3), (3, 1)), ("drop_newest", (1, 2), (1, 2))],
)
@every_loop
async def test_full_deque_drops(
    overflow: Overflow, append_leaves: tuple[int, ...], appendleft_leaves: tuple[int, ...]
) -> None:
    """drop_oldest drops at the end opposite to the insertion, drop_newest drops the item itself; both are counted."""
    for now, left, leaves in [
        (False, False, append_leaves),
        (True, False, append_leaves),
        (False, True, appendleft_leaves),
        (True, True, appendleft_leaves),
    ]:
        queue = AsyncGuardedDeque([1, 2], maxlen=2, overflow=overflow)
        if now:
            (queue.appendleft_nowait if left else queue.append_nowait)(3)
        else:
            await (queue.appendleft if left else queue.append)(3)
        assert queue.snapshot() == leaves
        assert (queue.statistics().put, queue.statistics().dropped, queue.statistics().removed) == (3, 1, 0)


@every_loop
async def test_full_deque_rejects() -> None:
    """With "reject" every append to a full deque raises WouldBlock; with "wait" only those that cannot wait do."""
    rejecting = AsyncGuardedDeque([1], maxlen=1, overflow="reject")
    for put in (rejecting.append, rejecting.appendleft):
        with pytest.raises(anyio.WouldBlock):
            await put(2)
    for queue in (rejecting, AsyncGuardedDeque([1], maxlen=1)):
        for put_now in (queue.append_nowait, queue.appendleft_nowait):
            with pytest.raises(anyio.WouldBlock):
                put_now(2)
        assert queue.snapshot() == (1,)
        assert queue.statistics().put == 1


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
@every_loop
async def test_room_of_an_item_on_its_way_is_kept(overflow: Overflow) -> None:
    """Where all the room belongs to items that were handed out, there is nothing old to drop: the new item is."""
    queue: Queue = AsyncGuardedDeque(maxlen=1, overflow=overflow)
    async with Crew() as crew:
        getting = crew.start(queue.popleft)
        await settle()
        queue.append_nowait(1)
        queue.append_nowait(2)
        assert (len(queue), queue.statistics().dropped) == (0, 1)
        await settle()
        assert getting.result == 1
        queue.append_nowait(3)
        assert queue.snapshot() == (3,)


@every_loop
async def test_update_leaves_room_for_items_on_their_way() -> None:
    """A function may not fill the room that belongs to an item which was handed out, and is told so."""
    queue: Queue = AsyncGuardedDeque(maxlen=2)
    async with Crew() as crew:
        crew.start(queue.popleft)
        await settle()
        queue.append_nowait(1)
        with pytest.raises(
            ValueError, match=r"^func must leave at most maxlen=2 items, not 2 \(and 1 on their way to getters\)$"
        ):
            queue.update(lambda items: items.extend([2, 3]))
        await settle()
        queue.update(lambda items: items.extend([2, 3]))
        with pytest.raises(ValueError, match=r"^func must leave at most maxlen=2 items, not 3$"):
            queue.update(lambda items: items.append(4))
        assert queue.snapshot() == (2, 3)


@every_loop
async def test_loop_over_it_ends_when_it_is_closed_and_empty() -> None:
    """`async for` takes what is there and what comes, and ends with the deque; several loops may share it."""
    queue = AsyncGuardedDeque([1, 2])
    got: list[int] = []

    async def consume() -> None:
        got.extend([item async for item in queue])

    async with Crew() as crew:
        consumers = [crew.start(consume), crew.start(consume)]
        await settle()
        await queue.append(3)
        await settle()
        assert not any(consumer.ended for consumer in consumers)
        queue.append_nowait(4)
        queue.close()
        await settle()
        assert all(consumer.finished for consumer in consumers)
    assert sorted(got) == [1, 2, 3, 4]
    assert queue.closed


@every_loop
async def test_loop_over_it_can_be_left() -> None:
    """Leaving the loop half way takes no item too many, and leaves nothing for the garbage collector to warn of."""
    queue = AsyncGuardedDeque([1, 2, 3])
    async for item in queue:
        if item == 2:
            break
    gc.collect()
    assert queue.drain() == [3]


def test_closed_deque_lets_nothing_in() -> None:
    """DQ7: after close puts and updates raise, gets give what is left and then raise; closing again is nothing."""
    queue = AsyncGuardedDeque([1, 2, 3], maxlen=3, overflow="drop_newest")
    assert not queue.closed
    queue.close()
    queue.close()
    for put in (queue.append_nowait, queue.appendleft_nowait):
        with pytest.raises(anyio.ClosedResourceError):
            put(4)
    with pytest.raises(anyio.ClosedResourceError):
        queue.update(deque.clear)
    assert (queue.popleft_nowait(), queue.pop_nowait()) == (1, 3)
    assert queue.remove_if(lambda item: item == 2) == [2]
    assert queue.drain() == []
    for get in (queue.pop_nowait, queue.popleft_nowait):
        with pytest.raises(anyio.ClosedResourceError):
            get()


def test_close_ends_an_update_under_way() -> None:
    """DQ7, DQ8: a deque that is closed while a function works on the copy takes nothing of it."""
    queue = AsyncGuardedDeque([1])

    def close(items: deque[int]) -> None:
        items.append(2)
        queue.close()

    with pytest.raises(anyio.ClosedResourceError):
        queue.update(close)
    assert queue.snapshot() == (1,)


def _lose_a_copy(queue: AsyncGuardedDeque[object]) -> None:
    def clear(items: deque[object]) -> None:
        # The first copy is out of date before it is looked at, and holds the last reference to an item.
        if len(queue) == 2:
            queue.pop_nowait()
        items.clear()

    queue.update(clear)


LOSSES: dict[str, Callable[[AsyncGuardedDeque[object]], object]] = {
    "append": lambda queue: queue.append_nowait(None),
    "appendleft": lambda queue: queue.appendleft_nowait(None),
    "pop": lambda queue: queue.pop_nowait(),
    "drain": lambda queue: queue.drain(),
    "remove_if": lambda queue: queue.remove_if(bool),
    "update": lambda queue: queue.update(deque.clear),
    "update in vain": _lose_a_copy,
}


@pytest.mark.parametrize("how", LOSSES)
def test_nothing_dies_under_the_lock(how: str) -> None:
    """What an item does when it is deleted is code of the user, and may use the deque: the lock is free by then."""
    seen: list[bool] = []
    queue: AsyncGuardedDeque[object]

    class Mortal:
        def __del__(self) -> None:
            """Note whether the lock is taken; where it is, using the deque would never end."""
            seen.append(queue._lock.locked())

    queue = AsyncGuardedDeque([Mortal(), Mortal()], maxlen=2, overflow="drop_oldest")
    LOSSES[how](queue)
    assert seen
    assert not any(seen)


def test_found_lock_is_counted() -> None:
    """An operation that finds the lock taken says so."""

    class Watched:
        def locked(self) -> bool:
            return True

    queue: Queue = AsyncGuardedDeque()
    queue._lock = Watched()  # type: ignore[assignment]
    queue.append_nowait(1)
    assert queue.pop_nowait() == 1
    assert queue.statistics().contended == 2


def test_waiting_needs_an_event_loop() -> None:
    """Where no event loop runs, whoever would have to wait is told so, and waits for nothing."""
    queue: Queue = AsyncGuardedDeque(maxlen=1)
    with pytest.raises(RuntimeError, match="no running event loop"):
        queue.popleft().send(None)
    queue.append_nowait(1)
    with pytest.raises(RuntimeError, match="no running event loop"):
        queue.append(2).send(None)
    assert (queue.statistics().getters, queue.statistics().putters, queue.drain()) == (0, 0, [1])


# -- threads and loops ----------------------------------------------------------------------------------------------


Shared: TypeAlias = AsyncGuardedDeque[tuple[int, int]]


async def produce(queue: Shared, producer: int) -> None:
    """Put fifty items, in a loop."""
    for number in range(50):
        await queue.append((producer, number))


def produce_in_a_thread(queue: Shared, producer: int) -> None:
    """Put fifty items, trying again whenever there is no room."""

    def put(number: int) -> bool:
        try:
            queue.append_nowait((producer, number))
        except anyio.WouldBlock:
            return False
        return True

    for number in range(50):
        until_blocking(partial(put, number))


async def consume(queue: Shared, got: list[tuple[int, int]]) -> None:
    """Take what comes until the end, in a loop."""
    got.extend([item async for item in queue])


def consume_in_a_thread(queue: Shared, got: list[tuple[int, int]]) -> None:
    """Take what comes until the end, trying again whenever there is nothing."""
    pause = threading.Event()
    while True:
        try:
            got.append(queue.popleft_nowait())
        except anyio.WouldBlock:
            pause.wait(0.001)
        except anyio.ClosedResourceError:
            return


def look(queue: Shared, sizes: set[int]) -> None:
    """Look at it from another thread all the time, until it is closed."""
    pause = threading.Event()
    while not queue.closed:
        sizes.update((len(queue), len(queue.snapshot())))
        pause.wait(0.001)


@pytest.mark.parametrize("maxlen", [1, 3, None])
def test_threads_and_loops_lose_nothing(maxlen: int | None) -> None:
    """DQ1, DQ2, DQ3, DQ9: producers and consumers in threads and in loops of both kinds, and one who only looks."""
    queue: Shared = AsyncGuardedDeque(maxlen=maxlen)
    got: list[list[tuple[int, int]]] = [[], [], []]
    sizes: set[int] = set()
    producers = [
        threading.Thread(target=run, args=("asyncio", partial(produce, queue, 0))),
        threading.Thread(target=run, args=("trio", partial(produce, queue, 1))),
        threading.Thread(target=produce_in_a_thread, args=(queue, 2)),
    ]
    others = [
        threading.Thread(target=run, args=("asyncio", partial(consume, queue, got[0]))),
        threading.Thread(target=run, args=("trio", partial(consume, queue, got[1]))),
        threading.Thread(target=consume_in_a_thread, args=(queue, got[2])),
        threading.Thread(target=look, args=(queue, sizes)),
    ]
    for thread in producers + others:
        thread.start()
    for thread in producers:
        thread.join()
    queue.close()
    for thread in others:
        thread.join()
    assert sorted(chain.from_iterable(got)) == [(producer, number) for producer in range(3) for number in range(50)]
    # Each consumer sees the items of each producer in the order in which they were put.
    for items in got:
        for producer in range(3):
            numbers = [number for source, number in items if source == producer]
            assert numbers == sorted(numbers)
    assert maxlen is None or max(sizes) <= maxlen
    statistics = queue.statistics()
    assert (statistics.put, statistics.got, len(queue)) == (150, 150, 0)


@both_loops
def test_close_from_another_thread_ends_the_waits(backend: str) -> None:
    """DQ7, DQ9: tasks of a loop hear of a close in any thread."""
    getting: Queue = AsyncGuardedDeque()
    putting = AsyncGuardedDeque([1], maxlen=1)
    refused: list[object] = []

    async def wait(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await call()
        refused.append(call)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(wait, getting.popleft)
            group.start_soon(wait, lambda: putting.append(2))

    thread = threading.Thread(target=run, args=(backend, main))
    thread.start()
    until_blocking(lambda: (getting.statistics().getters, putting.statistics().putters) == (1, 1))
    getting.close()
    putting.close()
    thread.join()
    assert len(refused) == 2
    assert putting.drain() == [1]
