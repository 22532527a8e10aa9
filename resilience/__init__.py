"""Guards and strategies for async callables: rate limits, breakers, storm guards, bulkheads, retries, timeouts.

Every one takes its clock as an argument, works on asyncio and trio, and may be shared between tasks, threads and event
loops. Compose them with `Policy`; each is a decorator, has `call`, and guards are context managers too.
"""

from __future__ import annotations

from resilience.adaptive_limiter import AdaptiveLimiter, LimiterShare
from resilience.attempts import Attempt, Attempts
from resilience.bulkhead import Bulkhead
from resilience.circuit_breaker import CircuitBreaker, CircuitState
from resilience.circuits import Isolation
from resilience.clock import CallbackClock, Clock, SystemClock
from resilience.coalescing import Coalesced, Coalescer, Fate
from resilience.counting import Statistics
from resilience.describing import Description, LayerKind
from resilience.errors import (
    BulkheadFullError,
    CircuitOpenError,
    KeysExhaustedError,
    LimitExceededError,
    RateLimitedError,
    RejectedError,
    ResilienceError,
    StormError,
    TimeoutExceededError,
)
from resilience.fallback import Fallback
from resilience.guarded_deque import AsyncGuardedDeque
from resilience.hedge import Hedge
from resilience.keyed import Keyed, KeyedStatistics
from resilience.layer import Guard, Layer, Permit, Strategy
from resilience.machines.backoff import (
    Backoff,
    ConstantBackoff,
    ExponentialBackoff,
    FibonacciBackoff,
    LinearBackoff,
    ScheduleBackoff,
)
from resilience.machines.decision import NeverFits, NotUntil
from resilience.machines.limits import AIMD, Gradient2, Vegas
from resilience.machines.tripping import ConsecutiveFailures, CountWindow, FailureRate, SlowCallRate, TimeWindow
from resilience.outcome import Verdict
from resilience.policy import Policy, PolicyWarning
from resilience.rate_limiter import RateLimiter
from resilience.remains import EVERYTHING, Everything, Remains
from resilience.retry import Retry
from resilience.retry_budget import RetryBudget
from resilience.storm_guard import Sample, StormGuard
from resilience.timeout import Deadline, Timeout
from resilience.turns import Reservation

__all__ = [
    "AIMD",
    "EVERYTHING",
    "AdaptiveLimiter",
    "AsyncGuardedDeque",
    "Attempt",
    "Attempts",
    "Backoff",
    "Bulkhead",
    "BulkheadFullError",
    "CallbackClock",
    "CircuitBreaker",
    "CircuitOpenError",
    "CircuitState",
    "Clock",
    "Coalesced",
    "Coalescer",
    "ConsecutiveFailures",
    "ConstantBackoff",
    "CountWindow",
    "Deadline",
    "Description",
    "Everything",
    "ExponentialBackoff",
    "FailureRate",
    "Fallback",
    "Fate",
    "FibonacciBackoff",
    "Gradient2",
    "Guard",
    "Hedge",
    "Isolation",
    "Keyed",
    "KeyedStatistics",
    "KeysExhaustedError",
    "Layer",
    "LayerKind",
    "LimitExceededError",
    "LimiterShare",
    "LinearBackoff",
    "NeverFits",
    "NotUntil",
    "Permit",
    "Policy",
    "PolicyWarning",
    "RateLimitedError",
    "RateLimiter",
    "RejectedError",
    "Remains",
    "Reservation",
    "ResilienceError",
    "Retry",
    "RetryBudget",
    "Sample",
    "ScheduleBackoff",
    "SlowCallRate",
    "Statistics",
    "StormError",
    "StormGuard",
    "Strategy",
    "SystemClock",
    "TimeWindow",
    "Timeout",
    "TimeoutExceededError",
    "Vegas",
    "Verdict",
]
