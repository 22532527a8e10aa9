"""The circuit breaker's rules.

Theory of operation. Calls run while the circuit is closed and are counted by a tripwire. When it trips, the circuit is
open: nothing runs until the recovery time has passed. Then it is half-open: at most `probe_limit` calls at a time run
as probes; one failure opens it again, `success_threshold` successes close it. Source: M. Nygard, "Release It!", 2007;
generations after Sony's gobreaker.

| from      | on                                             | to        |
|-----------|------------------------------------------------|-----------|
| closed    | the tripwire trips                             | open      |
| open      | the recovery time is over                      | half-open |
| half-open | `success_threshold` probes succeeded           | closed    |
| half-open | a probe failed, or was not settled in its time | open      |
| any       | isolated by hand                               | isolated  |
| isolated  | the last isolation was lifted                  | what it was (half-open becomes open, and due) |
| any other | reset by hand                                  | closed    |

Each change starts a new *generation*. An admission carries the generation it was made in; settled in a later one it
changes nothing at all (CB3). A probe holds a lease: not settled when it ends, the probe has failed, at that very
instant, whenever somebody looks; so half-open can never be for ever (CB2). Ignored and cancelled probes give back their
place and say nothing.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from resilience.machines.tripping import start

if TYPE_CHECKING:
    from resilience.machines.backoff import Backoff
    from resilience.machines.tripping import TripCondition
    from resilience.machines.tripwires import Notes, Tripwire

__all__ = ["TRANSITIONS", "Breaker", "CircuitState"]


class CircuitState(enum.StrEnum):
    """The state of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"


_C, _O, _H, _I = CircuitState

TRANSITIONS: dict[tuple[CircuitState, CircuitState], str] = {
    (_C, _O): "the tripwire trips",
    (_O, _H): "the recovery time is over",
    (_H, _C): "enough probes succeeded",
    (_H, _O): "a probe failed or its lease ended",
    (_C, _I): "isolated by hand",
    (_O, _I): "isolated by hand",
    (_H, _I): "isolated by hand",
    (_I, _C): "the last isolation was lifted, or reset before",
    (_I, _O): "the last isolation was lifted from a circuit that was open",
    (_O, _C): "reset by hand",
}


class Breaker:
    """The state of one circuit; not locked.

    `changes` gathers the (old, new, instant) of every change, for the shell to take and announce.
    """

    __slots__ = (
        "_beneath",
        "_isolations",
        "_next_probe",
        "_openings",
        "_previous_ns",
        "_probes",
        "_reopen_at",
        "_successes",
        "backoff",
        "changes",
        "conditions",
        "generation",
        "probe_for_ns",
        "probe_limit",
        "recovery_ns",
        "state",
        "success_threshold",
        "tripwire",
    )

    def __init__(
        self,
        *,
        conditions: tuple[TripCondition, ...],
        recovery_ns: int,
        probe_limit: int,
        success_threshold: int,
        probe_for_ns: int,
        backoff: Backoff | None = None,
    ) -> None:
        self.conditions: tuple[TripCondition, ...] = conditions
        self.recovery_ns: int = recovery_ns
        self.backoff: Backoff | None = backoff
        self.probe_limit: int = probe_limit
        self.success_threshold: int = success_threshold
        self.probe_for_ns: int = probe_for_ns
        self.state: CircuitState = CircuitState.CLOSED
        self.generation: int = 0
        self.changes: list[tuple[CircuitState, CircuitState, int]] = []
        self.tripwire: Tripwire = start(conditions)
        # While open: the instant at which the circuit becomes half-open.
        self._reopen_at = 0
        # Openings since the circuit was last closed, and how long the last one lasted.
        self._openings = 0
        self._previous_ns = 0
        # While half-open: the leases of the probes under way, in the order in which they end.
        self._probes: dict[int, int] = {}
        self._next_probe = 0
        self._successes = 0
        self._isolations = 0
        self._beneath = CircuitState.CLOSED

    def tick(self, now_ns: int, u: float = 0.0) -> None:
        """Make the changes that are due by now, each at its own instant."""
        while True:
            if self.state is CircuitState.OPEN and now_ns >= self._reopen_at:
                self._become(CircuitState.HALF_OPEN, self._reopen_at)
            elif self.state is CircuitState.HALF_OPEN and self._probes:
                lease_ends_at = min(self._probes.values())
                if now_ns < lease_ends_at:
                    return
                self._open(lease_ends_at, u)
            else:
                return

    def admit(self, now_ns: int) -> int | None:
        """Return the number of the probe (0 for a call through a closed circuit), or None. Tick first."""
        if self.state is CircuitState.CLOSED:
            return 0
        if self.state is not CircuitState.HALF_OPEN or len(self._probes) >= self.probe_limit:
            return None
        self._next_probe += 1
        self._probes[self._next_probe] = now_ns + self.probe_for_ns
        return self._next_probe

    def ready_at(self) -> int | None:
        """Return the instant at which an open circuit admits a probe; None where no instant is known."""
        return self._reopen_at if self.state is CircuitState.OPEN else None

    def renew(self, generation: int, probe: int, now_ns: int) -> None:
        """Begin the lease of a probe that shows signs of life anew."""
        if generation == self.generation and probe in self._probes:
            self._probes[probe] = now_ns + self.probe_for_ns

    def release(self, generation: int, probe: int) -> None:
        """Give back the place of a probe whose outcome says nothing."""
        if generation == self.generation:
            self._probes.pop(probe, None)

    def record(self, generation: int, probe: int, now_ns: int, *, failed: bool, slow: bool, u: float = 0.0) -> bool:
        """Count an outcome; return False if it came too late to count. Tick first."""
        if generation != self.generation:
            return False
        if self.state is _C:
            wire = self.tripwire
            if wire.bad(now_ns, failed=failed, slow=slow) if failed or slow else wire.good(now_ns):
                self.trip(now_ns)
            return True
        if self._probes.pop(probe, None) is None:
            return False
        if failed or slow:
            self._open(now_ns, u)
            return True
        self._successes += 1
        if self._successes >= self.success_threshold:
            self._close(now_ns)
        return True

    def trip(self, now_ns: int) -> None:
        """Open a closed circuit, since its tripwire says so. The first break has no jitter."""
        self._open(now_ns, 0.0)

    def isolate(self, now_ns: int) -> None:
        """Hold the circuit open until every isolation has been lifted."""
        self._isolations += 1
        if self._isolations == 1:
            self._beneath = self.state
            if self.state is CircuitState.HALF_OPEN:
                self._beneath = CircuitState.OPEN
            self._become(CircuitState.ISOLATED, now_ns)

    def lift(self, now_ns: int) -> None:
        """Lift one isolation; the last one gives back the state that lay beneath."""
        self._isolations -= 1
        if self._isolations == 0:
            self._become(self._beneath, now_ns)

    def reset(self, now_ns: int) -> None:
        """Close the circuit and forget what was counted; an isolation stays."""
        self._openings = 0
        self.tripwire = start(self.conditions)
        if self.state is CircuitState.ISOLATED:
            self._beneath = CircuitState.CLOSED
        elif self.state is CircuitState.CLOSED:
            # What is under way was admitted before the reset and no longer counts.
            self.generation += 1
        else:
            self._close(now_ns)

    def is_fresh(self, now_ns: int) -> bool:
        """Tell whether the circuit is as good as new, calls under way aside. Tick first."""
        self.tripwire.age(now_ns)
        return self.state is CircuitState.CLOSED and self.tripwire.blank

    def notes(self) -> Notes | None:
        """Return what a closed circuit counts; None if it is not closed, or counts in slices of time. Tick first."""
        return self.tripwire.notes() if self.state is CircuitState.CLOSED else None

    def resume(self, notes: Notes) -> None:
        """Count what another closed circuit counted. Nothing has been recorded yet."""
        self.tripwire.resume(notes)

    @property
    def probes(self) -> int:
        """The probes under way."""
        return len(self._probes)

    def _close(self, now_ns: int) -> None:
        self._openings = 0
        self.tripwire = start(self.conditions)
        self._become(CircuitState.CLOSED, now_ns)

    def _open(self, now_ns: int, u: float) -> None:
        self._openings += 1
        open_for_ns = self.recovery_ns
        if self.backoff is not None and self._openings > 1:
            open_for_ns = max(open_for_ns, self.backoff.delay_ns(self._openings - 1, u, self._previous_ns))
        self._previous_ns = open_for_ns
        self._reopen_at = now_ns + open_for_ns
        self._become(CircuitState.OPEN, now_ns)

    def _become(self, state: CircuitState, now_ns: int) -> None:
        self.changes.append((self.state, state, now_ns))
        # In this order: whoever reads the state without a lock, and then the generation, has no older one than that of
        # the state.
        self.generation += 1
        self.state = state
        self._probes.clear()
        self._successes = 0
