"""The cases, by what they are about; importing this enters them all."""

from benchmarks.conformance.case import CASES
from benchmarks.conformance.cases import breaker, breaker_edges, bulkhead, limiter, limiter_queue, retry, timeout

__all__ = ["CASES", "breaker", "breaker_edges", "bulkhead", "limiter", "limiter_queue", "retry", "timeout"]
