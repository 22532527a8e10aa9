"""Locks for threads of which one runs at a time: whoever would block lets others run instead.

Rules of this module: it knows no threads but the calling one. How to let others run it is told; see `interleaving`.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

__all__ = ["Lock", "RLock", "Wait", "real_lock", "real_rlock", "references"]

Wait: TypeAlias = "Callable[[Callable[[], bool], float], bool]"
"""Lets others run until a function returns True; returns False once that took so many seconds, if not below zero."""

real_lock = threading.Lock
real_rlock = threading.RLock


class Lock:
    """A `threading.Lock` whose waiters pass the baton on. Only one thread runs at a time, so a flag will do."""

    __slots__ = ("__weakref__", "_held", "_wait")

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as the real one
        """Take it; return False if that takes longer than `timeout`, or would block and may not."""
        if self._held and not (blocking and self._wait(self._free, timeout)):
            return False
        self._held = True
        return True

    def _free(self) -> bool:
        return not self._held

    def release(self) -> None:
        """Give it back; RuntimeError where there is nothing to give."""
        if not self._held:
            msg = "release unlocked lock"
            raise RuntimeError(msg)
        self._held = False

    def locked(self) -> bool:
        """Tell whether anybody has it."""
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class RLock:
    """A `threading.RLock`, likewise; with the three methods by which Condition gives it up and takes it back."""

    __slots__ = ("__weakref__", "_count", "_owner", "_wait")

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._owner: int | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as the real one
        """Take it; return False if that takes longer than `timeout`, or would block and may not."""
        me = threading.get_ident()
        if self._owner not in (None, me) and not (blocking and self._wait(self._free, timeout)):
            return False
        self._owner = me
        self._count += 1
        return True

    def _free(self) -> bool:
        return self._owner is None

    def release(self) -> None:
        """Give it back; RuntimeError where there is nothing to give."""
        if not self._is_owned():
            msg = "cannot release un-acquired lock"
            raise RuntimeError(msg)
        self._count -= 1
        if not self._count:
            self._owner = None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self._owner == threading.get_ident()

    def _release_save(self) -> int:
        count, self._count, self._owner = self._count, 0, None
        return count

    def _acquire_restore(self, count: int) -> None:
        self.acquire()
        self._count = count


def references(files: frozenset[str]) -> list[tuple[types.ModuleType, str, object, type[Lock | RLock]]]:
    """Return where modules of these files have imported the classes of locks by name."""
    by_name: dict[object, type[Lock | RLock]] = {real_lock: Lock, real_rlock: RLock}
    return [
        (module, name, value, by_name[value])
        for module in _modules(files, len(sys.modules))
        for name, value in list(vars(module).items())
        if value is real_lock or value is real_rlock
    ]


@functools.lru_cache
def _modules(files: frozenset[str], _loaded: int) -> list[types.ModuleType]:
    """Return the modules that were read from these files; where more have been loaded since, it is another question."""
    return [module for module in list(sys.modules.values()) if getattr(module, "__file__", None) in files]
