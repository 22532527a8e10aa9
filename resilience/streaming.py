"""How a layer passes a stream on: one loop for all of them.

Rules of this module:

* What is sent or thrown into the outer stream reaches the inner one, and its answer comes back. Only the end of the
  outer stream is not passed on as such: it closes the inner one.
* A layer says what it does at the first step, at the later ones, and at the end, by deriving from `Relay`. What may
  happen only before the first item (another attempt, a fallback) is done in `first`.
* Nothing happens before the first step: a stream that is never iterated was never a call.

It knows async generators, and no layer.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any, ParamSpec, TypeAlias

__all__ = ["END", "Relay", "StreamRunner", "bind", "close", "relaying"]

StreamRunner: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], AsyncGenerator[Any, Any]]

P = ParamSpec("P")

_BEGIN = "__begin__"

END = object()
"""What a step gives once the stream has ended."""


class Relay:
    """One stream on its way through a layer: here it is passed on as it is."""

    __slots__ = ("_open", "stream")

    def __init__(self, open_inner: Callable[[], AsyncGenerator[Any, Any]]) -> None:
        self._open = open_inner
        self.stream: AsyncGenerator[Any, Any] | None = None

    async def first(self) -> Any:  # noqa: ANN401 - items are the user's
        """Open the inner stream, or another one in its place; return its first item, or END."""
        self.stream = self._open()
        return await self.step(None, None)

    async def step(self, sent: object, thrown: BaseException | None) -> Any:  # noqa: ANN401
        """Send or throw into the inner stream; return its next item, or END once it has ended."""
        stream = self.stream
        try:
            return await (stream.asend(sent) if thrown is None else stream.athrow(thrown))  # type: ignore[union-attr]
        except StopAsyncIteration:
            return END

    async def close(self) -> None:
        """Close the inner stream, however it came to its end."""
        if self.stream is not None:
            await close(self.stream)

    def gave(self) -> None:
        """Hear that an item is about to be passed on."""

    def ended(self) -> None:
        """Hear that the stream has come to its own end, and is closed."""

    def failed(self, exception: BaseException) -> None:
        """Hear which exception ends it (GeneratorExit if it is dropped); it is closed, and the exception goes on."""


def relaying(begin: Callable[P, Relay]) -> Callable[P, AsyncGenerator[Any, Any]]:
    """Return an async generator function whose streams are passed on by what `begin` returns for each."""

    async def stream(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Any, Any]:
        relay = begin(*args, **kwargs)
        try:
            try:
                item = await relay.first()
                while item is not END:
                    relay.gave()
                    sent = thrown = None
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as exception:  # noqa: BLE001 - thrown into the stream, whose business it is
                        thrown = exception
                    item = await relay.step(sent, thrown)
            finally:
                await relay.close()
            relay.ended()
        except BaseException as exception:
            relay.failed(exception)
            raise

    vars(stream)[_BEGIN] = begin
    return stream


def bind(run: StreamRunner, func: Callable[..., Any]) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Return an async generator function, of the arguments of `func`, whose streams `run` runs."""
    begin = getattr(run, _BEGIN, None)
    if begin is None:
        # A runner that somebody wrote by hand.
        return relaying(lambda *args, **kwargs: Relay(functools.partial(run, func, args, kwargs)))
    # A runner made here: its streams need no other around them.
    return relaying(lambda *args, **kwargs: begin(func, args, kwargs))


async def close(stream: AsyncGenerator[Any, Any]) -> None:
    """Close a stream that is iterated no longer.

    One that the garbage collector finds in the middle of a step, its event loop being gone, cannot be told: it counts
    as running. Its own frame is closed next, as it is garbage too.
    """
    if not getattr(stream, "ag_running", False):
        await stream.aclose()
