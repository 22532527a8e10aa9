"""PO4 for compositions: a call is one first attempt, however many of the layers that it passes share a budget."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Bulkhead, Hedge, Policy, Retry, RetryBudget
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught, both_loops, heavy, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilience import Guard, Layer, Strategy

RATIO = 0.25


class Dependency:
    """What is called, how often, and whether it fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False

    def end(self) -> str:
        """Fail or succeed."""
        self.calls += 1
        if self.fails:
            raise ConnectionError
        return "ok"

    async def call(self) -> str:
        """Be an `async def`."""
        return self.end()

    async def stream(self) -> AsyncIterator[str]:
        """Be an async generator."""
        yield self.end()


def nest(layers: list[Layer], depth: int) -> Policy:
    """Compose layers, the last so many of them in a Policy of their own."""
    return Policy(*layers[:-depth], Policy(*layers[-depth:])) if depth else Policy(*layers)


def law_of_the_one_first_attempt(retry: type[Retry], hedge: type[Hedge], backend: str) -> Callable[[], None]:
    """PO4: calls earn their share once each, whatever order the layers stand in; nothing else earns."""

    @given(
        st.permutations(["retry", "hedge", "bulkhead"]),
        st.integers(0, 2),
        st.lists(st.tuples(st.sampled_from(["call", "stream"]), st.booleans()), min_size=1, max_size=16),
    )
    def law(kinds: list[str], depth: int, calls: list[tuple[str, bool]]) -> None:
        async def main() -> None:
            clock = ManualClock()
            # What trickles in by itself is nothing, as time stands still.
            budget = RetryBudget(RATIO, min_per_second=1e-9, reserve_for=1e-9, clock=clock)
            makers: dict[str, Callable[[], Layer]] = {
                "retry": lambda: retry(2, budget=budget, backoff=[0.0], clock=clock),
                "hedge": lambda: hedge(1.0, budget=budget, clock=clock),
                "bulkhead": lambda: Bulkhead(1, clock=clock),
            }
            policy = nest([makers[kind]() for kind in kinds], depth)
            # A stream cannot be hedged: two Retry layers share the budget there.
            streaming = Policy(makers["retry"](), Policy(makers["bulkhead"](), makers["retry"]()))
            dependency = Dependency()
            earned = Fraction(0)
            for number, (form, dependency.fails) in enumerate(calls, 1):
                earned = min(Fraction(1), earned + Fraction(RATIO))
                before = dependency.calls
                try:
                    if form == "call":
                        await policy.call(dependency.call)
                    else:
                        assert [item async for item in streaming(dependency.stream)()] == ["ok"]
                except ConnectionError:
                    earned -= dependency.calls - before - 1
                assert dependency.calls - number <= RATIO * number
                assert budget.available == pytest.approx(float(earned))

        run(backend, main)

    return law


@both_loops
def test_call_is_one_first_attempt(backend: str) -> None:
    """PO4: a budget that Retry and Hedge share in one Policy earns once for each call."""
    heavy(law_of_the_one_first_attempt(Retry, Hedge, backend))()


class _EarningRetry(Retry):
    """A mutant: does not look outside."""

    def inside(self, outer: tuple[Guard | Strategy, ...]) -> Strategy:  # noqa: ARG002
        return self


class _EarningHedge(Hedge):
    """A mutant: does not look outside."""

    def inside(self, outer: tuple[Guard | Strategy, ...]) -> Strategy:  # noqa: ARG002
        return self


@pytest.mark.parametrize(("retry", "hedge"), [(_EarningRetry, Hedge), (Retry, _EarningHedge)])
@both_loops
def test_law_of_the_one_first_attempt_catches_mutants(retry: type[Retry], hedge: type[Hedge], backend: str) -> None:
    """A layer that earns what another has earned is seen."""
    assert_caught(law_of_the_one_first_attempt(retry, hedge, backend))


@pytest.mark.anyio
async def test_layer_earns_when_it_is_used_alone() -> None:
    """One that is silent inside of a Policy is not so outside of it, nor inside of a layer with another budget."""
    clock = ManualClock()
    budget, other = (RetryBudget(RATIO, min_per_second=1e-9, reserve_for=1e-9, clock=clock) for _ in range(2))
    hedge = Hedge(1.0, budget=budget, clock=clock)
    dependency = Dependency()
    for layer in (Policy(Retry(budget=budget, clock=clock), hedge), hedge, Policy(Retry(budget=other), hedge)):
        await layer.call(dependency.call)
    assert budget.available == pytest.approx(3 * RATIO)
    assert other.available == pytest.approx(RATIO)
