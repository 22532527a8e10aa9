"""RedisCircuitBreaker: one circuit for all processes, on the server's time.

Rules of this module: the transitions are in `lua/circuit_breaker.lua`, which obeys `machines.breaker`; here are the
verdicts, and what this process has heard. Nobody waits for an outcome to be told: it goes with the next write, before
whatever the same process asks next. A process announces every change once and in order, its own and those of others,
as soon as an answer tells of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random as random_module
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import anyio
import attrs

from resilience import (
    CircuitBreaker,
    CircuitOpenError,
    CircuitState,
    ConsecutiveFailures,
    CountWindow,
    LayerKind,
    Permit,
    RejectedError,
    SlowCallRate,
    TimeWindow,
)
from resilience.clock import nanoseconds, seconds
from resilience.events import StateChanged, calls_for
from resilience.fusing import SETTLED
from resilience.machines.breaker import TRANSITIONS
from resilience.machines.checks import callable_or_none, instance
from resilience.machines.token_bucket import exact_fraction
from resilience.outcome import Verdict, any_exception
from resilience.redis.link import Request
from resilience.redis.scripts import script
from resilience.redis.shared import SharedGuard, SharedStatistics
from resilience.redis.store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from resilience import Backoff
    from resilience.machines.tripping import TripCondition
    from resilience.redis.link import Reply, Script
    from resilience.redis.shared import OnStoreError

__all__ = ["RedisCircuitBreaker", "SharedBreakerStatistics", "SharedIsolation"]

_STATES = (CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.ISOLATED)
#: How many numbers of an answer tell of each change.
_EACH = 4


def _read_only(
    counts: Mapping[tuple[CircuitState, CircuitState], int],
) -> Mapping[tuple[CircuitState, CircuitState], int]:
    return MappingProxyType(dict(counts))


@attrs.frozen(kw_only=True)
class SharedBreakerStatistics(SharedStatistics):
    """A snapshot of what a shared circuit breaker decided in this process, and of the circuit as far as it knows.

    `late` outcomes came after the state had changed, and counted for nothing. `transitions` counts the changes that
    this process has heard of; `in_use` are the probes under way in all processes.
    """

    late: int = 0
    state: CircuitState = CircuitState.CLOSED
    transitions: Mapping[tuple[CircuitState, CircuitState], int] = attrs.field(
        factory=dict, converter=_read_only, hash=False
    )


@attrs.frozen
class _Known:
    """What the server last said of the circuit; instants are on this process's clock."""

    born: int
    generation: int
    state: CircuitState
    reopens_ns: int | None
    openings: int
    previous_ns: int
    failures: int
    failed_at: float | None
    probes: int


class _Admission(Permit):
    """A permit that knows which probe it is (0: none), when it began, and how the circuit came to be half-open."""

    __slots__ = ("openings", "previous_ns", "probe", "renewed_ns", "started_ns")

    def __init__(self, breaker: RedisCircuitBreaker, known: _Known, probe: int, now_ns: int) -> None:
        super().__init__(breaker, known.generation)
        self.probe = probe
        self.started_ns = self.renewed_ns = now_ns
        self.openings = known.openings
        self.previous_ns = known.previous_ns


class RedisCircuitBreaker(SharedGuard[CircuitBreaker]):
    """Refuse calls while their callee is failing, in all processes, and probe it before trusting it again.

    Breakers of one name and store share their circuit; all of them should have the same terms. At most
    `half_open_max_calls` probes are under way in all processes together; a probe of a process that died is lost when
    its `probe_timeout` is over. Time is the server's, in microseconds.

    Args:
        store: where the circuit is.
        failure_threshold: consecutive failures, in whatever processes, that open the circuit; `trip` takes its place.
        recovery_timeout: seconds for which an open circuit refuses everything, before it lets probes through.
        name: what the breakers have in common that share this circuit, and what errors and events call it.
        half_open_max_calls: probes under way at a time.
        success_threshold: successful probes that close the circuit.
        trip: when to open instead: ConsecutiveFailures, FailureRate or SlowCallRate, or several, of which any will do.
        is_failure: tells whether an Exception counts as a failure, as for a CircuitBreaker.
        is_failure_result: the same for results, none of which is a failure by default.
        slow_call_duration: seconds from which on a call is slow; needed by SlowCallRate. A slow probe has failed.
        probe_timeout: seconds after which a probe that was not settled counts as failed (default: `recovery_timeout`).
        recovery_backoff: makes the circuit stay open longer each time its probes fail again.
        on_state_change: called with (breaker, old, new) when this process hears of a change, perhaps in the store's
            thread. It must not block; what it raises is logged.
        on_store_error: "local": without the server, a breaker of the same terms in each process takes over; "admit":
            every call passes; "reject": none does.
        random: where the jitter of `recovery_backoff` comes from.

    Example:
        >>> from resilience.redis import RedisCircuitBreaker, RedisStore
        >>> breaker = RedisCircuitBreaker(RedisStore("redis://localhost"), failure_threshold=5, name="partner API")
        >>> breaker.state.value
        'closed'

    """

    __slots__ = (
        "_cancelled",
        "_failed",
        "_ignored",
        "_json",
        "_known",
        "_late",
        "_machine",
        "_on_state_change",
        "_random",
        "_slow_ns",
        "_succeeded",
        "_transitions",
    )

    kind = LayerKind.CIRCUIT_BREAKER
    error: ClassVar[type[RejectedError]] = CircuitOpenError
    script: ClassVar[Script] = script("circuit_breaker")

    def __init__(
        self,
        store: RedisStore,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        *,
        name: str,
        half_open_max_calls: int = 1,
        success_threshold: int = 1,
        trip: TripCondition | Iterable[TripCondition] | None = None,
        is_failure: Callable[[Exception], bool | Verdict] = any_exception,
        is_failure_result: Callable[[object], bool | Verdict] | None = None,
        slow_call_duration: float | None = None,
        probe_timeout: float | None = None,
        recovery_backoff: Backoff | Iterable[float] | None = None,
        on_state_change: Callable[[RedisCircuitBreaker, CircuitState, CircuitState], object] | None = None,
        on_store_error: OnStoreError = "local",
        random: random_module.Random | None = None,
    ) -> None:
        instance("store", store, RedisStore)
        self._on_state_change = callable_or_none("on_state_change", on_state_change)
        self._random = random_module.Random() if random is None else instance("random", random, random_module.Random)
        local = CircuitBreaker(
            failure_threshold,
            recovery_timeout,
            name=name,
            half_open_max_calls=half_open_max_calls,
            success_threshold=success_threshold,
            trip=trip,
            is_failure=is_failure,
            is_failure_result=is_failure_result,
            slow_call_duration=slow_call_duration,
            probe_timeout=probe_timeout,
            recovery_backoff=recovery_backoff,
            on_state_change=None if on_state_change is None else self._tell_of_local_change,
            clock=store.clock,
            random=self._random,
        )
        super().__init__(store, name, on_store_error, "breaker", local)
        # The local breaker has checked and worked out all of these.
        self._machine = local._machine  # noqa: SLF001
        self._slow_ns = local._slow_ns  # noqa: SLF001
        self._json = self._in_json()
        self._known = _Known(0, 0, CircuitState.CLOSED, None, 0, 0, 0, None, 0)
        self._succeeded = self._failed = self._ignored = self._cancelled = self._late = 0
        self._transitions: dict[tuple[CircuitState, CircuitState], int] = {}

    def _in_json(self) -> str:
        machine = self._machine
        trip = [_condition(condition) for condition in machine.conditions]
        told = hashlib.sha1(json.dumps(trip).encode(), usedforsecurity=False).hexdigest()[:8]
        terms = {
            "recovery": _microseconds(machine.recovery_ns),
            "probes": machine.probe_limit,
            "successes": machine.success_threshold,
            "lease": _microseconds(machine.probe_for_ns),
            "trip": trip,
            "told": told,
        }
        return json.dumps(terms)

    # -- what it is, as far as this process knows ---------------------------------------------------------------------

    @property
    def state(self) -> CircuitState:
        """The state, as far as this process knows; an open circuit whose time is over reads half-open."""
        known = self._known
        if known.reopens_ns is not None and self.clock.monotonic_ns() >= known.reopens_ns:
            return CircuitState.HALF_OPEN
        return known.state

    @property
    def failure_count(self) -> int:
        """The failures counted against the circuit, when this process last heard of it."""
        return self._known.failures

    @property
    def last_failure_time(self) -> float | None:
        """When a call last failed in any process, in Unix seconds by the server's clock; None if none has."""
        return self._known.failed_at

    def retry_after(self) -> float:
        """Return in how many seconds a call may be let through; 0 unless open, infinite while isolated."""
        known = self._known
        if known.state is CircuitState.ISOLATED:
            return math.inf
        return 0.0 if known.reopens_ns is None else seconds(max(0, known.reopens_ns - self.clock.monotonic_ns()))

    def statistics(self) -> SharedBreakerStatistics:
        """Return a frozen snapshot: decisions and verdicts of this process, the circuit as far as it knows."""
        local = self._local.statistics()
        # Before what `super` reads, so that no snapshot has more calls that ended than calls that began.
        ended = {
            "succeeded": self._succeeded + local.succeeded,
            "failed": self._failed + local.failed,
            "ignored": self._ignored + local.ignored,
            "cancelled": self._cancelled + local.cancelled,
        }
        shared = attrs.asdict(super().statistics())
        return SharedBreakerStatistics(
            **{**shared, **ended, "in_use": self._known.probes},
            late=self._late + local.late,
            state=self.state,
            transitions=self._transitions,
        )

    def settings(self) -> dict[str, object]:
        """Return where the circuit is, what opens it, for how many seconds, and what else differs from the defaults."""
        others = {} if self.on_store_error == "local" else {"on_store_error": self.on_store_error}
        return {"store": self.store, **self._local.settings(), **others}

    def _holds(self) -> bool:
        # A new one would announce once more how the circuit came to be what it is.
        return self._known.state is not CircuitState.CLOSED

    # -- by hand ------------------------------------------------------------------------------------------------------

    async def isolate(self) -> SharedIsolation:
        """Refuse every call in all processes until the isolation returned is lifted, and all others are.

        It outlives the process that asked for it; `reset` and lifting are the only ends. A checkpoint.

        Raises:
            StoreError: the server did not answer.

        """
        await self._do("isolate")
        return SharedIsolation(self)

    async def reset(self) -> None:
        """Close the circuit and forget all failures, for all processes; isolations stay. A checkpoint.

        Raises:
            StoreError: the server did not answer.

        """
        await self._do("reset")

    async def _do(self, what: str) -> None:
        self._hear(await self.store.ask(Request(self.script, self._keys, (what, self._json))))

    # -- as a layer ---------------------------------------------------------------------------------------------------

    def _request(self, cost: float) -> Request:  # noqa: ARG002 - every call weighs the same
        return Request(self.script, self._keys, ("admit", self._json), undo=self._release)

    def _release(self, reply: Reply | None) -> None:
        """Give back the place of a probe that was admitted for nobody."""
        if reply is not None and int(reply[0]) > 0:
            self._tell(self._keys, "release", self._json, int(reply[3]), int(reply[0]))

    def _read(self, request: Request, reply: Reply) -> Permit:  # noqa: ARG002 - all requests are the same
        probe = int(reply[0])
        known = self._hear(reply)
        now_ns = self.clock.monotonic_ns()
        if probe < 0:
            delay_ns = None if known.reopens_ns is None else max(0, known.reopens_ns - now_ns)
            raise self._refusal_in(delay_ns)
        with self._section:
            self._admitted += 1
        return _Admission(self, known, probe, now_ns)

    def _admit_locally(self, request: Request) -> Permit:  # noqa: ARG002 - as above
        decision = self._local.admit()
        if isinstance(decision, Permit):
            return decision
        raise self._local.refuse(decision)

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Tell how an admitted call ended, without waiting; what is of an earlier generation will change nothing."""
        if not isinstance(permit, _Admission):
            super().settle(permit, verdict)
            return
        with self._section:
            generation = permit.generation
            if not permit.use_up():
                return
            self._ignored += verdict is Verdict.IGNORED
            self._cancelled += verdict is Verdict.CANCELLED
        failed = verdict is Verdict.FAILURE
        if failed or verdict is Verdict.SUCCESS:
            slow = self._slow_ns is not None and self.clock.monotonic_ns() - permit.started_ns >= self._slow_ns
            open_for = self._open_for(permit) if permit.probe and (failed or slow) else 0
            self._tell(
                self._keys,
                *("record", self._json, generation, permit.probe, int(failed), int(slow), open_for),
                heard=functools.partial(self._hear_of_outcome, failed=failed),
            )
        elif permit.probe:
            self._tell(self._keys, "release", self._json, generation, permit.probe, heard=self._hear)

    def _open_for(self, permit: _Admission) -> int:
        """Return for how long the circuit opens if this probe is the one that makes it."""
        machine = self._machine
        if machine.backoff is None:
            return 0
        delay_ns = machine.backoff.delay_ns(permit.openings, self._random.random(), permit.previous_ns)
        return _microseconds(delay_ns)

    def renew(self, permit: Permit) -> None:
        """Begin the lease of a probe anew: a stream that gives items is alive. Told thrice a lease at most."""
        if permit.guard is self._local:
            self._local.renew(permit)
        elif isinstance(permit, _Admission) and permit.probe and permit.generation != SETTLED:
            now_ns = self.clock.monotonic_ns()
            if now_ns - permit.renewed_ns >= self._machine.probe_for_ns // 3:
                permit.renewed_ns = now_ns
                self._tell(self._keys, "renew", self._json, permit.generation, permit.probe, heard=self._hear)

    def judge_exception(self, exception: BaseException) -> Verdict:
        """Judge by `is_failure`."""
        return self._local.judge_exception(exception)

    def judge_result(self, result: object) -> Verdict:
        """Judge by `is_failure_result`."""
        return self._local.judge_result(result)

    # -- what is heard ------------------------------------------------------------------------------------------------

    def _hear_of_outcome(self, reply: Reply, *, failed: bool) -> None:
        counted = int(reply[0]) == 1
        with self._section:
            self._failed += counted and failed
            self._succeeded += counted and not failed
            self._late += not counted
        self._hear(reply)

    def _hear(self, reply: Reply) -> _Known:
        """Note what the server says, and announce the changes that are new to this process."""
        _, born, before, generation, state, reopens_us, openings, previous_us, failures, failed_us, probes, *log = map(
            int, reply
        )
        now_ns = self.clock.monotonic_ns()
        heard = _Known(
            born,
            generation,
            _STATES[state],
            now_ns + reopens_us * 1_000 if reopens_us >= 0 else None,
            openings,
            previous_us * 1_000,
            failures,
            failed_us / 1_000_000 if failed_us else None,
            probes,
        )
        with self._section:
            known = self._known
            if born == known.born and generation < known.generation:
                # Two answers that have overtaken one another: the other one was the later.
                return heard
            self._known = heard
            since, state_was = (known.generation, known.state) if born == known.born else (before, known.state)
            for began, old, new, at_us in zip(*[iter(log)] * _EACH, strict=True):
                if began > since:
                    self._learn(state_was, _STATES[old], at_us)
                    self._announce(_STATES[old], _STATES[new], at_us)
                    state_was = _STATES[new]
            self._learn(state_was, heard.state, generation)
        return heard

    def _learn(self, old: CircuitState, new: CircuitState, at_us: int) -> None:
        """Announce what must have happened unheard of, by changes that there are. The lock is held."""
        if old is new:
            return
        if (old, new) in TRANSITIONS:
            self._announce(old, new, at_us)
        else:
            self._announce(old, CircuitState.OPEN, at_us)
            self._announce(CircuitState.OPEN, new, at_us)

    def _announce(self, old: CircuitState, new: CircuitState, at_us: int) -> None:
        """Count a change, and queue it for the listeners. The lock is held."""
        self._transitions[old, new] = self._transitions.get((old, new), 0) + 1
        calls = calls_for(StateChanged(guard=self.label, old=old.value, new=new.value, at_ns=at_us * 1_000))
        if self._on_state_change is not None:
            calls.insert(0, functools.partial(self._on_state_change, self, old, new))
        if calls:
            self._events.put(*calls)

    def _tell_of_local_change(self, _: CircuitBreaker, old: CircuitState, new: CircuitState) -> None:
        if self._on_state_change is not None:
            self._on_state_change(self, old, new)

    def __repr__(self) -> str:
        return f"<RedisCircuitBreaker {self.name!r} on {self.store!r}, {self._known.state.value}>"


class SharedIsolation:
    """One reason to keep a shared circuit isolated; lifted once, by `lift()` or at the end of its `async with`."""

    __slots__ = ("_breaker", "_lifted")

    def __init__(self, breaker: RedisCircuitBreaker) -> None:
        self._breaker = breaker
        self._lifted = False

    async def lift(self) -> None:
        """Lift this isolation; again does nothing. A checkpoint.

        Raises:
            StoreError: the server did not answer; the isolation stays, and may be lifted later.

        """
        if self._lifted:
            return
        self._lifted = True
        try:
            await self._breaker._do("lift")  # noqa: SLF001 - one class in two parts
        except BaseException:
            self._lifted = False
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Briefly: a round trip, or the store's timeout.
        with anyio.CancelScope(shield=True):
            await self.lift()


def _microseconds(duration_ns: int) -> int:
    """Return whole microseconds, rounded up: no shorter than was asked for."""
    return -(-duration_ns // 1_000)


def _condition(condition: TripCondition) -> dict[str, int | bool]:
    """Return a condition as the script reads it, in whole numbers."""
    if isinstance(condition, ConsecutiveFailures):
        return {"n": condition.n}
    least, of = exact_fraction(condition.threshold).as_integer_ratio()
    rate = {"least": least, "of": of, "min_calls": condition.min_calls, "slow": isinstance(condition, SlowCallRate)}
    match condition.window:
        case CountWindow(calls=calls):
            return {**rate, "calls": calls}
        case TimeWindow(seconds=length):
            slice_us = max(1, nanoseconds(length) // TimeWindow.SLICES // 1_000)
            return {**rate, "slice": slice_us, "slices": TimeWindow.SLICES}
