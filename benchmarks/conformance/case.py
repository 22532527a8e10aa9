"""A case: one thing that any user may expect, who reported that it was not so, and the test.

Tests say what they expect through `expect`, and what they need to get there through `prepare`: a library that cannot
be brought into the situation has not failed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from enum import Enum
from typing import Final, TypeAlias, cast

import attrs

from benchmarks.conformance.library import Breaker, Function, Library

__all__ = [
    "CASES",
    "OWN_READING",
    "Case",
    "Endpoint",
    "Failed",
    "Gate",
    "Killed",
    "Service",
    "ServiceError",
    "Unprepared",
    "Verdict",
    "called",
    "case",
    "consume",
    "expect",
    "open_circuit",
    "outcome",
    "prepare",
    "settle",
    "use",
]

OWN_READING: Final = "our own reading"
_REPORT = re.compile(r"[\w.-]+/[\w.-]+#\d+")

Test: TypeAlias = Callable[[Library], Coroutine[object, object, None] | None]


class Verdict(Enum):
    """What became of a case."""

    PASS = "pass"  # noqa: S105 - a verdict
    FAIL = "fail"
    DOCUMENTED = "documented"
    """It does otherwise, and its documentation says so."""
    NOT_OFFERED = "not offered"
    """It has no such feature, so there is nothing to judge."""
    ERROR = "error"
    """The situation could not be brought about, or the test broke: no verdict."""


class Failed(Exception):  # noqa: N818 - a verdict
    """The library does otherwise."""


class Unprepared(Exception):  # noqa: N818 - a verdict
    """The situation that the case is about could not be brought about."""


class ServiceError(Exception):
    """What the service behind the guard fails with."""


class Killed(BaseException):
    """What ends a call from outside, as KeyboardInterrupt does, without ending the event loop too."""


def _is_reported(_instance: object, _attribute: object, value: tuple[str, ...]) -> None:
    for report in value:
        if report != OWN_READING and not _REPORT.fullmatch(report):
            raise ValueError(f"reports must be owner/repository#number or {OWN_READING!r}, not {report!r}")


@attrs.frozen
class Case:
    """One line of the board."""

    id: str
    feature: str
    title: str
    """What is expected, as a sentence."""
    reports: tuple[str, ...] = attrs.field(validator=[attrs.validators.min_len(1), _is_reported])
    """Where it was reported."""
    test: Test


CASES: Final[dict[str, Case]] = {}


def case(feature: str, title: str, *reports: str) -> Callable[[Test], Test]:
    """Enter a test in the board under its own name."""

    def enter(test: Test) -> Test:
        identity = test.__name__.replace("_", "-")
        CASES[identity] = Case(identity, feature, title, reports, test)
        return test

    return enter


def expect(truth: object, otherwise: str) -> None:
    """Fail the library unless it is so; `otherwise` says what it did."""
    if not truth:
        raise Failed(otherwise)


def prepare(truth: object, otherwise: str) -> None:
    """Give up unless it is so."""
    if not truth:
        raise Unprepared(otherwise)


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(25):
        await asyncio.sleep(0)


async def outcome(call: Awaitable[object]) -> Exception | None:
    """Wait for a call, and return the exception that it ended with."""
    try:
        await call
    except Exception as error:  # noqa: BLE001 - whatever the library has for it
        return error
    return None


def called(decorated: Callable[..., object], **arguments: object) -> Awaitable[object]:
    """Call a decorated coroutine function."""
    return cast("Awaitable[object]", decorated(**arguments))


async def use(decorated: Callable[..., object], **arguments: object) -> object:
    """Call and await, so that what comes back may also turn out to be no awaitable."""
    return await called(decorated, **arguments)


async def consume(decorated: Callable[..., object]) -> None:
    """Take all items of a decorated async generator."""
    async for _ in cast("AsyncIterator[object]", decorated()):
        pass


class Gate:
    """Where calls wait until it is opened."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Let everybody through."""
        self._opened.set()

    async def passed(self) -> None:
        """Wait until it is open."""
        await self._opened.wait()


@attrs.define
class Service:
    """The service behind the guard, and what it has noticed."""

    calls: int = 0
    running: int = 0
    peak: int = 0

    def function(
        self, error: type[BaseException] | None = None, *, gate: Gate | None = None, takes: float = 0
    ) -> Function:
        """Return a coroutine function that answers, or fails, once the gate is open and the time is over."""

        async def ask() -> str:
            self.calls += 1
            self.running += 1
            self.peak = max(self.peak, self.running)
            try:
                if gate is not None:
                    await gate.passed()
                if takes:
                    await asyncio.sleep(takes)
                if error is not None:
                    raise error
                return "answer"
            finally:
                self.running -= 1

        return ask

    async def reached_through(self, breaker: Breaker) -> bool:
        """Call once, successfully, and tell whether the call came through."""
        before = self.calls
        await outcome(breaker.call(self.function()))
        return self.calls > before


class Endpoint:
    """No coroutine function, but calling it gives an awaitable that fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.__name__ = self.__qualname__ = "endpoint"

    async def __call__(self) -> str:
        """Fail."""
        self.calls += 1
        raise ServiceError


async def open_circuit(breaker: Breaker, *, failures: int) -> None:
    """Fail so often that the circuit is open."""
    for _ in range(failures):
        await outcome(breaker.call(Service().function(ServiceError)))
    prepare(not await Service().reached_through(breaker), "the circuit does not open")
