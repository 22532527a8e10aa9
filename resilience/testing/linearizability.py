"""Linearizability: whether what tasks and threads saw could have happened one operation at a time.

Rules of this module: it runs nothing and knows no guard. A `History` says which operations were called and how they
ended, a `Model` says what each may do when it is alone, and the checker looks for one order of the operations that the
model allows and in which whatever had ended before something else was called also comes before it.

Theory of operation. The definition is Herlihy and Wing's ("Linearizability: A Correctness Condition for Concurrent
Objects", ACM TOPLAS 12(3), 1990). The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", Journal
of Parallel and Distributed Computing 17, 1993): take any operation that nothing unfinished precedes, let the model do
it, go on; where nothing fits, go back. Lowe's memory ("Testing for linearizability", Concurrency and Computation:
Practice and Experience 29(4), 2017) makes it bearable: a set of operations done and the state that they led to is
searched once, however many orders lead there. Objects that are independent, such as the keys of a map, are searched on
their own, since a history is linearizable exactly if it is for each of them (Herlihy and Wing's locality; for parts of
one object, Horn and Kroening, "Faster linearizability checking via P-compositionality", FORTE 2015).

How an operation ended says when it took effect:

| ended with                                  | took effect                                                       |
|---------------------------------------------|-------------------------------------------------------------------|
| a value or an Exception                     | once, between its call and its end, and the model must allow that |
| a cancellation (or any other BaseException) | at most once, between its call and its end; nobody knows          |
| nothing                                     | at most once, at any time after its call; nobody knows            |

An operation that waits has two effects rather than one: it takes its place, and later it gets what it came for. A
model says so with `split`; each part then has an instant of its own. (Scherer and Scott, "Nonblocking Concurrent Data
Structures with Condition Synchronization", DISC 2004, call these a reservation and its follow-up.) Of an operation
that was cancelled either all parts took effect or none.

A state that a model changes in place is a bug that nothing here can see: states are values.
"""

from __future__ import annotations

import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

import anyio
import attrs

from resilience.machines.checks import string, whole_number

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

__all__ = [
    "History",
    "Model",
    "NotLinearizableError",
    "Operation",
    "Recording",
    "assert_linearizable",
    "linearize",
]

S = TypeVar("S")

Ending: TypeAlias = Literal["returned", "raised", "cancelled", "pending"]
_ENDINGS = ("returned", "raised", "cancelled", "pending")


def _name(_instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    string(attribute.name, value)


def _ending(_instance: object, _attribute: attrs.Attribute[Ending], value: Ending) -> None:
    if value not in _ENDINGS:
        msg = f"ended must be one of {', '.join(map(repr, _ENDINGS))}, not {value!r}"
        raise ValueError(msg)


def _instant(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        msg = f"{attribute.name} must be a number, not {value!r}"
        raise ValueError(msg)


def _arguments(_instance: object, attribute: attrs.Attribute[tuple[object, ...]], value: object) -> None:
    if not isinstance(value, tuple):
        msg = f"{attribute.name} must be a tuple, not {value!r}"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class Operation:
    """One call of a history.

    Args:
        name: what was called.
        arguments: what with.
        called_at: when, on any line of numbers on which the history's other instants are.
        ended_at: when it ended, and after `called_at`; infinity if it has not.
        ended: "returned", "raised", "cancelled" or "pending".
        result: what it returned, or the exception that it raised.
        by: whose call it was; for people to read.
        number: tells the operations of a history apart, for models that remember who waits.

    """

    name: str = attrs.field(validator=_name)
    arguments: tuple[object, ...] = attrs.field(default=(), validator=_arguments)
    called_at: float = attrs.field(validator=_instant)
    ended_at: float = attrs.field(default=math.inf, validator=_instant)
    ended: Ending = attrs.field(validator=_ending)
    result: object = None
    by: str = attrs.field(default="", validator=_name)
    number: int = 0

    @ended.default
    def _told_by_the_instant(self) -> Ending:
        return "pending" if self.ended_at == math.inf else "returned"

    def __attrs_post_init__(self) -> None:
        if not self.called_at < self.ended_at:
            msg = f"ended_at must be after called_at, which is {self.called_at!r}, not {self.ended_at!r}"
            raise ValueError(msg)
        if (self.ended == "pending") != (self.ended_at == math.inf):
            msg = f"ended_at must be infinity if and only if the operation is pending, not {self.ended_at!r}"
            raise ValueError(msg)
        if self.ended == "raised" and not isinstance(self.result, BaseException):
            msg = f"result must be the exception that was raised, not {self.result!r}"
            raise ValueError(msg)

    @property
    def known(self) -> bool:
        """Whether it is known how it ended; if not, whatever it might have returned must be allowed."""
        return self.ended in ("returned", "raised")

    def raised(self, kind: type[BaseException]) -> bool:
        """Return whether it ended with an exception of this kind."""
        return self.ended == "raised" and isinstance(self.result, kind)

    def __str__(self) -> str:
        how = {
            "returned": f"-> {self.result!r}",
            "raised": f"raised {self.result!r}",
            "cancelled": "was cancelled",
            "pending": "has not ended",
        }
        return f"{self.name}({', '.join(map(repr, self.arguments))}) {how[self.ended]}"


class Model(ABC, Generic[S]):
    """What an object does when one operation at a time is done to it: a sequential specification.

    States are hashable values that are never changed in place. Write the model as simply as you can: it is what the
    object is judged by, so that it must be obviously right; it need not be fast.

    Example:
        >>> class Register(Model[int]):
        ...     def initial(self) -> int:
        ...         return 0
        ...
        ...     def apply(self, state: int, operation: Operation) -> Iterable[int]:
        ...         if operation.name == "write":
        ...             return [operation.arguments[0]]
        ...         return [state] if not operation.known or operation.result == state else []

    """

    @abstractmethod
    def initial(self) -> S:
        """Return the state at first."""

    @abstractmethod
    def apply(self, state: S, operation: Operation) -> Iterable[S]:
        """Return the states that the operation may lead to from `state`; none if it cannot have ended as it did here.

        Where `operation.known` is false it may have ended in any way that the object has.
        """

    def partition(self, operation: Operation) -> Hashable:  # noqa: ARG002 - for subclasses
        """Return which of several independent objects the operation is done to; by default there is but one."""
        return None

    def split(self, operation: Operation) -> Sequence[Operation]:
        """Return the parts of an operation that take effect one after the other; by default it has but one.

        Parts differ from the operation in name, and in nothing else that the checker looks at.
        """
        return (operation,)


class Recording:
    """An operation under way, for its caller to say what it returned."""

    __slots__ = ("result",)

    def __init__(self) -> None:
        self.result: object = None


class History:
    """What tasks and threads did to an object, and what they saw. Any thread.

    Example:
        >>> history = History()
        >>> with history.operation("get", "key") as call:
        ...     call.result = {"key": 7}["key"]
        >>> print(*history.operations)
        get('key') -> 7

    """

    __slots__ = ("_lock", "_operations", "_ticks", "_under_way")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ticks = itertools.count()
        self._operations: list[Operation] = []
        self._under_way: dict[int, Operation] = {}

    @contextmanager
    def operation(self, name: str, *arguments: object, by: str = "") -> Iterator[Recording]:
        """Record the block as one operation, in plain or in asynchronous code; the block sets `result`.

        An Exception that leaves the block is what the operation raised. Any other BaseException, a cancellation above
        all, leaves open whether it took effect. Both go on. Not a checkpoint.
        """
        by = by or _whose()
        with self._lock:
            tick = next(self._ticks)
            called = Operation(name=name, arguments=arguments, called_at=tick, by=by, number=tick)
            self._under_way[tick] = called
        recording = Recording()
        try:
            yield recording
        except Exception as error:
            self._end(called, "raised", error)
            raise
        except BaseException:
            self._end(called, "cancelled", None)
            raise
        else:
            self._end(called, "returned", recording.result)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations so far, in the order in which they were called; those under way are pending."""
        with self._lock:
            return tuple(sorted([*self._operations, *self._under_way.values()], key=lambda each: each.called_at))

    def _end(self, called: Operation, ended: Ending, result: object) -> None:
        with self._lock:
            del self._under_way[called.number]
            self._operations.append(attrs.evolve(called, ended_at=next(self._ticks), ended=ended, result=result))


def _whose() -> str:
    """Return the name of the calling task, or of the thread where there is none."""
    try:
        return anyio.get_current_task().name or ""
    except RuntimeError:
        return threading.current_thread().name


class NotLinearizableError(AssertionError):
    """No order of the operations is one that the model allows.

    `operations` is the shortest beginning of the history that shows it, `order` an order that is legal as far as it
    goes, `state` where that led.
    """

    def __init__(
        self, message: str, operations: tuple[Operation, ...], order: tuple[Operation, ...], state: object
    ) -> None:
        super().__init__(message)
        self.operations = operations
        self.order = order
        self.state = state


def assert_linearizable(
    history: History | Iterable[Operation], model: Model[S], *, max_states: int = 1_000_000
) -> None:
    """Assert that what was seen could have happened one operation at a time.

    Args:
        history: what was seen.
        model: what each operation may do when it is alone.
        max_states: after how many different states of the search to give up: the problem is NP-complete.

    Raises:
        NotLinearizableError: it could not; an AssertionError that shows the shortest beginning for which that is so.
        ValueError: the history or the model is not one.
        RuntimeError: `max_states` did not suffice to tell.

    """
    operations, model = _checked(history, model, max_states)
    for part in _partitions(operations, model):
        search = _Search(part, model, max_states)
        if search.order is None:
            raise _counterexample(part, model, max_states)


def linearize(
    history: History | Iterable[Operation], model: Model[S], *, max_states: int = 1_000_000
) -> tuple[Operation, ...] | None:
    """Return one order that the model allows, object by object (see `Model.partition`), or None if there is none.

    Operations that were cancelled or are pending are in it if they took effect in that order. Arguments and errors are
    those of `assert_linearizable`.
    """
    operations, model = _checked(history, model, max_states)
    order: list[Operation] = []
    for part in _partitions(operations, model):
        found = _Search(part, model, max_states).order
        if found is None:
            return None
        order += found
    return tuple(order)


def _checked(
    history: History | Iterable[Operation], model: Model[S], max_states: int
) -> tuple[tuple[Operation, ...], Model[S]]:
    if not isinstance(model, Model):
        msg = f"model must be a Model, not {model!r}"
        raise ValueError(msg)
    whole_number("max_states", max_states, minimum=1)
    try:
        operations = history.operations if isinstance(history, History) else tuple(history)
    except TypeError:
        msg = f"history must be a History or a sequence of operations, not {history!r}"
        raise ValueError(msg) from None
    for each in operations:
        if not isinstance(each, Operation):
            msg = f"history must be a History or a sequence of operations, not one with {each!r} in it"
            raise ValueError(msg)
    return operations, model


def _partitions(operations: Iterable[Operation], model: Model[S]) -> list[tuple[Operation, ...]]:
    parts: defaultdict[Hashable, list[Operation]] = defaultdict(list)
    for each in sorted(operations, key=lambda operation: operation.called_at):
        parts[model.partition(each)].append(each)
    return [tuple(part) for part in parts.values()]


@attrs.frozen(eq=False)
class _Step:
    """One part of one operation: what the search puts in order."""

    operation: Operation
    place: int
    before: _Step | None
    last: bool
    """Whether the operation has no further part."""


@attrs.frozen
class _Place(Generic[S]):
    """How far a search has come: what is done, and the state that this led to.

    The first `low` steps are done; `done` and `pending` are bit sets of those after them, and of the pending ones.
    """

    low: int
    done: int
    pending: int
    state: S


class _Search(Generic[S]):
    """The search for an order of operations that the model allows.

    Steps lie in the order of their calls, those of pending operations in a list of their own: what may stay undone
    for ever must not keep the others from being forgotten. Of the steps of cancelled operations that can no longer be
    done (something is done that was called after their end) the bits are set as if they were.
    """

    __slots__ = ("_cancelled", "_max_states", "_model", "_pending", "_steps", "furthest", "order", "state")

    def __init__(self, operations: Iterable[Operation], model: Model[S], max_states: int) -> None:
        self._model = model
        self._max_states = max_states
        self._steps: list[_Step] = []
        self._pending: list[_Step] = []
        for operation in operations:
            self._add(operation)
        # Those that were cancelled, in the order of their ends.
        cancelled = [step for step in self._steps if step.operation.ended == "cancelled"]
        self._cancelled = sorted(cancelled, key=lambda step: step.operation.ended_at)
        self.furthest: tuple[Operation, ...] = ()
        self.state = self._hashable(model.initial())
        self.order = self._run()

    def _add(self, operation: Operation) -> None:
        steps = self._pending if operation.ended == "pending" else self._steps
        parts = self._model.split(operation)
        before: _Step | None = None
        for number, part in enumerate(parts, 1):
            before = _Step(part, len(steps), before, number == len(parts))
            steps.append(before)

    def _hashable(self, state: S) -> S:
        try:
            hash(state)
        except TypeError:
            msg = f"states of {type(self._model).__name__} must be hashable, not {state!r}"
            raise ValueError(msg) from None
        return state

    def _run(self) -> tuple[Operation, ...] | None:
        start = _Place(0, 0, 0, self.state)
        seen = {start}
        path: list[Operation] = []
        stack = [self._onward(start)]
        while stack:
            if stack[-1] is None:
                return tuple(path)
            for operation, place in stack[-1]:
                if place in seen:
                    continue
                if len(seen) >= self._max_states:
                    msg = f"max_states={self._max_states} different states of the search did not suffice to tell"
                    raise RuntimeError(msg)
                seen.add(place)
                path.append(operation)
                stack.append(self._onward(place))
                if len(path) > len(self.furthest):
                    self.furthest, self.state = tuple(path), place.state
                break
            else:
                stack.pop()
                if path:
                    path.pop()
        return None

    def _onward(self, place: _Place[S]) -> Iterator[tuple[Operation, _Place[S]]] | None:
        """Return what can be done next, and where that leads; None if nothing need be done any more."""
        candidates, bound = self._candidates(place)
        return None if bound == math.inf else self._successors(place, candidates, bound)

    def _candidates(self, place: _Place[S]) -> tuple[list[_Step], float]:
        """Return the steps that nothing undone precedes, and the end of the first operation that must be done."""
        bound = math.inf
        found: list[_Step] = []
        for number in range(place.low, len(self._steps)):
            step = self._steps[number]
            operation = step.operation
            if operation.called_at > bound:
                break
            if self._is_done(place, step):
                continue
            ready = step.before is None or self._is_done(place, step.before)
            # Of what was cancelled all parts are done, or none.
            if operation.known or (ready and step.before is not None):
                bound = min(bound, operation.ended_at)
            if ready:
                found.append(step)
        return found, bound

    def _successors(
        self, place: _Place[S], candidates: list[_Step], bound: float
    ) -> Iterator[tuple[Operation, _Place[S]]]:
        # Whoever ended first comes first more often than not.
        for step in sorted(candidates, key=lambda each: each.operation.ended_at):
            for state in self._apply(place.state, step.operation):
                done = place.done | 1 << step.place - place.low
                yield step.operation, self._advance(place, step.operation, done, state)
        for step in self._pending:
            if step.operation.called_at > bound:
                break
            bit = 1 << step.place
            if place.pending & bit or not (step.before is None or place.pending & bit >> 1):
                continue
            for state in self._apply(place.state, step.operation):
                # What changes nothing and may be left undone is left undone: it may still be done later.
                if state != place.state or not step.last:
                    onward = self._advance(place, step.operation, place.done, state)
                    yield step.operation, attrs.evolve(onward, pending=place.pending | bit)

    def _apply(self, state: S, operation: Operation) -> Iterator[S]:
        found = self._model.apply(state, operation)
        try:
            states = iter(found)
        except TypeError:
            msg = f"{type(self._model).__name__}.apply must return the states that may follow, not {found!r}"
            raise ValueError(msg) from None
        return map(self._hashable, states)

    def _is_done(self, place: _Place[S], step: _Step) -> bool:
        return step.place < place.low or bool(place.done >> step.place - place.low & 1)

    def _advance(self, place: _Place[S], operation: Operation, done: int, state: S) -> _Place[S]:
        """Return the place where the operation, too, is done; what was cancelled before its call no longer can be."""
        low = place.low
        for other in self._cancelled:
            if other.operation.ended_at >= operation.called_at:
                break
            if other.place >= low:
                done |= 1 << other.place - low
        # As many as there are ones at the end.
        gone = (~done & done + 1).bit_length() - 1
        return _Place(low + gone, done >> gone, place.pending, state)


def _counterexample(operations: tuple[Operation, ...], model: Model[S], max_states: int) -> NotLinearizableError:
    """Cut the history down to its shortest beginning that is not linearizable, and say what is wrong with that."""
    ends = sorted(each.ended_at for each in operations if each.ended != "pending")
    low, high = 0, len(ends) - 1
    # A beginning of a linearizable history is linearizable, so the first that is not can be halved for.
    while low < high:
        middle = (low + high) // 2
        if _Search(_until(operations, ends[middle]), model, max_states).order is None:
            high = middle
        else:
            low = middle + 1
    shortest = _until(operations, ends[low])
    search = _Search(shortest, model, max_states)
    lines = [
        f"this history of {len(shortest)} operations is not linearizable to {type(model).__name__}:",
        *_table(shortest),
        "an order that is legal as far as it goes:",
        *(f"  {number}. {each}" for number, each in enumerate(search.furthest, 1)),
        f"which leads to {search.state!r}, where no other operation can be the next",
    ]
    return NotLinearizableError("\n".join(lines), shortest, search.furthest, search.state)


def _until(operations: Iterable[Operation], instant: float) -> tuple[Operation, ...]:
    """Return the history as it was at that instant."""
    return tuple(
        each if each.ended_at <= instant else attrs.evolve(each, ended_at=math.inf, ended="pending", result=None)
        for each in operations
        if each.called_at < instant
    )


def _table(operations: Sequence[Operation]) -> list[str]:
    width = max(len(each.by) for each in operations)
    called = max(len(f"{each.called_at}") for each in operations)
    ended = max(len(_shown(each.ended_at)) for each in operations)
    return [
        f"  {each.called_at:>{called}} to {_shown(each.ended_at):<{ended}}  {each.by:<{width}}  {each}".rstrip()
        for each in operations
    ]


def _shown(instant: float) -> str:
    return "…" if instant == math.inf else str(instant)
