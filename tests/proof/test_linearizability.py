"""The linearizability checker beside one that tries every order there is; and what it says when it finds none."""

from __future__ import annotations

import itertools
import math
import re
import threading
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio
import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience.testing import (
    History,
    Model,
    NotLinearizableError,
    Operation,
    assert_linearizable,
    linearizability,
    linearize,
)
from tests.resilience.support import Crew, assert_caught, assert_refuses, both_loops, run, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

S = TypeVar("S")
Place: TypeAlias = linearizability._Place[Any]
Step: TypeAlias = linearizability._Step


class Register(Model[int]):
    """A number that is written and read, and that may be swapped; `maybe` writes or does not."""

    def initial(self) -> int:
        return 0

    def apply(self, state: int, operation: Operation) -> Iterable[int]:
        match operation.name, operation.arguments:
            case "write", (int(value),):
                return [value]
            case "maybe", (int(value),):
                return [state, value]
            case "swap", (int(value),):
                return [value] if not operation.known or operation.result == state else []
            case _:
                return [state] if not operation.known or operation.result == state else []


class Counter(Model[tuple[int, ...]]):
    """A queue at a counter: a place is taken, and the first in the queue goes first, and sees who is left."""

    def initial(self) -> tuple[int, ...]:
        return ()

    def split(self, operation: Operation) -> Sequence[Operation]:
        return [attrs.evolve(operation, name="join"), attrs.evolve(operation, name="leave")]

    def apply(self, state: tuple[int, ...], operation: Operation) -> Iterable[tuple[int, ...]]:
        if operation.name == "join":
            return [(*state, operation.number)]
        if not operation.known:
            return [tuple(number for number in state if number != operation.number)]
        rest = state[1:]
        return [rest] if state[:1] == (operation.number,) and operation.result == len(rest) else []


def _orders(operations: Sequence[Operation], model: Model[S]) -> bool:
    """Try every order of every choice of what took effect: the definition, and nothing else."""
    return any(
        _possible(order, model)
        for effects in itertools.product(*(_effects(number, each, model) for number, each in enumerate(operations)))
        for order in itertools.permutations(itertools.chain(*effects))
    )


Part: TypeAlias = tuple[int, int, Operation]


def _effects(number: int, operation: Operation, model: Model[S]) -> list[list[Part]]:
    """List what may have happened of an operation: all its parts; or none; or, if it goes on, the first few."""
    parts = [(number, place, part) for place, part in enumerate(model.split(operation))]
    if operation.known:
        return [parts]
    return [parts[:count] for count in range(len(parts) + 1)] if operation.ended == "pending" else [[], parts]


def _possible(order: Sequence[Part], model: Model[S]) -> bool:
    for (number, place, first), (other, later, second) in itertools.combinations(order, 2):
        if second.ended_at < first.called_at or (number == other and later < place):
            return False
    states = {model.initial()}
    for _, _, part in order:
        states = {after for state in states for after in model.apply(state, part)}
    return bool(states)


def _calls(draw: st.DrawFn, most: int) -> list[dict[str, object]]:
    """Draw calls at intervals that overlap as they like, and how they ended."""
    count = draw(st.integers(1, most))
    instants = draw(st.permutations(range(2 * count)))
    calls: list[dict[str, object]] = []
    for number in range(count):
        called, ended = sorted(instants[2 * number : 2 * number + 2])
        ending = draw(st.sampled_from(["returned", "returned", "returned", "cancelled", "pending"]))
        ended_at = math.inf if ending == "pending" else ended
        calls.append({"called_at": called, "ended_at": ended_at, "ended": ending, "number": number})
    return calls


def _operation(call: dict[str, object], name: str, arguments: tuple[object, ...], result: object) -> Operation:
    return Operation(name=name, arguments=arguments, result=result, **call)  # type: ignore[arg-type]


@st.composite
def of_registers(draw: st.DrawFn) -> list[Operation]:
    """Draw up to five operations on a register."""
    operations = []
    for call in _calls(draw, 5):
        name = draw(st.sampled_from(["read", "write", "swap", "maybe"]))
        arguments = () if name == "read" else (draw(st.integers(0, 2)),)
        operations.append(_operation(call, name, arguments, draw(st.integers(0, 2))))
    return operations


@st.composite
def of_counters(draw: st.DrawFn) -> list[Operation]:
    """Draw up to three operations of two parts each."""
    return [_operation(call, "pass", (), draw(st.integers(0, 2))) for call in _calls(draw, 3)]


# A write was cancelled, seen not to have happened, and then seen to have happened.
SEEN_LATE = [
    Operation(name="write", arguments=(1,), called_at=0, ended_at=1, ended="cancelled"),
    Operation(name="read", called_at=2, ended_at=3, result=0),
    Operation(name="read", called_at=4, ended_at=5, result=1),
]
# Somebody was cancelled while he queued, and was still counted when somebody else had come after that.
STAYED_IN_THE_QUEUE = [
    Operation(name="pass", called_at=0, ended_at=9, result=2, number=0),
    Operation(name="pass", called_at=1, ended_at=2, ended="cancelled", number=1),
    Operation(name="pass", called_at=3, number=2),
]

Check: TypeAlias = "Callable[[list[Operation], Model[Any]], bool]"


def agrees_with_every_order(check: Check) -> Callable[[], None]:
    """Make the property that `check` says what trying every order says."""

    @given(
        drawn=st.one_of(st.tuples(of_registers(), st.just(Register())), st.tuples(of_counters(), st.just(Counter())))
    )
    @example(drawn=(SEEN_LATE, Register()))
    @example(drawn=(STAYED_IN_THE_QUEUE, Counter()))
    def law(drawn: tuple[list[Operation], Model[Any]]) -> None:
        operations, model = drawn
        assert check(operations, model) == _orders(operations, model)

    return law


def _linearizable(operations: list[Operation], model: Model[Any]) -> bool:
    return linearize(operations, model) is not None


def test_the_checker_says_what_trying_every_order_says() -> None:
    """CB6, DQ2 and RL9 rest on it: no history is judged otherwise than the definition judges it."""
    agrees_with_every_order(_linearizable)()


class BlindToTime(linearizability._Search[Any]):
    """A mutant: what ended before something else was called may come after it."""

    def _candidates(self, place: Place) -> tuple[list[Step], float]:
        _, bound = super()._candidates(place)
        undone = [step for step in self._steps if not self._is_done(place, step)]
        return [step for step in undone if step.before is None or self._is_done(place, step.before)], bound


class CancelledLate(linearizability._Search[Any]):
    """A mutant: what was cancelled may take effect long after its end."""

    def _add(self, operation: Operation) -> None:
        late = operation.ended == "cancelled" and len(self._model.split(operation)) == 1
        super()._add(attrs.evolve(operation, ended_at=math.inf, ended="pending") if late else operation)


class CancelledNever(linearizability._Search[Any]):
    """A mutant: what was cancelled took no effect."""

    def _add(self, operation: Operation) -> None:
        if operation.ended != "cancelled":
            super()._add(operation)


class CancelledByHalves(linearizability._Search[Any]):
    """A mutant: of what was cancelled the first part alone may have taken effect."""

    def _candidates(self, place: Place) -> tuple[list[Step], float]:
        found, _ = super()._candidates(place)
        known = [step for step in self._steps if step.operation.known and not self._is_done(place, step)]
        return found, min((step.operation.ended_at for step in known), default=math.inf)


class PendingNever(linearizability._Search[Any]):
    """A mutant: what has not ended took no effect."""

    def _add(self, operation: Operation) -> None:
        if operation.ended != "pending":
            super()._add(operation)


class PartsInAnyOrder(linearizability._Search[Any]):
    """A mutant: an operation may get what it came for before it takes its place."""

    def _is_done(self, place: Place, step: Step) -> bool:
        return True if not step.last else super()._is_done(place, step)


class Forgetful(linearizability._Search[Any]):
    """A mutant: the same operations done are searched once, whatever state they led to."""

    def _run(self) -> tuple[Operation, ...] | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linearizability, "_Place", _Stateless)
            return super()._run()


@attrs.frozen
class _Stateless:
    low: int
    done: int
    pending: int
    state: object = attrs.field(eq=False)


@pytest.mark.parametrize(
    "mutant",
    [BlindToTime, CancelledLate, CancelledNever, CancelledByHalves, PendingNever, PartsInAnyOrder, Forgetful],
)
def test_a_broken_checker_is_caught(mutant: type[linearizability._Search[Any]]) -> None:
    """Each step of the search matters: leave one out, and some history is judged wrongly."""

    def check(operations: list[Operation], model: Model[Any]) -> bool:
        ordered = sorted(operations, key=lambda each: each.called_at)
        return mutant(ordered, model, 1_000_000).order is not None

    assert_caught(agrees_with_every_order(check))


@given(operations=of_registers())
def test_the_order_that_is_found_is_one_that_the_model_allows(operations: list[Operation]) -> None:
    """What `linearize` returns is a witness, and can be checked without trusting the search."""
    order = linearize(operations, Register())
    if order is not None:
        assert {each.number for each in operations if each.known} <= {each.number for each in order}
        assert _possible([(each.number, 0, each) for each in order], Register())


@given(operations=of_registers())
def test_a_counterexample_is_the_shortest_beginning_that_shows_it(operations: list[Operation]) -> None:
    """What the error shows is not linearizable, and is once its last end is taken away."""
    error = _refuted(operations)
    assert (error is None) == _orders(operations, Register())
    if error is not None:
        assert not _orders(error.operations, Register())
        last = max(each.ended_at for each in error.operations if each.ended != "pending")
        assert _linearizable(list(linearizability._until(error.operations, last - 1)), Register())
        assert _possible([(each.number, 0, each) for each in error.order], Register())


def _refuted(operations: list[Operation]) -> NotLinearizableError | None:
    try:
        assert_linearizable(operations, Register())
    except NotLinearizableError as error:
        return error
    return None


class Map(Register):
    """Registers by name: the first argument says which."""

    def partition(self, operation: Operation) -> Hashable:
        return operation.arguments[0]

    def apply(self, state: int, operation: Operation) -> Iterable[int]:
        return super().apply(state, attrs.evolve(operation, arguments=operation.arguments[1:]))


def test_objects_that_are_independent_are_searched_on_their_own() -> None:
    """A history of many keys costs the sum of its parts, and one wrong key is found."""
    operations = [
        Operation(name="write", arguments=(key, value), called_at=value, ended_at=1_000 + value)
        for key in range(50)
        for value in range(8)
    ]
    assert_linearizable(operations, Map(), max_states=10_000)

    wrong = Operation(name="read", arguments=(7,), called_at=2_000, ended_at=2_001, result=99)
    with pytest.raises(NotLinearizableError) as caught:
        assert_linearizable([*operations, wrong], Map(), max_states=10_000)
    assert {each.arguments[0] for each in caught.value.operations} == {7}


def test_a_long_history_is_judged_quickly() -> None:
    """Ten thousand operations, four at a time, cost some states each: what is done is forgotten."""
    operations = [
        Operation(name="swap", arguments=(number + 1,), called_at=number, ended_at=number + 4.5, result=number)
        for number in range(10_000)
    ]
    pending = Operation(name="write", arguments=(-1,), called_at=0)

    assert_linearizable([pending, *operations], Register(), max_states=200_000)


def test_a_search_that_is_too_large_says_so() -> None:
    """An answer that was not found is no answer."""
    operations = [Operation(name="write", arguments=(n,), called_at=n, ended_at=100 + n) for n in range(20)]
    operations.append(Operation(name="read", called_at=200, ended_at=201, result=99))

    with pytest.raises(RuntimeError, match="max_states=100 different states of the search did not suffice to tell"):
        linearize(operations, Register(), max_states=100)


def test_the_error_shows_the_history_and_how_far_an_order_goes() -> None:
    """Who reads it sees what was seen, what could be explained, and where it ends."""
    history = History()
    with history.operation("write", 1, by="a") as call:
        call.result = None
    with history.operation("read", by="b") as call:
        call.result = 0
    with history.operation("read", by="b") as call:
        call.result = 1

    with pytest.raises(NotLinearizableError) as caught:
        assert_linearizable(history, Register())

    assert str(caught.value).splitlines() == [
        "this history of 2 operations is not linearizable to Register:",
        "  0 to 1  a  write(1) -> None",
        "  2 to 3  b  read() -> 0",
        "an order that is legal as far as it goes:",
        "  1. write(1) -> None",
        "which leads to 1, where no other operation can be the next",
    ]
    assert caught.value.state == 1
    assert caught.value.order == caught.value.operations[:1]


# -- recording ------------------------------------------------------------------------------------------------------


@both_loops
def test_a_history_tells_how_each_task_s_operation_ended(backend: str) -> None:
    """A value, an exception, a cancellation, and nothing yet: each is told apart, and each goes on to its caller."""
    history = History()

    async def returning() -> None:
        with history.operation("returning", 1) as call:
            call.result = 2

    async def raising() -> None:
        with history.operation("raising"):
            raise KeyError(3)

    async def waiting() -> None:
        with history.operation("waiting", by="me"):
            await anyio.sleep_forever()

    async def main() -> None:
        async with Crew() as crew:
            crew.start(returning)
            failed = crew.start(raising)
            cancelled = crew.start(waiting)
            await settle()
            cancelled.cancel()
            await settle()
            crew.start(waiting)
            await settle()
            assert isinstance(failed.error, KeyError)
            assert cancelled.cancelled
            operations = {each.name + each.ended: each for each in history.operations}
            assert {"returningreturned", "raisingraised", "waitingcancelled", "waitingpending"} == set(operations)
            assert operations["returningreturned"].result == 2
            assert operations["raisingraised"].raised(KeyError)
            assert not operations["raisingraised"].raised(ValueError)
            assert operations["waitingpending"].by == "me"
            assert operations["waitingpending"].ended_at == math.inf
            assert str(operations["returningreturned"]) == "returning(1) -> 2"
            assert str(operations["raisingraised"]) == "raising() raised KeyError(3)"
            assert str(operations["waitingcancelled"]) == "waiting() was cancelled"
            assert str(operations["waitingpending"]) == "waiting() has not ended"
        assert all(each.by for each in history.operations)

    run(backend, main)


def test_operations_come_in_the_order_of_their_calls() -> None:
    """However they end, and whether they have."""
    history = History()
    with history.operation("under way"):
        with history.operation("outer"), history.operation("inner"):
            pass
        assert [each.name for each in history.operations] == ["under way", "outer", "inner"]


def test_threads_write_one_history() -> None:
    """Calls and ends of several threads are on one line, and each knows its thread."""
    history = History()
    together = threading.Barrier(4)

    def work() -> None:
        with history.operation("work") as call:
            together.wait()
            call.result = 1

    threads = [threading.Thread(target=work, name=f"worker {number}") for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    operations = history.operations
    assert {each.by for each in operations} == {f"worker {number}" for number in range(4)}
    assert max(each.called_at for each in operations) < min(each.ended_at for each in operations)
    assert len({each.number for each in operations}) == 4


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("arguments", [1]),
        ("called_at", "x"),
        ("called_at", math.nan),
        ("called_at", True),
        ("ended_at", None),
        ("by", None),
        ("ended", "lost"),
    ],
)
def test_an_operation_that_is_none_is_refused(field: str, value: object) -> None:
    """Each field says what it must be."""
    arguments: dict[str, Any] = {"name": "read", "called_at": 0, "ended_at": 1, field: value}
    with pytest.raises(ValueError, match=f"^{field} must be .*{re.escape(repr(value))}"):
        Operation(**arguments)


def test_the_fields_of_an_operation_agree() -> None:
    """An end is after its call, is infinite while there is none, and an exception is what was raised."""
    with pytest.raises(ValueError, match="ended_at must be after called_at, which is 3, not 3"):
        Operation(name="read", called_at=3, ended_at=3)
    with pytest.raises(ValueError, match="ended_at must be infinity if and only if the operation is pending, not 4"):
        Operation(name="read", called_at=3, ended_at=4, ended="pending")
    with pytest.raises(ValueError, match="ended_at must be infinity"):
        Operation(name="read", called_at=3, ended="returned")
    with pytest.raises(ValueError, match="result must be the exception that was raised, not 7"):
        Operation(name="read", called_at=3, ended_at=4, ended="raised", result=7)


class Unhashable(Register):
    def initial(self) -> int:
        return []  # type: ignore[return-value]


class UnhashableLater(Register):
    def apply(self, state: int, operation: Operation) -> Iterable[int]:
        return [{state: operation}]  # type: ignore[list-item]


class Single(Register):
    def apply(self, state: int, operation: Operation) -> Iterable[int]:
        return state if operation.known else 0  # type: ignore[return-value]


def test_what_is_no_history_or_no_model_is_refused() -> None:
    """The error says which of the two it is, and what was found instead."""
    read = Operation(name="read", called_at=0, ended_at=1, result=0)
    assert_refuses("model", Register, lambda model: assert_linearizable([read], model))
    assert_refuses("max_states", 0, lambda max_states: assert_linearizable([read], Register(), max_states=max_states))
    assert_refuses("history", 3, lambda history: assert_linearizable(history, Register()))
    with pytest.raises(ValueError, match="history must be a History or a sequence of operations, not one with 5 in it"):
        assert_linearizable([read, 5], Register())  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"states of Unhashable must be hashable, not \[\]"):
        assert_linearizable([read], Unhashable())
    with pytest.raises(ValueError, match=r"states of UnhashableLater must be hashable, not \{0: Operation"):
        assert_linearizable([read], UnhashableLater())
    with pytest.raises(ValueError, match=r"Single.apply must return the states that may follow, not 0"):
        assert_linearizable([read], Single())


def test_an_empty_history_is_linearizable() -> None:
    """Nothing was seen, so nothing is wrong."""
    assert linearize(History(), Register()) == ()
