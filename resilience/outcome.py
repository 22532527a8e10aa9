"""What the end of a call says about what it called: one table for every guard.

| The call ended with                          | verdict   |
|----------------------------------------------|-----------|
| a result                                     | success, unless `is_failure_result` says otherwise |
| a RejectedError (a guard further inside)     | ignored: it says nothing about the callee          |
| an Exception                                 | failure, if `is_failure` says so; else ignored     |
| anything else (cancellation, KeyboardInterrupt, GeneratorExit) | cancelled: never a failure       |

Strategies that retry, fall back or hedge ask which exceptions are theirs: `matcher` reads what they were told.

Rules of this module: pure, and the only place where exceptions are sorted. It knows the errors and no guard.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeAlias

from resilience.errors import RejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["On", "Verdict", "any_exception", "matcher", "verdict_of_exception", "verdict_of_result"]

On: TypeAlias = "type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]"
"""Which exceptions: types, or a predicate."""


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


def matcher(on: On) -> Callable[[Exception], bool]:
    """Return the predicate that `on` stands for, or raise ValueError."""
    types = on if isinstance(on, tuple) else (on,)
    if types and all(isinstance(each, type) and issubclass(each, Exception) for each in types):
        return lambda error: isinstance(error, types)  # type: ignore[arg-type]
    if isinstance(on, type | tuple) or not callable(on):
        msg = f"on must be exception types derived from Exception, or a predicate, not {on!r}"
        raise ValueError(msg)
    return on
