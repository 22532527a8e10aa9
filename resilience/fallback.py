"""Fallback: what to answer when a call has failed.

Rules of this module: what is not an `Exception` never falls back; a rejection by a guard further inside does, as any
other exception. The fallback runs while the call's own exception is being handled, so that what it raises itself goes
on with that as its context. A fallback that does not fit the callable is a TypeError when that is decorated: the code
that runs only when all else has failed is the last in which to find a mistake.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import attrs

from resilience.callables import is_kind
from resilience.counting import Tally
from resilience.events import FellBack, announce
from resilience.fusing import passing_on
from resilience.layer import LayerKind, Strategy
from resilience.machines.checks import callable_or_none, string
from resilience.outcome import matcher
from resilience.streaming import Relay, relaying

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.fusing import BlockingRunner, Runner
    from resilience.outcome import On
    from resilience.streaming import StreamRunner

__all__ = ["Fallback", "FallbackStatistics"]


@attrs.frozen(kw_only=True)
class FallbackStatistics:
    """A snapshot of one Fallback: how many calls fell back, whatever came of that."""

    fell_back: int


class Fallback(Strategy):
    """Answer with something else when a call fails.

    Args:
        value_or_callable: the answer; or a function, plain or async, that gives it. A function that has one required
            parameter is given what the call ended with: its exception, or the result that `on_result` finds fault
            with; one that has none is called without. For an async generator, an async generator function.
        on: the exceptions to fall back from: types, or a predicate.
        on_result: tells whether a result is to be replaced too; a stream's items are no results.
        name: what events call it.

    Raises:
        ValueError: a function needs more than one argument or has no signature, or the value could be used only once
            (a coroutine, an async generator).

    Example:
        >>> @Fallback([], on=ConnectionError)
        ... async def recommendations(customer: int) -> list[str]:
        ...     raise ConnectionResetError

    The value is one object for all calls. Decorating a plain `def` needs a plain fallback, and an async generator falls
    back only while it has not given its first item. If the fallback raises, its exception goes on, with the call's own
    as its context.

    """

    __slots__ = (
        "_answer",
        "_fell_back",
        "_is_async",
        "_is_stream",
        "_matches",
        "name",
        "on",
        "on_result",
        "value_or_callable",
    )

    kind = LayerKind.FALLBACK

    def __init__(
        self,
        value_or_callable: object,
        *,
        on: On = (Exception,),
        on_result: Callable[[Any], bool] | None = None,
        name: str = "",
    ) -> None:
        self._answer = _answer(value_or_callable)
        self._is_stream = callable(value_or_callable) and is_kind(inspect.isasyncgenfunction, value_or_callable)
        self._is_async = callable(value_or_callable) and is_kind(inspect.iscoroutinefunction, value_or_callable)
        self._matches = matcher(on)
        self.value_or_callable: object = value_or_callable
        self.on: On = on
        self.on_result: Callable[[Any], bool] | None = callable_or_none("on_result", on_result)
        self.name: str = string("name", name)
        self._fell_back = Tally()

    def statistics(self) -> FallbackStatistics:
        """Return a frozen snapshot. Not a checkpoint; any thread."""
        return FallbackStatistics(fell_back=self._fell_back.value)

    def remains(self) -> None:
        """Return None: nothing is left of a call that is over."""

    @passing_on
    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that falls back. A checkpoint if the call or the fallback is one; cancellation goes on."""
        if self._is_stream:
            msg = f"the fallback {self.value_or_callable!r} is a stream, and fits only around async generators"
            raise TypeError(msg)
        on_result = self.on_result

        async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            try:
                result = await call_next(*args, **kwargs)
            except Exception as error:
                if not self._matches(error):
                    raise
                self._announce(type(error).__qualname__)
                return await _resolved(self._answer(error))
            if on_result is not None and on_result(result):
                self._announce("the result")
                return await _resolved(self._answer(result))
            return result

        return run

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        """Return the same for plain functions."""
        if self._is_stream or self._is_async:
            msg = f"the fallback {self.value_or_callable!r} is async, and does not fit around a plain function"
            raise TypeError(msg)

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            try:
                result = call_next(func, args, kwargs)
            except Exception as error:
                if not self._matches(error):
                    raise
                self._announce(type(error).__qualname__)
                return self._blocking_answer(error)
            if self.on_result is not None and self.on_result(result):
                self._announce("the result")
                return self._blocking_answer(result)
            return result

        return run

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Return the same for async generators, until the first item is out; `on_result` has no say."""
        if not self._is_stream:
            msg = f"an async generator falls back to an async generator function, not to {self.value_or_callable!r}"
            raise TypeError(msg)

        return relaying(lambda *call: _Replaced(self, functools.partial(call_next, *call)))

    def _blocking_answer(self, outcome: object) -> object:
        answer = self._answer(outcome)
        if isinstance(answer, Awaitable | AsyncGenerator):
            if isinstance(answer, CoroutineType):
                answer.close()
            msg = f"the fallback {self.value_or_callable!r} of a plain function returned {answer!r}"
            raise TypeError(msg)
        return answer

    def _announce(self, error: str) -> None:
        self._fell_back.add()
        announce(FellBack(name=self.name or "Fallback", error=error))


class _Replaced(Relay):
    """A stream that gives way to the fallback's if it fails before its first item."""

    __slots__ = ("_fallback",)

    def __init__(self, fallback: Fallback, open_inner: Callable[[], AsyncGenerator[Any, Any]]) -> None:
        super().__init__(open_inner)
        self._fallback = fallback

    async def first(self) -> Any:  # noqa: ANN401 - items are the user's
        fallback = self._fallback
        try:
            return await super().first()
        except Exception as error:
            if not fallback._matches(error):  # noqa: SLF001 - one class in two parts
                raise
            fallback._announce(type(error).__qualname__)  # noqa: SLF001
            self.stream = fallback._answer(error)  # noqa: SLF001
            return await self.step(None, None)


async def _resolved(answer: object) -> object:
    return await answer if isinstance(answer, Awaitable) else answer


def _answer(value_or_callable: Any) -> Callable[[object], Any]:  # noqa: ANN401 - it may be anything
    """Return the function that gives the answer for what a call ended with, or raise ValueError."""
    if not callable(value_or_callable):
        if isinstance(value_or_callable, Awaitable | AsyncGenerator):
            msg = f"value_or_callable must be a value or a function, not {value_or_callable!r}, which serves only once"
            raise ValueError(msg)
        return lambda _: value_or_callable
    required = _required(value_or_callable)
    if required is None or len(required) > 1 or any(each.kind is each.KEYWORD_ONLY for each in required):
        msg = f"value_or_callable must be a function of at most one required argument, not {value_or_callable!r}"
        raise ValueError(msg)
    return value_or_callable if required else lambda _: value_or_callable()


def _required(func: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters without a default; None for a built-in function that does not tell."""
    try:
        parameters = inspect.signature(func).parameters.values()
    except ValueError:
        return None
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each for each in parameters if each.default is each.empty and each.kind not in rest]
