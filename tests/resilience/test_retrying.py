"""Retrying: what follows a failed attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.machines.retrying import GiveUp, RetryAfter, decide
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

amounts = st.integers(0, 6)
maybe = st.one_of(st.none(), amounts)
situations = st.fixed_dictionaries(
    {
        "attempt": st.integers(1, 4),
        "attempts": st.one_of(st.none(), st.integers(1, 4)),
        "backoff_ns": amounts,
        "cap_ns": amounts,
        "asked_ns": st.one_of(st.none(), st.integers(-2, 8)),
        "elapsed_ns": amounts,
        "max_elapsed_ns": maybe,
        "remaining_ns": st.one_of(st.none(), st.integers(-2, 6)),
    }
)


def law_of_the_decision(decide: Callable[..., RetryAfter | GiveUp]) -> Callable[[], None]:
    """The delay is what was asked for, else the backoff's; it is given up exactly where waiting would be in vain."""

    @given(situations)
    def law(situation: dict[str, Any]) -> None:
        decision = decide(**situation)
        asked_ns, attempts = situation["asked_ns"], situation["attempts"]
        delay_ns = situation["backoff_ns"] if asked_ns is None else max(0, asked_ns)
        limits = [
            attempts is not None and situation["attempt"] >= attempts,
            asked_ns is not None and asked_ns > situation["cap_ns"],
            situation["max_elapsed_ns"] is not None
            and situation["elapsed_ns"] + delay_ns > situation["max_elapsed_ns"],
            situation["remaining_ns"] is not None and situation["remaining_ns"] - delay_ns <= 0,
        ]
        if any(limits):
            reasons = ["the attempts", "the wait that was asked for", "max_elapsed", "the deadline"]
            assert isinstance(decision, GiveUp)
            assert decision.reason.startswith(reasons[limits.index(True)])
        else:
            assert decision == RetryAfter(delay_ns)

    return law


def test_decision_follows_the_rules() -> None:
    """In every situation, and for the first reason that there is."""
    law_of_the_decision(decide)()


def _one_too_many(**situation: Any) -> RetryAfter | GiveUp:  # noqa: ANN401
    """Count retries, not attempts: a mutant."""
    return decide(**{**situation, "attempt": situation["attempt"] - 1})


def _clamping(**situation: Any) -> RetryAfter | GiveUp:  # noqa: ANN401
    """Wait for no longer than the cap where more was asked for: a mutant."""
    asked_ns = situation["asked_ns"]
    return decide(**{**situation, "asked_ns": None if asked_ns is None else min(asked_ns, situation["cap_ns"])})


def _added_up(**situation: Any) -> RetryAfter | GiveUp:  # noqa: ANN401
    """Take what was asked for as a minimum: a mutant."""
    decision = decide(**situation)
    return RetryAfter(max(decision.delay_ns, situation["backoff_ns"])) if isinstance(decision, RetryAfter) else decision


def _forgetting_the_delay(**situation: Any) -> RetryAfter | GiveUp:  # noqa: ANN401
    """See only the time that has passed: a mutant."""
    limit_ns = situation["max_elapsed_ns"]
    late = limit_ns is not None and situation["elapsed_ns"] <= limit_ns
    return decide(**{**situation, "max_elapsed_ns": None if late else limit_ns})


def _to_the_last_moment(**situation: Any) -> RetryAfter | GiveUp:  # noqa: ANN401
    """Sleep until the very deadline: a mutant."""
    remaining_ns = situation["remaining_ns"]
    return decide(**{**situation, "remaining_ns": None if remaining_ns is None else remaining_ns + 1})


@pytest.mark.parametrize("mutant", [_one_too_many, _clamping, _added_up, _forgetting_the_delay, _to_the_last_moment])
def test_law_of_the_decision_catches_mutants(mutant: Callable[..., RetryAfter | GiveUp]) -> None:
    """A rule that is bent by one is seen."""
    assert_caught(law_of_the_decision(mutant))
