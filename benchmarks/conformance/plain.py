"""What cases about plain code and threads need, as `case` has it for coroutines."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from benchmarks.conformance.case import ServiceError, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import PlainFunction

__all__ = ["break_circuit", "fail_through", "failure", "in_threads", "pass_time", "reached_through"]


def pass_time(seconds: float) -> None:
    """Move the virtual clock on."""
    time.sleep(seconds)  # noqa: TID251 - the virtual one


def failure(call: PlainFunction) -> Exception | None:
    """Call, and return the exception that it ended with."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever the library has for it
        return error
    return None


def in_threads(call: PlainFunction, *, count: int, timeout: float | None = None) -> None:
    """Call in so many threads at the same time, and wait until they have ended, for each at most `timeout`."""
    threads = [threading.Thread(target=call, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)


def fail_through(call: Callable[[PlainFunction], object], *, times: int) -> None:
    """Fail under the guard, so often."""

    def fail() -> None:
        raise ServiceError

    for _ in range(times):
        failure(lambda: call(fail))


def reached_through(call: Callable[[PlainFunction], object]) -> bool:
    """Call once, successfully, and tell whether the call came through."""
    reached: list[bool] = []
    failure(lambda: call(lambda: reached.append(True)))
    return bool(reached)


def break_circuit(call: Callable[[PlainFunction], object], *, failures: int) -> None:
    """Fail so often that the circuit is open."""
    fail_through(call, times=failures)
    prepare(not reached_through(call), "the circuit does not open")
