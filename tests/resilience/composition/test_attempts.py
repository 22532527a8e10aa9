"""PO2: how often a callee is called, and how often a breaker hears of it, for either order of the two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import CircuitBreaker, CircuitOpenError, ConstantBackoff, Policy, Retry, RetryBudget
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught, both_loops, heavy
from tests.resilience.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resilience import Clock, Guard, Permit, Strategy


class Dependency:
    """What is called, and how often; it fails as it is told to."""

    def __init__(self, failures: list[bool]) -> None:
        self.failures = iter(failures)
        self.calls = 0

    async def call(self) -> str:
        """Fail or succeed."""
        self.calls += 1
        if next(self.failures, True):
            raise ConnectionError
        return "ok"


def formula(
    failures: Iterator[bool], calls: int, *, attempts: int, threshold: int, retry_is_outside: bool
) -> tuple[list[str], int, int]:
    """Tell how the calls end, how often the callee runs, and which failures in a row the breaker has counted."""
    outcomes, executions, counted = [], 0, 0

    def attempt() -> str:
        nonlocal executions
        executions += 1
        return "error" if next(failures, True) else "ok"

    def through_breaker(run: Callable[[], str]) -> str:
        nonlocal counted
        if counted >= threshold:
            return "rejected"
        outcome = run()
        counted = 0 if outcome == "ok" else counted + 1
        return outcome

    def retried(run: Callable[[], str]) -> str:
        outcome = "error"
        for _ in range(attempts):
            outcome = run()
            if outcome != "error":
                break
        return outcome

    for _ in range(calls):
        if retry_is_outside:
            outcomes.append(retried(lambda: through_breaker(attempt)))
        else:
            outcomes.append(through_breaker(lambda: retried(attempt)))
    return outcomes, executions, counted


async def outcome_of(layer: Policy, dependency: Dependency) -> str:
    """Call once."""
    try:
        return await layer.call(dependency.call)
    except CircuitOpenError:
        return "rejected"
    except ConnectionError:
        return "error"


def law_of_attempts(
    backend: str,
    policy: type[Policy] = Policy,
    retry: type[Retry] = Retry,
    breaker: type[CircuitBreaker] = CircuitBreaker,
) -> Callable[[], None]:
    """Retry(n) outside: up to n calls, each counted. Breaker outside: one outcome for up to n attempts (PO2)."""

    @given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.lists(st.booleans(), max_size=16), st.integers(1, 5))
    def law(attempts: int, threshold: int, retry_is_outside: bool, failures: list[bool], calls: int) -> None:  # noqa: FBT001 - drawn
        async def main(clock: Clock) -> None:
            # The circuit stays open for longer than any backoff may wait.
            guard = breaker(threshold, 3_600.0, clock=clock)
            again = retry(attempts, backoff=ConstantBackoff(0.5), clock=clock)
            composed = policy(again, guard) if retry_is_outside else policy(guard, policy(again))
            dependency = Dependency(failures)
            outcomes = [await outcome_of(composed, dependency) for _ in range(calls)]
            # An open circuit has forgotten what opened it.
            counted = threshold if guard.state != "closed" and guard.retry_after() > 0 else guard.failure_count
            assert (outcomes, dependency.calls, counted) == formula(
                iter(failures), calls, attempts=attempts, threshold=threshold, retry_is_outside=retry_is_outside
            )

        World(backend, "manual").run(main)

    return law


@both_loops
def test_attempts_are_as_many_as_the_order_says(backend: str) -> None:
    """PO2: the number of calls follows the declared formula for both orders of Retry and CircuitBreaker."""
    heavy(law_of_attempts(backend))()


class _InsideOut(Policy):
    """A mutant: the first layer is the innermost."""

    @property
    def parts(self) -> tuple[Guard | Strategy, ...]:
        return super().parts[::-1]


class _CountsRetries(Retry):
    """A mutant: counts attempts as if they were the retries that follow the first."""

    def __init__(self, attempts: int, **options: object) -> None:
        super().__init__(attempts + 1, **options)  # type: ignore[arg-type]


class _Charitable(CircuitBreaker):
    """A mutant: a failure right behind another one is not counted."""

    __slots__ = ("pardoned",)

    def settle_exception(self, permit: Permit, exception: BaseException) -> None:
        self.pardoned = not getattr(self, "pardoned", True)
        if self.pardoned:
            permit.ignored()
        else:
            super().settle_exception(permit, exception)


@pytest.mark.parametrize(
    "mutant",
    [{"policy": _InsideOut}, {"retry": _CountsRetries}, {"breaker": _Charitable}],
    ids=lambda each: next(iter(each)),
)
def test_law_of_attempts_catches_mutants(mutant: dict[str, type]) -> None:
    """A reversed order, an attempt too many and an uncounted failure are seen."""
    assert_caught(law_of_attempts("asyncio", **mutant))


@both_loops
def test_separate_policies_multiply_as_written(backend: str) -> None:
    """PO2: a Retry in a policy of its own is run anew by each attempt of the one outside."""

    async def main(clock: Clock) -> int:
        backoff = ConstantBackoff(0.5)
        inner = Policy(Retry(3, backoff=backoff, clock=clock))
        dependency = Dependency([])
        with pytest.raises(ConnectionError):
            await Policy(Retry(4, backoff=backoff, clock=clock), inner).call(dependency.call)
        return dependency.calls

    assert World(backend, "manual").run(main) == 12


def law_of_the_shared_budget(backend: str, budget: type[RetryBudget]) -> Callable[[], None]:
    """However policies nest, their retries are no more than the budget that they share allows (PO2, PO4)."""

    @given(st.integers(2, 4), st.integers(2, 4), st.integers(1, 6), st.integers(1, 4))
    def law(outer: int, inner: int, reserve: int, calls: int) -> None:
        async def main(clock: Clock) -> None:
            # Time hardly passes, and first attempts hardly count: what may be spent is the reserve.
            shared = budget(ratio=0.001, min_per_second=0.01, reserve_for=100.0 * reserve, clock=clock)
            options = {"backoff": ConstantBackoff(0.001), "budget": shared, "clock": clock}
            composed = Policy(Retry(outer, **options), Policy(Retry(inner, **options)))  # type: ignore[arg-type]
            dependency = Dependency([])
            for _ in range(calls):
                with pytest.raises(ConnectionError):
                    await composed.call(dependency.call)
            assert dependency.calls == calls + min(reserve, calls * (outer * inner - 1))

        World(backend, "manual").run(main)

    return law


@both_loops
def test_a_shared_budget_bounds_retries_that_nest(backend: str) -> None:
    """PO2: what nested policies would multiply, one budget bounds."""
    heavy(law_of_the_shared_budget(backend, RetryBudget))()


class _Generous(RetryBudget):
    """A mutant: every other retry is free."""

    __slots__ = ("free",)

    def try_spend(self) -> bool:
        self.free = not getattr(self, "free", False)
        return self.free or super().try_spend()


def test_law_of_the_shared_budget_catches_a_mutant() -> None:
    """A retry that nobody paid for is seen."""
    assert_caught(law_of_the_shared_budget("asyncio", _Generous))


def test_two_retries_side_by_side_are_refused() -> None:
    """PO2: in one Policy two Retry layers would multiply their attempts, and nobody would see it."""
    clock = ManualClock()
    with pytest.raises(ValueError, match=r"^layers must hold at most one Retry: two multiply their attempts; nest"):
        Policy(Retry(2, clock=clock), CircuitBreaker(clock=clock), Retry(3, clock=clock))
