"""AsyncGuardedDeque between threads, one instruction at a time: DQ1 to DQ4 and DQ7, and mutants."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio
import attrs
import pytest

from resilience import AsyncGuardedDeque, events, guarded_deque, handing
from resilience.testing import Model, Operation
from tests.proof.threaded import World, linearizable, unlocked
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WATCHED = [guarded_deque, handing, events]
MOST = 2

Overflow: TypeAlias = Literal["reject", "drop_oldest"]


class Shared(World):
    """A deque of at most two, of which it is told what became of each operation."""

    def __init__(self, kind: type[AsyncGuardedDeque[str]], overflow: Overflow) -> None:
        super().__init__()
        self.deque = kind(["first"], MOST, overflow=overflow)

    def do(self, name: str, *arguments: object) -> None:
        """Call a method, and note what it returns or raises."""
        with self.history.operation(name, *arguments) as call:
            try:
                found = getattr(self.deque, name)(*arguments)
            except (anyio.WouldBlock, anyio.ClosedResourceError) as error:
                call.result = type(error)
            else:
                call.result = tuple(found) if isinstance(found, list) else found

    def put(self) -> None:
        """Put an item that nothing else is at the right end."""
        self.do("append_nowait", self.name())

    def length(self) -> None:
        """Ask how many there are."""
        with self.history.operation("len") as call:
            call.result = len(self.deque)

    def take_out(self) -> None:
        """Remove the items whose names end in an odd number."""
        with self.history.operation("remove_if") as call:
            call.result = tuple(self.deque.remove_if(odd))

    def turn(self) -> None:
        """Turn the order round."""
        with self.history.operation("update"):
            try:
                self.deque.update(deque.reverse)
            except anyio.ClosedResourceError:
                return

    def everything_is_counted(self) -> None:
        """DQ1: what was put was got, dropped or removed, or is still there."""
        seen = self.deque.statistics()
        assert seen.put == seen.got + seen.dropped + seen.removed + seen.depth
        assert seen.depth == len(self.deque.snapshot()) <= MOST


def odd(item: str) -> bool:
    """Tell whether an item's name ends in an odd number."""
    return item[-1] in "13579"


@attrs.frozen
class Line:
    """The items, from the left."""

    items: tuple[str, ...] = ("first",)
    closed: bool = False


#: What becomes of the items, and what is returned.
_DOES: dict[str, Callable[[tuple[str, ...]], tuple[tuple[str, ...], object]]] = {
    "popleft_nowait": lambda items: (items[1:], items[0]),
    "pop_nowait": lambda items: (items[:-1], items[-1]),
    "snapshot": lambda items: (items, items),
    "len": lambda items: (items, len(items)),
    "drain": lambda items: ((), items),
    "remove_if": lambda items: (tuple(item for item in items if not odd(item)), tuple(filter(odd, items))),
    "update": lambda items: (items[::-1], None),
}


@attrs.frozen
class LineModel(Model[Line]):
    """A deque to which one comes at a time."""

    overflow: Overflow

    def initial(self) -> Line:
        return Line()

    def apply(self, state: Line, operation: Operation) -> Iterable[Line]:
        after, result = self.done(state, operation)
        return [after] if operation.result == result else []

    def done(self, state: Line, operation: Operation) -> tuple[Line, object]:
        """Return the state after the operation, and its result."""
        match operation.name, operation.arguments:
            case "append_nowait", (str(item),):
                return self.put(state, item)
            case "close", _:
                return attrs.evolve(state, closed=True), None
            case "popleft_nowait" | "pop_nowait", _ if not state.items:
                return state, anyio.ClosedResourceError if state.closed else anyio.WouldBlock
            case "update", _ if state.closed:
                return state, None
            case name, _:
                items, result = _DOES[name](state.items)
                return attrs.evolve(state, items=items), result

    def put(self, state: Line, item: str) -> tuple[Line, object]:
        if state.closed:
            return state, anyio.ClosedResourceError
        if len(state.items) < MOST:
            return attrs.evolve(state, items=(*state.items, item)), None
        if self.overflow == "reject":
            return state, anyio.WouldBlock
        return attrs.evolve(state, items=(*state.items[1:], item)), None


Act: TypeAlias = "Callable[[Shared], object]"


def do(name: str) -> Act:
    """Return the act that calls a method."""
    return lambda shared: shared.do(name)


ACTS: list[Act] = [
    *[Shared.put] * 4,
    do("popleft_nowait"),
    do("pop_nowait"),
    do("snapshot"),
    do("drain"),
    do("close"),
    Shared.length,
    Shared.take_out,
    Shared.turn,
]
FIXED: list[list[list[Act]]] = [
    [[Shared.put, do("popleft_nowait")], [Shared.put, do("snapshot")], [do("popleft_nowait")]],
    [[Shared.take_out, Shared.length], [Shared.put, Shared.put], [Shared.turn]],
]


def is_a_line(kind: type[AsyncGuardedDeque[str]], overflow: Overflow) -> Callable[[], None]:
    """Make the property that threads see a deque to which one comes at a time, and that no item is lost."""

    def law() -> None:
        linearizable(
            lambda: Shared(kind, overflow),
            LineModel(overflow),
            acts=ACTS,
            fixed=FIXED,
            watch=[*WATCHED, kind],
            also=Shared.everything_is_counted,
        )

    return law


@pytest.mark.parametrize("overflow", ["reject", "drop_oldest"])
def test_threads_see_one_deque(overflow: Overflow) -> None:
    """DQ1, DQ2, DQ3, DQ4, DQ7: whatever threads do to a deque could have been done one after the other."""
    is_a_line(AsyncGuardedDeque, overflow)()


class Unversioned(AsyncGuardedDeque[str]):
    """A mutant: what is removed is sought in a snapshot, and the rest is put in its place whatever has come since."""

    def remove_if(self, predicate: Callable[[str], bool]) -> list[str]:
        _, entries = self._look()
        with self._section:
            self._items = deque(entry for entry in entries if not predicate(entry[1]))
            self._match()
        return [item for _, item in entries if predicate(item)]


class MeasuresOutside(AsyncGuardedDeque[str]):
    """A mutant: whether there is an item is looked at before the lock is taken."""

    def popleft_nowait(self) -> str:
        if not len(self):
            return super().popleft_nowait()
        with self._section:
            # As it would: what is not there is no item, rather than an error.
            self._got += 1
            return self._items.popleft()[1] if self._items else ""


@pytest.mark.parametrize("mutant", [unlocked(AsyncGuardedDeque), Unversioned, MeasuresOutside])
def test_a_deque_that_races_is_caught(mutant: type[AsyncGuardedDeque[str]]) -> None:
    """Without its lock, or with a question asked outside of it, some schedule loses an item or shows what was not."""
    assert_caught(is_a_line(mutant, "reject"))
