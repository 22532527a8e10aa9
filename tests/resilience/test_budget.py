"""RetryBudget: retries as a share of first attempts."""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import RetryBudget
from resilience.machines.budget import Budget
from resilience.machines.token_bucket import exact_fraction
from resilience.testing import ManualClock
from tests.resilience.support import NOT_POSITIVE, assert_caught, assert_refuses, brief

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND = 1_000_000_000


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_numbers(bad: object) -> None:
    """Every argument is a positive finite number, or a ValueError that names it."""
    for name in ("ratio", "min_per_second", "reserve_for"):
        assert_refuses(name, bad, RetryBudget)


def law_of_the_budget(kind: type[Budget]) -> Callable[[], None]:
    """PO4: in any interval retries are bounded by first attempts, the trickle and the reserve; and none is withheld."""

    @given(
        st.sampled_from([0.1, 0.5, 1.0, 1 / 3]),
        st.sampled_from([0.1, 1.0, 2.5]),
        st.sampled_from([0.5, 2.0, 10.0]),
        st.lists(
            st.tuples(st.sampled_from(["first", "spend", "spend", "spend"]), st.sampled_from([0, 0, 0, 1, 3, 40]))
        ),
    )
    def law(ratio: float, per_second: float, reserve_for: float, steps: list[tuple[str, int]]) -> None:
        now_ns = 5 * SECOND
        budget = kind(ratio, per_second, reserve_for, now_ns)
        share, trickle = exact_fraction(ratio), exact_fraction(per_second)
        saved = trickle * exact_fraction(reserve_for)
        reserve = max(Fraction(1), saved)
        earned = saved
        log: list[tuple[int, str]] = []
        for step, quarters in steps:
            now_ns += quarters * SECOND // 4
            earned = min(reserve, earned + trickle * quarters / 4)
            assert budget.available(now_ns) == float(earned)
            if step == "first":
                budget.first_attempt(now_ns)
                earned = min(reserve, earned + share)
                log.append((now_ns, "first"))
            elif budget.spend(now_ns):
                assert earned >= 1
                earned -= 1
                log.append((now_ns, "retry"))
            else:
                assert earned < 1
        for start in range(len(log)):
            firsts = retries = 0
            for at_ns, what in log[start:]:
                firsts += what == "first"
                retries += what == "retry"
                assert retries <= share * firsts + trickle * Fraction(at_ns - log[start][0], SECOND) + reserve

    return law


class _Unlimited(Budget):
    """A mutant: saves without end."""

    def first_attempt(self, now_ns: int) -> None:
        super().first_attempt(now_ns)
        self._reserve += self._per_first


class _Generous(Budget):
    """A mutant: pays for a retry with whatever is there."""

    def spend(self, now_ns: int) -> bool:
        if self.available(now_ns) <= 0:
            return False
        self._earned = max(0, self._earned - self._per_retry)
        return True


class _Untimely(Budget):
    """A mutant: pays the trickle again and again."""

    def _trickle(self, now_ns: int) -> None:
        seen = self._seen_ns
        super()._trickle(now_ns)
        self._seen_ns = min(seen, now_ns)


def test_budget_is_exact() -> None:
    """PO4: to the last fraction of a retry."""
    law_of_the_budget(Budget)()


@pytest.mark.parametrize("mutant", [_Unlimited, _Generous, _Untimely])
def test_law_of_the_budget_catches_mutants(mutant: type[Budget]) -> None:
    """Saving without end, overdrawing and paying twice are seen."""
    assert_caught(law_of_the_budget(mutant))


def test_small_ratio_alone_earns_a_retry_in_the_end() -> None:
    """However small the reserve, there is room for one retry to be earned."""
    clock = ManualClock()
    budget = RetryBudget(0.25, 0.001, 1.0, clock=clock)
    assert not budget.try_spend()
    for _ in range(4):
        budget.first_attempt()
    assert budget.available == 1.0
    assert budget.try_spend()
    assert not budget.try_spend()
    clock.advance(1_000.0)
    clock.step_back(500.0)
    assert not budget.try_spend()
    clock.advance(1_000.0)
    assert budget.try_spend()


def test_reserve_of_a_fraction_is_kept_exactly() -> None:
    """Of half a retry a second, kept for half a second, there is a quarter of one at first."""
    budget = Budget(1.0, 0.5, 0.5, 0)
    assert budget.available(0) == 0.25
    finer = Budget(1.0, 1e9, 1e-12, 0)
    assert finer.available(0) == 0.001


def test_threads_share_one_budget() -> None:
    """PO4: of many threads that start together exactly as many retry as the reserve allows."""
    budget = RetryBudget(0.1, 1.0, 30.0, clock=ManualClock())
    barrier = threading.Barrier(4)
    spent: list[int] = []

    def work() -> None:
        barrier.wait()
        spent.append(sum(budget.try_spend() for _ in range(50)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(spent) == 30
