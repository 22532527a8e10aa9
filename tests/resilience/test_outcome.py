"""Verdicts: one table for every guard."""

from __future__ import annotations

import asyncio

import pytest
import trio

from resilience import CircuitOpenError, Verdict
from resilience.outcome import any_exception, matcher, verdict_of_exception, verdict_of_result


@pytest.mark.parametrize(
    ("exception", "verdict"),
    [
        (ValueError(), Verdict.FAILURE),
        (TimeoutError(), Verdict.FAILURE),
        (ExceptionGroup("several", [ValueError()]), Verdict.FAILURE),
        (CircuitOpenError("inner"), Verdict.IGNORED),
        (KeyboardInterrupt(), Verdict.CANCELLED),
        (SystemExit(), Verdict.CANCELLED),
        (GeneratorExit(), Verdict.CANCELLED),
        (asyncio.CancelledError(), Verdict.CANCELLED),
        (trio.Cancelled._create(source="unknown"), Verdict.CANCELLED),
        (BaseExceptionGroup("mixed", [asyncio.CancelledError(), ValueError()]), Verdict.CANCELLED),
    ],
    ids=repr,
)
def test_exceptions_are_sorted_by_the_table(exception: BaseException, verdict: Verdict) -> None:
    """Exceptions fail, rejections from further inside are ignored, and everything else is a cancellation."""
    assert verdict_of_exception(exception, any_exception) is verdict


def test_predicate_judges_only_what_is_an_exception() -> None:
    """is_failure sees neither rejections nor cancellations; its answer is a truth value or a verdict."""
    seen: list[Exception] = []

    def is_failure(exception: Exception) -> bool | Verdict:
        seen.append(exception)
        return Verdict.SUCCESS if isinstance(exception, KeyError) else isinstance(exception, OSError)

    assert verdict_of_exception(OSError(), is_failure) is Verdict.FAILURE
    assert verdict_of_exception(ValueError(), is_failure) is Verdict.IGNORED
    assert verdict_of_exception(KeyError(), is_failure) is Verdict.SUCCESS
    assert verdict_of_exception(CircuitOpenError("inner"), is_failure) is Verdict.IGNORED
    assert verdict_of_exception(KeyboardInterrupt(), is_failure) is Verdict.CANCELLED
    assert [type(exception) for exception in seen] == [OSError, ValueError, KeyError]


def test_results_are_successes_unless_the_predicate_says_otherwise() -> None:
    """Without a predicate every result is a success; with one it is what the predicate says."""
    assert verdict_of_result(None, None) is Verdict.SUCCESS
    assert verdict_of_result(500, lambda result: result == 500) is Verdict.FAILURE
    assert verdict_of_result(200, lambda result: result == 500) is Verdict.SUCCESS
    assert verdict_of_result(429, lambda _result: Verdict.IGNORED) is Verdict.IGNORED


def test_types_and_predicates_say_which_exceptions_are_meant() -> None:
    """A type, several types, or a predicate, which is taken as it is."""
    assert matcher(OSError)(ConnectionError())
    assert not matcher(OSError)(ValueError())
    assert matcher((OSError, ValueError))(ValueError())
    assert matcher(any_exception) is any_exception


@pytest.mark.parametrize(
    "bad", [(), None, "ValueError", BaseException, asyncio.CancelledError, (KeyError, 3)], ids=repr
)
def test_what_is_no_exception_cannot_be_meant(bad: object) -> None:
    """Neither a cancellation nor nothing at all can be retried, fallen back from or hedged."""
    with pytest.raises(ValueError, match=r"^on must be exception types derived from Exception, or a predicate, not "):
        matcher(bad)  # type: ignore[arg-type]
