"""AsyncGuardedDeque: DQ1 to DQ9."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import attrs
import trio

from resilience import AsyncGuardedDeque
from resilience import guarded_deque as deque_module
from resilience import handing as handing_module
from resilience import parking as parking_module
from resilience.testing import Faults, History, Model, Operation, assert_linearizable
from tests.proof.programs import Program, cancelled, explored, interleaved, once, seeded
from tests.proof.rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from resilience.handing import Getter, Putter
    from tests.proof.programs import Kind, Tasks

__all__ = ["ROWS"]

Queue = AsyncGuardedDeque[int]


class Belt(Program):
    """One task puts items on a belt that has room for one, and closes it; two take what they get."""

    maxlen: ClassVar[int | None] = 1
    items: ClassVar[tuple[int, ...]] = (1, 2)

    def build(self, kind: Kind) -> None:
        """Make the deque, and lists of what was offered, what was put and what was got."""
        self.queue: Any = kind(maxlen=self.maxlen, clock=self.clock)
        self.offered: list[int] = []
        self.put: list[int] = []
        self.got: list[int] = []

    async def give(self) -> None:
        """Put all items, and close the deque whatever happens."""
        try:
            for item in self.items:
                self.offered.append(item)
                await self.queue.append(item)
                self.put.append(item)
        finally:
            self.queue.close()

    async def take(self) -> None:
        """Take from the left until the deque is closed."""
        with suppress(anyio.ClosedResourceError):
            while True:
                self.got.append(await self.queue.popleft())
                await self.stage.pause()

    async def take_one(self) -> None:
        """Take one, from the left."""
        with suppress(anyio.ClosedResourceError):
            self.got.append(await self.queue.popleft())

    tasks: ClassVar[Tasks] = (give, take, take)


class NothingIsLost(Belt):
    """DQ1: what was put was got or is still there, once; what was not put is not."""

    def invariant(self) -> None:
        """Judge the books."""
        seen = self.queue.statistics()
        there = seen.got + seen.dropped + seen.removed + seen.depth + len(self.queue._handed)
        assert seen.put == there, "DQ1: the books do not balance"

    def check(self) -> None:
        """Judge what became of each item."""
        found = [*self.got, *self.queue.snapshot()]
        assert len(set(found)) == len(found), "DQ1: an item is there twice"
        assert set(self.put) <= set(found) <= set(self.offered), "DQ1: an item is lost, or was never put"
        assert self.cancelled or sorted(found) == [*self.items], "DQ1: an item is lost"


class Bounded(Belt):
    """DQ3: there are never more than there is room for."""

    def invariant(self) -> None:
        """Look in every way that there is."""
        assert max(len(self.queue), len(self.queue.snapshot()), self.queue.statistics().depth) <= 1, "DQ3: too many"

    check = invariant


class Busy(Belt):
    """DQ5: nobody waits for an item or for room while there is one."""

    def build(self, kind: Kind) -> None:
        """Begin with a full one."""
        super().build(kind)
        self.queue.append_nowait(0)

    def invariant(self) -> None:
        """Judge who waits."""
        seen = self.queue.statistics()
        assert not (seen.depth and seen.getters), "DQ5: a getter waits while there is an item"
        room = seen.depth + len(self.queue._handed) < 1
        assert not (room and seen.putters), "DQ5: a putter waits while there is room"

    async def give_one(self) -> None:
        """Put one."""
        with suppress(anyio.ClosedResourceError):
            await self.queue.append(9)

    async def end(self) -> None:
        """Take one, and see that nobody is left to wait for ever."""
        try:
            await self.take_one()
            await self.stage.pause()
        finally:
            self.queue.close()

    tasks: ClassVar[Tasks] = (give_one, give_one, end)


class BusyGetters(Busy):
    """The same with those who want items."""

    async def give_two(self) -> None:
        """Put two, if there is room."""
        try:
            for item in (1, 2):
                with suppress(anyio.WouldBlock):
                    self.queue.append_nowait(item)
                await self.stage.pause()
        finally:
            self.queue.close()

    def build(self, kind: Kind) -> None:
        """Begin with an empty one."""
        super().build(kind)
        self.queue.drain()

    tasks = (Belt.take_one, Belt.take_one, give_two)


class InOrder(Belt):
    """DQ6: what a cancelled getter was handed goes back to where it was."""

    maxlen = None
    items = (1, 2, 3)

    def invariant(self) -> None:
        """Judge the order of what is there."""
        items = [*self.queue.snapshot()]
        assert items == sorted(items), "DQ6: an item went back to another place"

    check = invariant
    tasks = (Belt.take_one, Belt.take_one, Belt.give)


class Closing(Belt):
    """DQ7: a close ends every wait; then nothing comes in, and what is left comes out once."""

    maxlen = 2

    async def close(self) -> None:
        """Fill it, and close it."""
        with suppress(anyio.WouldBlock):
            self.queue.append_nowait(7)
        try:
            await self.stage.pause()
        finally:
            self.queue.close()

    async def put_more(self) -> None:
        """Put one more than there may be room for."""
        with suppress(anyio.ClosedResourceError):
            for item in (1, 2, 3):
                await self.queue.append(item)

    def check(self) -> None:
        """Judge the closed deque; everybody has ended."""
        if not self.queue.closed:
            return
        with suppress(anyio.ClosedResourceError):
            self.queue.append_nowait(8)
            raise AssertionError("DQ7: something came in after the close")
        left = self.queue.snapshot()
        if left:
            try:
                first = self.queue.popleft_nowait()
            except anyio.ClosedResourceError:
                raise AssertionError("DQ7: what is left does not come out") from None
            assert first == left[0], "DQ7: something else comes out"
        assert [*left[1:]] == self.queue.drain(), "DQ7: not all that is left comes out"
        assert self.queue.drain() == [], "DQ7: what is left comes out twice"

    tasks = (Belt.take, put_more, close)


class Careful(Belt):
    """DQ8: a function that raises changes nothing, and leaves the lock free."""

    maxlen = 3

    async def spoil(self) -> None:
        """Have functions raise halfway."""
        before = self.queue.snapshot()
        for method in (self.queue.update, self.queue.remove_if):
            with suppress(KeyError):
                method(spoil_sport)
            assert not self.queue._lock.locked(), "DQ8: the lock is not free"
            assert self.queue.snapshot() == before, "DQ8: something has changed"
        await self.stage.pause()

    async def give_all(self) -> None:
        """Put what there is room for, with others in between."""
        for item in self.items:
            self.queue.append_nowait(item)
            await self.stage.pause()

    tasks = (give_all, spoil, spoil)


def spoil_sport(found: Any) -> bool:  # noqa: ANN401 - all the items, or one of them
    """Change what can be changed, and raise."""
    with suppress(AttributeError):
        found.append(99)
        found.reverse()
    raise KeyError


# -- one after the other ---------------------------------------------------------------------------------------------


@attrs.frozen
class Line:
    """The items; who waits for one, and who for room; what was handed to whom, and what was taken at once."""

    items: tuple[int, ...] = ()
    getters: tuple[int, ...] = ()
    putters: tuple[tuple[int, int], ...] = ()
    handed: frozenset[tuple[int, int]] = frozenset()
    taken: frozenset[tuple[int, int]] = frozenset()
    let_in: frozenset[int] = frozenset()

    def matched(self, maxlen: int) -> Line:
        """Return it when nobody waits for what is there. First come, first served."""
        if self.items and self.getters:
            (first, *items), (getter, *getters) = self.items, self.getters
            handed = self.handed | {(getter, first)}
            return attrs.evolve(self, items=(*items,), getters=(*getters,), handed=handed).matched(maxlen)
        if self.putters and len(self.items) + len(self.handed) < maxlen:
            (number, item), *putters = self.putters
            let_in = self.let_in | {number}
            return attrs.evolve(self, items=(*self.items, item), putters=(*putters,), let_in=let_in).matched(maxlen)
        return self


@attrs.frozen
class LineModel(Model[Line]):
    """A deque in which whoever waits takes a place first, and is served later."""

    maxlen: int

    def initial(self) -> Line:
        """Return one that is empty."""
        return Line()

    def split(self, operation: Operation) -> Sequence[Operation]:
        """Who puts or takes has a place first, and is served then."""
        if operation.name == "look":
            return (operation,)
        return (operation, attrs.evolve(operation, name=f"{operation.name}, served"))

    def apply(self, state: Line, operation: Operation) -> Iterable[Line]:
        """Do one part."""
        number = operation.number
        match operation.name:
            case "look":
                return [state] if operation.result == (len(state.getters), len(state.putters)) else []
            case "append":
                putter = (number, int(str(operation.arguments[0])))
                return [attrs.evolve(state, putters=(*state.putters, putter)).matched(self.maxlen)]
            case "append, served":
                return [attrs.evolve(state, let_in=state.let_in - {number})] if number in state.let_in else []
            case "popleft" if state.items:
                first, *items = state.items
                taken = attrs.evolve(state, items=(*items,), taken=state.taken | {(number, first)})
                return [taken.matched(self.maxlen)]
            case "popleft":
                return [attrs.evolve(state, getters=(*state.getters, number))]
            case _:
                entry: Any = (number, operation.result)
                left = attrs.evolve(state, handed=state.handed - {entry}, taken=state.taken - {entry})
                return [left.matched(self.maxlen)] if left != state else []


class Linear(Program):
    """DQ2: first come, first served, at either side, and in order: as one after the other would."""

    maxlen: ClassVar[int] = 1

    def build(self, kind: Kind) -> None:
        """Make the deque."""
        self.queue: Any = kind(maxlen=self.maxlen, clock=self.clock)
        self.history = History()

    def look(self) -> None:
        """See who waits: whoever does came before what is done next."""
        with self.history.operation("look") as call:
            seen = self.queue.statistics()
            call.result = (seen.getters, seen.putters)

    async def append(self, item: int) -> None:
        """Put an item."""
        self.look()
        with self.history.operation("append", item):
            await self.queue.append(item)

    async def popleft(self) -> None:
        """Take an item."""
        self.look()
        with self.history.operation("popleft") as call:
            call.result = await self.queue.popleft()

    async def puts(self) -> None:
        """Put two."""
        await self.append(1)
        await self.append(2)

    async def puts_and_gets(self) -> None:
        """Put one, and take one."""
        await self.append(3)
        await self.popleft()

    async def gets(self) -> None:
        """Take two."""
        await self.popleft()
        await self.popleft()

    def check(self) -> None:
        """Judge the history."""
        assert_linearizable(self.history, LineModel(self.maxlen))

    tasks: ClassVar[Tasks] = (puts, puts_and_gets, gets)


class PlainModel(Model[tuple[int, ...]]):
    """A deque that is looked at while it is turned."""

    def initial(self) -> tuple[int, ...]:
        """Return what it begins with."""
        return (1, 2, 3)

    def apply(self, state: tuple[int, ...], operation: Operation) -> Iterable[tuple[int, ...]]:
        """Turn it, or look."""
        if operation.name == "snapshot":
            return [state] if operation.result == state else []
        if operation.name == "popleft":
            return [state[1:]] if operation.result == state[0] else []
        return [(*state, int(str(operation.arguments[0])))]


class Turning(Program):
    """DQ4: a snapshot shows one instant, while two threads take at one end and put at the other."""

    def build(self, kind: Kind) -> None:
        """Make the deque."""
        self.queue: Any = kind((1, 2, 3), clock=self.clock)
        self.history = History()

    async def turn(self) -> None:
        """Take an item at one end, and put another at the other."""
        with self.history.operation("popleft") as call:
            call.result = item = self.queue.popleft_nowait()
        with self.history.operation("append", item + 10):
            self.queue.append_nowait(item + 10)

    async def look(self) -> None:
        """Look twice."""
        for _ in range(2):
            with self.history.operation("snapshot") as call:
                call.result = self.queue.snapshot()
            await self.stage.pause()

    def check(self) -> None:
        """Judge the history."""
        assert_linearizable(self.history, PlainModel())

    tasks: ClassVar[Tasks] = (turn, look, turn)


# -- loops that close ------------------------------------------------------------------------------------------------


def survives_closed_loops(kind: Kind, seed: int) -> int:
    """DQ9: what was handed to a task whose loop closes, or has closed, is back, in order."""
    cases = 0
    for backend, closed, waiting in itertools.product(("asyncio", "trio"), (False, True), (1, 2)):
        queue: Any = kind()
        calls = [queue.popleft() for _ in range(waiting)]
        loop = _stranded(backend, calls, closed=closed)
        for item in range(3):
            queue.append_nowait(item)
        if loop is None or loop.is_closed():
            assert queue.snapshot() == (0, 1, 2), "DQ9: an item went to a loop that has closed"
        else:
            loop.close()
        del calls
        assert queue.drain() == [0, 1, 2], "DQ9: an item went to a loop that has closed"
        assert queue.statistics().getters == 0, "DQ9: a getter of a loop that has closed still waits"
        cases += 1
    return cases


def _stranded(backend: str, calls: Sequence[Any], *, closed: bool) -> asyncio.AbstractEventLoop | None:
    """Have calls wait in a loop that runs no more; return the loop, if it can still be closed."""

    async def start() -> None:
        for call in calls:
            call.send(None)

    if backend == "trio":
        # A run of trio that is over is over for good.
        trio.run(start)
        return None
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    if closed:
        loop.close()
    return loop


# -- mutants ---------------------------------------------------------------------------------------------------------


class Loses(Queue):
    """Loses an item that was handed to somebody who is then cancelled."""

    def _put_back(self, getter: Getter) -> None:
        self._handed.pop(getter, None)


class Doubles(Queue):
    """Puts an item back, and hands it on as well."""

    def _put_back(self, getter: Getter) -> None:
        entry = self._handed.get(getter)
        super()._put_back(getter)
        if entry is not None:
            self._insert(entry[1], left=True)


class LastComeFirstServed(Queue):
    """Serves whoever has come last first."""

    def _enter_get(self, *, left: bool, waits: bool) -> tuple[int, int] | Getter:
        found = super()._enter_get(left=left, waits=waits)
        with self._section:
            if not isinstance(found, tuple) and found in self._getters:
                self._getters.move_to_end(found, last=False)
        return found


class Overtakes(Queue):
    """Gives room to whoever has come last."""

    def _enter_put(self, item: int, *, left: bool, waits: bool) -> Putter[int] | None:
        putter = super()._enter_put(item, left=left, waits=waits)
        with self._section:
            if putter is not None and putter in self._putters:
                self._putters.move_to_end(putter, last=False)
        return putter


class Overfull(Queue):
    """Gives the room of an item on its way to another."""

    def _room(self) -> bool:
        return self.maxlen is None or len(self._items) < self.maxlen


class LooksTwice(Queue):
    """Puts a snapshot together from two."""

    def snapshot(self) -> tuple[int, ...]:
        """Look at the first item, and then at the others."""
        return super().snapshot()[:1] + super().snapshot()[1:]


class Negligent(Queue):
    """Does not hand an item on that has come back."""

    def _abandon_get(self, getter: Getter) -> None:
        with self._section:
            self._getters.pop(getter, None)
            self._put_back(getter)


class Idle(Queue):
    """Does not hand on the room that a cancelled put leaves."""

    def _abandon_put(self, putter: Putter[int]) -> None:
        with self._section:
            self._putters.pop(putter, None)
            self._take_out(putter)


class WrongEnd(Queue):
    """Puts an item back at the other end."""

    def _put_back(self, getter: Getter) -> None:
        entry = self._handed.pop(getter, None)
        if entry is not None:
            (self._items.append if getter.left else self._items.appendleft)(entry)


class Outermost(Queue):
    """Puts an item back at the very end, before others that belong before it."""

    def _put_back(self, getter: Getter) -> None:
        entry = self._handed.pop(getter, None)
        if entry is not None:
            (self._items.appendleft if getter.left else self._items.append)(entry)


class Unheard(Queue):
    """Does not tell those who wait for items of the close."""

    def close(self) -> None:
        """Close it."""
        getters, self._getters = self._getters, type(self._getters)()
        super().close()
        self._getters.update(getters)


class Seals(Queue):
    """Gives nothing out after the close."""

    def _enter_get(self, *, left: bool, waits: bool) -> tuple[int, int] | Getter:
        if self._closed:
            raise anyio.ClosedResourceError
        return super()._enter_get(left=left, waits=waits)


class DrainsForEver(Queue):
    """Drains the same items again and again."""

    def drain(self) -> list[int]:
        """Drain it."""
        drained = super().drain()
        for item in drained if self._closed else ():
            self._insert(item, left=False)
        return drained


class UpdatesInPlace(Queue):
    """Keeps what a function has done before it raised."""

    def update(self, func: Callable[[deque[int]], Any]) -> Any:  # noqa: ANN401 - whatever the function returns
        """Rearrange the items."""
        items = deque(item for _, item in self._items)
        try:
            return func(items)
        finally:
            with self._section:
                self._rearrange(items)


class KeepsTheLock(Queue):
    """Calls the function under the lock, and forgets it when that raises."""

    def update(self, func: Callable[[deque[int]], Any]) -> Any:  # noqa: ANN401 - as above
        """Rearrange the items."""
        self._lock.acquire()
        items = deque(item for _, item in self._items)
        result = func(items)
        self._rearrange(items)
        self._lock.release()
        return result


class Trusts(Queue):
    """Hands items to those who can no longer be woken."""

    def _hand_item(self, getter: Getter) -> None:
        self._handed[getter] = self._items.popleft() if getter.left else self._items.pop()
        getter.waiter.wake()


class Unburied(Queue):
    """Leaves what was handed to somebody whose frame is dropped with its loop."""

    def _abandon_get(self, getter: Getter) -> None:
        """Leave it all to those who are alive."""


# -- the rows --------------------------------------------------------------------------------------------------------


def _row(number: str, says: str, trials: Any, *mutants: Kind) -> Row:  # noqa: ANN401 - one or several
    return Row(number=number, says=says, kind=AsyncGuardedDeque, trials=tuple(trials), mutants=mutants)


def _everywhere(program: type[Program], *, cancels: int = 1) -> tuple[Any, ...]:
    """Return the trials of a program that needs no time."""
    return (
        explored(program, cancels=cancels),
        seeded(program, faults=[Faults()]),
        seeded(program, faults=[Faults()], backend="trio"),
        cancelled(program),
        cancelled(program, backend="trio"),
    )


ROWS: tuple[Row, ...] = (
    _row("DQ1", "what was put is got or still there, once", _everywhere(NothingIsLost), Loses, Doubles),
    _row(
        "DQ2",
        "first come, first served; linearizable to one after the other",
        (
            interleaved(Linear, [deque_module, handing_module]),
            explored(Linear, cancels=0),
            seeded(Linear, faults=[Faults()], cancels=False),
            seeded(Linear, faults=[Faults()], cancels=False, backend="trio"),
        ),
        LastComeFirstServed,
        Overtakes,
    ),
    _row("DQ3", "never more than there is room for", _everywhere(Bounded), Overfull),
    _row(
        "DQ4",
        "a snapshot shows one instant",
        [interleaved(Turning, [deque_module, handing_module])],
        LooksTwice,
    ),
    _row(
        "DQ5",
        "nobody waits while what it waits for is there",
        (*_everywhere(Busy), *_everywhere(BusyGetters)),
        Negligent,
        Idle,
    ),
    _row(
        "DQ6",
        "what a cancelled getter was handed goes back to where it was",
        _everywhere(InOrder, cancels=2),
        WrongEnd,
        Outermost,
    ),
    _row(
        "DQ7",
        "a close ends every wait; what is left comes out once, and nothing comes in",
        _everywhere(Closing),
        Unheard,
        Seals,
        DrainsForEver,
    ),
    _row(
        "DQ8",
        "a function that raises changes nothing, and leaves the lock free",
        _everywhere(Careful),
        UpdatesInPlace,
        KeepsTheLock,
    ),
    _row(
        "DQ9",
        "threads and loops that close lose nothing",
        (
            once("closed loops", survives_closed_loops),
            interleaved(NothingIsLost, [deque_module, handing_module, parking_module]),
        ),
        Trusts,
        Unburied,
    ),
)
