"""What a run leaves behind it: everything that Python or an event loop complains of once it is collected."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from resilience.testing import Replay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilience.testing.schedules import Choices


class _Listener(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.getMessage())


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fail if the block, or the collection of its garbage, has a finalizer raise, a loop log or anybody warn."""
    gc.collect()
    heard: list[str] = []
    listener, kept = _Listener(heard), sys.unraisablehook
    sys.unraisablehook = lambda told: heard.append(f"{told.err_msg} {told.object!r}: {told.exc_value!r}")
    logging.getLogger("asyncio").addHandler(listener)
    try:
        with warnings.catch_warnings(record=True, action="always") as warned:
            yield
            gc.collect()
    finally:
        logging.getLogger("asyncio").removeHandler(listener)
        sys.unraisablehook = kept
    heard += [str(each.message) for each in warned]
    if heard:
        pytest.fail(f"left behind: {'; '.join(heard)}")


class Broken(Replay):
    """A schedule that raises instead of answering for the third time, and from then on."""

    def start(self) -> Choices:
        return _Breaking()


class _Breaking:
    def __init__(self) -> None:
        self._asked = 0

    def choose(self, n: int, names: Sequence[int] = (), /) -> int:  # noqa: ARG002 - a schedule is asked so
        self._asked += 1
        if self._asked < 3:
            return 0
        msg = "enough"
        raise LookupError(msg)
