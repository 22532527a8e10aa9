"""The errors of the toolkit.

    ResilienceError
      RejectedError(guard, retry_after)       a guard refused; the call did not run
        RateLimitedError                      no token in time
        CircuitOpenError                      the breaker is open, isolated, or its probes are taken
        StormError                            more events than the window allows
        BulkheadFullError                     all permits taken, and no place in the queue
        LimitExceededError                    as many calls in flight as the learnt limit allows
        KeysExhaustedError                    no room for another key, and no guard that may be dropped
      TimeoutExceededError                    a Timeout's deadline passed (also a builtin TimeoutError)

Rules of this module: a rejection is a fresh exception each time (a shared one would grow a traceback for ever), it
survives pickling, and it says when to come back. It imports nothing of the toolkit.
"""

from __future__ import annotations

__all__ = [
    "BulkheadFullError",
    "CircuitOpenError",
    "KeysExhaustedError",
    "LimitExceededError",
    "RateLimitedError",
    "RejectedError",
    "ResilienceError",
    "StormError",
    "TimeoutExceededError",
]


class ResilienceError(Exception):
    """The root of the family: catch it to catch everything that the toolkit itself raises."""


class RejectedError(ResilienceError):
    """A guard refused a call, which therefore did not run.

    Args:
        guard: the name of the guard.
        retry_after: in how many seconds it is worth asking again; None where the guard cannot know.

    """

    reason = "refused the call"

    def __init__(self, guard: str, retry_after: float | None = None) -> None:
        super().__init__(guard, retry_after)
        self.guard = guard
        self.retry_after = retry_after

    def __str__(self) -> str:
        text = f"{self.guard} {self.reason}"
        return text if self.retry_after is None else f"{text}; ask again in {self.retry_after:.3g} s"


class RateLimitedError(RejectedError):
    """A RateLimiter had no token in time."""

    reason = "has no token left"


class CircuitOpenError(RejectedError):
    """A CircuitBreaker is open or isolated, or all its probes are under way."""

    reason = "is open"


class StormError(RejectedError):
    """A StormGuard's window is full."""

    reason = "is weathering a storm"


class BulkheadFullError(RejectedError):
    """A Bulkhead's permits are all taken, and its queue is full or was too slow."""

    reason = "is full"


class LimitExceededError(RejectedError):
    """All that an AdaptiveLimiter's limit allows the call is in use, and its queue was full, too slow or cut short."""

    reason = "is at its limit"


class KeysExhaustedError(RejectedError):
    """A Keyed has as many keys as it may, and none whose guard could be dropped without a trace."""

    reason = "has no room for another key"


class TimeoutExceededError(ResilienceError, TimeoutError):
    """The deadline of a Timeout passed; `seconds` is the timeout that was set."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"timed out after {self.seconds:g} s"
