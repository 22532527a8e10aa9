"""CircuitBreaker between threads, one instruction at a time: CB1, CB3, CB4 and CB6, and mutants."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import pytest

from resilience import (
    CircuitBreaker,
    CircuitState,
    ConsecutiveFailures,
    CountWindow,
    FailureRate,
    Permit,
    circuit_breaker,
    circuits,
    events,
)
from resilience.events import EventQueue, Section
from resilience.machines import breaker, tripwires
from resilience.testing import Model, Operation
from tests.proof.threaded import World, linearizable, unlocked
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilience.outcome import Verdict

WATCHED = [circuit_breaker, circuits, events]
MACHINES = [breaker, tripwires]
RECOVERY = 10
PROBES = 2

Settling: TypeAlias = Literal["success", "failure", "ignored", "cancelled"]
#: How the circuit is at first. Where it is "steady", a success is counted without the lock; where it is "closing", all
#: probes are under way.
Beginning: TypeAlias = Literal["closed", "steady", "half-open", "closing"]


class Circuit(World):
    """A breaker that two failures in a row open for ten seconds, and that then lets two probes through."""

    def __init__(self, kind: type[CircuitBreaker], beginning: Beginning) -> None:
        super().__init__()
        self.changes: list[tuple[str, str]] = []
        self.breaker = kind(
            recovery_timeout=RECOVERY,
            # Two in a row, either way.
            trip=ConsecutiveFailures(2) if beginning == "closed" else FailureRate(1.0, CountWindow(2), 2),
            half_open_max_calls=PROBES,
            probe_timeout=1_000,
            on_state_change=lambda _, old, new: self.changes.append((old.value, new.value)),
            clock=self.clock,
        )
        if beginning != "closed":
            for _ in range(2):
                self.admit()
                self.settle("success" if beginning == "steady" else "failure")
            self.wait()
        self.probes: list[tuple[str, Permit]] = []
        for _ in range(PROBES if beginning == "closing" else 0):
            self.admit()
            self.probes += filter(None, [self.kept()])

    def admit(self) -> None:
        """Ask for a permit."""
        name = self.name()
        with self.history.operation("admit", name) as call:
            permit = self.breaker.try_admit()
            call.result = permit is not None
        if permit is not None:
            self.keep(name, permit)

    def settle(self, verdict: Settling) -> None:
        """Settle the last permit."""
        if (kept := self.kept()) is not None:
            name, permit = kept
            with self.history.operation("settle", name, verdict):
                getattr(permit, verdict)()

    def succeed(self) -> None:
        """Have a probe that is under way succeed."""
        name, permit = self.probes.pop()
        with self.history.operation("settle", name, "success"):
            permit.success()

    def return_a_result(self) -> None:
        """Settle the last permit as a call that has returned does."""
        if (kept := self.kept()) is not None:
            name, permit = kept
            with self.history.operation("settle", name, "success"):
                self.breaker.settle_result(permit, None)

    def look(self) -> None:
        """Look at the state."""
        with self.history.operation("state") as call:
            call.result = self.breaker.state.value

    def reset(self) -> None:
        """Reset."""
        with self.history.operation("reset"):
            self.breaker.reset()

    def wait(self) -> None:
        """Let ten seconds pass."""
        with self.history.operation("ten seconds"):
            self.clock.advance(RECOVERY)

    def is_as_told(self) -> None:
        """CB4: each change that was told begins where the one before it ended, and all are counted."""
        self.look()
        assert self.breaker.state.value == (self.changes[-1][1] if self.changes else "closed")
        assert all(new == old for (_, new), (old, _) in itertools.pairwise([("", "closed"), *self.changes]))
        seen = self.breaker.statistics()
        assert sum(seen.transitions.values()) == len(self.changes)
        settled = seen.succeeded + seen.failed + seen.ignored + seen.cancelled + seen.late
        assert settled == sum(each.name == "settle" for each in self.history.operations)
        assert seen.admitted == sum(bool(each.result) for each in self.history.operations if each.name == "admit")


@attrs.frozen
class Told:
    """The circuit as its specification has it; `tens` have passed, and `since` then it is open."""

    state: str = "closed"
    era: int = 0
    failures: int = 0
    probes: frozenset[str] = frozenset()
    permits: frozenset[tuple[str, int]] = frozenset()
    tens: int = 0
    since: int = 0

    def become(self, state: str) -> Told:
        """Return it after a change: nothing from before counts any more."""
        return attrs.evolve(self, state=state, era=self.era + 1, failures=0, probes=frozenset(), since=self.tens)

    def due(self) -> Told:
        """Return it after what time alone does."""
        return self.become("half_open") if self.state == "open" and self.tens > self.since else self


class BreakerModel(Model[Told]):
    """A circuit to which one comes at a time."""

    def initial(self) -> Told:
        return Told()

    def apply(self, state: Told, operation: Operation) -> Iterable[Told]:
        now = state.due()
        match operation.name, operation.arguments:
            case "ten seconds", _:
                return [attrs.evolve(now, tens=now.tens + 1)]
            case "state", _:
                return [now] if operation.result == now.state else []
            case "reset", _:
                return [now.become("closed")]
            case "admit", (str(name),):
                return self.admit(now, name, admitted=bool(operation.result))
            case "settle", (str(name), str(verdict)):
                return [self.settle(now, name, verdict)]
            case _:
                raise AssertionError(operation)

    def admit(self, now: Told, name: str, *, admitted: bool) -> list[Told]:
        may = now.state == "closed" or (now.state == "half_open" and len(now.probes) < PROBES)
        if may != admitted:
            return []
        if not may:
            return [now]
        probes = now.probes | {name} if now.state == "half_open" else now.probes
        return [attrs.evolve(now, probes=probes, permits=now.permits | {(name, now.era)})]

    def settle(self, now: Told, name: str, verdict: str) -> Told:
        if (name, now.era) not in now.permits:
            return now
        after = attrs.evolve(now, probes=now.probes - {name})
        if verdict == "failure":
            if now.state == "half_open" or now.failures == 1:
                return after.become("open")
            return attrs.evolve(after, failures=now.failures + 1)
        if verdict == "success":
            return after.become("closed") if now.state == "half_open" else attrs.evolve(after, failures=0)
        return after


Act: TypeAlias = "Callable[[Circuit], object]"


def settle(verdict: Settling) -> Act:
    """Return the act that settles the thread's last permit."""
    return lambda circuit: circuit.settle(verdict)


ACTS: list[Act] = [
    *[Circuit.admit] * 3,
    settle("success"),
    *[settle("failure")] * 2,
    settle("cancelled"),
    Circuit.return_a_result,
    Circuit.look,
    Circuit.reset,
    Circuit.wait,
]
FAIL: list[Act] = [Circuit.admit, settle("failure")]
FIXED: dict[Beginning, list[list[list[Act]]]] = {
    "closed": [[FAIL, [*FAIL, Circuit.look]], [FAIL, [Circuit.reset, *FAIL]]],
    "steady": [[[*FAIL, *FAIL], [Circuit.admit, Circuit.return_a_result]]],
    "half-open": [
        [[Circuit.admit]] * 3,
        [[*FAIL, Circuit.wait], [Circuit.admit, Circuit.return_a_result, Circuit.admit]],
    ],
    "closing": [[FAIL, [Circuit.succeed, *FAIL]], [[Circuit.succeed, *FAIL], FAIL]],
}


def is_a_circuit(kind: type[CircuitBreaker], beginning: Beginning) -> Callable[[], None]:
    """Make the property that threads see a circuit to which one comes at a time."""

    def law() -> None:
        linearizable(
            lambda: Circuit(kind, beginning),
            BreakerModel(),
            acts=ACTS,
            fixed=FIXED[beginning],
            watch=[*WATCHED, *(MACHINES if beginning in ("steady", "closing") else []), kind],
            also=Circuit.is_as_told,
        )

    return law


@pytest.mark.parametrize("beginning", FIXED)
def test_threads_see_one_circuit(beginning: Beginning) -> None:
    """CB1, CB3, CB4, CB6: what threads do could have been done one after the other; changes are told so."""
    is_a_circuit(CircuitBreaker, beginning)()


class LooksFirst(CircuitBreaker):
    """A mutant: whether there is room for a probe is looked at before the lock is taken."""

    def try_admit(self) -> Permit | None:
        state = self.state
        if state is not CircuitState.CLOSED and self._machine.probes >= PROBES:
            return None
        if state is CircuitState.OPEN:
            return None
        with self._section:
            self._machine.probe_limit += 1
            try:
                probe = self._machine.admit(self.clock.monotonic_ns())
            finally:
                self._machine.probe_limit -= 1
            self._admissions.add()
            return circuits.Admission(self, self._machine.generation, probe or 0, 0)


class ComparesFirst(CircuitBreaker):
    """A mutant: an outcome is compared with the generation before the lock is taken, and then counts as of this one."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        if permit.generation == self._machine.generation:
            permit.generation = self._machine.generation
        super().settle(permit, verdict)


class ReadsTheGenerationFirst(CircuitBreaker):
    """A mutant: if the circuit closes after its generation was read, a call is let through that will not count."""

    def try_admit(self) -> Permit | None:
        generation = self._machine.generation
        if self._machine.state is CircuitState.CLOSED:
            self._admissions.add()
            return Permit(self, generation)
        return super().try_admit()


class StateFirst(breaker.Breaker):
    """A machine whose state is changed before its generation is."""

    __slots__ = ()

    def _become(self, state: CircuitState, now_ns: int) -> None:
        self.changes.append((self.state, state, now_ns))
        self.state = state
        self.generation += 1
        self._probes.clear()
        self._successes = 0


class ChangesTheStateFirst(CircuitBreaker):
    """A mutant: for an instant the circuit is closed, and a call that is let through will not count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the breaker's
        super().__init__(*args, **kwargs)
        self._machine.__class__ = StateFirst


class EverybodyDrains(EventQueue):
    """Whoever finds events delivers them."""

    __slots__ = ()

    def drain(self) -> None:
        while self.pending:
            for call in self.pending.popleft():
                call()


class TellsAtOnce(CircuitBreaker):
    """A mutant: each thread tells of what has changed, when it has left the lock, instead of one drainer at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the breaker's
        super().__init__(*args, **kwargs)
        self._events = EverybodyDrains()
        self._pending = self._events.pending
        self._section = Section(self._lock, self._events)


@pytest.mark.parametrize(
    ("mutant", "beginning"),
    [
        (unlocked(CircuitBreaker), "closed"),
        (unlocked(CircuitBreaker), "steady"),
        (LooksFirst, "half-open"),
        (ComparesFirst, "closed"),
        (TellsAtOnce, "half-open"),
        (ReadsTheGenerationFirst, "closing"),
        (ChangesTheStateFirst, "closing"),
    ],
)
def test_a_breaker_that_races_is_caught(mutant: type[CircuitBreaker], beginning: Beginning) -> None:
    """Without its lock, with a question asked or an answer given outside of it, some schedule shows it."""
    assert_caught(is_a_circuit(mutant, beginning))
