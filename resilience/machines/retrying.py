"""Whether a failed attempt is followed by another, and when: one pure decision.

The rules, in order: the attempts are used up; the time is used up; what was asked for (`retry_after`) or the backoff
gives a delay; a delay that asks for more than the backoff's cap, or that would end past the deadline, ends the retries
at once, since sleeping towards a certain failure helps nobody.
"""

from __future__ import annotations

import attrs

__all__ = ["GiveUp", "RetryAfter", "decide"]


@attrs.frozen
class RetryAfter:
    """Try again after `delay_ns`."""

    delay_ns: int


@attrs.frozen
class GiveUp:
    """Try no more, for `reason`."""

    reason: str


def decide(
    *,
    attempt: int,
    attempts: int | None,
    backoff_ns: int,
    cap_ns: int,
    asked_ns: int | None,
    elapsed_ns: int,
    max_elapsed_ns: int | None,
    remaining_ns: int | None,
) -> RetryAfter | GiveUp:
    """Decide what follows the failed `attempt` (from 1).

    `asked_ns` is what the failure itself asked for, `remaining_ns` the time to the ambient deadline.
    """
    if attempts is not None and attempt >= attempts:
        return GiveUp("the attempts are used up")
    delay_ns = backoff_ns
    if asked_ns is not None:
        if asked_ns > cap_ns:
            return GiveUp("the wait that was asked for is longer than the backoff's cap")
        delay_ns = max(asked_ns, 0)
    if max_elapsed_ns is not None and elapsed_ns + delay_ns > max_elapsed_ns:
        return GiveUp("max_elapsed would pass")
    if remaining_ns is not None and delay_ns >= remaining_ns:
        return GiveUp("the deadline would pass")
    return RetryAfter(delay_ns)
