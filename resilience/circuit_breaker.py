"""CircuitBreaker: stop calling what is down, and find out gently when it is up again.

Rules of this module: how calls pass is `circuits`'. Here is what a circuit is made of, what it shows of itself, and
what is kept of one that nobody uses.
"""

from __future__ import annotations

import math
import random as random_module
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, cast

import attrs

from resilience.circuits import Circuit
from resilience.clock import nanoseconds, seconds
from resilience.counting import Statistics
from resilience.errors import CircuitOpenError
from resilience.layer import LayerKind
from resilience.machines.backoff import Backoff, as_backoff
from resilience.machines.breaker import Breaker, CircuitState
from resilience.machines.checks import instance, positive, positive_int
from resilience.machines.tripping import ConsecutiveFailures, FailureRate, SlowCallRate, TripCondition
from resilience.outcome import any_exception
from resilience.remains import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.clock import Clock
    from resilience.errors import RejectedError
    from resilience.machines.tripwires import Notes
    from resilience.outcome import Verdict
    from resilience.remains import Everything, Remains

__all__ = ["BreakerStatistics", "CircuitBreaker", "CircuitState"]


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


class CircuitBreaker(Circuit):
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

    __slots__ = ()

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
        machine = Breaker(
            conditions=conditions,
            recovery_ns=nanoseconds(recovery_timeout),
            probe_limit=positive_int("half_open_max_calls", half_open_max_calls),
            success_threshold=positive_int("success_threshold", success_threshold),
            probe_for_ns=nanoseconds(recovery_timeout if probe_timeout is None else probe_timeout),
            backoff=None if recovery_backoff is None else as_backoff("recovery_backoff", recovery_backoff),
        )
        if random is not None:
            instance("random", random, random_module.Random)
        # Only where somebody asks it: one takes more memory than all the rest of a circuit, and as long to make.
        dice = None if recovery_backoff is None else random or random_module.Random()
        super().__init__(
            machine,
            name=name,
            is_failure=is_failure,
            is_failure_result=is_failure_result,
            slow_ns=_slow_ns(slow_call_duration, conditions),
            on_state_change=on_state_change,
            clock=clock,
            random=dice,
        )

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

    # -- while nobody uses it ---------------------------------------------------------------------------------------

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

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.label!r}, {self._machine.state.value}>"


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
