"""AsyncGuardedDeque beside a plain list, under every schedule that Hypothesis thinks of, on both event loops."""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import anyio
import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import AsyncGuardedDeque
from tests.resilience.support import Crew, Job, assert_caught, both_loops, heavy, in_thread, run, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.guarded_deque import Overflow
    from resilience.handing import Getter, Putter
    from resilience.parking import TaskWaiter

Queue: TypeAlias = AsyncGuardedDeque[int]
Step: TypeAlias = tuple[str, int, int]
OVERFLOWS: tuple[Overflow, ...] = ("wait", "reject", "drop_oldest", "drop_newest")


@attrs.define(eq=False)
class Cell:
    """An item, and who it was handed to while that one has not resumed: a task, and whether it asked at the left."""

    item: int
    holder: tuple[object, bool] | None = None


class Model:
    """A plain list in which an item that was handed out stays where it is, marked, until its getter has resumed."""

    def __init__(self, maxlen: int | None, overflow: Overflow) -> None:
        self.maxlen, self.overflow = maxlen, overflow
        self.cells: list[Cell] = []
        self.getters: list[tuple[object, bool]] = []
        self.putters: list[tuple[object, bool, int]] = []
        self.let_in: dict[object, Cell] = {}
        self.closed = False
        self.put = self.got = self.dropped = self.removed = 0

    @property
    def free(self) -> list[Cell]:
        """What lies there for anybody to take."""
        return [cell for cell in self.cells if cell.holder is None]

    @property
    def room(self) -> bool:
        """Whether another item may come."""
        return self.maxlen is None or len(self.cells) < self.maxlen

    def insert(self, item: int, *, left: bool) -> Cell:
        """Put an item at one end."""
        cell = Cell(item)
        self.cells.insert(0 if left else len(self.cells), cell)
        self.put += 1
        return cell

    def match(self) -> None:
        """Serve whoever can be served, first come, first served."""
        while True:
            if self.free and self.getters:
                task, left = self.getters.pop(0)
                self.free[0 if left else -1].holder = (task, left)
            elif self.putters and self.room:
                task, left, item = self.putters.pop(0)
                self.let_in[task] = self.insert(item, left=left)
            else:
                return

    def enter_put(self, item: int, *, left: bool, task: object = None) -> bool:
        """Put, drop, or (False) wait for room if a task asks."""
        if self.closed:
            raise anyio.ClosedResourceError
        if self.room:
            self.insert(item, left=left)
        elif self.overflow == "wait" and task is not None:
            self.putters.append((task, left, item))
            return False
        elif self.overflow in ("wait", "reject"):
            raise anyio.WouldBlock
        else:
            self.dropped += 1
            if self.overflow == "drop_newest" or not self.free:
                self.put += 1
            else:
                self.cells.remove(self.free[-1 if left else 0])
                self.insert(item, left=left)
        self.match()
        return True

    def enter_get(self, *, left: bool, task: object = None) -> int | None:
        """Take an item, or (None) wait for one if a task asks."""
        if self.free:
            cell = self.free[0 if left else -1]
            self.cells.remove(cell)
            self.got += 1
            self.match()
            return cell.item
        if self.closed:
            raise anyio.ClosedResourceError
        if task is None:
            raise anyio.WouldBlock
        self.getters.append((task, left))
        return None

    def held_by(self, task: object) -> Cell | None:
        """Return what was handed to a task that has not resumed."""
        return next((cell for cell in self.cells if cell.holder is not None and cell.holder[0] is task), None)

    def collect(self, task: object) -> int:
        """Let a getter resume, with what it must have been handed."""
        cell = self.held_by(task)
        assert cell is not None
        self.cells.remove(cell)
        self.got += 1
        self.match()
        return cell.item

    def abandon(self, task: object) -> None:
        """Let a task be cancelled while it waits, or before it resumes."""
        self.getters = [entry for entry in self.getters if entry[0] is not task]
        self.putters = [entry for entry in self.putters if entry[0] is not task]
        held = self.held_by(task)
        if held is not None:
            held.holder = None
        put = self.let_in.pop(task, None)
        if put in self.free:
            self.cells.remove(put)
            self.removed += 1
        self.match()

    def drain(self) -> list[int]:
        """Take all that is free."""
        drained = [cell.item for cell in self.free]
        self.cells = [cell for cell in self.cells if cell.holder is not None]
        self.got += len(drained)
        self.match()
        return drained

    def remove_multiples(self, divisor: int) -> list[int]:
        """Remove what is free and can be divided."""
        doomed = [cell for cell in self.free if cell.item % divisor == 0]
        self.cells = [cell for cell in self.cells if cell not in doomed]
        self.removed += len(doomed)
        self.match()
        return [cell.item for cell in doomed]

    def update(self, func: Callable[[deque[int]], object]) -> None:
        """Rearrange what is free; what was handed out goes back to the end that it was taken from."""
        items = deque(cell.item for cell in self.free)
        grown = -len(items)
        func(items)
        grown += len(items)
        if self.closed:
            raise anyio.ClosedResourceError
        held = [cell for cell in self.cells if cell.holder is not None]
        if self.maxlen is not None and len(held) + len(items) > self.maxlen:
            raise ValueError
        self.cells = [cell for cell in held if cell.holder is not None and cell.holder[1]]
        self.cells += [Cell(item) for item in items]
        # New cells: once all has been rearranged, a put that is cancelled finds its item no more.
        self.cells += [Cell(cell.item, cell.holder) for cell in held if cell.holder is not None and not cell.holder[1]]
        self.put += max(0, grown)
        self.removed += max(0, -grown)
        self.match()

    def close(self) -> None:
        """Send everybody away who waits."""
        self.closed = True
        self.getters, self.putters = [], []


def add_two(items: deque[int]) -> None:
    """Add an item at either end; they are divisible by anything, to be removed some time."""
    items.appendleft(0)
    items.append(0)


UPDATES: tuple[Callable[[deque[int]], object], ...] = (deque.reverse, deque.clear, add_two, deque.rotate)


class World:
    """A deque and its model, taken through the same steps; whatever one says, the other must say."""

    def __init__(self, kind: type[Queue], maxlen: int | None, overflow: Overflow) -> None:
        self.queue = kind(maxlen=maxlen, overflow=overflow)
        self.model = Model(maxlen, overflow)
        self.natively_cancelled: list[Job] = []
        self.numbers = iter(range(1, 1000))

    async def get(self, me: list[Job], how: int) -> None:
        """Take an item at one end or by iteration, as a task; the model hears of everything in the same instant."""
        task, left = me[0], how != 1
        item: int | None = None
        try:
            expected = self.model.enter_get(left=left, task=task)
        except anyio.ClosedResourceError:
            expected = -1
        try:
            item = await (self.queue.popleft, self.queue.pop, self.queue.__anext__)[how]()
        except anyio.get_cancelled_exc_class():
            assert expected is None
            self.model.abandon(task)
            raise
        except (anyio.ClosedResourceError, StopAsyncIteration) as error:
            ends_a_loop = isinstance(error, StopAsyncIteration)
            assert ends_a_loop == (how == 2)
            assert self.model.closed
            assert expected in (None, -1)
            assert self.model.held_by(task) is None
        else:
            assert item == (self.model.collect(task) if expected is None else expected)

    async def put(self, me: list[Job], left: int) -> None:
        """Put an item, as a task."""
        task, item = me[0], next(self.numbers)
        error, waits = answer_of(lambda: not self.model.enter_put(item, left=bool(left), task=task))
        try:
            await (self.queue.appendleft if left else self.queue.append)(item)
        except anyio.get_cancelled_exc_class():
            assert waits
            self.model.abandon(task)
            raise
        except (anyio.ClosedResourceError, anyio.WouldBlock) as refusal:
            at_once = type(refusal) is error
            # Or by a close that came while this waited.
            assert at_once or (waits and self.model.closed and task not in self.model.let_in)
        else:
            assert error is None
            assert not waits or self.model.let_in.pop(task, None) is not None

    def alike(self, real: Callable[[], object], modelled: Callable[[], object], *, elsewhere: bool = False) -> None:
        """Do one thing to both; they must return or raise the same. Elsewhere is in another thread."""
        expected = answer_of(modelled)
        assert expected == answer_of(lambda: in_thread(real) if elsewhere else real())

    def step(self, crew: Crew, step: Step) -> None:
        """Take one step during which no other task runs."""
        queue, model, (name, first, second) = self.queue, self.model, step
        match name:
            case "get" | "put":
                me: list[Job] = []
                me.append(crew.start(partial(self.get if name == "get" else self.put, me, first)))
            case "get_now":
                real = queue.popleft_nowait if first else queue.pop_nowait
                self.alike(real, lambda: model.enter_get(left=bool(first)), elsewhere=bool(second))
            case "put_now":
                item = next(self.numbers)
                put = queue.appendleft_nowait if first else queue.append_nowait
                modelled = partial(model.enter_put, item, left=bool(first))
                self.alike(partial(put, item), lambda: modelled() and None, elsewhere=bool(second))
            case "cancel":
                # Those first who have been served and do not know it yet: there the errors are.
                jobs = [job for job in crew.jobs if not job.ended]
                jobs.sort(key=lambda job: job not in model.let_in and model.held_by(job) is None)
                if jobs:
                    self.cancel(jobs[first % len(jobs)], native=bool(second))
            case "drain":
                self.alike(queue.drain, model.drain)
            case "remove_if":
                self.alike(
                    lambda: queue.remove_if(lambda item: item % (first + 2) == 0),
                    lambda: model.remove_multiples(first + 2),
                )
            case "update":
                func = UPDATES[first % len(UPDATES)]
                self.alike(lambda: queue.update(func), lambda: model.update(func))
            case _:
                self.alike(queue.close, model.close)

    def cancel(self, job: Job, *, native: bool) -> None:
        """Cancel a task in either way."""
        if native and job.task is not None and not job.ended:
            self.natively_cancelled.append(job)
        job.cancel(native=native)

    def judge(self, crew: Crew) -> None:
        """Compare the two; at every instant, not only when everybody waits."""
        for job in crew.jobs:
            if job.error is not None:
                raise job.error
        queue, model, statistics = self.queue, self.model, self.queue.statistics()
        # DQ2, DQ4, DQ6: the same items in the same order; DQ3: never more than the bound.
        assert queue.snapshot() == tuple(cell.item for cell in model.free)
        assert len(queue) == len(model.free)
        assert model.maxlen is None or len(queue) <= model.maxlen
        # DQ5: the same tasks wait, and the model serves whomever it can.
        assert (statistics.getters, statistics.putters) == (len(model.getters), len(model.putters))
        # DQ1: the books balance.
        on_their_way = len(model.cells) - len(model.free)
        counts = (statistics.put, statistics.got, statistics.dropped, statistics.removed)
        assert counts == (model.put, model.got, model.dropped, model.removed)
        assert statistics.put == sum(counts[1:]) + len(queue) + on_their_way

    async def end(self, crew: Crew) -> None:
        """Close it: everybody ends, nothing more comes in, and the rest comes out once (DQ7)."""
        self.alike(self.queue.close, self.model.close)
        await settle()
        self.judge(crew)
        assert all(job.ended for job in crew.jobs)
        # A cancellation that found the task waiting is never swallowed, whatever it had been handed.
        assert all(job.cancelled for job in self.natively_cancelled)
        with pytest.raises(anyio.ClosedResourceError):
            await self.queue.append(1)
        assert self.queue.drain() == self.model.drain()
        assert self.queue.drain() == []
        with pytest.raises(anyio.ClosedResourceError):
            await self.queue.pop()
        self.judge(crew)


def answer_of(ask: Callable[[], object]) -> tuple[type[Exception] | None, object]:
    """Return what is raised, or returned."""
    try:
        return None, ask()
    except (anyio.WouldBlock, anyio.ClosedResourceError, ValueError) as error:
        return type(error), None


ENDS = st.integers(0, 1)
SETTLE: Step = ("settle", 0, 0)
GETS: st.SearchStrategy[Step] = st.tuples(st.just("get"), st.integers(0, 2), st.just(0))
PUTS: st.SearchStrategy[Step] = st.tuples(st.just("put"), ENDS, st.just(0))
MOVES: st.SearchStrategy[Step] = st.one_of(
    # The third says whether another thread does it: the tasks that it wakes do not know for a while.
    st.tuples(st.sampled_from(["put_now", "get_now"]), ENDS, ENDS),
    # The third says whether natively.
    st.tuples(st.just("cancel"), st.integers(0, 4), ENDS),
    st.tuples(st.sampled_from(["drain", "remove_if", "update", "update", "close"]), st.integers(0, 3), st.just(0)),
)
# Tasks come in waves and get to where they wait; what then happens, happens before they run again.
SCHEDULES: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.lists(GETS, min_size=1, max_size=3).map(lambda wave: [*wave, SETTLE]),
        st.lists(PUTS, min_size=1, max_size=4).map(lambda wave: [*wave, SETTLE]),
        st.lists(st.one_of(GETS, PUTS, MOVES, MOVES), min_size=1, max_size=6),
    ),
    min_size=2,
    max_size=7,
).map(lambda waves: list(chain.from_iterable(waves)))


CANCEL: Step = ("cancel", 0, 0)
TWO_GET: list[Step] = [("get", 0, 0), ("get", 0, 0), SETTLE, ("put_now", 0, 1), ("put_now", 0, 1)]


def law_of_the_model(kind: type[Queue], backend: str) -> Callable[[], None]:
    """DQ1 to DQ7: it does what a plain list does, in every schedule, whatever is cancelled at whatever point."""

    @example([*TWO_GET, ("put_now", 0, 1), CANCEL, CANCEL], None, "wait")
    @example([*TWO_GET, ("update", 2, 0), CANCEL, CANCEL], None, "wait")
    @example([("get", 1, 0), SETTLE, ("put_now", 0, 1), ("put_now", 0, 1), ("update", 0, 0), CANCEL], None, "wait")
    @given(SCHEDULES, st.sampled_from([1, 2, 2, 3, None]), st.sampled_from(("wait", *OVERFLOWS)))
    def law(steps: list[Step], maxlen: int | None, overflow: Overflow) -> None:
        async def main() -> None:
            world = World(kind, maxlen, overflow)
            async with Crew() as crew:
                for step in steps:
                    if step[0] == "settle":
                        await settle()
                    else:
                        world.step(crew, step)
                    world.judge(crew)
                await settle()
                await world.end(crew)

        run(backend, main)

    return law


@both_loops
def test_does_what_a_plain_list_does(backend: str) -> None:
    """DQ1 to DQ7, in all four modes and from both ends."""
    heavy(law_of_the_model(AsyncGuardedDeque, backend))()


class _Losing(Queue):
    """DQ1: an item that was handed to somebody who is then cancelled is lost."""

    def _put_back(self, getter: Getter) -> None:
        self._handed.pop(getter, None)


class _Doubling(Queue):
    """DQ1: an item goes back, and is handed on as well."""

    def _put_back(self, getter: Getter) -> None:
        entry = self._handed.get(getter)
        super()._put_back(getter)
        if entry is not None:
            self._insert(entry[1], left=True)


class _Committed(Queue):
    """DQ1: a put that was cancelled has put all the same."""

    def _take_out(self, putter: Putter[int]) -> None:
        """Let it lie."""


class _LastComeFirstServed(Queue):
    """DQ2: whoever has come last gets an item first."""

    def _enter_get(self, *, left: bool, waits: bool) -> tuple[int, int] | Getter:
        found = super()._enter_get(left=left, waits=waits)
        if not isinstance(found, tuple):
            self._getters.move_to_end(found, last=False)
        return found


class _Overtaking(Queue):
    """DQ2: whoever has come last gets room first."""

    def _enter_put(self, item: int, *, left: bool, waits: bool) -> Putter[int] | None:
        putter = super()._enter_put(item, left=left, waits=waits)
        if putter is not None:
            self._putters.move_to_end(putter, last=False)
        return putter


class _Overfull(Queue):
    """DQ3: the room of an item on its way is given to another."""

    def _room(self) -> bool:
        return self.maxlen is None or len(self._items) < self.maxlen


class _Negligent(Queue):
    """DQ5: an item that goes back is not handed on to the next who waits."""

    def _abandon_get(self, getter: Getter) -> None:
        with self._section:
            self._getters.pop(getter, None)
            self._put_back(getter)


class _Idle(Queue):
    """DQ5: room that a cancelled put leaves is not given to the next who waits."""

    def _abandon_put(self, putter: Putter[int]) -> None:
        with self._section:
            self._putters.pop(putter, None)
            self._take_out(putter)


class _WrongEnd(Queue):
    """DQ6: an item goes back at the other end."""

    def _put_back(self, getter: Getter) -> None:
        entry = self._handed.pop(getter, None)
        if entry is not None:
            (self._items.append if getter.left else self._items.appendleft)(entry)


class _Outermost(Queue):
    """DQ6: an item goes back at the very end, though others have gone back there before that belong behind it."""

    def _put_back(self, getter: Getter) -> None:
        entry = self._handed.pop(getter, None)
        if entry is not None:
            (self._items.appendleft if getter.left else self._items.append)(entry)


class _Misplacing(Queue):
    """DQ6: forgets on which side an item was taken once everything is rearranged."""

    def _rearrange(self, items: deque[int]) -> None:
        handed = dict(self._handed)
        super()._rearrange(items)
        for getter, entry in handed.items():
            if getter in self._handed:
                self._handed[getter] = entry


class _Unheard(Queue):
    """DQ7: those who wait for items do not hear of the close."""

    def close(self) -> None:
        getters, self._getters = self._getters, type(self._getters)()
        super().close()
        self._getters.update(getters)


class _Sealed(Queue):
    """DQ7: after the close nobody gets what is left."""

    def _enter_get(self, *, left: bool, waits: bool) -> tuple[int, int] | Getter:
        if self._closed:
            raise anyio.ClosedResourceError
        return super()._enter_get(left=left, waits=waits)


class _Forever(Queue):
    """DQ7: drains the same items again and again."""

    def drain(self) -> list[int]:
        drained = super().drain()
        for item in drained if self._closed else ():
            self._insert(item, left=False)
        return drained


class _SameEnd(Queue):
    """drop_oldest drops what was put last."""

    def _enter_put(self, item: int, *, left: bool, waits: bool) -> Putter[int] | None:
        if self.overflow == "drop_oldest" and not self._room() and self._items and not self._closed:
            (self._items.popleft if left else self._items.pop)()
            self._dropped += 1
        return super()._enter_put(item, left=left, waits=waits)


class _Swallowing(Queue):
    """DQ6: a cancellation that comes after the item is swallowed."""

    async def _park(self, waiter: TaskWaiter, abandon: Callable[[], None]) -> None:
        def give_in() -> None:
            if not any(getter.waiter is waiter for getter in self._handed):
                abandon()

        try:
            await super()._park(waiter, give_in)
        except anyio.get_cancelled_exc_class():
            if not any(getter.waiter is waiter for getter in self._handed):
                raise


@pytest.mark.parametrize(
    "mutant",
    [
        _Losing,
        _Doubling,
        _Committed,
        _LastComeFirstServed,
        _Overtaking,
        _Overfull,
        _Negligent,
        _Idle,
        _WrongEnd,
        _Outermost,
        _Misplacing,
        _Unheard,
        _Sealed,
        _Forever,
        _SameEnd,
    ],
)
@both_loops
def test_law_of_the_model_catches_mutants(mutant: type[Queue], backend: str) -> None:
    """Whatever is lost, doubled, overtaken, overfull, forgotten, misplaced or never ended is seen."""
    assert_caught(law_of_the_model(mutant, backend))


def test_law_of_the_model_catches_a_swallowed_cancellation() -> None:
    """A native cancellation goes on, whatever came before it."""
    assert_caught(law_of_the_model(_Swallowing, "asyncio"))
