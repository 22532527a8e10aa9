"""interlock-cb, as its README and docstrings show it: a breaker of its own, the rest as layers of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import tenacity
from interlock import CircuitBreaker, Config, Pipeline, State

from benchmarks.conformance.library import Breaker, Library

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import Circuit, Decorator, PlainDecorator, PlainFunction


class _Listener:
    """All hooks of the listener protocol; only changes of state are passed on."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def on_state_change(self, *, name: str, old: State, new: State) -> None:
        self._tell()

    def on_call(self, *, name: str, outcome: object, duration: float) -> None:
        pass

    def on_rejected(self, *, name: str) -> None:
        pass

    def on_reset(self, *, name: str) -> None:
        pass


class _Classifier:
    """Everything that is raised is a failure, but for what is to be ignored."""

    def __init__(self, ignored: type[Exception]) -> None:
        self._ignored = ignored

    def is_failure(self, *, result: object, exception: Exception | None) -> bool:
        return exception is not None and not isinstance(exception, self._ignored)


def _breaker(circuit: Circuit) -> CircuitBreaker:
    # It opens by rate, over a number of calls: all of the last ones are failures in a row.
    config = Config(
        failure_rate_threshold=1.0,
        minimum_number_of_calls=circuit.failures,
        window_size=circuit.failures,
        wait_duration_in_open=circuit.recovery,
        permitted_calls_in_half_open=1,
        max_concurrent_probes=1,
    )
    return CircuitBreaker(
        name="service",
        config=config,
        classifier=None if circuit.ignored is None else _Classifier(circuit.ignored),
        listener=None if circuit.listener is None else _Listener(circuit.listener),
    )


class Interlock(Library):
    documented: ClassVar = {
        "bulkhead-is-bound-to-a-loop": "the documentation of `BulkheadStrategy` says that one belongs to a single loop",
    }

    def breaker(self, circuit: Circuit) -> Breaker:
        breaker = _breaker(circuit)
        return Breaker(breaker.call_async, breaker)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        return _breaker(circuit).call_sync

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        # A wait without an end cannot be asked for.
        pipeline = Pipeline.builder().bulkhead(limit, max_wait=(max_wait or 3600.0) if queue else 0.0).build()
        return Breaker(pipeline.call, pipeline)

    def retry(self, *, attempts: int) -> Decorator:
        wait = tenacity.wait_exponential(multiplier=1.0, max=60.0)
        return Pipeline.builder().retry(attempts=attempts, wait=wait).build()

    def plain_retry(self, *, attempts: int) -> PlainDecorator:
        return Pipeline.builder().retry(attempts=attempts, wait=tenacity.wait_none()).build()

    def timeout(self, *, seconds: float) -> Decorator:
        return Pipeline.builder().timeout(seconds).build()

    def fallback(self, *, answer: object) -> Decorator:
        return Pipeline.builder().fallback(lambda _: answer).build()


LIBRARY = Interlock()
