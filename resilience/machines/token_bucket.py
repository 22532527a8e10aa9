"""The token bucket, kept as one instant.

Theory of operation. A bucket holds up to `capacity` tokens and fills at `rate` tokens a second. Rather than a level
that is topped up, which gathers rounding errors, the machine keeps the *theoretical arrival time* (`tat`): the instant
at which the bucket will be full again. A call of cost c is admitted when it would leave

    max(tat, now) + c/rate <= now + capacity/rate

Source: the generic cell rate algorithm (virtual scheduling form), ITU-T I.371 annex A; it is the token bucket exactly.

Exactness. `rate` is taken as the decimal that was written (0.1 is one tenth), a fraction num/den of tokens per
nanosecond. Time counts in *units* of 1/num nanosecond, so that a token is `den` units, whole numbers all:
nothing is rounded but the instant at which to ask again, and that is rounded up. Hence, for every interval [s, t],

    admitted in [s, t] <= capacity + rate * (t - s)                                  (RL1)

Giving back. Tokens that were granted and not used may come back, but only as far as the bound above still holds: had
they never been taken, the bucket might have been full since, and the surplus would have run over. The room that the
later admissions left below "full" is the least slack they saw; while a grant is outstanding the machine tracks it.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

__all__ = ["TokenBucket", "exact_fraction"]

_NANOSECONDS = 1_000_000_000


# Those who make a guard for each of many keys make all of them alike, so a few numbers are remembered. A float and an
# integer that equal each other are written differently, and so may stand for different decimals: hence `typed`.
_remembered = functools.lru_cache(maxsize=256, typed=True)


@_remembered
def exact_fraction(number: float) -> Fraction:
    """Return the decimal that was written: 0.1 is one tenth, not the nearest binary fraction."""
    return Fraction(number) if isinstance(number, int) else Fraction(repr(float(number)))


@_remembered
def _units_of(rate: float, capacity: float) -> tuple[int, int, int]:
    """Return how many units a nanosecond, a token and the whole bucket are."""
    fraction = exact_fraction(rate) / _NANOSECONDS
    size = exact_fraction(capacity)
    # Scaled so that a fractional capacity is a whole number of units too.
    return (
        fraction.numerator * size.denominator,
        fraction.denominator * size.denominator,
        fraction.denominator * size.numerator,
    )


class TokenBucket:
    """A token bucket over integer nanoseconds; not locked, and blind to queues."""

    __slots__ = (
        "_least_slack",
        "_outstanding",
        "burst",
        "capacity",
        "generation",
        "per_nanosecond",
        "per_token",
        "plain",
        "rate",
        "tat",
    )

    def __init__(self, rate: float, capacity: float, now_ns: int) -> None:
        self._configure(rate, capacity)
        # The instant, in units, at which the bucket is full (again). It starts full.
        self.tat: int = now_ns * self.per_nanosecond
        # Counts reconfigurations: what was admitted under other terms cannot be given back.
        self.generation: int = 0
        # While grants are outstanding that may be given back: the least slack that an admission has found since.
        self._outstanding = 0
        self._least_slack = 0
        self._say_if_plain()

    def _configure(self, rate: float, capacity: float) -> None:
        self.rate: float = rate
        self.capacity: float = capacity
        self.per_nanosecond: int
        self.per_token: int
        self.burst: int
        self.per_nanosecond, self.per_token, self.burst = _units_of(rate, capacity)

    def units(self, cost: float) -> int:
        """Return a cost in units, rounded up where the cost is finer than they are."""
        if isinstance(cost, int):
            return cost * self.per_token
        return math.ceil(exact_fraction(cost) * self.per_token)

    def take(self, now_ns: int, units: int) -> bool:
        """Admit a call of this cost now, or change nothing and return False."""
        # Few additions: every one of these numbers is too large to be a cheap one.
        scale = self.per_nanosecond
        now = now_ns if scale == 1 else now_ns * scale
        tat = self.tat
        if tat > now:
            taken = tat + units
            if taken - now > self.burst:
                return False
            slack = tat - now if self._outstanding else 0
        elif units > self.burst:
            return False
        else:
            taken = now + units
            slack = 0
        if self._outstanding and slack < self._least_slack:
            self._least_slack = slack
        self.tat = taken
        return True

    def ready_at(self, units: int, ahead: int = 0) -> int:
        """Return the first nanosecond at which a call of this cost is admitted, after `ahead` units of others."""
        return -((self.burst - self.tat - ahead - units) // self.per_nanosecond)

    def full_at(self) -> int:
        """Return the first nanosecond at which the bucket is full, if nothing more is taken."""
        return -(-self.tat // self.per_nanosecond)

    @property
    def unsettled(self) -> bool:
        """Whether there is more to this bucket than when it is full: grants that may come back, or other terms."""
        return self._outstanding > 0 or self.generation > 0

    def fill_at(self, now_ns: int, full_at_ns: int) -> None:
        """Be full from that instant on, as another bucket of these terms is; no emptier now than a bucket can be."""
        scale = self.per_nanosecond
        self.tat = min(full_at_ns * scale, now_ns * scale + self.burst)

    def available(self, now_ns: int) -> float:
        """Return the tokens in the bucket."""
        return (self.burst - self._debt(now_ns)) / self.per_token

    def fits(self, units: int) -> bool:
        """Tell whether a call of this cost can ever be admitted."""
        return units <= self.burst

    def give_back_last(self, generation: int, tat: int, units: int) -> bool:
        """Take an admission back as if it had never been, if nothing was admitted since (`tat` is still the same)."""
        if generation != self.generation or tat != self.tat:
            return False
        self.tat -= units
        return True

    def hold(self) -> None:
        """Note that the admission just made may yet be given back."""
        if not self._outstanding:
            self._least_slack = self.burst
        self._outstanding += 1
        self.plain: bool = False

    def keep(self) -> None:
        """Note that a held admission is used after all."""
        self._outstanding -= 1
        self._say_if_plain()

    def give_back(self, units: int) -> int:
        """Give a held admission back, as far as the bound allows; return the units that came back."""
        self._outstanding -= 1
        self._say_if_plain()
        returned = max(0, min(units, self._least_slack))
        self._least_slack -= returned
        self.tat -= returned
        return returned

    def reconfigure(self, now_ns: int, rate: float, capacity: float) -> None:
        """Change rate and capacity; the tokens in the bucket stay, as far as the new capacity holds them."""
        tokens = Fraction(self.burst - self._debt(now_ns), self.per_token)
        self._configure(rate, capacity)
        debt = max(Fraction(0), exact_fraction(capacity) - tokens)
        self.tat = now_ns * self.per_nanosecond + math.ceil(debt * self.per_token)
        self.generation += 1
        self._say_if_plain()
        # What was granted under the old terms is not given back under the new ones.
        self._least_slack = 0

    def _say_if_plain(self) -> None:
        """Say whether a full bucket takes one token by a mere addition of nanoseconds (see RateLimiter)."""
        self.plain = self.per_nanosecond == 1 and self.per_token <= self.burst and not self._outstanding

    def _debt(self, now_ns: int) -> int:
        return max(0, self.tat - now_ns * self.per_nanosecond)
