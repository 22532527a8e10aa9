"""CircuitBreaker: stop calling what is down, and find out gently when it is up again.

Rules of this module: the transitions are `machines.breaker`'s; here are the clock, the lock, the verdicts and the
listeners. Changes are queued under the lock and announced after it was released, once each and in order.
"""

from __future__ import annotations

import functools
import math
import random as random_module
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, cast

import attrs

from resilience.clock import MonotoneLine, SystemClock, nanoseconds, seconds
from resilience.counting import Statistics, Tally
from resilience.errors import CircuitOpenError
from resilience.events import StateChanged, calls_for
from resilience.fusing import SETTLED
from resilience.layer import Guard, LayerKind, Permit
from resilience.machines.backoff import Backoff, as_backoff
from resilience.machines.breaker import Breaker, CircuitState
from resilience.machines.checks import instance, positive, positive_int
from resilience.machines.decision import NeverFits, NotUntil
from resilience.machines.tripping import ConsecutiveFailures, FailureRate, SlowCallRate, TripCondition
from resilience.outcome import Verdict, any_exception, verdict_of_exception, verdict_of_result
from resilience.remains import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from resilience.clock import Clock
    from resilience.errors import RejectedError
    from resilience.machines.tripwires import Notes
    from resilience.remains import Everything, Remains

__all__ = ["BreakerStatistics", "CircuitBreaker", "CircuitState", "Isolation"]

# Looked up once: an attribute of an enum costs as much as the rest of the fast path.
_CLOSED, _SUCCESS, _FAILURE = CircuitState.CLOSED, Verdict.SUCCESS, Verdict.FAILURE


def _read_only(
    counts: Mapping[tuple[CircuitState, CircuitState], int],
) -> Mapping[tuple[CircuitState, CircuitState], int]:
    return MappingProxyType(dict(counts))


@attrs.frozen(kw_only=True)
class BreakerStatistics(Statistics):
    """A snapshot of one circuit breaker.

    `late` outcomes came after the state had changed, and counted for nothing. `transitions` counts the changes from
    one state to another; `in_use` are the probes under way.
    """

    late: int = 0
    state: CircuitState = CircuitState.CLOSED
    transitions: Mapping[tuple[CircuitState, CircuitState], int] = attrs.field(
        factory=dict, converter=_read_only, hash=False
    )


class _Admission(Permit):
    """A permit that knows which probe it is (0: none) and when the call started."""

    __slots__ = ("probe", "started_ns")

    def __init__(self, breaker: CircuitBreaker, generation: int, probe: int, started_ns: int) -> None:
        self.guard = breaker
        self.generation = generation
        self.probe = probe
        self.started_ns = started_ns


class CircuitBreaker(Guard):
    """Refuse calls while their callee is failing, and probe it before trusting it again.

    Args:
        failure_threshold: consecutive failures that open the circuit; `trip` takes its place.
        recovery_timeout: seconds for which an open circuit refuses everything, before it lets probes through.
        name: what errors and events call it.
        half_open_max_calls: probes under way at a time.
        success_threshold: successful probes that close the circuit.
        trip: when to open instead: ConsecutiveFailures, FailureRate or SlowCallRate, or several, of which any will do.
        is_failure: tells whether an Exception counts as a failure; one that does not counts as nothing. It may also
            return a `Verdict`. By default every Exception counts. Rejections and cancellations never do.
        is_failure_result: the same for results, none of which is a failure by default.
        slow_call_duration: seconds from which on a call is slow; needed by SlowCallRate. A slow probe has failed.
        probe_timeout: seconds after which a probe that was not settled counts as failed (default: `recovery_timeout`).
        recovery_backoff: makes the circuit stay open longer each time its probes fail again; never shorter than
            `recovery_timeout`; an iterable of seconds is a ScheduleBackoff.
        on_state_change: called with (breaker, old, new) after each change. It may use the breaker; what it raises is
            logged.
        clock: where time comes from.
        random: where the jitter of `recovery_backoff` comes from.

    Example:
        >>> breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=60.0)
        >>> with breaker:
        ...     pass
        >>> breaker.state.value
        'closed'

    Sources: M. Nygard, "Release It!"; the windows are resilience4j's, the generations gobreaker's.

    """

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

    kind = LayerKind.CIRCUIT_BREAKER
    error: ClassVar[type[RejectedError]] = CircuitOpenError

    def __init__(
        self,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        *,
        name: str = "",
        half_open_max_calls: int = 1,
        success_threshold: int = 1,
        trip: TripCondition | Iterable[TripCondition] | None = None,
        is_failure: Callable[[Exception], bool | Verdict] = any_exception,
        is_failure_result: Callable[[object], bool | Verdict] | None = None,
        slow_call_duration: float | None = None,
        probe_timeout: float | None = None,
        recovery_backoff: Backoff | Iterable[float] | None = None,
        on_state_change: Callable[[CircuitBreaker, CircuitState, CircuitState], object] | None = None,
        clock: Clock | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        positive_int("failure_threshold", failure_threshold)
        positive("recovery_timeout", recovery_timeout)
        if probe_timeout is not None:
            positive("probe_timeout", probe_timeout)
        for argument, value in (
            ("is_failure", is_failure),
            ("is_failure_result", is_failure_result),
            ("on_state_change", on_state_change),
        ):
            if not callable(value) and (value is not None or argument == "is_failure"):
                msg = f"{argument} must be callable, not {value!r}"
                raise ValueError(msg)
        conditions = _conditions(trip, failure_threshold)
        self._slow_ns = _slow_ns(slow_call_duration, conditions)
        self._machine = Breaker(
            conditions=conditions,
            recovery_ns=nanoseconds(recovery_timeout),
            probe_limit=positive_int("half_open_max_calls", half_open_max_calls),
            success_threshold=positive_int("success_threshold", success_threshold),
            probe_for_ns=nanoseconds(recovery_timeout if probe_timeout is None else probe_timeout),
            backoff=None if recovery_backoff is None else as_backoff("recovery_backoff", recovery_backoff),
        )
        super().__init__(name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._clock_ns = self.clock.monotonic_ns
        self._line = MonotoneLine(self._clock_ns())
        self._is_failure = is_failure
        self._is_failure_result = is_failure_result
        self._on_state_change = on_state_change
        # Only where somebody asks it: one takes more memory than all the rest of a circuit, and as long to make.
        self._random: random_module.Random | None = None
        if random is not None:
            instance("random", random, random_module.Random)
        if recovery_backoff is not None:
            self._random = random or random_module.Random()
        self._last_failure_ns: int | None = None
        self._admissions = Tally()
        self._plain_successes = Tally()
        self._succeeded = self._failed = self._ignored = self._cancelled = self._late = 0
        self._transitions: dict[tuple[CircuitState, CircuitState], int] = {}

    # -- what it is now ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> CircuitState:
        """The state now: an open circuit whose time is over reads half-open. Any thread."""
        with self._section:
            self._tick(self._line.at(self._clock_ns()))
            return self._machine.state

    @property
    def failure_count(self) -> int:
        """The failures counted against the circuit: consecutive ones, or those in the window that ends now."""
        with self._section:
            tripwire = self._machine.tripwire
            tripwire.age(self._line.at(self._clock_ns()))
            return tripwire.failures

    @property
    def last_failure_time(self) -> float | None:
        """When a call last failed, in Unix seconds; None if none has."""
        return None if self._last_failure_ns is None else seconds(self._last_failure_ns)

    def retry_after(self) -> float:
        """Return in how many seconds a call may be let through; 0 unless open, infinite while isolated."""
        with self._section:
            now_ns = self._line.at(self._clock_ns())
            self._tick(now_ns)
            state, ready_at = self._machine.state, self._machine.ready_at()
        if state is CircuitState.ISOLATED:
            return math.inf
        return 0.0 if ready_at is None else seconds(max(0, ready_at - now_ns))

    def statistics(self) -> BreakerStatistics:
        """Return a frozen snapshot: decisions, verdicts, contention, the probes under way, the state and its changes.

        As with `state`, an open circuit whose time is over reads half-open.
        """
        with self._section:
            self._tick(self._line.at(self._clock_ns()))
            return BreakerStatistics(
                # These before `admitted`, which calls add to without the lock: no snapshot has more calls that ended
                # than calls that began.
                succeeded=self._succeeded + self._plain_successes.value,
                failed=self._failed,
                ignored=self._ignored,
                cancelled=self._cancelled,
                late=self._late,
                admitted=self._admissions.value,
                rejected=self._rejected,
                contended=self._contended,
                in_use=self._machine.probes,
                state=self._machine.state,
                transitions=self._transitions,
            )

    def settings(self) -> dict[str, object]:
        """Return what opens the circuit, for how many seconds, and what else differs from the defaults."""
        machine = self._machine
        conditions = machine.conditions
        first = conditions[0]
        trip = first.n if len(conditions) == 1 and isinstance(first, ConsecutiveFailures) else None
        opens_on = {"trip": conditions} if trip is None else {"failure_threshold": trip}
        others: dict[str, tuple[object, object]] = {
            "half_open_max_calls": (machine.probe_limit, 1),
            "success_threshold": (machine.success_threshold, 1),
            "is_failure": (self._is_failure, any_exception),
            "is_failure_result": (self._is_failure_result, None),
            "slow_call_duration": (None if self._slow_ns is None else seconds(self._slow_ns), None),
            "probe_timeout": (seconds(machine.probe_for_ns), seconds(machine.recovery_ns)),
            "recovery_backoff": (machine.backoff, None),
        }
        differing = {name: value for name, (value, default) in others.items() if value != default}
        return {**opens_on, "recovery_timeout": seconds(machine.recovery_ns), **differing}

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

    # -- as a layer -------------------------------------------------------------------------------------------------

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
            return _Admission(self, generation, 0, self._line.glance(self._clock_ns() if now_ns is None else now_ns))
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
                decision = _Admission(self, machine.generation, probe, line_ns)
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
                        machine.trip(now_ns, self._roll())
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
        probe = permit.probe if isinstance(permit, _Admission) else 0
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
        return slow_ns is not None and isinstance(permit, _Admission) and now_ns - permit.started_ns >= slow_ns

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

    def remains(self) -> Remains | Everything | None:
        """Return what a closed circuit counts; None if that is nothing, and no call is under way that it would count.

        One that is not closed, and what is counted in slices of time, takes more than that to tell.
        """
        now_ns = self._line.at(self._clock_ns())
        self._tick(now_ns)
        # In this order: a call that is admitted meanwhile, without the lock, is one more under way rather than none.
        settled = self._succeeded + self._failed + self._ignored + self._cancelled + self._late
        settled += self._plain_successes.value
        if self._admissions.value != settled:
            return EVERYTHING
        if self._machine.is_fresh(now_ns):
            return None
        notes = self._machine.notes()
        return EVERYTHING if notes is None else (None, self._last_failure_ns, *notes)

    def resume(self, remains: Remains) -> None:
        """Count what the other circuit counted."""
        _, self._last_failure_ns, *notes = cast("tuple[None, int | None, *Notes]", remains)
        self._machine.resume(tuple(notes))

    def renew(self, permit: Permit) -> None:
        """Begin the lease of a probe anew: a stream that gives items is alive."""
        if isinstance(permit, _Admission) and permit.probe:
            with self._section:
                now_ns = self._line.at(self._clock_ns())
                self._tick(now_ns)
                self._machine.renew(permit.generation, permit.probe, now_ns)

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

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.label!r}, {self._machine.state.value}>"


class Isolation:
    """One reason to keep a circuit isolated; lifted once, by `lift()` or at the end of its block."""

    __slots__ = ("_breaker", "_lifted")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        # A list, since its pop is atomic: two threads that lift at once lift once.
        self._lifted = [False]

    def lift(self) -> None:
        """Lift this isolation; again does nothing."""
        try:
            self._lifted.pop()
        except IndexError:
            return
        self._breaker._lift()  # noqa: SLF001 - one class in two parts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lift()


def _conditions(
    trip: TripCondition | Iterable[TripCondition] | None, failure_threshold: int
) -> tuple[TripCondition, ...]:
    if trip is None:
        return (ConsecutiveFailures(failure_threshold),)
    kinds = ConsecutiveFailures | FailureRate | SlowCallRate
    conditions = (trip,) if isinstance(trip, kinds) else tuple(trip) if isinstance(trip, Iterable) else ()
    if not conditions or not all(isinstance(condition, kinds) for condition in conditions):
        msg = f"trip must be ConsecutiveFailures, FailureRate, SlowCallRate, or several of them, not {trip!r}"
        raise ValueError(msg)
    return conditions


def _slow_ns(slow_call_duration: float | None, conditions: tuple[TripCondition, ...]) -> int | None:
    watched = any(isinstance(condition, SlowCallRate) for condition in conditions)
    if slow_call_duration is None:
        if watched:
            msg = "slow_call_duration must be given with SlowCallRate, not None"
            raise ValueError(msg)
        return None
    positive("slow_call_duration", slow_call_duration)
    if not watched:
        msg = f"slow_call_duration has no effect without trip=SlowCallRate(...), but it is {slow_call_duration!r}"
        raise ValueError(msg)
    return nanoseconds(slow_call_duration)
