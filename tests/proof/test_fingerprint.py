"""What is the same state and what is another, for everything that a program may hold."""

from __future__ import annotations

import array
import asyncio
import enum
import functools
import itertools
import random
import threading
import weakref
from collections import OrderedDict, deque
from fractions import Fraction
from typing import TYPE_CHECKING

import attrs
import pytest

from resilience.testing import exploration
from resilience.testing.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Number(int):
    """A number with a name."""

    name = ""


@attrs.define(eq=False)
class Slotted:
    """An object with slots, one of which may be empty."""

    left: object
    right: object = attrs.field(init=False)


class Plain:
    """An object with a dict."""

    def __init__(self, value: object) -> None:
        self.value = value

    def method(self) -> object:
        """Return the value."""
        return self.value


class Stack(list[int]):
    """A list with an attribute."""

    def __init__(self, items: Iterable[int], limit: int) -> None:
        super().__init__(items)
        self.limit = limit


def closure(value: object, *, default: int = 0) -> Callable[[], object]:
    """Make a function that knows a value."""

    def inner(offset: int = default) -> object:
        return value, offset

    return inner


def suspended(items: list[int], steps: int) -> Iterator[int]:
    """Make a generator that has taken so many steps."""

    def generator() -> Iterator[int]:
        yield from items
        yield -1

    made = generator()
    for _ in range(steps):
        next(made)
    return made


def exhausted(iterator: Iterator[object]) -> Iterator[object]:
    """Take all there is."""
    for _ in iterator:
        pass
    return iterator


def advanced(iterator: Iterator[object], steps: int) -> Iterator[object]:
    """Advance an iterator."""
    for _ in range(steps):
        next(iterator)
    return iterator


def locked(lock: threading.Lock) -> threading.Lock:
    """Take a lock."""
    lock.acquire()
    return lock


def cyclic(value: int) -> list[object]:
    """Make a list that holds itself."""
    made: list[object] = [value]
    made.append(made)
    return made


def late() -> Callable[[], object]:
    """Make a function that knows a value that is not there yet."""
    value: int
    if KEPT is None:
        value = 1

    def inner() -> object:
        return value

    return inner


def slotted(left: object, *right: object) -> Slotted:
    """Make an object whose second slot may be empty."""
    made = Slotted(left)
    for value in right:
        made.right = value
    return made


def named(name: str) -> Number:
    """Make a number that is always the same, with a name."""
    made = Number(7)
    made.name = name
    return made


async def asynchronous() -> AsyncIterator[int]:
    """Give two numbers."""
    for number in range(2):
        yield number


def reference(value: object, *, alive: bool = True) -> weakref.ref[object]:
    """Make a weak reference."""
    made = Plain(value)
    found: weakref.ref[object] = weakref.ref(made)
    KEPT.extend([made] if alive else [])
    return found


KEPT: list[object] = []

STATES: dict[str, tuple[Callable[[], object], ...]] = {
    "atoms": tuple(
        functools.partial(lambda value: value, value)
        for value in (None, True, 1, 2, 1.0, "1", "x", b"x", "", "\n", "\udcff", 1j, range(3), ..., NotImplemented)
    ),
    "numbers": (lambda: Fraction(1, 2), lambda: Fraction(1, 3), lambda: named("x"), lambda: named("y"), lambda: 7),
    "enums": (lambda: Colour.RED, lambda: Colour.BLUE),
    "containers": (
        list,
        lambda: [1, 2],
        lambda: [2, 1],
        lambda: (1, 2),
        lambda: [[1], 2],
        lambda: [[1, 2]],
        lambda: deque([1, 2]),
        lambda: array.array("q", [1, 2]),
        lambda: {1, 2},
        lambda: frozenset({1, 2}),
        lambda: {1: 2, 2: 1},
        lambda: {2: 1, 1: 2},
        lambda: OrderedDict({1: 2}),
        lambda: Stack([1], 1),
        lambda: Stack([1], 2),
    ),
    "identities": (
        lambda: [*([same := [1]] * 2)] and [same, same],
        lambda: [[1], [1]],
        lambda: cyclic(1),
        lambda: cyclic(2),
    ),
    "objects": (
        lambda: Plain(1),
        lambda: Plain(2),
        lambda: slotted(1),
        lambda: slotted(1, None),
        lambda: slotted(1, 2),
        object,
        lambda: ValueError(1),
        lambda: ValueError(2),
        lambda: KeyError(1),
    ),
    "functions": (
        lambda: closure(1),
        lambda: closure(2),
        lambda: closure(1, default=1),
        late,
        lambda: len,
        lambda: [1].append,
        lambda: [2].append,
        lambda: Plain(1).method,
        lambda: Plain(2).method,
        lambda: functools.partial(closure, 1),
        lambda: functools.partial(closure, 2),
        lambda: Plain,
        lambda: Slotted,
        lambda: itertools,
    ),
    "suspended": (
        *(functools.partial(suspended, [1, 1, 1], steps) for steps in range(5)),
        lambda: suspended([2, 2, 2], 1),
        lambda: exhausted(suspended([2], 0)),
        lambda: advanced(suspended([1], 0), 2),
        asynchronous,
    ),
    "iterators": tuple(
        functools.partial(lambda make, steps: advanced(make(), steps), make, steps)
        for make in (lambda: iter([1, 1, 1]), lambda: iter({1: 1, 2: 1}), lambda: enumerate("aaa"), itertools.count)
        for steps in range(3)
    ),
    "locks": (threading.Lock, lambda: locked(threading.Lock()), threading.RLock, lambda: locked(threading.RLock())),  # type: ignore[arg-type]
    "dice": (lambda: random.Random(1), lambda: random.Random(2)),
    "references": (lambda: reference(1), lambda: reference(2), lambda: reference(1, alive=False)),
}


@pytest.mark.parametrize("makers", STATES.values(), ids=STATES)
def test_the_same_state_has_the_same_fingerprint_and_another_another(makers: tuple[Callable[[], object], ...]) -> None:
    """Made anew it is the same; and no two of these are."""
    first = [fingerprint(make()) for make in makers]
    second = [fingerprint(make()) for make in makers]

    assert first == second
    assert len(set(first)) == len(makers)


def test_futures_are_told_apart_by_what_they_hold() -> None:
    """Pending, cancelled, done with a value or an exception."""

    def future(end: str, value: object = None) -> asyncio.Future[object]:
        made: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if end == "cancelled":
            made.cancel()
        elif end == "failed":
            made.set_exception(ValueError(value))
        elif end == "done":
            made.set_result(value)
        return made

    ends = [("pending", None), ("cancelled", None), ("done", 1), ("done", 2), ("failed", 1), ("failed", 2)]
    with exploration._event_loop():
        first = [fingerprint(future(*end)) for end in ends]
        second = [fingerprint(future(*end)) for end in ends]

    assert first == second
    assert len(set(first)) == len(ends)


def test_a_coroutine_is_told_by_what_it_awaits() -> None:
    """However deep that is, and through whatever lies between."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            await exploration.pause()
            yield number

    async def walk() -> None:
        async for _ in numbers():
            pass

    def walked(steps: int) -> bytes:
        coroutine = walk()
        for _ in range(steps):
            coroutine.send(None)
        try:
            return fingerprint(coroutine)
        finally:
            coroutine.close()

    first = [walked(steps) for steps in range(4)]
    assert first == [walked(steps) for steps in range(4)]
    assert len(set(first)) == 4


def test_asking_for_locals_changes_nothing() -> None:
    """What a debugger leaves behind in a frame is no state of the program."""
    generator = suspended([1, 2], 1)
    before = fingerprint(generator)

    assert generator.gi_frame.f_locals  # type: ignore[attr-defined]
    assert fingerprint(generator) == before
    assert fingerprint(generator) == before


def test_what_cannot_be_looked_into_is_refused() -> None:
    """Rather an error than a state that is half told."""
    with pytest.raises(ValueError, match=r"the state of dict_values.* cannot be looked into"):
        fingerprint([{1: 2}.values()])
