"""Bulkhead and AdaptiveLimiter between threads that wait: their queue, their hand-offs, and mutants."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest

from resilience import (
    AIMD,
    AdaptiveLimiter,
    Bulkhead,
    Permit,
    RejectedError,
    adaptive_limiter,
    bulkhead,
    events,
    parking,
    queueing,
)
from resilience.parking import thread_waiter
from resilience.testing import Model, Operation
from tests.proof.threaded import World, linearizable, unlocked
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilience.machines.decision import NotUntil

WATCHED = [adaptive_limiter, bulkhead, queueing, parking, events]
Limiting: TypeAlias = Bulkhead | AdaptiveLimiter
MOST = 1


class Room(World):
    """A guard that lets in one call at a time, with a queue for two more; time is that of the run."""

    def __init__(self, kind: type[Limiting], max_wait: float | None) -> None:
        super().__init__()
        self.guard: Limiting
        if issubclass(kind, Bulkhead):
            self.guard = kind(MOST, max_queue=2, max_wait=max_wait)
        else:
            self.guard = kind(AIMD(initial_limit=MOST, max_limit=MOST), max_queue=2, max_wait=max_wait)

    def enter(self) -> None:
        """Ask for a permit, and wait for it."""
        name = self.name()
        with self.history.operation("enter") as call:
            try:
                self.keep(name, self.guard.admit_blocking())
            except RejectedError:
                call.result = False
            else:
                call.result = True

    def try_to_enter(self) -> None:
        """Ask for a permit, and do not wait."""
        name = self.name()
        with self.history.operation("enter") as call:
            permit = self.guard.try_admit()
            call.result = permit is not None
        if permit is not None:
            self.keep(name, permit)

    def leave(self) -> None:
        """Give the last permit back."""
        if (kept := self.kept()) is not None:
            with self.history.operation("leave"):
                kept[1].success()

    def everybody_is_counted(self) -> None:
        """Nobody waits, and no more are in than may be; who was admitted, refused and is still in has been counted."""
        seen = self.guard.statistics()
        entered = [bool(each.result) for each in self.history.operations if each.name == "enter"]
        left = sum(each.name == "leave" for each in self.history.operations)
        assert (seen.admitted, seen.rejected) == (sum(entered), len(entered) - sum(entered))
        assert seen.in_use == seen.admitted - left <= MOST
        assert seen.waiting == 0


class RoomModel(Model[int]):
    """How many are in, where one enters at a time; who waits enters when there is room."""

    def initial(self) -> int:
        return 0

    def apply(self, state: int, operation: Operation) -> Iterable[int]:
        if operation.name == "leave":
            return [state - 1]
        if operation.result != (state < MOST):
            return []
        return [state + 1] if operation.result else [state]


Act: TypeAlias = "Callable[[Room], object]"


def once(room: Room) -> None:
    """Enter and leave."""
    room.enter()
    room.leave()


def try_once(room: Room) -> None:
    """Enter and leave, if there is room."""
    room.try_to_enter()
    room.leave()


ACTS: list[Act] = [once, once, try_once]
FIXED: list[list[list[Act]]] = [[[once], [once], [try_once]], [[once], [once]]]
#: For those who do not wait for ever: two who stay.
STAYING: list[list[list[Act]]] = [[[once], [Room.try_to_enter], [Room.enter]]]


def is_a_room(kind: type[Limiting], max_wait: float | None) -> Callable[[], None]:
    """Make the property that threads see a room that one enters at a time, and that nobody waits in vain."""

    def law() -> None:
        linearizable(
            lambda: Room(kind, max_wait),
            RoomModel(),
            acts=ACTS,
            fixed=FIXED if max_wait is None else STAYING,
            watch=[*WATCHED, kind],
            draws=20 if max_wait is None else 100,
            also=Room.everybody_is_counted,
        )

    return law


@pytest.mark.parametrize("max_wait", [None, 1.0])
@pytest.mark.parametrize("kind", [Bulkhead, AdaptiveLimiter])
def test_threads_see_one_room(kind: type[Limiting], max_wait: float | None) -> None:
    """Never more calls than may be, no permit lost, and nobody waits for ever."""
    is_a_room(kind, max_wait)()


class LooksFirst(Bulkhead):
    """A mutant: whoever finds no permit queues, though one may have come back meanwhile."""

    def admit_blocking(self, cost: float = 1) -> Permit:
        decision = self.admit(None, cost)
        if isinstance(decision, Permit):
            return decision
        waiter = thread_waiter()
        with self._section:
            self._queue.join(waiter)
        found: Permit | NotUntil | None = None
        while found is None:
            waiter.wait_blocking(self.clock, None)
            found = self._turn(waiter)
        return self._permit_or_refuse(found)


class HandsNothingOn(Bulkhead):
    """A mutant: a permit that comes back is not handed to whoever waits for it."""

    def _hand_on(self) -> None:
        self._permits.give_back()


class LetsSlipIn(Bulkhead):
    """A mutant: a permit that is handed on is free for a moment, and is taken without looking again."""

    def _hand_on(self) -> None:
        self._permits.give_back()
        self._unlock()
        self._try_lock()
        while (first := self._queue.first) is not None:
            _, waiter = first
            self._queue.leave(waiter)
            self._permits.in_use += 1
            waiter.granted = True
            waiter.wake()
            return


@pytest.mark.parametrize(
    ("mutant", "max_wait"),
    [
        (unlocked(Bulkhead), None),
        (unlocked(AdaptiveLimiter), None),
        (LooksFirst, None),
        (HandsNothingOn, None),
        (LetsSlipIn, 1.0),
    ],
)
def test_a_guard_that_races_is_caught(mutant: type[Limiting], max_wait: float | None) -> None:
    """Without its lock, or with a hand-off that is none, some schedule admits too many or has somebody wait in vain."""
    assert_caught(is_a_room(mutant, max_wait))
