"""What the comparison with other libraries is made of: layers, the terms they are made on, and who offers them.

Rules of this module:

* Everybody gets the same terms. By default no limit among them is ever near, so that what is timed is the decision and
  never a wait; `guarantees` makes one of them tight, to see that each layer really does its work.
* An offer is made as the library's own documentation says, and gives what an application would await. No adapter
  stands in between that costs a frame, unless the documented form is a block inside of the application's function.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Work: TypeAlias = Callable[[], Awaitable[object]]

__all__ = ["HOUR", "KEY", "OURS", "SECOND", "Kind", "Offer", "Terms", "is_false"]

OURS = "resilience"
KEY = "everybody"
SECOND = 1
HOUR = 3_600


class Kind(enum.Enum):
    """What is compared; the value is its title."""

    FIVE = "Timeout, Retry, CircuitBreaker, RateLimiter and Bulkhead in one"
    ACQUIRE = "RateLimiter, by hand"
    LIMITED = "RateLimiter, around a call"
    BREAKER = "CircuitBreaker, closed"
    RETRY = "Retry, first attempt"
    TIMEOUT = "Timeout, in time"
    BULKHEAD = "Bulkhead, with a permit to spare"
    ADAPTIVE = "AdaptiveLimiter, with a permit to spare"
    STORM = "StormGuard, with room in the window"
    KEYED = "Keyed: a RateLimiter for each key, around a call"
    FALLBACK = "Fallback, unneeded"
    HEDGE = "Hedge, unneeded"


@attrs.frozen(kw_only=True)
class Terms:
    """What layers are made with: durations in seconds, numbers of calls."""

    #: `rate` calls in `per` seconds, which is SECOND or HOUR, since one of the libraries knows only words for it.
    rate: int = 1_000_000_000
    per: int = SECOND

    @property
    def events(self) -> int:
        """The rate of what remembers each event of a window: no more than there is room for in memory."""
        return min(self.rate, 1_000_000)

    #: Failures in a row, without a success between them, that open the circuit, and how long it stays open.
    failures: int = 5
    recovery: float = float(HOUR)
    #: Attempts in all, and the delay between two.
    attempts: int = 3
    delay: float = 0.001
    #: The timeout, around all the attempts where there are several.
    seconds: float = float(HOUR)
    #: Calls at a time; what is too much is refused where that can be had.
    concurrent: int = 1_000_000
    #: When a second attempt is begun beside the first.
    hedge_after: float = float(HOUR)


def is_false(result: object) -> bool:
    """Tell whether an answer is a refusal, for limiters that answer True or False."""
    return result is False


@attrs.frozen(kw_only=True)
class Offer:
    """One library's way of doing one thing.

    `make(work, terms)` returns what is awaited: `work` inside the layer, or for `Kind.ACQUIRE` and `Kind.STORM` the
    admission alone.
    `threads` tells whether several threads may share it, as its documentation says or, where that is silent, as its
    source shows (every change of what is shared is in a critical section, or nothing is shared). What else is
    guaranteed is tried out. `is_refusal` knows a refusal that is an answer rather than an exception.
    """

    library: str
    kind: Kind
    make: Callable[[Work, Terms], Work]
    threads: bool
    is_refusal: Callable[[object], bool] = is_false
