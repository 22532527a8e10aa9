"""Events: in order, once each, never while a lock is held, and harmless whatever a listener does."""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.events import SUBSCRIBERS, EventQueue, Rejected, RetryScheduled, Section, announce, calls_for
from resilience.telemetry import subscribe
from tests.resilience.support import assert_caught, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.telemetry import Event

EVENT = RetryScheduled(name="retry", attempt=1, delay=0.5, error="ConnectionError")


class Guarded:
    """Something with a lock and events; each event may make its listener cause some more, whose numbers it is told."""

    def __init__(self, queue: type[EventQueue], causes: dict[int, list[int]]) -> None:
        self.lock = threading.Lock()
        self.queue = queue()
        self.section = Section(self.lock, self.queue)
        self.causes = causes
        self.happened: list[int] = []
        self.told: list[int] = []
        # What a listener finds wrong is noted, since what it raises is logged.
        self.wrong: list[str] = []
        self.depth = 0

    def happen(self, *numbers: int) -> None:
        """Let events happen in one critical section."""
        with self.section:
            for number in numbers:
                self.happened.append(number)
                self.queue.put(partial(self.listen, number))

    def listen(self, number: int) -> None:
        """Hear of an event, and use the very thing that it comes from."""
        if self.lock.locked():
            # Using the thing would deadlock.
            self.wrong.append("told under the lock")
            return
        if self.depth:
            self.wrong.append("told inside a listener")
        self.depth += 1
        self.told.append(number)
        for caused in self.causes.pop(number, []):
            self.happen(caused)
        self.depth -= 1


def law_of_events(queue: type[EventQueue]) -> Callable[[], None]:
    """Each event is told once, in order, one at a time and after the lock was released, re-entrance or not (CB9)."""

    @given(
        st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=4),
        st.dictionaries(st.integers(0, 9), st.lists(st.integers(10, 19), max_size=3), max_size=4),
    )
    def law(sections: list[list[int]], causes: dict[int, list[int]]) -> None:
        guarded = Guarded(queue, causes)
        for numbers in sections:
            guarded.happen(*numbers)
            assert (guarded.told, guarded.wrong) == (guarded.happened, [])
        assert not guarded.queue.pending

    return law


def test_events_are_told_in_order() -> None:
    """CB9: a listener that re-enters only queues; nothing is lost, doubled, nested or told under the lock."""
    law_of_events(EventQueue)()


class _Eager(EventQueue):
    """A mutant: tells at once, under the lock."""

    def put(self, *calls: Callable[[], object]) -> None:
        for call in calls:
            call()


class _Nesting(EventQueue):
    """A mutant: any number of drainers at a time."""

    def drain(self) -> None:
        while self.pending:
            for call in self.pending.popleft():
                call()


class _LastFirst(EventQueue):
    """A mutant: the last event is the first to be told."""

    def put(self, *calls: Callable[[], object]) -> None:
        self.pending.appendleft(calls)


class _OneAtATime(EventQueue):
    """A mutant: leaves what came meanwhile to the next one."""

    def drain(self) -> None:
        if self._draining.acquire(blocking=False):
            try:
                for call in self.pending.popleft():
                    call()
            finally:
                self._draining.release()


@pytest.mark.parametrize("mutant", [_Eager, _Nesting, _LastFirst, _OneAtATime])
def test_law_of_events_catches_mutants(mutant: type[EventQueue]) -> None:
    """Events under the lock, nested, reordered or left behind are seen."""
    assert_caught(law_of_events(mutant))


def test_one_drainer_serves_all_threads() -> None:
    """While one thread tells, another only queues, and goes on at once; the first tells what the second has queued."""
    queue = EventQueue()
    told: list[tuple[str, int]] = []
    main = threading.get_ident()

    def first() -> None:
        told.append(("first", threading.get_ident()))
        queue.put(lambda: told.append(("second", threading.get_ident())))
        in_thread(queue.drain)
        told.append(("still first", threading.get_ident()))

    queue.put(first)
    queue.drain()
    assert told == [("first", main), ("still first", main), ("second", main)]


class _Watched(deque["tuple[Callable[[], object], ...]"]):
    """A deque that lets something happen when it is found empty, after the answer has been given."""

    def __init__(self) -> None:
        super().__init__()
        self.hook: Callable[[], object] | None = None

    def __len__(self) -> int:
        length = super().__len__()
        hook = self.hook
        if not length and hook is not None:
            self.hook = None
            hook()
        return length


def law_of_the_last_event(queue_class: type[EventQueue]) -> None:
    """What is queued just as the drainer has found the queue empty is told all the same."""
    queue = queue_class()
    queue.pending = watched = _Watched()
    told: list[str] = []

    def intrude() -> None:
        queue.put(lambda: told.append("late"))
        # Another thread would find that somebody is at it, and go.
        queue.drain()

    queue.put(lambda: told.append("early"))
    watched.hook = intrude
    queue.drain()
    assert told == ["early", "late"]


class _LeavesEarly(EventQueue):
    """A mutant: does not look back once it has let go."""

    def drain(self) -> None:
        if self.pending and self._draining.acquire(blocking=False):
            try:
                while self.pending:
                    for call in self.pending.popleft():
                        call()
            finally:
                self._draining.release()


def test_no_event_is_lost_between_two_drainers() -> None:
    """The drainer looks once more after it has stopped being one; a mutant that does not is caught."""
    law_of_the_last_event(EventQueue)
    assert_caught(partial(law_of_the_last_event, _LeavesEarly))


def test_finalizer_acts_at_once_where_it_can() -> None:
    """With the lock free, what a finalizer leaves is done before it returns; it may take the lock."""
    lock, queue = threading.Lock(), EventQueue()
    done: list[bool] = []

    def action() -> None:
        with Section(lock, queue):
            done.append(lock.locked())

    queue.put_from_finalizer(lock, action)
    assert done == [True]
    assert not lock.locked()


def law_of_finalizers(queue_class: type[EventQueue]) -> None:
    """A finalizer that strikes in a critical section or a listener is done with when that is over, never within."""
    lock, queue = threading.Lock(), queue_class()
    section = Section(lock, queue)
    done: list[str] = []

    def action(name: str) -> None:
        assert not lock.locked()
        with section:
            done.append(name)

    def listener() -> None:
        queue.put_from_finalizer(lock, partial(action, "in a listener"))
        done.append("the listener is done")

    with section:
        queue.put(listener)
        queue.put_from_finalizer(lock, partial(action, "in a section"))
        assert done == []
    assert done == ["the listener is done", "in a section", "in a listener"]


class _Impatient(EventQueue):
    """A mutant: acts at once, whoever holds the lock."""

    def put_from_finalizer(self, lock: threading.Lock, action: Callable[[], object]) -> None:  # noqa: ARG002 - the bug
        action()


class _Resigned(EventQueue):
    """A mutant: acts only if the lock is free."""

    def put_from_finalizer(self, lock: threading.Lock, action: Callable[[], object]) -> None:
        if lock.acquire(blocking=False):
            lock.release()
            action()


def test_finalizer_never_waits_for_a_lock() -> None:
    """CB2: the garbage collector may strike in the thread that holds the lock; there is no deadlock and no loss."""
    law_of_finalizers(EventQueue)
    for mutant in (_Impatient, _Resigned):
        assert_caught(partial(law_of_finalizers, mutant))


def test_section_is_left_by_an_exception_too() -> None:
    """The lock is released, what was queued is told, and the exception goes on."""
    lock, queue = threading.Lock(), EventQueue()
    told: list[str] = []

    def fail() -> None:
        with Section(lock, queue):
            queue.put(lambda: told.append("told"))
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert told == ["told"]
    assert not lock.locked()


def test_listener_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """CB9: what it raises is logged; the other calls and events are delivered."""
    queue = EventQueue()
    told: list[str] = []

    def raise_error() -> None:
        message = "a bug"
        raise LookupError(message)

    queue.put(raise_error, lambda: told.append("same event"))
    queue.put(lambda: told.append("next event"))
    with caplog.at_level(logging.ERROR, logger="resilience"):
        queue.drain()
    assert told == ["same event", "next event"]
    (record,) = caplog.records
    assert record.message == "a listener raised; the guard and the other listeners go on"
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "LookupError('a bug')"


def test_interrupted_drainer_lets_others_go_on() -> None:
    """A KeyboardInterrupt in a listener goes on; the events behind it are told by whoever comes next."""
    queue = EventQueue()
    told: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    queue.put(interrupt)
    queue.put(lambda: told.append("next"))
    with pytest.raises(KeyboardInterrupt):
        queue.drain()
    queue.drain()
    assert told == ["next"]


def test_subscribers_hear_every_event_until_they_leave() -> None:
    """Each subscription is its own, though the listener be the same; its handle ends it, once."""
    heard: list[Event] = []
    one, other = subscribe(heard.append), subscribe(heard.append)
    try:
        announce(EVENT)
        assert heard == [EVENT, EVENT]
        one()
        one()
        announce(EVENT)
        assert heard == [EVENT] * 3
    finally:
        other()
    announce(EVENT)
    assert heard == [EVENT] * 3
    assert calls_for(EVENT) == []


def test_subscriber_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An event of something that has no queue harms nobody either."""
    heard: list[Event] = []

    def listen(event: Event) -> None:
        raise LookupError(event)

    leave, leave_too = subscribe(listen), subscribe(heard.append)
    try:
        announce(EVENT)
    finally:
        leave()
        leave_too()
    assert heard == [EVENT]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_subscriber_may_leave_and_come_while_it_is_told() -> None:
    """Who listens is settled when an event happens: one that leaves meanwhile is told of it, one that comes is not."""
    heard: list[str] = []
    handles: list[Callable[[], None]] = []

    def leave(_event: Event) -> None:
        heard.append("leaving")
        for handle in handles:
            handle()
        handles.append(subscribe(lambda _event: heard.append("new")))

    handles.extend([subscribe(leave), subscribe(lambda _event: heard.append("other"))])
    try:
        announce(EVENT)
        assert heard == ["leaving", "other"]
        announce(EVENT)
        assert heard == ["leaving", "other", "new"]
    finally:
        for handle in handles:
            handle()
    assert SUBSCRIBERS.listeners == ()


def test_subscribing_needs_something_to_call() -> None:
    """What cannot be called is a TypeError at once."""
    with pytest.raises(TypeError, match=r"^listener must be callable, not 'no'$"):
        subscribe("no")  # type: ignore[arg-type]
    assert SUBSCRIBERS.listeners == ()


def test_events_are_values() -> None:
    """They compare, and do not change."""
    event = Rejected(guard="billing", retry_after=None)
    assert event == Rejected(guard="billing", retry_after=None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.guard = "other"  # type: ignore[misc]
