"""What a guard answers when it does not admit: "not until t" and "never fits" are different answers."""

from __future__ import annotations

import attrs

__all__ = ["NeverFits", "NotUntil"]


@attrs.frozen
class NotUntil:
    """Not now. Ask again at `at_ns`, on the guard's own line of time; None where no instant is known."""

    at_ns: int | None


@attrs.frozen
class NeverFits:
    """Not now and not later: the cost is more than the guard can ever hold."""

    cost: float
    capacity: float
