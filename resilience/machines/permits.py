"""A count of permits: at most `limit` at a time. Its shell queues those who wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractions import Fraction

__all__ = ["Permits"]


class Permits:
    """At most `limit` permits out at a time; not locked.

    The limit may be moved at any time. While more are out than it allows, none is given.
    """

    __slots__ = ("in_use", "limit")

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.in_use: int = 0

    def take(self) -> bool:
        """Take a permit, or return False."""
        if self.in_use >= self.limit:
            return False
        self.in_use += 1
        return True

    def take_within(self, share: Fraction) -> bool:
        """Take a permit while those that are out are fewer than this share of the limit."""
        if self.in_use * share.denominator >= self.limit * share.numerator:
            return False
        self.in_use += 1
        return True

    def give_back(self) -> None:
        """Give a permit back."""
        self.in_use -= 1
