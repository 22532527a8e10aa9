"""What the end of a call says about what it called: one table for every guard.

| The call ended with                          | verdict   |
|----------------------------------------------|-----------|
| a result                                     | success, unless `is_failure_result` says otherwise |
| a RejectedError (a guard further inside)     | ignored: it says nothing about the callee          |
| an Exception                                 | failure, if `is_failure` says so; else ignored     |
| anything else (cancellation, KeyboardInterrupt, GeneratorExit) | cancelled: never a failure       |

Rules of this module: pure, and the only place where exceptions are sorted. It knows the errors and no guard.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from resilience.errors import RejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Verdict", "any_exception", "verdict_of_exception", "verdict_of_result"]


class Verdict(enum.Enum):
    """How a permit is settled."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"
    CANCELLED = "cancelled"


def any_exception(exception: Exception) -> bool:  # noqa: ARG001 - the signature is the contract
    """Return True: the default `is_failure`, by which every Exception is a failure."""
    return True


def verdict_of_exception(exception: BaseException, is_failure: Callable[[Exception], bool | Verdict]) -> Verdict:
    """Return what a call that ended with `exception` says about its callee."""
    if not isinstance(exception, Exception):
        return Verdict.CANCELLED
    if isinstance(exception, RejectedError):
        return Verdict.IGNORED
    verdict = is_failure(exception)
    if isinstance(verdict, Verdict):
        return verdict
    return Verdict.FAILURE if verdict else Verdict.IGNORED


def verdict_of_result(result: object, is_failure_result: Callable[[object], bool | Verdict] | None) -> Verdict:
    """Return what a call that ended with `result` says about its callee."""
    if is_failure_result is None:
        return Verdict.SUCCESS
    verdict = is_failure_result(result)
    if isinstance(verdict, Verdict):
        return verdict
    return Verdict.FAILURE if verdict else Verdict.SUCCESS
