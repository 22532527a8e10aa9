"""The layer that picks a guard for each call, by a key: one of its arguments, or what a function makes of them.

It knows guards by the registry that has them alone. Whether a key's guard can guard a plain function or a stream is
seen when it is called, since another key might have another guard.
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from resilience.fusing import compose_blocking, compose_manager, compose_stream
from resilience.layer import Layer, Strategy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from resilience.fusing import BlockingRunner, Composed, Runner
    from resilience.streaming import StreamRunner

__all__ = ["ByKey"]

P = ParamSpec("P")
T = TypeVar("T")


class Guards(Protocol):
    """Where a key's guard is found."""

    name: str

    def __getitem__(self, key: Any, /) -> Layer: ...  # noqa: ANN401 - what may be a key is its owner's business


class ByKey(Strategy):
    """Guards each call by the guard of its key.

    `key` is the name of an argument of what is decorated, or a function that is called with the call's arguments and
    returns the key.
    """

    __slots__ = ("_argument", "_guards", "key", "name")

    def __init__(self, guards: Guards, key: str | Callable[..., Any]) -> None:
        if not callable(key) and not (isinstance(key, str) and key):
            msg = f"key must be the name of an argument or a function of the arguments, not {key!r}"
            raise ValueError(msg)
        self._guards = guards
        self.key: Callable[..., Any] | str = key
        self.name: str = guards.name
        self._argument = _Argument(key) if isinstance(key, str) else None

    @property
    def measured(self) -> Guards:
        """The registry, whose statistics are those of all its layers."""
        return self._guards

    def __call__(self, func: Callable[P, T]) -> Callable[P, T]:
        """Decorate `func`; TypeError if it has no argument of the name that was given."""
        if self._argument is not None and callable(func):
            self._argument.place(func)
        return super().__call__(func)

    def _pick(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layer:
        if self._argument is not None:
            return self._guards[self._argument.value(func, args, kwargs)]
        return self._guards[self.key(*args, **kwargs)]  # type: ignore[operator]

    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that picks. A checkpoint if the call is one or the guard waits; cancellation goes on."""

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            # A variable, so that the guard is held, not only its parts.
            guard = self._pick(func, args, kwargs)
            return await guard.call(call_next, func, args, kwargs)

        return run

    def wrap_around(
        self, call_next: Callable[..., Awaitable[Any]], func: Callable[..., Any]
    ) -> Callable[..., Awaitable[Any]]:
        """Return the same for one function: where its argument is need not be asked on each call."""
        guards = self._guards
        key = self.key if self._argument is None else self._argument.of(func)

        async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            # A variable, as above.
            guard = guards[key(*args, **kwargs)]  # type: ignore[operator]
            # As guard.call(), without the call.
            try:
                inside = guard._run_
            except AttributeError:
                inside = guard._compose()  # noqa: SLF001 - one family
            return await inside(call_next, args, kwargs)

        return run

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        """Return the same for plain functions."""

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            guard = self._pick(func, args, kwargs)
            inside = compose_blocking(guard)
            if inside is None:
                msg = f"{guard!r} cannot guard the plain function {func!r}: it could not be stopped; make it async"
                raise TypeError(msg)
            return inside(call_next, (func, args, kwargs), {})

        return run

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Return the same for async generators."""
        return self._streaming(call_next, compose_stream, "async generator")

    def wrap_manager(self, call_next: StreamRunner) -> StreamRunner:
        """Return the same for async context managers."""
        return self._streaming(call_next, compose_manager, "async context manager")

    def _streaming(
        self, call_next: StreamRunner, compose: Callable[[Composed], StreamRunner | None], title: str
    ) -> StreamRunner:
        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any, Any]:
            guard = self._pick(func, args, kwargs)
            inside = compose(guard)
            if inside is None:
                msg = f"{guard!r} cannot guard the {title} {func!r}"
                raise TypeError(msg)
            return inside(call_next, (func, args, kwargs), {})

        return run


class _Argument:
    """Where to find one argument, by its name, among those of a call."""

    __slots__ = ("_name", "_places")

    def __init__(self, name: str) -> None:
        self._name = name
        # Looked up once for each function, since reading a signature costs more than most calls.
        self._places: weakref.WeakKeyDictionary[Callable[..., Any], tuple[int | None, object]] = (
            weakref.WeakKeyDictionary()
        )

    def place(self, func: Callable[..., Any]) -> tuple[int | None, object]:
        """Return its place among the positional arguments, if it may be there, and its default."""
        if not inspect.isfunction(func):
            return self._look(func)
        found = self._places.get(func)
        if found is None:
            found = self._places[func] = self._look(func)
        return found

    def _look(self, func: Callable[..., Any]) -> tuple[int | None, object]:
        for index, parameter in enumerate(inspect.signature(func).parameters.values()):
            if parameter.name == self._name and parameter.kind not in (_ALL_POSITIONAL, _ALL_KEYWORDS):
                return (None if parameter.kind is inspect.Parameter.KEYWORD_ONLY else index), parameter.default
        msg = f"{func!r} has no argument {self._name!r} by which to pick its guard"
        raise TypeError(msg)

    def of(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is called as `func` is, and returns its value."""
        place = self.place(func)
        return lambda *args, **kwargs: self._found(place, func, args, kwargs)

    def value(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - it is the callee's
        """Return its value in a call with these arguments."""
        return self._found(self.place(func), func, args, kwargs)

    def _found(
        self,
        place: tuple[int | None, object],
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # noqa: ANN401 - it is the callee's
        if self._name in kwargs:
            return kwargs[self._name]
        index, default = place
        if index is not None and index < len(args):
            return args[index]
        if default is inspect.Parameter.empty:
            msg = f"{func!r} was called without its argument {self._name!r}, by which to pick its guard"
            raise TypeError(msg)
        return default


_ALL_POSITIONAL, _ALL_KEYWORDS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
