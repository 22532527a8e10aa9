"""A lock that keeps nobody out, to show what locks are good for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

__all__ = ["Unlocked"]


class Unlocked:
    """A lock that is never taken."""

    @staticmethod
    def of(guard: Any) -> None:  # noqa: ANN401 - a guard of any kind
        """Take a guard's lock away."""
        guard._lock = Unlocked()
        guard._section = nullcontext()
        guard._try_lock, guard._unlock = guard._lock.acquire, guard._lock.release

    def acquire(self, blocking: bool = True) -> bool:  # noqa: ARG002, FBT001, FBT002 - as a lock has it
        """Take it."""
        return True

    def release(self) -> None:
        """Give it back."""

    def locked(self) -> bool:
        """Tell that nobody has it."""
        return False
