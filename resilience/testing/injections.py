"""What Chaos injects: the settings, checked as a whole, and the decision for one call.

Rules of this module: pure, but for the functions that users give; numbers in [0, 1) are passed in. Every call takes the
same three of them, whatever the settings are, so that changing one rate does not deal the other kinds anew:

* `latency` decides whether the call is slowed down, `length` by how much of the range;
* `ending` decides how the call ends. On the line from 0 to 1 hangs lie at the lower end, faults at the upper end, and
  results behind the hangs. So a call ends in one way, each rate is exact, and a greater rate keeps what a smaller one
  had injected.

It knows no layer, no clock and no dice.
"""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypedDict, cast

import attrs

from resilience.callables import is_kind
from resilience.machines.checks import non_negative

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NO_RESULT", "Ending", "Fault", "Latency", "Lot", "Rate", "Settings", "SettingsDict", "Shape"]

Rate: TypeAlias = float | Callable[[], float]
"""A share of the calls, from 0 to 1, or a function that is asked for it at each call."""

Latency: TypeAlias = float | tuple[float, float] | Callable[[], float]
"""Seconds: always as many, evenly spread over a range, or what a function says at each call."""

Fault: TypeAlias = type[Exception] | Callable[[], Exception]
"""A class of exceptions, or a function that makes a fresh one at each call."""

NO_RESULT: Final = object()
"""No result is to be injected; None is one as good as any."""


class SettingsDict(TypedDict, total=False):
    """The settings by name, any of them left out."""

    latency: Latency | None
    latency_rate: Rate | None
    fault: Fault | None
    fault_rate: Rate | None
    result: object
    result_rate: Rate | None
    hang_rate: Rate


class Ending(enum.Enum):
    """How a call ends."""

    OWN = "own"
    HANG = "hang"
    FAULT = "fault"
    RESULT = "result"


class Shape(enum.Enum):
    """What is called, as far as it matters to what can be injected; the values are for messages."""

    CALL = "async functions"
    PLAIN = "plain functions"
    STREAM = "async generators and context managers"


class Lot(NamedTuple):
    """What one call has drawn, each from [0, 1)."""

    latency: float
    length: float
    ending: float


@attrs.frozen(kw_only=True, eq=False)
class Settings:
    """What is injected, and how often; `Chaos` says what each means."""

    latency: Latency | None = None
    latency_rate: Rate | None = None
    fault: Fault | None = None
    fault_rate: Rate | None = None
    result: object = NO_RESULT
    result_rate: Rate | None = None
    hang_rate: Rate = 0.0
    _rates: dict[str, Rate] = attrs.field(init=False)

    @_rates.default
    def _rates_in_force(self) -> dict[str, Rate]:
        """Return the rate of each kind; one that is left out is that of whatever there is to inject."""
        return {
            "latency_rate": _in_force(self.latency_rate, given=self.latency is not None),
            "fault_rate": _in_force(self.fault_rate, given=self.fault is not None),
            "result_rate": _in_force(self.result_rate, given=self.result is not NO_RESULT),
            "hang_rate": self.hang_rate,
        }

    def __attrs_post_init__(self) -> None:
        for name in ("latency_rate", "fault_rate", "result_rate", "hang_rate"):
            _check_rate(name, getattr(self, name), optional=name != "hang_rate")
        _check_latency(self.latency, needed=_may_occur(self.latency_rate))
        _check_fault(self.fault, needed=_may_occur(self.fault_rate))
        _check_result(self.result, needed=_may_occur(self.result_rate))
        endings = (rate for name, rate in self._rates.items() if name != "latency_rate")
        total = math.fsum(rate for rate in endings if not callable(rate))
        if total > 1:
            msg = f"hang_rate, fault_rate and result_rate must be at most 1 together, not {total!r}"
            raise ValueError(msg)

    def shown(self) -> dict[str, object]:
        """Return those that differ from the defaults, by name."""
        return dict(self._shown())

    def _shown(self) -> Iterator[tuple[str, object]]:
        for field in attrs.fields(Settings):
            if not field.init:
                continue
            value = getattr(self, field.name)
            # A result is somebody else's object, whose idea of equality may be its own.
            if value is not field.default and (field.name == "result" or value != field.default):
                yield field.name, value

    def misfit(self, shape: Shape) -> str | None:
        """Say what of it cannot be injected into such callables, or return None."""
        gives_stream = callable(self.result) and is_kind(inspect.isasyncgenfunction, self.result)
        if shape is Shape.PLAIN and self.hang_rate != 0:
            return f"hang_rate must be 0 around {shape.value}, which could not be stopped, not {self.hang_rate!r}"
        if self.result is NO_RESULT or gives_stream == (shape is Shape.STREAM):
            return None
        fitting = "an async generator function" if shape is Shape.STREAM else "no async generator function"
        return f"result must be {fitting} around {shape.value}, not {self.result!r}"

    # -- one call -----------------------------------------------------------------------------------------------------

    def delay(self, lot: Lot) -> float | None:
        """Return by how many seconds the call is slowed down; None for one that is not."""
        latency = self.latency
        if latency is None or lot.latency >= self._now("latency_rate"):
            return None
        if isinstance(latency, tuple):
            shortest, longest = latency
            return shortest + (longest - shortest) * lot.length
        return non_negative("latency", latency()) if callable(latency) else latency

    def ending(self, lot: Lot) -> Ending:
        """Return how the call ends. Where functions say more than 1 together, hangs come first, and then faults."""
        hangs = self._now("hang_rate")
        if lot.ending < hangs:
            return Ending.HANG
        if lot.ending >= 1 - self._now("fault_rate"):
            return Ending.FAULT
        return Ending.RESULT if lot.ending < hangs + self._now("result_rate") else Ending.OWN

    def make_fault(self) -> Exception:
        """Return a fresh exception; raise TypeError if the function that makes it gave something else."""
        fault: object = cast("Fault", self.fault)()
        if not isinstance(fault, Exception):
            msg = f"fault must be a function that makes an exception; {self.fault!r} returned {fault!r}"
            raise TypeError(msg)
        return fault

    def make_result(self) -> Any:  # noqa: ANN401 - it is whatever the user has set
        """Return the result, or what the function that gives it returns; raise TypeError for what must be awaited."""
        if not callable(self.result):
            return self.result
        result = self.result()
        if isinstance(result, Awaitable):
            if isinstance(result, CoroutineType):
                result.close()
            msg = f"result must be a function that gives the result itself; {self.result!r} returned {result!r}"
            raise TypeError(msg)
        return result

    def _now(self, name: str) -> float:
        rate = self._rates[name]
        return _share(name, rate()) if callable(rate) else rate


def _in_force(rate: Rate | None, *, given: bool) -> Rate:
    if rate is None:
        return 1.0 if given else 0.0
    return rate


def _may_occur(rate: Rate | None) -> bool:
    """Tell whether a rate was given by which something may be injected."""
    return rate is not None and rate != 0


def _check_rate(name: str, rate: object, *, optional: bool) -> None:
    if callable(rate):
        _check_function(name, "a number from 0 to 1, or a plain function without arguments that returns one", rate)
    elif rate is not None or not optional:
        _share(name, rate)


def _check_latency(latency: object, *, needed: bool) -> None:
    if callable(latency):
        _check_function("latency", "seconds, a range of them, or a plain function without arguments", latency)
    elif isinstance(latency, tuple):
        if len(latency) != 2 or not non_negative("latency", latency[0]) <= non_negative("latency", latency[1]):  # noqa: PLR2004 - two ends
            msg = f"latency must be a range of seconds, from the shortest to the longest, not {latency!r}"
            raise ValueError(msg)
    elif latency is not None or needed:
        non_negative("latency", latency)


def _check_fault(fault: object, *, needed: bool) -> None:
    if fault is None and not needed:
        return
    wanted = "a class of exceptions that needs no arguments, or a plain function that makes a fresh one for each call"
    if inspect.isclass(fault):
        try:
            made = fault()
        except Exception as error:
            msg = f"fault must be {wanted}, not {fault!r}"
            raise ValueError(msg) from error
        if isinstance(made, Exception):
            return
    elif callable(fault):
        _check_function("fault", wanted, fault)
        return
    # An instance would be raised by all calls alike: its traceback and its notes would grow for ever.
    msg = f"fault must be {wanted}, not {fault!r}"
    raise ValueError(msg)


def _check_result(result: object, *, needed: bool) -> None:
    wanted = "a value, or a plain or async generator function without arguments"
    if result is NO_RESULT and needed:
        msg = f"result must be {wanted}, if there is a result_rate; it was left out"
        raise ValueError(msg)
    if callable(result):
        _check_function("result", wanted, result)
    elif isinstance(result, Awaitable | AsyncGenerator):
        msg = f"result must be {wanted}, not {result!r}, which serves only once"
        raise ValueError(msg)


def _check_function(name: str, wanted: str, func: Callable[..., object]) -> None:
    """Raise ValueError if a function cannot be called without arguments, or gives what would have to be awaited."""
    try:
        inspect.signature(func).bind()
    except TypeError:
        is_misfit = True
    except ValueError:
        # A built-in one, which does not tell.
        is_misfit = False
    else:
        is_misfit = is_kind(inspect.iscoroutinefunction, func)
    if is_misfit:
        msg = f"{name} must be {wanted}, not {func!r}"
        raise ValueError(msg)


def _share(name: str, value: object) -> float:
    """Return `value` as a number from 0 to 1, or raise ValueError."""
    number = non_negative(name, value)
    if number > 1:
        msg = f"{name} must be a number from 0 to 1, not {value!r}"
        raise ValueError(msg)
    return number
