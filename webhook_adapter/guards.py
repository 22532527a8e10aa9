"""The guards of each endpoint: a breaker, a limiter where one is configured, and a bulkhead, as one Policy.

Theory of operation. What may be in flight in all is shared by a dynamic threshold: an endpoint may have up to
`_SHARE` times what is still free. Alone it gets nearly everything; beside k others that hold what they got (receivers
that hang, say) each has the same, and a (1 + k * _SHARE)th stays free for whoever comes next. Nothing has to be known
of who is slow, and what a busy endpoint may have grows again by itself when others end. Source: Choudhury and Hahne,
"Dynamic queue length thresholds for shared-memory packet switches", 1998.

Rules of this module: what the guards would refuse is not claimed in the first place; `capacity` says how much may be.
The guards of an endpoint live as long as the process, whatever becomes of its configuration, so that neither a
circuit's state nor a spent rate is forgotten by an update. It asks no store and sends nothing.
"""

from __future__ import annotations

import collections
import math
import threading
from typing import TYPE_CHECKING

import attrs

from resilience import Bulkhead, CircuitBreaker, CircuitState, Policy, RateLimiter, Verdict
from webhook_adapter.lifecycle import breaker_verdict
from webhook_adapter.model import AttemptOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import Clock
    from webhook_adapter.model import Endpoint
    from webhook_adapter.settings import Settings
    from webhook_adapter.store import Claim

__all__ = ["EndpointGuards", "Guards", "fair_room"]

_SHARE = 2
# What is leased ahead, so that the next delivery is there when one ends: as much as is sent within so many seconds, at
# the pace of late, but as many as can be sent at once at least, and no more than this.
_AHEAD_SECONDS = 0.05
_MOST_AHEAD = 200
# The weight of the last attempt in what attempts are taken to last.
_WEIGHT = 1 / 16


@attrs.define(eq=False)
class EndpointGuards:
    """What stands before one endpoint."""

    breaker: CircuitBreaker
    bulkhead: Bulkhead
    limiter: RateLimiter | None
    policy: Policy
    ready: collections.deque[Claim] = attrs.field(factory=collections.deque)
    """What has been claimed and not begun: whoever ends an attempt takes the next from here."""
    senders: int = 0
    """How many tasks send to this endpoint, one delivery after the other; never more than the bulkhead admits."""
    leased: int = 0
    """Deliveries of this endpoint that this process has claimed and not settled."""
    begun: int = 0
    """Of these, how many have passed the guards and are being sent."""
    pace: float = math.inf
    """How long an attempt lasts, in seconds, averaged over the last ones; infinite before the first."""
    lookahead: int = attrs.field(init=False)
    """How many to have ready beyond those that are being sent."""
    held_until: float = 0.0
    """Unix seconds before which the endpoint wants nothing: it said 429, and when to come back."""

    def __attrs_post_init__(self) -> None:
        self.lookahead = self.bulkhead.max_concurrent

    def capacity(self, now: float, *, free: int) -> int:
        """Return how many deliveries it makes sense to claim that take room from others.

        Args:
            now: Unix seconds.
            free: how many more may be sent at once, to all endpoints.
        """
        if now < self.held_until:
            return 0
        state = self.breaker.state
        if state is CircuitState.CLOSED:
            room = fair_room(self.leased, self.bulkhead.max_concurrent, free)
        elif state is CircuitState.HALF_OPEN:
            # Probes one by one: what is leased beside a probe would only be refused.
            room = min(free, 1 - self.leased)
        else:
            return 0
        return max(0, self._within_rate(room))

    def ahead(self, now: float) -> int:
        """Return how many to claim that take room from nobody: they follow those that are being sent."""
        most = self.bulkhead.max_concurrent
        if self.leased < most or now < self.held_until or self.breaker.state is not CircuitState.CLOSED:
            return 0
        return max(0, self._within_rate(most + self.lookahead - self.leased))

    def lasted(self, duration: float) -> None:
        """Take note of how long an attempt has lasted, in seconds."""
        self.pace = duration if self.pace == math.inf else self.pace + _WEIGHT * (duration - self.pace)
        most = self.bulkhead.max_concurrent
        soon = most * _AHEAD_SECONDS / max(self.pace, 1e-6)
        self.lookahead = max(most, min(_MOST_AHEAD, int(soon)))

    def take_ready(self) -> list[Claim]:
        """Return what has been claimed and not begun; it is no longer ready."""
        claims = list(self.ready)
        self.ready.clear()
        return claims

    def _within_rate(self, room: int) -> int:
        # What has begun has had its token.
        return room if self.limiter is None else min(room, int(self.limiter.available) - self.waiting)

    @property
    def waiting(self) -> int:
        """How many of the leased have not passed the guards yet."""
        return self.leased - self.begun

    @property
    def spent(self) -> bool:
        """Whether the limiter has no token that is not meant for something leased."""
        return self.limiter is not None and int(self.limiter.available) <= self.waiting

    @property
    def at_rest(self) -> bool:
        """Whether nothing is to be known of this endpoint but that it has all the room that anyone gets."""
        return (
            not self.leased
            and self.limiter is None
            and not self.held_until
            and self.breaker.state is CircuitState.CLOSED
        )

    def ready_in(self, now: float, *, behind: int = 0) -> float:
        """Return in how many seconds nothing but a want of room refuses a delivery; 0 if nothing does now.

        Args:
            now: Unix seconds.
            behind: how many others will have taken a token before.
        """
        ready = max(self.breaker.retry_after(), self.held_until - now)
        if self.limiter is not None:
            ready = max(ready, self.limiter.retry_after(min(self.limiter.capacity, behind + 1)))
        return max(0.0, ready)


def fair_room(leased: int, most: int, free: int) -> int:
    """Return how many more deliveries an endpoint may have claimed for it.

    Args:
        leased: how many it has.
        most: how many may be sent to it at once.
        free: how many more may be sent at once, to all endpoints.
    """
    if leased < most:
        threshold = max((_SHARE * free - leased) // (1 + _SHARE), int(not leased and free > 0))
        return max(0, min(threshold, most - leased))
    return 0


class Guards:
    """The guards of all endpoints, made when they are first needed. Any thread.

    Args:
        settings: thresholds, timeouts and limits.
        clock: where time comes from.
        on_transition: called with (endpoint_id, old, new) when a circuit changes its state.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        on_transition: Callable[[str, CircuitState, CircuitState], object],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_transition = on_transition
        self._lock = threading.Lock()
        self._by_endpoint: dict[str, EndpointGuards] = {}
        self._restless: dict[str, EndpointGuards] = {}

    def of(self, endpoint: Endpoint) -> EndpointGuards:
        """Return the guards of an endpoint, brought up to its present configuration."""
        guards = self._by_endpoint.get(endpoint.id)
        if guards is None:
            with self._lock:
                guards = self._by_endpoint.setdefault(endpoint.id, self._make(endpoint))
        self._restless[endpoint.id] = guards
        rate = None if guards.limiter is None else guards.limiter.rate
        if rate != endpoint.rate_limit:
            self._change_rate(guards, endpoint)
        return guards

    def restless(self, now: float) -> list[tuple[str, EndpointGuards]]:
        """Return the guards, by endpoint id, of those that may not have as much room as one that was never used.

        It costs what is in use, however many endpoints there are.
        """
        found: list[tuple[str, EndpointGuards]] = []
        for endpoint_id, guards in list(self._restless.items()):
            if now >= guards.held_until:
                guards.held_until = 0.0
            if guards.at_rest:
                self._restless.pop(endpoint_id, None)
            else:
                found.append((endpoint_id, guards))
        return found

    def lift_hold(self, endpoint_id: str) -> None:
        """Forget that an endpoint has asked to be left alone for a while."""
        guards = self._by_endpoint.get(endpoint_id)
        if guards is not None:
            guards.held_until = 0.0

    def forget(self, endpoint_id: str) -> None:
        """Drop the guards of an endpoint that was deleted."""
        self._by_endpoint.pop(endpoint_id, None)
        self._restless.pop(endpoint_id, None)

    def _make(self, endpoint: Endpoint) -> EndpointGuards:
        settings = self._settings
        breaker = CircuitBreaker(
            settings.breaker_failure_threshold,
            settings.breaker_recovery_timeout,
            name=endpoint.id,
            is_failure_result=_verdict,
            probe_timeout=2 * settings.attempt_timeout,
            on_state_change=self._changed(endpoint.id),
            clock=self._clock,
        )
        concurrent = settings.endpoint_max_concurrent
        bulkhead = Bulkhead(concurrent, name=endpoint.id, clock=self._clock)
        limiter = self._limiter(endpoint)
        return EndpointGuards(breaker, bulkhead, limiter, _policy(breaker, limiter, bulkhead))

    def _changed(self, endpoint_id: str) -> Callable[[CircuitBreaker, CircuitState, CircuitState], object]:
        def changed(_breaker: CircuitBreaker, old: CircuitState, new: CircuitState) -> None:
            self._on_transition(endpoint_id, old, new)

        return changed

    def _limiter(self, endpoint: Endpoint) -> RateLimiter | None:
        rate = endpoint.rate_limit
        if rate is None:
            return None
        return RateLimiter(rate, _burst(rate), name=endpoint.id, clock=self._clock)

    def _change_rate(self, guards: EndpointGuards, endpoint: Endpoint) -> None:
        with self._lock:
            rate = endpoint.rate_limit
            if rate is not None and guards.limiter is not None:
                guards.limiter.update(rate=rate, capacity=_burst(rate))
                return
            guards.limiter = self._limiter(endpoint)
            guards.policy = _policy(guards.breaker, guards.limiter, guards.bulkhead)


def _burst(rate: float) -> int:
    """Return the largest burst at a rate: one second's worth."""
    return max(1, math.ceil(rate))


def _policy(breaker: CircuitBreaker, limiter: RateLimiter | None, bulkhead: Bulkhead) -> Policy:
    # What there is no room for takes neither a probe nor a token.
    return Policy(bulkhead, breaker) if limiter is None else Policy(bulkhead, breaker, limiter)


def _verdict(result: object) -> Verdict:
    return breaker_verdict(result) if isinstance(result, AttemptOutcome) else Verdict.SUCCESS
