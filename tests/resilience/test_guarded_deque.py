"""AsyncGuardedDeque by hand: its four ways to overflow, the user's functions, threads, and loops that have closed."""

from __future__ import annotations

import asyncio
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
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import AsyncGuardedDeque
from resilience.testing import ManualClock
from tests.resilience.support import (
    NOT_A_COUNT,
    Crew,
    assert_caught,
    assert_refuses,
    both_loops,
    brief,
    run,
    settle,
    until_blocking,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from resilience.guarded_deque import Overflow, _Getter, _Putter

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


# -- one instant (DQ4) ----------------------------------------------------------------------------------------------


class Crowded(deque[tuple[int, int]]):
    """The items of a deque, with somebody who comes by between any two of them."""

    come_by: Callable[[], None]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in range(len(self)):
            self.come_by()
            yield self[index]


def law_of_one_instant(kind: type[Queue]) -> Callable[[], None]:
    """DQ4: whatever shows all the items shows all that were there at one instant, whoever comes by meanwhile."""

    @given(st.integers(2, 5), st.booleans(), st.sampled_from(["snapshot", "drain", "update", "remove_if"]))
    def law(count: int, left: bool, how: str) -> None:  # noqa: FBT001 - Hypothesis passes them by position
        queue = kind(range(count))
        crowded = queue._items = Crowded(queue._items)
        states = [tuple(range(count))]

        def come_by() -> None:
            # What another thread may do at this point: all it likes, unless the lock keeps it out.
            if not queue._lock.locked():
                (queue.popleft_nowait if left else queue.pop_nowait)()
                queue.append_nowait(count + len(states))
                states.append(tuple(crowded[index][1] for index in range(count)))

        crowded.come_by = come_by
        match how:
            case "snapshot":
                seen = queue.snapshot()
            case "drain":
                seen = tuple(queue.drain())
            case "update":
                seen = queue.update(tuple)
            case _:
                asked: list[int] = []
                queue.remove_if(lambda item: asked.append(item) is not None)  # type: ignore[func-returns-value]
                seen = tuple(asked)
        assert seen in states

    return law


class _TornSnapshot(Queue):
    """A mutant: looks without the lock."""

    def snapshot(self) -> tuple[int, ...]:
        return tuple(item for _, item in self._items)


class _TornDrain(Queue):
    """A mutant: looks without the lock, and then takes all with it."""

    def drain(self) -> list[int]:
        drained = [item for _, item in self._items]
        super().drain()
        return drained


class _TornCopy(Queue):
    """A mutant: gives functions a copy that was made without the lock, if of the newest version."""

    def _look(self) -> tuple[int, list[tuple[int, int]]]:
        entries = list(self._items)
        return self._version, entries


def test_shows_one_instant() -> None:
    """DQ4: for snapshots, for what is drained, and for the copies that functions work on."""
    law_of_one_instant(AsyncGuardedDeque)()


@pytest.mark.parametrize("mutant", [_TornSnapshot, _TornDrain, _TornCopy])
def test_law_of_one_instant_catches_mutants(mutant: type[Queue]) -> None:
    """A copy that is torn by another thread is seen."""
    assert_caught(law_of_one_instant(mutant))


# -- functions of the user (DQ8) ------------------------------------------------------------------------------------


class Blunder(Exception):  # noqa: N818 - what a function of a user raises
    """What a function of the user raises."""


def law_of_functions(kind: type[Queue]) -> Callable[[], None]:
    """DQ8: a function that raises changes nothing, one that is overtaken runs again, and the lock is free for both."""

    @given(
        st.lists(st.integers(0, 9), max_size=6),
        st.lists(st.sampled_from(["append", "pop", "look"]), max_size=4),
        st.sampled_from(["update", "remove_if"]),
        st.sampled_from([None, 0, 1, 2]),
    )
    @example([1, 2, 3], ["append"], "update", None)
    def law(items: list[int], intrusions: list[str], how: str, blunder: int | None) -> None:
        queue = kind(items)
        model = list(items)
        asked = 0

        def intrude() -> None:
            """Use the deque from within, once for each intrusion; then raise, if this call is the one to raise."""
            nonlocal asked
            assert not queue._lock.locked()
            match intrusions.pop() if intrusions else "look":
                case "append":
                    queue.append_nowait(7)
                    model.append(7)
                case "pop" if model:
                    assert queue.popleft_nowait() == model.pop(0)
                case _:
                    assert queue.snapshot() == tuple(model)
            asked += 1
            if asked - 1 == blunder:
                raise Blunder

        def rearrange(items: deque[int]) -> int:
            items.reverse()
            intrude()
            items.append(8)
            return len(items)

        def odd(item: int) -> bool:
            intrude()
            return item % 2 == 1

        try:
            if how == "update":
                assert queue.update(rearrange) == len(model) + 1
                model = [*reversed(model), 8]
            else:
                assert queue.remove_if(odd) == [item for item in model if item % 2]
                model = [item for item in model if not item % 2]
        except Blunder:
            # Nothing but what the intrusions did.
            assert asked - 1 == blunder
        assert not queue._lock.locked()
        assert queue.snapshot() == tuple(model)

    return law


class _Lasting(Queue):
    """A mutant: lets the function work on the items themselves."""

    def update(self, func: Callable[[deque[int]], object]) -> object:  # type: ignore[override]
        items = deque(self.snapshot())
        try:
            return func(items)
        finally:
            self._rearrange(items)

    def remove_if(self, predicate: Callable[[int], bool]) -> list[int]:
        removed = []
        for entry in list(self._items):
            if predicate(entry[1]):
                self._items.remove(entry)
                removed.append(entry[1])
        return removed


class _Blind(Queue):
    """A mutant: does not see that the deque has changed meanwhile."""

    def _look(self) -> tuple[int, list[tuple[int, int]]]:
        _, entries = super()._look()

        class Any(int):
            __hash__ = None  # type: ignore[assignment]

            def __eq__(self, other: object) -> bool:
                return True

        return Any(), entries


class _Locked(Queue):
    """A mutant: holds the lock while the function runs, and for ever if it raises."""

    def update(self, func: Callable[[deque[int]], object]) -> object:  # type: ignore[override]
        copied = deque(self.snapshot())
        self._lock.acquire()
        result = func(copied)
        self._rearrange(copied)
        self._lock.release()
        return result


def test_functions_change_all_or_nothing() -> None:
    """DQ8: for update and for remove_if."""
    law_of_functions(AsyncGuardedDeque)()


@pytest.mark.parametrize("mutant", [_Lasting, _Blind, _Locked])
def test_law_of_functions_catches_mutants(mutant: type[Queue]) -> None:
    """Half a change, a lost one, and a lock that is held are seen."""
    assert_caught(law_of_functions(mutant))


# -- closed loops (DQ9) ---------------------------------------------------------------------------------------------


class Stranded:
    """A task that waits in an event loop that runs no more: it can be woken as long as the loop has not closed."""

    def __init__(self, backend: str, call: Coroutine[object, object, object], *, closed: bool) -> None:
        async def start() -> None:
            call.send(None)

        self.call: Coroutine[object, object, object] | None = call
        self.loop: asyncio.AbstractEventLoop | None = None
        if backend == "trio":
            # What it waits with is trio's; a run of trio is over for good when it is over.
            trio.run(start)
            return
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(start())
        if closed:
            self.loop.close()

    @property
    def closed(self) -> bool:
        """Whether its loop has closed."""
        return self.loop is None or self.loop.is_closed()

    def die(self) -> None:
        """Close the loop, and drop the frame."""
        if self.loop is not None:
            self.loop.close()
        self.call = None


def law_of_closed_loops(kind: type[Queue], backend: str) -> Callable[[], None]:
    """DQ9: what was handed, or let in, where nobody can resume is back, in order, when that is known at the latest."""

    @given(
        st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4),
        st.booleans(),
        st.permutations(range(4)),
    )
    def law(waits: list[tuple[bool, bool]], putting: bool, order: list[int]) -> None:  # noqa: FBT001 - as above
        queue = kind(maxlen=5)
        items = list(range(5))
        if putting:
            for item in items:
                queue.append_nowait(item)
        calls = [
            (queue.appendleft(9) if left else queue.append(9))
            if putting
            else (queue.popleft() if left else queue.pop())
            for left, _ in waits
        ]
        stranded = [Stranded(backend, call, closed=closed) for call, (_, closed) in zip(calls, waits, strict=True)]
        del calls
        alive = sum(not one.closed for one in stranded)
        try:
            if putting:
                assert queue.remove_if(lambda item: item != 9) == items
                # Only those that can still be woken are let in.
                assert len(queue) == alive
            else:
                for item in items:
                    queue.append_nowait(item)
                assert len(queue) == 5 - alive
                assert queue.statistics().getters == 0
        finally:
            for number in order:
                if number < len(stranded):
                    stranded[number].die()
        statistics = queue.statistics()
        assert (statistics.getters, statistics.putters) == (0, 0)
        assert queue.drain() == ([] if putting else items)
        assert statistics.put == statistics.removed + (0 if putting else 5)

    return law


class _Trusting(Queue):
    """A mutant: hands items to those who can no longer be woken."""

    def _hand_item(self, getter: _Getter) -> None:
        handed = self._items.popleft() if getter.left else self._items.pop()
        self._handed[getter] = handed
        getter.waiter.wake()


class _Admitting(Queue):
    """A mutant: lets the item of somebody in who can no longer be woken."""

    def _hand_room(self, putter: _Putter[int]) -> None:
        putter.entry = self._insert(putter.item, left=putter.left)
        putter.waiter.wake()


class _Unburied(Queue):
    """A mutant: what was handed to somebody whose loop closes afterwards is lost."""

    def _abandon_get(self, getter: _Getter) -> None:
        """Leave it all to those who are alive."""


@both_loops
def test_closed_loop_loses_nothing(backend: str) -> None:
    """DQ9: neither one that has closed before, nor one that closes before the task can resume."""
    law_of_closed_loops(AsyncGuardedDeque, backend)()


@pytest.mark.parametrize(
    ("backend", "mutant"),
    [
        ("asyncio", _Trusting),
        ("trio", _Trusting),
        ("asyncio", _Admitting),
        ("trio", _Admitting),
        # A run of trio does not end while a task waits.
        ("asyncio", _Unburied),
    ],
)
def test_law_of_closed_loops_catches_mutants(backend: str, mutant: type[Queue]) -> None:
    """An item on its way to nobody is seen."""
    assert_caught(law_of_closed_loops(mutant, backend))


def test_frame_dropped_inside_a_critical_section_does_not_deadlock() -> None:
    """The collector may strike in the thread that holds the lock; the item comes back when that is free."""
    queue: Queue = AsyncGuardedDeque()
    stranded = Stranded("asyncio", queue.popleft(), closed=False)
    queue.append_nowait(1)
    with queue._section:
        stranded.die()
        assert not queue._items
    assert queue.drain() == [1]


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
