"""AsyncGuardedDeque: one instant, the user's functions, and loops that have closed, as laws."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import AsyncGuardedDeque
from tests.resilience.support import assert_caught, both_loops

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from resilience.handing import Getter, Putter

Queue: TypeAlias = AsyncGuardedDeque[int]


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

    def _hand_item(self, getter: Getter) -> None:
        handed = self._items.popleft() if getter.left else self._items.pop()
        self._handed[getter] = handed
        getter.waiter.wake()


class _Admitting(Queue):
    """A mutant: lets the item of somebody in who can no longer be woken."""

    def _hand_room(self, putter: Putter[int]) -> None:
        putter.entry = self._insert(putter.item, left=putter.left)
        putter.waiter.wake()


class _Unburied(Queue):
    """A mutant: what was handed to somebody whose loop closes afterwards is lost."""

    def _abandon_get(self, getter: Getter) -> None:
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
