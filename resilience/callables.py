"""Which callables a layer can stand around, and how it stands around each kind of them.

Rules of this module:

* Every kind is guarded whole, or refused when it is decorated, so that nothing is ever silently unprotected.
* `async def` is one call, and so is plain `def`, which runs inline. Of an async generator the whole stream is one call.
  Of an async context manager the call lasts from its entering until it has been left, the block included: it is run as
  a stream of one item.
* What is guarded stays what it was: a coroutine function, an async generator function, a maker of context managers.

It knows runners, and no layer.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from resilience.fusing import compose_around, compose_blocking, compose_manager, compose_stream, holding
from resilience.streaming import bind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from resilience.fusing import BlockingRunner, Composed
    from resilience.streaming import StreamRunner

__all__ = ["decorate", "enclose", "is_kind"]


def decorate(layer: Composed, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return `func` with this layer around it; raise TypeError for what it cannot guard."""
    title = type(layer).__name__
    if not callable(func) and not isinstance(func, classmethod):
        msg = f"{title} can only decorate a callable, not {func!r}"
        raise TypeError(msg)
    refused = _unguardable(func)
    if refused is not None:
        msg = f"{title} cannot guard {func!r}: {refused}"
        raise TypeError(msg)
    wrapper: Callable[..., Any]
    if is_kind(inspect.isasyncgenfunction, func):
        stream = compose_stream(layer)
        if stream is None:
            msg = f"{title} cannot guard the async generator {func!r}"
            raise TypeError(msg)
        wrapper = bind(stream, func)
    elif is_kind(inspect.iscoroutinefunction, func):
        wrapper = compose_around(layer, func)
    elif _makes_managers(func):
        wrapper = enclose(layer, func)
    else:
        blocking = compose_blocking(layer)
        if blocking is None:
            msg = f"{title} cannot guard the plain function {func!r}: it could not be stopped; make it async"
            raise TypeError(msg)
        wrapper = _blocking_wrapper(blocking, func)
    # A partial or a callable object has no name of its own; what it has is copied.
    wrapped = functools.wraps(func)(wrapper)
    # Whoever holds the function holds its layer; not the one of what it wraps, if that is decorated as well.
    return holding(layer, wrapped)


def enclose(
    layer: Composed,
    func: Callable[..., AbstractAsyncContextManager[Any]],
) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Return a maker of async context managers with this layer around each, from its entering until it is left."""
    run = compose_manager(layer)
    if run is None:
        msg = f"{type(layer).__name__} cannot guard the async context manager {func!r}"
        raise TypeError(msg)
    return asynccontextmanager(functools.partial(_open, run, _as_stream(func)))


def _open(
    run: StreamRunner, stream: Callable[..., AsyncIterator[Any]], /, *args: object, **kwargs: object
) -> AsyncGenerator[Any, Any]:
    return run(stream, args, kwargs)


def _as_stream(func: Callable[..., AbstractAsyncContextManager[Any]]) -> Callable[..., AsyncIterator[Any]]:
    @functools.wraps(func)
    async def stream(*args: object, **kwargs: object) -> AsyncIterator[Any]:
        async with func(*args, **kwargs) as value:
            yield value

    return stream


def is_kind(test: Callable[[object], bool], func: Callable[..., Any]) -> bool:
    """Tell whether a function, or the one behind a partial or a callable object, passes one of `inspect`'s tests."""
    # An object may be marked as what it is (as an AsyncMock is), or have a `__call__` that is.
    return test(_without_partials(func)) or test(_routine(func))


def _without_partials(func: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(func, functools.partial):
        func = func.func
    return func


def _routine(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function or method that runs when `func` is called."""
    func = _without_partials(func)
    return func if inspect.isroutine(func) or inspect.isclass(func) else func.__call__  # type: ignore[operator]


def _made_from(func: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield the function or method that runs when `func` is called, and all those that it wraps."""
    inner: Callable[..., Any] | None = func
    while inner is not None:
        inner = _routine(inner)
        yield inner
        inner = getattr(inner, "__wrapped__", None)


@asynccontextmanager
async def _manager() -> AsyncIterator[None]:
    yield  # pragma: no cover - never run; what counts is the function that contextlib makes of it


# Functions that `asynccontextmanager` makes are plain ones, and told from others by the code that they share.
_MANAGER_CODE = _manager.__code__


def _makes_managers(func: Callable[..., Any]) -> bool:
    return any(getattr(inner, "__code__", None) is _MANAGER_CODE for inner in _made_from(func))


def _unguardable(func: Callable[..., Any]) -> str | None:
    if inspect.isclass(func):
        return "a class is not a call; decorate its methods, or a function that makes the instance"
    if isinstance(func, staticmethod | classmethod):
        return "put the layer below @staticmethod or @classmethod"
    if is_kind(inspect.isgeneratorfunction, func):
        return "a plain generator would run outside of it; make it an async generator"
    if is_kind(inspect.isasyncgenfunction, func) or is_kind(inspect.iscoroutinefunction, func) or _makes_managers(func):
        return None
    return _unguardable_inside(func)


def _unguardable_inside(func: Callable[..., Any]) -> str | None:
    """Say what is wrong with a plain function that wraps something that is not."""
    for inner in _made_from(func):
        if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
            return "its block would run outside of it; use the guard as a context manager inside"
        if inspect.iscoroutinefunction(inner):
            return "it wraps an async function in a plain one; decorate the async function itself"
    return None


def _blocking_wrapper(run: BlockingRunner, func: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: object, **kwargs: object) -> object:
        return run(func, args, kwargs)

    return wrapper
