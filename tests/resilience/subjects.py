"""What more than one file tests, in the state in which it is of interest; and callees that end as they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience import RateLimiter

if TYPE_CHECKING:
    from resilience import CircuitBreaker, Clock

__all__ = ["Attempts", "FatalError", "FlakyError", "emptied", "fail", "succeed"]


def emptied(rate: float = 1.0, capacity: float = 1.0, *, max_wait: float = 0.0, clock: Clock) -> RateLimiter:
    """Return a limiter without a token left."""
    limiter = RateLimiter(rate, capacity, max_wait=max_wait, clock=clock)
    assert limiter.try_acquire(capacity)
    return limiter


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    """Let calls fail, by hand."""
    for _ in range(times):
        permit = breaker.try_admit()
        assert permit is not None
        permit.failure()


def succeed(breaker: CircuitBreaker, times: int = 1) -> None:
    """Let calls succeed, by hand."""
    for _ in range(times):
        permit = breaker.try_admit()
        assert permit is not None
        permit.success()


class FlakyError(Exception):
    """What is worth another attempt."""

    retry_after: object = None


class FatalError(Exception):
    """What is not."""


class Attempts:
    """An async function whose attempts take as many seconds as told, one after the other, and end as told."""

    def __init__(self, clock: Clock, *outcomes: tuple[float, object]) -> None:
        self.clock = clock
        self.outcomes = list(outcomes)
        self.begun = 0
        self.running = 0

    async def __call__(self) -> object:
        """Run one attempt."""
        seconds, outcome = self.outcomes[self.begun]
        self.begun += 1
        self.running += 1
        try:
            await self.clock.sleep(seconds)
        finally:
            self.running -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome
