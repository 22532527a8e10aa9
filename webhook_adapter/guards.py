"""The guards of each endpoint: a breaker, a limiter where one is configured, and a bulkhead, as one Policy.

Rules of this module: what the guards would refuse is not claimed in the first place; `capacity` says how much may be.
The guards of an endpoint live as long as the process, whatever becomes of its configuration, so that neither a
circuit's state nor a spent rate is forgotten by an update. It knows no store and sends nothing.
"""

from __future__ import annotations

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

__all__ = ["EndpointGuards", "Guards"]

# How much more is leased than may be sent at once, so that the next delivery is there when a permit comes back.
_AHEAD = 2


@attrs.define(eq=False)
class EndpointGuards:
    """What stands before one endpoint."""

    breaker: CircuitBreaker
    bulkhead: Bulkhead
    limiter: RateLimiter | None
    policy: Policy
    leased: int = 0
    """Deliveries of this endpoint that this process has claimed and not settled."""
    held_until: float = 0.0
    """Unix seconds before which the endpoint wants nothing: it said 429, and when to come back."""

    def capacity(self, now: float) -> int:
        """Return how many deliveries it makes sense to claim at `now`, in Unix seconds."""
        if now < self.held_until:
            return 0
        state = self.breaker.state
        if state is CircuitState.CLOSED:
            room = self.bulkhead.max_concurrent * _AHEAD - self.leased
        elif state is CircuitState.HALF_OPEN:
            # Probes one by one: what is leased beside a probe would only be refused.
            room = 1 - self.leased
        else:
            return 0
        if self.limiter is not None:
            room = min(room, int(self.limiter.available) - self.leased)
        return max(0, room)

    def ready_in(self) -> float:
        """Return in how many seconds the breaker or the limiter may let something through; 0 if they do now."""
        ready = self.breaker.retry_after()
        if self.limiter is not None:
            ready = max(ready, self.limiter.retry_after())
        return ready


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
        on_transition: Callable[[str, CircuitState, CircuitState], object] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_transition = on_transition
        self._lock = threading.Lock()
        self._by_endpoint: dict[str, EndpointGuards] = {}

    def of(self, endpoint: Endpoint) -> EndpointGuards:
        """Return the guards of an endpoint, brought up to its present configuration."""
        guards = self._by_endpoint.get(endpoint.id)
        if guards is None:
            with self._lock:
                guards = self._by_endpoint.setdefault(endpoint.id, self._make(endpoint))
        rate = None if guards.limiter is None else guards.limiter.rate
        if rate != endpoint.rate_limit:
            self._change_rate(guards, endpoint)
        return guards

    def known(self, endpoint_id: str) -> EndpointGuards | None:
        """Return the guards of an endpoint, if it has been used."""
        return self._by_endpoint.get(endpoint_id)

    def all(self) -> dict[str, EndpointGuards]:
        """Return the guards of every endpoint that has been used, by its id."""
        return dict(self._by_endpoint)

    def forget(self, endpoint_id: str) -> None:
        """Drop the guards of an endpoint that was deleted."""
        self._by_endpoint.pop(endpoint_id, None)

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
        bulkhead = Bulkhead(concurrent, max_queue=concurrent * (_AHEAD - 1), name=endpoint.id, clock=self._clock)
        limiter = self._limiter(endpoint)
        return EndpointGuards(breaker, bulkhead, limiter, _policy(breaker, limiter, bulkhead))

    def _changed(self, endpoint_id: str) -> Callable[[CircuitBreaker, CircuitState, CircuitState], object]:
        def changed(_breaker: CircuitBreaker, old: CircuitState, new: CircuitState) -> None:
            if self._on_transition is not None:
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
    # The bulkhead may wait, so it comes first: a probe or a token is taken when the call can run, not before.
    return Policy(bulkhead, breaker) if limiter is None else Policy(bulkhead, breaker, limiter)


def _verdict(result: object) -> Verdict:
    return breaker_verdict(result) if isinstance(result, AttemptOutcome) else Verdict.SUCCESS
