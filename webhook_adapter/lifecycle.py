"""What the end of one attempt means: for its delivery, and for the endpoint's breaker. One table, judged once.

| Attempt ends with                             | breaker | delivery                                            |
|-----------------------------------------------|---------|-----------------------------------------------------|
| 2xx                                           | success | delivered                                           |
| 429                                           | ignored | due again, not before Retry-After                   |
| 410                                           | ignored | dead; the endpoint is disabled                      |
| other status, timeout, connection, TLS or DNS | failure | due again (503: not before Retry-After)             |
| address refused                               | ignored | due again                                           |

"Due again" ends dead after the last attempt of the round, and when the next attempt would start after the delivery has
expired. The delay is the schedule's, spread by jitter to both sides; a Retry-After, clamped, moves it later, never
earlier.

Rules of this module: pure. No clock, no dice, no store: `now` and `u` are arguments, and the answer is a value. It
does not know what a guard did: a rejected attempt has not begun, and is not judged here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import attrs

from resilience import Verdict
from webhook_adapter.model import AttemptOutcome, FailureKind

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXPIRED", "GONE", "Dead", "Delivered", "DueAgain", "Judgement", "breaker_verdict", "delay_before", "judge"]

EXPIRED = "expired"
"""Why a delivery is dead that waited too long."""
GONE = "status 410"
"""Why an endpoint is disabled whose receiver is gone, and why what was on its way to it is dead."""

_GONE = 410
_TOO_MANY_REQUESTS = 429
_UNAVAILABLE = 503


@attrs.frozen
class Delivered:
    """The receiver took the message."""


@attrs.frozen
class DueAgain:
    """Another attempt is due `at` this instant (Unix seconds)."""

    at: float


@attrs.frozen
class Dead:
    """The delivery is given up, for `reason`; `disable_endpoint` says that the receiver wants nothing any more."""

    reason: str
    disable_endpoint: bool = attrs.field(default=False, kw_only=True)


Judgement: TypeAlias = Delivered | DueAgain | Dead


def breaker_verdict(outcome: AttemptOutcome) -> Verdict:
    """Return how the breaker's permit is settled: what the receiver asked for, or we refused, is no failure of it."""
    if outcome.succeeded:
        return Verdict.SUCCESS
    if outcome.failure is FailureKind.REFUSED or outcome.status_code in {_GONE, _TOO_MANY_REQUESTS}:
        return Verdict.IGNORED
    return Verdict.FAILURE


def delay_before(round_attempt: int, *, schedule: Sequence[float], jitter: float, u: float) -> float:
    """Return the seconds to wait before an attempt of a round, spread by `jitter` to both sides of the schedule's.

    Args:
        round_attempt: from 1, within the round.
        schedule: the delay before each attempt, in seconds.
        jitter: the share of the delay that it may be shorter or longer, in [0, 1].
        u: a random number in [0, 1).
    """
    return schedule[round_attempt - 1] * (1.0 + jitter * (2.0 * u - 1.0))


def judge(
    outcome: AttemptOutcome,
    *,
    round_attempt: int,
    schedule: Sequence[float],
    jitter: float,
    retry_after_max: float,
    now: float,
    u: float,
    expires_at: float | None,
) -> Judgement:
    """Return what becomes of a delivery whose attempt has ended.

    Args:
        outcome: how it ended.
        round_attempt: which attempt of this retry round it was, from 1.
        schedule: the delay before each attempt of a round, so that its length is their number.
        jitter: the share of a delay that it is spread by to both sides, in [0, 1].
        retry_after_max: the longest that a receiver's Retry-After is honoured, in seconds.
        now: when the attempt ended, in Unix seconds.
        u: a random number in [0, 1).
        expires_at: no attempt starts at or after this instant; None is never.

    Raises:
        ValueError: an argument that has no meaning; a NaN above all.
    """
    _check(round_attempt, jitter=jitter, retry_after_max=retry_after_max, now=now, u=u)
    if outcome.succeeded:
        return Delivered()
    if outcome.status_code == _GONE:
        return Dead(GONE, disable_endpoint=True)
    if round_attempt >= len(schedule):
        return Dead(_words(outcome))
    at = now + delay_before(round_attempt + 1, schedule=schedule, jitter=jitter, u=u)
    if outcome.retry_after is not None and outcome.status_code in {_TOO_MANY_REQUESTS, _UNAVAILABLE}:
        at = max(at, now + min(outcome.retry_after, retry_after_max))
    if expires_at is not None and at >= expires_at:
        return Dead(EXPIRED)
    return DueAgain(at)


def _check(round_attempt: int, *, jitter: float, retry_after_max: float, now: float, u: float) -> None:
    if isinstance(round_attempt, bool) or not isinstance(round_attempt, int) or round_attempt < 1:
        raise ValueError(f"round_attempt must count from 1, not {round_attempt!r}")
    if not 0.0 <= jitter <= 1.0:
        raise ValueError(f"jitter must be in [0, 1], not {jitter!r}")
    if not 0.0 <= retry_after_max < math.inf:
        raise ValueError(f"retry_after_max must be a finite number of seconds of at least 0, not {retry_after_max!r}")
    if not math.isfinite(now):
        raise ValueError(f"now must be Unix time in seconds, not {now!r}")
    if not 0.0 <= u < 1.0:
        raise ValueError(f"u must be in [0, 1), not {u!r}")


def _words(outcome: AttemptOutcome) -> str:
    if outcome.failure is not None:
        return outcome.failure.value
    return f"status {outcome.status_code}"
