"""Circuits: how calls pass through a circuit breaker's machine, and how its changes are made known.

Rules of this module:

* The transitions are `machines.breaker`'s; here are the clock, the lock, the verdicts and the announcements.
* What happens on nearly every call, that it is let through a closed circuit and succeeds, takes no lock where it
  changes nothing.
* Changes are queued under the lock and announced after it was released, once each and in order.

What a circuit is made of, and what it shows of itself, is its subclass's business.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from resilience.clock import MonotoneLine, SystemClock
from resilience.counting import Tally
from resilience.events import StateChanged, calls_for
from resilience.fusing import SETTLED
from resilience.layer import Guard, Permit
from resilience.machines.breaker import CircuitState
from resilience.machines.decision import NeverFits, NotUntil
from resilience.outcome import Verdict, verdict_of_exception, verdict_of_result

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random
    from types import TracebackType
    from typing import Self

    from resilience.clock import Clock
    from resilience.machines.breaker import Breaker

__all__ = ["Admission", "Circuit", "Isolation"]

# Looked up once: an attribute of an enum costs as much as the rest of the fast path.
_CLOSED, _SUCCESS, _FAILURE = CircuitState.CLOSED, Verdict.SUCCESS, Verdict.FAILURE


class Admission(Permit):
    """A permit that knows which probe it is (0: none) and when the call started."""

    __slots__ = ("probe", "started_ns")

    def __init__(self, circuit: Circuit, generation: int, probe: int, started_ns: int) -> None:
        self.guard = circuit
        self.generation = generation
        self.probe: int = probe
        self.started_ns: int = started_ns


class Circuit(Guard):
    """A guard that goes by a breaker's machine."""

    __slots__ = (
        "_admissions",
        "_cancelled",
        "_clock_ns",
        "_failed",
        "_ignored",
        "_is_failure",
        "_is_failure_result",
        "_last_failure_ns",
        "_late",
        "_line",
        "_machine",
        "_on_state_change",
        "_plain_successes",
        "_random",
        "_slow_ns",
        "_succeeded",
        "_transitions",
        "clock",
    )

    def __init__(
        self,
        machine: Breaker,
        *,
        name: str,
        is_failure: Callable[[Exception], bool | Verdict],
        is_failure_result: Callable[[object], bool | Verdict] | None,
        slow_ns: int | None,
        on_state_change: Callable[..., object] | None,
        clock: Clock | None,
        random: Random | None,
    ) -> None:
        super().__init__(name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._clock_ns = self.clock.monotonic_ns
        self._line = MonotoneLine(self._clock_ns())
        self._machine = machine
        self._is_failure = is_failure
        self._is_failure_result = is_failure_result
        self._slow_ns = slow_ns
        self._on_state_change = on_state_change
        self._random = random
        self._last_failure_ns: int | None = None
        self._admissions = Tally()
        self._plain_successes = Tally()
        self._succeeded = self._failed = self._ignored = self._cancelled = self._late = 0
        self._transitions: dict[tuple[CircuitState, CircuitState], int] = {}

    # -- calls ------------------------------------------------------------------------------------------------------

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002 - every call weighs the same
        """Decide at once whether a call may run."""
        machine = self._machine
        # Through a closed circuit without the lock. The state is read first, so that the permit is of the closed period
        # that was seen; or, if that has ended just now, of what has come since: it counts if that is closed again.
        if machine.state is _CLOSED:
            generation = machine.generation
            self._admissions.add()
            if self._slow_ns is None:
                return Permit(self, generation)
            # On the guard's own line: a step back makes no call slow.
            return Admission(self, generation, 0, self._line.glance(self._clock_ns() if now_ns is None else now_ns))
        contended = self._lock.locked()
        decision: Permit | NotUntil
        with self._section:
            if contended:
                self._contended += 1
            line_ns = self._line.at_reading(now_ns, self._clock_ns)
            self._tick(line_ns)
            probe = machine.admit(line_ns)
            if probe is None:
                decision = NotUntil(machine.ready_at())
            else:
                self._admissions.add()
                decision = Admission(self, machine.generation, probe, line_ns)
        return decision

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Count how an admitted call ended; what comes from an earlier generation changes nothing."""
        if not self._try_lock(False):  # noqa: FBT003 - a keyword costs a third of it
            self._wait_for_lock()
        try:
            if permit.generation != SETTLED:
                line, machine = self._line, self._machine
                # As line.at(), without the call: with a rate in a window of time this runs on every call.
                now_ns = self._clock_ns() + line.offset_ns
                if now_ns >= line.last_ns:
                    line.last_ns = now_ns
                else:
                    now_ns = line.stand_still(now_ns)
                if (
                    verdict is _SUCCESS
                    and machine.state is _CLOSED
                    and permit.generation == machine.generation
                    and (self._slow_ns is None or not self._was_slow(permit, now_ns))
                ):
                    self._succeeded += 1
                    if machine.tripwire.good(now_ns):
                        machine.trip(now_ns)
                        self._announce()
                else:
                    self._record(permit, verdict, now_ns)
                permit.generation = SETTLED
        finally:
            self._unlock()
        if self._pending:
            self._after()

    def _record(self, permit: Permit, verdict: Verdict, now_ns: int) -> None:
        """Count any verdict. The lock is held."""
        machine = self._machine
        if machine.state is not _CLOSED:
            self._tick(now_ns)
        probe = permit.probe if isinstance(permit, Admission) else 0
        slow = self._was_slow(permit, now_ns)
        failed = verdict is _FAILURE
        if not failed and verdict is not _SUCCESS:
            machine.release(permit.generation, probe)
            self._ignored += verdict is Verdict.IGNORED
            self._cancelled += verdict is Verdict.CANCELLED
        elif machine.record(permit.generation, probe, now_ns, failed=failed, slow=slow, u=self._roll()):
            if failed:
                self._failed += 1
                self._last_failure_ns = self.clock.time_ns()
            else:
                self._succeeded += 1
            if machine.changes:
                self._announce()
        else:
            self._late += 1

    def _was_slow(self, permit: Permit, now_ns: int) -> bool:
        slow_ns = self._slow_ns
        return slow_ns is not None and isinstance(permit, Admission) and now_ns - permit.started_ns >= slow_ns

    def settle_result(self, permit: Permit, result: object) -> None:
        """Settle by the result that a call ended with.

        What happens on nearly every call is a success through a closed circuit that counts no failure. Where it changes
        nothing, it needs no lock: it took place at the instant when the circuit was seen to be steady. The generation
        is compared after that: if it is still the permit's, it was so at that instant too.
        """
        verdict = _SUCCESS if self._is_failure_result is None else self._judge(permit, result)
        machine = self._machine
        if (
            verdict is _SUCCESS
            and machine.state is _CLOSED
            and machine.tripwire.steady
            and permit.generation == machine.generation
            and (self._slow_ns is None or not self._was_slow(permit, self._line.glance(self._clock_ns())))
        ):
            permit.generation = SETTLED
            self._plain_successes.add()
        else:
            self.settle(permit, verdict)

    def judge_exception(self, exception: BaseException) -> Verdict:
        """Judge by `is_failure`."""
        return verdict_of_exception(exception, self._is_failure)

    def judge_result(self, result: object) -> Verdict:
        """Judge by `is_failure_result`."""
        return verdict_of_result(result, self._is_failure_result)

    def renew(self, permit: Permit) -> None:
        """Begin the lease of a probe anew: a stream that gives items is alive."""
        if isinstance(permit, Admission) and permit.probe:
            with self._section:
                now_ns = self._line.at(self._clock_ns())
                self._tick(now_ns)
                self._machine.renew(permit.generation, permit.probe, now_ns)

    # -- by hand ----------------------------------------------------------------------------------------------------

    def try_admit(self) -> Permit | None:
        """Return a permit to be settled by hand, or None. Never waits; not a checkpoint; any thread."""
        decision = self.admit()
        if isinstance(decision, Permit):
            return decision
        self.refuse(decision)
        return None

    def isolate(self) -> Isolation:
        """Refuse every call until the isolation returned is lifted; the circuit stays isolated until the last one is.

        Use it as a context manager, or call its `lift()`. Then the circuit is what it was before: closed or open.
        """
        with self._section:
            now_ns = self._line.at(self._clock_ns())
            self._tick(now_ns)
            self._machine.isolate(now_ns)
            self._announce()
        return Isolation(self)

    def _lift(self) -> None:
        with self._section:
            now_ns = self._line.at(self._clock_ns())
            self._machine.lift(now_ns)
            self._tick(now_ns)
            self._announce()

    def reset(self) -> None:
        """Close the circuit and forget all failures; outcomes of calls under way no longer count. Isolations stay."""
        with self._section:
            now_ns = self._line.at(self._clock_ns())
            self._tick(now_ns)
            self._machine.reset(now_ns)
            self._announce()

    # -- time, and changes ------------------------------------------------------------------------------------------

    def _line_now(self, clock_ns: int) -> int:
        with self._section:
            return self._line.at_reading(clock_ns, self._clock_ns)

    def _tick(self, now_ns: int) -> None:
        """Make the changes that are due. The lock is held."""
        self._machine.tick(now_ns, self._roll())
        if self._machine.changes:
            self._announce()

    def _roll(self) -> float:
        """Return a number in [0, 1) for the jitter of the backoff, where there is one."""
        return 0.0 if self._random is None else self._random.random()

    def _announce(self) -> None:
        """Count what changed, and queue it for the listeners. The lock is held."""
        for old, new, at_ns in self._machine.changes:
            self._transitions[old, new] = self._transitions.get((old, new), 0) + 1
            calls = calls_for(StateChanged(guard=self.label, old=old.value, new=new.value, at_ns=at_ns))
            if self._on_state_change is not None:
                calls.insert(0, functools.partial(self._on_state_change, self, old, new))
            if calls:
                self._events.put(*calls)
        self._machine.changes.clear()


class Isolation:
    """One reason to keep a circuit isolated; lifted once, by `lift()` or at the end of its block."""

    __slots__ = ("_circuit", "_lifted")

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit
        # A list, since its pop is atomic: two threads that lift at once lift once.
        self._lifted = [False]

    def lift(self) -> None:
        """Lift this isolation; again does nothing."""
        try:
            self._lifted.pop()
        except IndexError:
            return
        self._circuit._lift()  # noqa: SLF001 - one class in two parts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lift()
