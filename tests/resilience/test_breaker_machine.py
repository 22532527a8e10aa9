"""The breaker's machine: its table of transitions is what it does, and its laws hold for any sequence of steps."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given

from resilience.machines.backoff import ExponentialBackoff
from resilience.machines.breaker import TRANSITIONS, Breaker, CircuitState
from resilience.machines.tripping import ConsecutiveFailures
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.machines.backoff import Backoff

RECOVERY, LEASE = 10, 4


def _breaker(kind: type[Breaker] = Breaker, *, probes: int = 1, successes: int = 1, failures: int = 2) -> Breaker:
    return kind(
        conditions=(ConsecutiveFailures(failures),),
        recovery_ns=RECOVERY,
        probe_limit=probes,
        success_threshold=successes,
        probe_for_ns=LEASE,
    )


class _Driver:
    """One machine, its clock, and the admissions that nobody has settled yet."""

    def __init__(self, machine: Breaker) -> None:
        self.machine = machine
        self.now = 0
        self.admitted: list[tuple[int, int]] = []
        self.isolations = 0
        self.changes: list[tuple[CircuitState, CircuitState, int]] = []

    def admit(self) -> bool:
        self.machine.tick(self.now)
        probe = self.machine.admit(self.now)
        if probe is not None:
            self.admitted.append((self.machine.generation, probe))
        return probe is not None

    def settle(self, index: int, *, failed: bool) -> None:
        self.machine.tick(self.now)
        if self.admitted:
            generation, probe = self.admitted.pop(index % len(self.admitted))
            self.machine.record(generation, probe, self.now, failed=failed, slow=False)

    def release(self, index: int) -> None:
        self.machine.tick(self.now)
        if self.admitted:
            self.machine.release(*self.admitted.pop(index % len(self.admitted)))

    def step(self, name: str, number: int) -> None:
        """Take one step by name."""
        if name == "admit":
            self.admit()
        elif name in {"succeed", "fail"}:
            self.settle(number, failed=name == "fail")
        elif name == "release":
            self.release(number)
        elif name == "advance":
            self.now += number
            self.machine.tick(self.now)
        elif name == "isolate":
            self.machine.tick(self.now)
            self.machine.isolate(self.now)
            self.isolations += 1
        elif name == "lift" and self.isolations:
            self.machine.lift(self.now)
            self.isolations -= 1
            self.machine.tick(self.now)
        elif name == "reset":
            self.machine.tick(self.now)
            self.machine.reset(self.now)
        self.changes += self.machine.changes
        self.machine.changes.clear()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["admit", "admit", "succeed", "fail", "fail", "release", "advance", "isolate", "lift", "reset"]
        ),
        st.integers(0, 12),
    ),
    max_size=40,
)


def test_the_table_of_transitions_is_exactly_what_the_machine_does() -> None:
    """CB4: every edge of the table can be walked, and no sequence of steps walks another."""
    seen: set[tuple[CircuitState, CircuitState]] = set()
    words = [
        ("admit", 0),
        ("succeed", 0),
        ("fail", 0),
        ("advance", RECOVERY),
        ("isolate", 0),
        ("lift", 0),
        ("reset", 0),
    ]
    for sentence in itertools.product(words, repeat=5):
        driver = _Driver(_breaker(failures=1))
        for name, number in sentence:
            driver.step(name, number)
        seen.update((old, new) for old, new, _ in driver.changes)
    assert seen == set(TRANSITIONS)


def _edges_are_legal(kind: type[Breaker]) -> Callable[[], None]:
    @given(steps=STEPS, probes=st.integers(1, 3), successes=st.integers(1, 3))
    def law(steps: list[tuple[str, int]], probes: int, successes: int) -> None:
        driver = _Driver(_breaker(kind, probes=probes, successes=successes))
        for name, number in steps:
            driver.step(name, number)
        state, instant = CircuitState.CLOSED, 0
        for old, new, at_ns in driver.changes:
            assert old is state
            assert (old, new) in TRANSITIONS
            assert at_ns >= instant
            state, instant = new, at_ns
        assert driver.machine.state is state

    return law


def _probes_are_bounded(kind: type[Breaker]) -> Callable[[], None]:
    @given(steps=STEPS, probes=st.integers(1, 3))
    def law(steps: list[tuple[str, int]], probes: int) -> None:
        driver = _Driver(_breaker(kind, probes=probes, failures=1))
        steps = [("admit", 0), ("fail", 0), ("advance", RECOVERY), *steps]
        leases: list[tuple[int, int, int]] = []
        for name, number in steps:
            before = len(driver.admitted)
            driver.step(name, number)
            machine = driver.machine
            if len(driver.admitted) > before and machine.state is CircuitState.HALF_OPEN:
                leases.append((*driver.admitted[-1], driver.now + LEASE))
            leases = [lease for lease in leases if lease[:2] in driver.admitted]
            current = [end for generation, _, end in leases if generation == machine.generation and end > driver.now]
            assert len(current) <= probes

    return law


def _stale_outcomes_change_nothing(kind: type[Breaker]) -> Callable[[], None]:
    @given(steps=STEPS, failed=st.booleans())
    def law(steps: list[tuple[str, int]], failed: bool) -> None:  # noqa: FBT001 - Hypothesis passes it by name
        driver = _Driver(_breaker(kind, probes=2, successes=2))
        for name, number in steps:
            driver.step(name, number)
        machine = driver.machine

        def everything() -> tuple[object, ...]:
            return (
                machine.state, machine.generation, machine.tripwire.failures, machine.ready_at(), machine.probes,
                machine._successes, machine._openings, list(machine.changes),
            )  # fmt: skip

        for generation, probe in driver.admitted:
            if generation != machine.generation:
                before = everything()
                assert not machine.record(generation, probe, driver.now, failed=failed, slow=False)
                machine.release(generation, probe)
                machine.renew(generation, probe, driver.now)
                assert everything() == before

    return law


def _half_open_ends(kind: type[Breaker]) -> Callable[[], None]:
    @given(steps=STEPS)
    def law(steps: list[tuple[str, int]]) -> None:
        driver = _Driver(_breaker(kind))
        for name, number in steps:
            driver.step(name, number)
        for _ in range(driver.isolations):
            driver.step("lift", 0)
        # Whatever was never settled: its lease ends, then the recovery time does.
        driver.step("advance", LEASE)
        driver.step("advance", RECOVERY)
        assert driver.admit()

    return law


def _open_is_open(kind: type[Breaker]) -> Callable[[], None]:
    @given(steps=STEPS, early=st.integers(0, RECOVERY - 1))
    def law(steps: list[tuple[str, int]], early: int) -> None:
        driver = _Driver(_breaker(kind))
        for name, number in steps:
            driver.step(name, number)
        for _ in range(driver.isolations):
            driver.step("lift", 0)
        driver.step("reset", 0)
        for _ in range(2):
            assert driver.admit()
            driver.settle(-1, failed=True)
        opened_at = driver.now
        driver.now = opened_at + early
        assert not driver.admit()
        driver.now = opened_at + RECOVERY
        assert driver.admit()

    return law


class _AnyEdge(Breaker):
    """Reset of a circuit that is closed already is announced as a change."""

    def reset(self, now_ns: int) -> None:
        super().reset(now_ns)
        if self.state is CircuitState.CLOSED:
            self._become(CircuitState.CLOSED, now_ns)


class _NoLimit(Breaker):
    """Everybody is let through when half-open: the original sketch's bug."""

    def admit(self, now_ns: int) -> int | None:
        self.probe_limit = 1_000
        return super().admit(now_ns)


class _NoGenerations(Breaker):
    """An outcome counts whenever it comes."""

    def record(  # the generation is not looked at: that is the mutant
        self,
        generation: int,  # noqa: ARG002
        probe: int,
        now_ns: int,
        *,
        failed: bool,
        slow: bool,
        u: float = 0.0,
    ) -> bool:
        return super().record(self.generation, probe, now_ns, failed=failed, slow=slow, u=u)


class _NoLeases(Breaker):
    """A probe that is never settled keeps its place for ever."""

    def tick(self, now_ns: int, u: float = 0.0) -> None:
        self._probes = dict.fromkeys(self._probes, now_ns + 1)
        super().tick(now_ns, u)


class _Early(Breaker):
    """The circuit is half-open one nanosecond too early."""

    def tick(self, now_ns: int, u: float = 0.0) -> None:
        super().tick(now_ns + 1, u)


LAWS = {
    "CB4": (_edges_are_legal, _AnyEdge),
    "CB1": (_probes_are_bounded, _NoLimit),
    "CB3": (_stale_outcomes_change_nothing, _NoGenerations),
    "CB2": (_half_open_ends, _NoLeases),
    "CB5": (_open_is_open, _Early),
}


@pytest.mark.parametrize("number", LAWS)
def test_the_machine_obeys_its_laws(number: str) -> None:
    """CB1 to CB5 hold after any sequence of admissions, outcomes, waits, isolations and resets."""
    LAWS[number][0](Breaker)()


@pytest.mark.parametrize("number", LAWS)
def test_each_law_catches_its_mutant(number: str) -> None:
    """CB1 to CB5: a machine with the classic bug is found out by the very same law."""
    law, mutant = LAWS[number]
    assert_caught(law(mutant))


def test_a_circuit_stays_open_longer_each_time_its_probes_fail_again() -> None:
    """The break duration follows the backoff from the second opening on, and starts over once the circuit closed."""
    machine = Breaker(
        conditions=(ConsecutiveFailures(1),),
        recovery_ns=1_000_000_000,
        probe_limit=1,
        success_threshold=1,
        probe_for_ns=1_000_000_000,
        backoff=ExponentialBackoff(base=0.5, factor=4.0, cap=5.0, jitter="none"),
    )
    now, lasted = 0, []
    for _ in range(4):
        machine.tick(now)
        probe = machine.admit(now)
        assert probe is not None
        machine.record(machine.generation, probe, now, failed=True, slow=False)
        reopens_at = machine.ready_at()
        assert reopens_at is not None
        lasted.append((reopens_at - now) / 1e9)
        now = reopens_at
    # Never shorter than the recovery time: 0.5 s of backoff does not count against its 1 s.
    assert lasted == [1.0, 1.0, 2.0, 5.0]
    machine.tick(now)
    assert machine.record(machine.generation, machine.admit(now) or 0, now, failed=False, slow=False)
    machine.record(machine.generation, 0, now, failed=True, slow=False)
    assert machine.ready_at() == now + 1_000_000_000


def test_a_probe_that_says_nothing_frees_its_own_place_and_no_other() -> None:
    """A place given back can be taken; that of a probe from another generation, or of one unknown, changes nothing."""
    driver = _Driver(_breaker(failures=1))
    assert driver.machine.ready_at() is None
    driver.admit()
    driver.settle(0, failed=True)
    assert driver.machine.ready_at() == RECOVERY
    driver.now = RECOVERY
    assert driver.admit()
    assert driver.machine.ready_at() is None
    generation, probe = driver.admitted[0]
    driver.machine.release(generation - 1, probe)
    driver.machine.release(generation, probe + 1)
    assert not driver.admit()
    driver.machine.release(generation, probe)
    assert driver.machine.probes == 0
    assert driver.admit()


def test_a_renewed_lease_begins_anew() -> None:
    """A probe that shows signs of life is given its whole lease again; a stranger's number renews nothing."""
    driver = _Driver(_breaker(failures=1))
    driver.admit()
    driver.settle(0, failed=True)
    driver.now = RECOVERY
    assert driver.admit()
    generation, probe = driver.admitted[0]
    driver.now += LEASE - 1
    driver.machine.renew(generation, probe, driver.now)
    driver.machine.renew(generation, probe + 1, driver.now)
    driver.now += LEASE - 1
    driver.machine.tick(driver.now)
    assert (driver.machine.state, driver.machine.probes) == (CircuitState.HALF_OPEN, 1)
    driver.now += 1
    driver.machine.tick(driver.now)
    assert driver.machine.state is CircuitState.OPEN


def _opened(backoff: Backoff | None, *, probes: int = 1) -> Breaker:
    """Return a machine whose circuit has just opened, at 0."""
    machine = Breaker(
        conditions=(ConsecutiveFailures(1),),
        recovery_ns=RECOVERY,
        probe_limit=probes,
        success_threshold=2,
        probe_for_ns=LEASE,
        backoff=backoff,
    )
    machine.trip(0)
    return machine


class _Dice:
    """A backoff that takes the die for the delay."""

    cap = 1.0

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:
        return 1_000 * attempt + round(u * 100) + previous_ns


def test_a_break_is_as_random_as_its_die_and_knows_the_one_before() -> None:
    """A probe that failed and one that ran out of its lease both throw it; without a die it is 0."""
    machine = _opened(_Dice())
    machine.tick(RECOVERY)
    probe = machine.admit(RECOVERY) or 0
    assert machine.record(machine.generation, probe, RECOVERY, failed=True, slow=False, u=0.5)
    assert machine.ready_at() == RECOVERY + 1_000 + 50 + RECOVERY
    now = machine.ready_at() or 0
    machine.tick(now)
    machine.admit(now)
    machine.tick(now + LEASE, u=0.25)
    lasted = 2_000 + 25 + 1_060
    assert machine.ready_at() == now + LEASE + lasted
    now = machine.ready_at() or 0
    machine.tick(now)
    machine.admit(now)
    machine.tick(now + LEASE)
    assert machine.ready_at() == now + LEASE + 3_000 + lasted


def test_no_die_is_the_shortest_break() -> None:
    """Also of a probe whose failure is recorded."""
    machine = _opened(_Dice())
    machine.tick(RECOVERY)
    assert machine.record(machine.generation, machine.admit(RECOVERY) or 0, RECOVERY, failed=True, slow=False)
    assert machine.ready_at() == RECOVERY + 1_000 + RECOVERY


def test_reset_begins_the_breaks_anew() -> None:
    """From any state: the next opening is the first, and lasts the recovery time alone."""
    isolated = _opened(_Dice())
    isolated.isolate(0)
    isolated.reset(0)
    isolated.lift(0)
    opened = _opened(_Dice())
    opened.reset(3)
    assert opened.changes[-1] == (CircuitState.OPEN, CircuitState.CLOSED, 3)
    for machine in (isolated, opened):
        assert machine.state is CircuitState.CLOSED
        machine.trip(5)
        assert machine.ready_at() == 5 + RECOVERY


def test_success_of_half_a_threshold_is_forgotten_when_the_circuit_opens() -> None:
    """Of two successes that it takes, the one of the time before does not count."""
    machine = _opened(None, probes=2)
    now = RECOVERY
    for _ in range(2):
        machine.tick(now)
        first, second = machine.admit(now) or 0, machine.admit(now) or 0
        assert machine.record(machine.generation, first, now, failed=False, slow=False)
        assert machine.state is CircuitState.HALF_OPEN
        assert machine.record(machine.generation, second, now, failed=True, slow=False)
        now += RECOVERY


def test_every_probe_has_a_number_of_its_own() -> None:
    """Those of the generation before are not given again."""
    machine = _opened(None, probes=2)
    numbers = []
    now = RECOVERY
    for _ in range(3):
        machine.tick(now)
        numbers += [machine.admit(now), machine.admit(now)]
        now += LEASE + RECOVERY
        machine.tick(now)
    assert numbers == [1, 2, 3, 4, 5, 6]


def test_generations_only_grow() -> None:
    """Whatever changes, none comes again: an admission of long ago is never taken for one of now."""
    machine = _breaker(failures=1)
    generations = [machine.generation]
    changes = (machine.reset, machine.reset, machine.trip, machine.tick, machine.isolate, machine.lift, machine.reset)
    for change in changes:
        change(RECOVERY * len(generations))
        generations.append(machine.generation)
    assert generations == [0, 1, 2, 3, 4, 5, 6, 7]


def test_outcome_that_comes_too_late_is_told() -> None:
    """`record` says whether it counted: not for another generation, nor for a place that was given back."""
    machine = _opened(None)
    assert not machine.record(machine.generation - 1, 0, 0, failed=True, slow=False)
    machine.tick(RECOVERY)
    probe = machine.admit(RECOVERY) or 0
    machine.release(machine.generation, probe)
    assert not machine.record(machine.generation, probe, RECOVERY, failed=True, slow=False)
    assert machine.state is CircuitState.HALF_OPEN


def test_closing_takes_every_success_of_the_threshold() -> None:
    """The third of three closes the circuit, at the instant at which it is recorded; each of them counts."""
    machine = _breaker(failures=1, successes=3)
    assert machine.record(machine.generation, 0, 0, failed=False, slow=False)
    assert machine.record(machine.generation, 0, 0, failed=True, slow=False)
    machine.tick(RECOVERY)
    states = []
    for now in range(RECOVERY, RECOVERY + 3):
        assert machine.record(machine.generation, machine.admit(now) or 0, now, failed=False, slow=False)
        states.append(machine.state)
    assert states == [CircuitState.HALF_OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED]
    assert machine.changes == [
        (CircuitState.CLOSED, CircuitState.OPEN, 0),
        (CircuitState.OPEN, CircuitState.HALF_OPEN, RECOVERY),
        (CircuitState.HALF_OPEN, CircuitState.CLOSED, RECOVERY + 2),
    ]
