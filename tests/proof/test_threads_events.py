"""The queue of events between threads, one instruction at a time: in order, one at a time, each once; and mutants."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

import pytest

from resilience import events
from resilience.events import EventQueue, Section
from tests.proof.threaded import holds
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilience.testing.interleaving import Threads


class Wire:
    """A section in which events are numbered and queued, and a listener that minds being called while it runs."""

    def __init__(self, kind: type[EventQueue]) -> None:
        self.lock = threading.Lock()
        self.queue = kind()
        self.section = Section(self.lock, self.queue)
        self.numbered = 0
        self.listening = False
        self.heard: list[int] = []

    def tell(self) -> None:
        """Queue an event; the section delivers."""
        with self.section:
            self.put(self.hear)

    def tell_on(self) -> None:
        """Queue an event whose listener queues another one."""
        with self.section:
            self.put(self.hear_and_tell)

    def enter(self) -> None:
        """Hold the lock, and have nothing to tell."""
        with self.section:
            return

    def finish(self) -> None:
        """Queue an event as a finalizer would, which cannot wait for the lock."""
        self.queue.put_from_finalizer(self.lock, self.tell)

    def put(self, listener: Callable[[int], None]) -> None:
        """Queue an event. The lock is held."""
        self.queue.put(functools.partial(listener, self.numbered))
        self.numbered += 1

    def hear(self, number: int) -> None:
        """Be the listener."""
        assert not self.listening
        self.listening = True
        self.heard.append(number)
        self.listening = False

    def hear_and_tell(self, number: int) -> None:
        """Be the listener, and use what one listens to."""
        self.hear(number)
        self.tell()


def telling(kind: type[EventQueue], programs: Sequence[Sequence[Callable[[Wire], None]]], threads: Threads) -> None:
    """Queue events in several threads, and find them delivered in the order in which they were queued."""
    wire = Wire(kind)
    for program in programs:
        threads.start(lambda program=program: [act(wire) for act in program])
    threads.join()
    assert wire.heard == list(range(wire.numbered))
    assert not wire.queue.pending


def delivers_in_order(kind: type[EventQueue]) -> Callable[[], None]:
    """Make the property that events are delivered in the order in which they were queued, once, one at a time."""
    scenario = functools.partial(telling, kind, ((Wire.tell,), (Wire.tell,), (Wire.tell_on,)))
    return lambda: holds(scenario, watch=[events, Wire])


def delivers_from_finalizers(kind: type[EventQueue]) -> Callable[[], None]:
    """Make the property that what a finalizer leaves is delivered, whoever holds the lock just then."""
    scenario = functools.partial(telling, kind, ((Wire.enter,), (Wire.finish,)))
    return lambda: holds(scenario, watch=[events, kind], deviations=2)


def test_threads_deliver_in_order() -> None:
    """CB4, CB9: whoever queues and whoever delivers, listeners hear each event once and in order, one at a time."""
    delivers_in_order(EventQueue)()


def test_what_a_finalizer_leaves_is_delivered() -> None:
    """CB2: by whoever holds the lock, or by whoever finds it free, or by both in turn; but delivered."""
    delivers_from_finalizers(EventQueue)()


class LooksOnce(EventQueue):
    """A mutant: what is queued just as the drainer finds nothing is left to nobody."""

    __slots__ = ()

    def drain(self) -> None:
        if self.pending and self._draining.acquire(blocking=False):
            try:
                while self.pending:
                    for call in self.pending.popleft():
                        call()
            finally:
                self._draining.release()


class EverybodyDrains(EventQueue):
    """A mutant: whoever finds events delivers them."""

    __slots__ = ()

    def drain(self) -> None:
        while self.pending:
            for call in self.pending.popleft():
                call()


class QueuesLate(EventQueue):
    """A mutant: a finalizer looks whether the lock is free before it queues, and trusts whoever had it to see to it."""

    __slots__ = ()

    def put_from_finalizer(self, lock: threading.Lock, action: Callable[[], object]) -> None:
        if lock.acquire(blocking=False):
            lock.release()
            action()
        else:
            self.pending.append((action,))


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        (delivers_in_order, LooksOnce),
        (delivers_in_order, EverybodyDrains),
        (delivers_from_finalizers, QueuesLate),
    ],
)
def test_a_queue_that_races_is_caught(
    law: Callable[[type[EventQueue]], Callable[[], None]], mutant: type[EventQueue]
) -> None:
    """Some schedule loses an event, or delivers two at a time."""
    assert_caught(law(mutant))
