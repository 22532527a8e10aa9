"""PO5: a cancellation passes through all layers unmodified and promptly, and every permit comes back."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    CircuitState,
    ConstantBackoff,
    Guard,
    Permit,
    Policy,
    RateLimiter,
    RejectedError,
    Retry,
    StormGuard,
    Strategy,
    Timeout,
)
from resilience.testing import ManualClock
from tests.resilience.layers import ASYNC_FORMS, Again, Noting
from tests.resilience.support import Crew, assert_caught, both_loops, heavy, run, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from resilience import Layer, Verdict
    from resilience.fusing import Runner
    from resilience.streaming import StreamRunner
    from tests.resilience.support import Job

Step: TypeAlias = tuple[str, int, int]
Extra: TypeAlias = "Callable[[], Layer]"

KINDS = ("retry", "breaker", "probing", "limiter", "waiting", "bulkhead", "adaptive", "storm", "timeout", "again")


class World:
    """A composition, those who call through it, and what they wait for."""

    def __init__(self, kinds: list[str], extra: Layer, at: int) -> None:
        self.clock = ManualClock()
        self.failed = 0
        self.gates: list[anyio.Event] = []
        self.fails: set[int] = set()
        self.layers: list[Layer] = [self.make(kind) for kind in kinds]
        self.layers.insert(min(at, len(self.layers)), extra)
        self.failed_before = {layer: layer.statistics().failed for layer in self.layers if isinstance(layer, Guard)}
        self.policy = Policy(*self.layers)

    def make(self, kind: str) -> Layer:
        """Make a layer; the limits are tight, so that calls wait for permits, tokens and delays too."""
        clock = self.clock
        makers: dict[str, Callable[[], Layer]] = {
            "adaptive": lambda: AdaptiveLimiter(max_queue=100, clock=clock),
            "again": lambda: Again([]),
            "breaker": lambda: CircuitBreaker(100, clock=clock),
            "bulkhead": lambda: Bulkhead(2, max_queue=100, clock=clock),
            "limiter": lambda: RateLimiter(1.0, 100, clock=clock),
            "probing": self.make_probing,
            "retry": lambda: Retry(3, on=ConnectionError, backoff=ConstantBackoff(1.0), clock=clock),
            "storm": lambda: StormGuard(clock=clock),
            "timeout": lambda: Timeout(1e6, clock=clock),
            "waiting": lambda: RateLimiter(1.0, 1, max_wait=1e6, clock=clock),
        }
        return makers[kind]()

    def make_probing(self) -> CircuitBreaker:
        """Make a breaker that is half-open, whose probes may take as long as they like."""
        breaker = CircuitBreaker(1, 1.0, half_open_max_calls=2, probe_timeout=1e6, clock=self.clock)
        permit = breaker.try_admit()
        assert permit is not None
        permit.failure()
        self.clock.advance(1.0)
        assert breaker.state == CircuitState.HALF_OPEN
        return breaker

    async def body(self) -> None:
        """Wait to be let go, and then end well or not."""
        number = len(self.gates)
        self.gates.append(anyio.Event())
        await self.gates[number].wait()
        if number in self.fails:
            self.failed += 1
            raise ConnectionError

    async def stream(self) -> AsyncIterator[str]:
        """Wait before the item, and after it."""
        await self.body()
        yield "item"
        await self.body()

    @asynccontextmanager
    async def manager(self) -> AsyncIterator[str]:
        """Wait while entering and while leaving."""
        await self.body()
        yield "item"
        await self.body()

    async def work(self, form: str) -> None:
        """Make a call of that form; what is done with an item takes its time too."""
        if form == "call":
            await self.policy.call(self.body)
        elif form == "async def":
            await self.policy(self.body)()
        elif form == "stream":
            async with aclosing(self.policy(self.stream)()) as stream:  # type: ignore[type-var]
                async for _ in stream:
                    await self.body()
        else:
            manager = self.policy.around(self.manager) if form == "around" else self.policy(self.manager)()
            async with manager:
                await self.body()

    async def step(self, crew: Crew, step: Step) -> None:
        """Take one step."""
        name, which, how = step
        if name == "start":
            form = ASYNC_FORMS[which % len(ASYNC_FORMS)]
            crew.start(lambda: self.work(form))
        elif name == "release" and self.gates:
            if how:
                self.fails.add(which % len(self.gates))
            self.gates[which % len(self.gates)].set()
        elif name == "advance":
            self.clock.advance(1.0)
        elif name == "settle":
            await settle()
        elif name == "cancel" and crew.jobs:
            job = crew.jobs[which % len(crew.jobs)]
            job.cancel(native=bool(how))
        elif name == "cancel waiting" and crew.jobs:
            await self.cancel_waiting(crew.jobs[which % len(crew.jobs)], native=bool(how))

    async def cancel_waiting(self, job: Job, *, native: bool) -> None:
        """Cancel a job wherever it waits: it ends at once, by nothing else."""
        await settle()
        if not job.ended:
            job.cancel(native=native)
            await settle()
            assert (job.cancelled, job.finished, job.error) == (True, False, None)

    def judge(self) -> None:
        """Judge the end, when everybody has gone."""
        for guard, failed_before in self.failed_before.items():
            statistics = guard.statistics()
            # An event that was admitted stays in its window, however it ended.
            assert isinstance(guard, StormGuard) or (statistics.in_use, statistics.waiting) == (0, 0)
            # Only what the callee did wrong is a failure; a guard further out may not hear of it.
            assert statistics.failed - failed_before <= self.failed
            assert not isinstance(guard, Noting) or guard.out == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("start"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 12), st.integers(0, 1)),
        st.tuples(st.just("cancel"), st.integers(0, 12), st.integers(0, 1)),
        st.tuples(st.just("cancel waiting"), st.integers(0, 12), st.integers(0, 1)),
        st.tuples(st.sampled_from(["settle", "advance"]), st.just(0), st.just(0)),
    ),
    min_size=4,
    max_size=20,
)


def law_of_cancellation(backend: str, extra: Extra = lambda: Noting([])) -> Callable[[], None]:
    """Wherever a cancellation strikes, it goes on as it is and at once, and all permits come back (PO5)."""

    @given(st.lists(st.sampled_from(KINDS), max_size=4, unique=True), st.integers(0, 4), STEPS)
    def law(kinds: list[str], at: int, steps: list[Step]) -> None:
        async def main() -> None:
            if "adaptive" in kinds and "retry" in kinds:
                kinds.remove("adaptive")
            if "breaker" in kinds or "probing" in kinds:
                # Inside, where no Policy warns of it.
                kinds.sort(key=lambda kind: kind in ("breaker", "probing"))
            world = World(kinds, extra(), at)
            async with Crew() as crew:
                try:
                    for step in steps:
                        await world.step(crew, step)
                    for job in crew.jobs:
                        job.cancel()
                    await settle()
                    assert all(job.ended for job in crew.jobs)
                    assert all(_is_expected(job) for job in crew.jobs)
                finally:
                    for gate in world.gates:
                        gate.set()
            await settle()
            world.judge()

        run(backend, main)

    return law


def _is_expected(job: Job) -> bool:
    if isinstance(job.error, ConnectionError | RejectedError):
        # What it would have ended with anyhow: a failed call, or a guard that had no permit left.
        return not job.cancelled
    return job.error is None and job.finished != job.cancelled


@both_loops
def test_cancellation_goes_through_everything(backend: str) -> None:
    """PO5: by a scope or natively; while it runs, waits in a queue or between attempts; in a call of any kind."""
    heavy(law_of_cancellation(backend))()


class _Leaking(Noting):
    """A mutant: a cancelled call keeps its permit."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        if verdict.value != "cancelled":
            super().settle(permit, verdict)


class _Wrapping(Strategy):
    """A strategy that does the same with calls of every kind."""

    async def around_step(self, step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:  # noqa: ANN401
        """Run one step of a call."""
        return await step()

    def wrap(self, call_next: Runner) -> Runner:
        """Wrap a call."""

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            return await self.around_step(lambda: call_next(func, args, kwargs))  # type: ignore[arg-type, return-value]

        return run

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Let streams pass."""
        return call_next


class _Swallowing(_Wrapping):
    """A mutant: a cancelled call has no result, and that is all."""

    async def around_step(self, step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:  # noqa: ANN401
        try:
            return await step()
        except BaseException:  # noqa: BLE001 - the bug
            return None


class _Rejecting(_Wrapping):
    """A mutant: makes a rejection of a cancellation."""

    async def around_step(self, step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:  # noqa: ANN401
        try:
            return await step()
        except Exception:
            raise
        except BaseException as error:
            raise RejectedError("mutant") from error


class _Shielding(_Wrapping):
    """A mutant: what has begun runs to its end."""

    async def around_step(self, step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:  # noqa: ANN401
        with anyio.CancelScope(shield=True):
            return await step()


class _Blaming(CircuitBreaker):
    """A mutant: a cancelled call has failed."""

    def settle_exception(self, permit: Permit, exception: BaseException) -> None:  # noqa: ARG002 - the bug
        permit.failure()


MUTANTS: dict[str, Extra] = {
    "leaking": lambda: _Leaking([]),
    "swallowing": _Swallowing,
    "rejecting": _Rejecting,
    "shielding": _Shielding,
    "blaming": lambda: _Blaming(100, clock=ManualClock()),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@both_loops
def test_law_of_cancellation_catches_mutants(mutant: str, backend: str) -> None:
    """A lost permit, and a cancellation that is swallowed, changed, delayed or held against the callee, are seen."""
    assert_caught(law_of_cancellation(backend, MUTANTS[mutant]))
