"""Fallback: what is answered when a call has failed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Bulkhead, BulkheadFullError, Fallback, Policy, RejectedError, Retry, telemetry
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught, assert_refuses, both_loops, brief, heavy, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilience.fusing import BlockingRunner, Runner
    from resilience.streaming import StreamRunner

every_loop = pytest.mark.anyio


async def fail(error: BaseException) -> str:
    """Raise what is given."""
    raise error


def fail_plainly(error: BaseException) -> str:
    """Raise what is given, in plain code."""
    raise error


async def answer(value: str) -> str:
    """Return what is given."""
    return value


# -- arguments --------------------------------------------------------------------------------------------------------


async def _never() -> None:
    """Be a coroutine that serves only once."""


async def _stream() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "bad",
    [lambda _a, _b: None, lambda *, _error: None, dict, partial(lambda _a, _b, _c: None, 1)],
    ids=["two", "keyword", "built-in", "partial"],
)
def test_refuses_functions_that_it_could_not_call(bad: object) -> None:
    """A function has at most one required argument, and says so: seen when it is made, not when it is run."""
    assert_refuses("value_or_callable", bad, Fallback)


def test_refuses_answers_that_serve_only_once() -> None:
    """A coroutine or a stream in place of the function that makes it would answer a single call."""
    coroutine = _never()
    assert_refuses("value_or_callable", coroutine, Fallback)
    coroutine.close()
    assert_refuses("value_or_callable", _stream(), Fallback)


@pytest.mark.parametrize(
    "bad", [(), None, "ValueError", BaseException, asyncio.CancelledError, (KeyError, 3)], ids=brief
)
def test_refuses_what_are_no_exceptions(bad: object) -> None:
    """`on` is made of types of exceptions, or a predicate; a cancellation is none."""
    assert_refuses("on", bad, partial(Fallback, None))


def test_refuses_other_bad_arguments() -> None:
    """A predicate is callable, a name a string."""
    assert_refuses("on_result", "empty", partial(Fallback, None))
    assert_refuses("name", 3, partial(Fallback, None))


# -- what is answered -------------------------------------------------------------------------------------------------


@every_loop
async def test_a_value_is_returned() -> None:
    """The value takes the place of a failed call's result, and of no other's."""
    fallback = Fallback([])
    assert await fallback.call(fail, ValueError()) is fallback.value_or_callable
    assert await fallback.call(answer, "fine") == "fine"
    assert await Fallback(None).call(fail, ValueError()) is None


class _Answering:
    """A callable object."""

    async def __call__(self, error: Exception) -> str:
        return f"instead of {error}"


@every_loop
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda error: f"instead of {error}", "instead of this"),
        (lambda error, style="short": f"{style} for {error}", "short for this"),
        (lambda: "nothing", "nothing"),
        (lambda style="short": style, "short"),
        (lambda *rest: rest, ()),
        (list, []),
        (_Answering(), "instead of this"),
        (partial(_Answering()), "instead of this"),
    ],
)
async def test_a_function_is_given_what_it_requires(function: Callable[..., object], expected: object) -> None:
    """One that requires an argument is given the exception; all others are called without."""
    assert await Fallback(function).call(fail, ValueError("this")) == expected


@every_loop
async def test_an_async_function_is_awaited() -> None:
    """Whether it is written so, or is a plain function that returns an awaitable."""
    assert await Fallback(partial(answer, "cached")).call(fail, ValueError()) == "cached"
    assert await Fallback(lambda: answer("cached")).call(fail, ValueError()) == "cached"


def test_a_plain_function_falls_back_in_plain_code() -> None:
    """A plain `def` needs no event loop, nor does its fallback."""
    assert Fallback("none")(fail_plainly)(ValueError()) == "none"
    assert Fallback(lambda error: f"no {error}")(fail_plainly)(ValueError("luck")) == "no luck"
    assert Fallback("none", on_result=lambda result: not result)(lambda: "")() == "none"
    assert Fallback("none", on_result=lambda result: not result)(lambda: "some")() == "some"
    with pytest.raises(ValueError, match=r"^unexpected$"):
        Fallback("none", on=KeyError)(fail_plainly)(ValueError("unexpected"))


@every_loop
async def test_a_fallback_that_does_not_fit_is_refused_at_decoration() -> None:
    """An async one around a plain function, and a stream around what is none or the reverse, are TypeErrors."""
    for misfit in (partial(answer, "x"), _Answering(), _stream):
        with pytest.raises(TypeError, match="is async, and does not fit around a plain function"):
            Fallback(misfit)(fail_plainly)
    with pytest.raises(TypeError, match="is a stream, and fits only around async generators"):
        Fallback(_stream)(answer)
    with pytest.raises(TypeError, match="is a stream, and fits only around async generators"):
        await Policy(Fallback(_stream), Retry(2)).call(answer, "x")
    misfits: tuple[object, ...] = ([], list, answer)
    for no_stream in misfits:
        with pytest.raises(TypeError, match="an async generator falls back to an async generator function"):
            Fallback(no_stream)(_stream)


def test_an_async_answer_in_plain_code_is_refused_when_it_is_seen() -> None:
    """A plain function that turns out to return a coroutine or a stream is a TypeError, and shows the call's own."""
    for late in (_never, _stream):
        with pytest.raises(TypeError, match="of a plain function returned") as caught:
            Fallback(lambda late=late: late())(fail_plainly)(ValueError("first"))
        assert repr(caught.value.__context__) == "ValueError('first')"


@every_loop
async def test_a_result_can_be_fallen_back_from() -> None:
    """`on_result` names the results that are replaced; a function that requires an argument is given the result."""
    fallback = Fallback(lambda result: f"not {result}", on_result=lambda result: result == "bad")
    assert await fallback.call(answer, "bad") == "not bad"
    assert await fallback.call(answer, "good") == "good"


@every_loop
async def test_a_rejection_further_inside_is_fallen_back_from() -> None:
    """A full bulkhead is as good a reason as any, if it is among those given."""
    bulkhead = Bulkhead(1)
    async with bulkhead:
        assert await Policy(Fallback("later"), bulkhead).call(answer, "now") == "later"
        assert await Policy(Fallback("later", on=RejectedError), bulkhead).call(answer, "now") == "later"
        with pytest.raises(BulkheadFullError):
            await Policy(Fallback("later", on=ValueError), bulkhead).call(answer, "now")
    assert await Policy(Fallback("later"), bulkhead).call(answer, "now") == "now"


@every_loop
async def test_a_cancellation_goes_on() -> None:
    """Neither a cancelled call nor a cancelled fallback is replaced."""
    clock = ManualClock()
    for fallback in (Fallback("instead"), Fallback(partial(clock.sleep, 5.0))):
        with anyio.CancelScope() as scope:

            async def call() -> None:
                scope.cancel()
                await anyio.lowlevel.checkpoint()

            await fallback.call(call)
            pytest.fail("the cancellation was swallowed")
        assert scope.cancelled_caught
    with anyio.CancelScope() as scope:
        scope.cancel()
        await Fallback(partial(clock.sleep, 5.0)).call(fail, ValueError())
        pytest.fail("the cancellation was swallowed")
    assert scope.cancelled_caught


@every_loop
async def test_a_failing_fallback_shows_both() -> None:
    """Its own exception goes on, with the one that it was called for as context."""

    def worse(error: Exception) -> str:
        raise KeyError(str(error))

    for guarded in (Fallback(worse)(fail), Fallback(partial(fail, KeyError("first")))(fail)):
        with pytest.raises(KeyError, match="first") as caught:
            await guarded(ValueError("first"))
        assert repr(caught.value.__context__) == "ValueError('first')"
    with pytest.raises(KeyError) as plain:
        Fallback(worse)(fail_plainly)(ValueError("first"))
    assert repr(plain.value.__context__) == "ValueError('first')"


@every_loop
async def test_each_fallback_is_an_event(events: list[telemetry.Event]) -> None:
    """FellBack tells who fell back, and the type of what from; never the text of an exception."""
    await Fallback(1, name="prices").call(fail, ValueError("secret"))
    await Fallback(1, on_result=bool).call(answer, "x")
    Fallback(1)(fail_plainly)(KeyError())
    Fallback(1, on_result=bool)(lambda: "x")()
    await Fallback(1).call(answer, "x")
    assert events == [
        telemetry.FellBack(name="prices", error="ValueError"),
        telemetry.FellBack(name="Fallback", error="the result"),
        telemetry.FellBack(name="Fallback", error="KeyError"),
        telemetry.FellBack(name="Fallback", error="the result"),
    ]


def test_a_description_tells_what_it_does() -> None:
    """The arguments can be read back."""
    assert (
        str(Fallback([], on=KeyError, name="prices").describe())
        == "Fallback(value_or_callable=[], on=KeyError) 'prices'"
    )


# -- streams ----------------------------------------------------------------------------------------------------------


async def _numbers(before: int, error: BaseException | None, closed: list[str]) -> AsyncIterator[int]:
    """Give so many numbers, then raise."""
    try:
        for number in range(before):
            yield number
        if error is not None:
            raise error
    finally:
        closed.append("numbers")


@every_loop
async def test_a_stream_falls_back_before_its_first_item(events: list[telemetry.Event]) -> None:
    """As long as nobody has seen an item, another stream can take the place of the one that failed."""
    closed: list[str] = []

    @Fallback(partial(_numbers, 2, None, closed))
    async def stream(before: int, error: BaseException | None) -> AsyncIterator[int]:
        async for number in _numbers(before, error, closed):
            yield 10 + number

    assert [item async for item in stream(0, ValueError())] == [0, 1]
    assert [item async for item in stream(2, None)] == [10, 11]
    assert [item async for item in stream(0, None)] == []
    assert events == [telemetry.FellBack(name="Fallback", error="ValueError")]
    late = stream(1, ValueError("late"))
    assert await anext(aiter(late)) == 10
    with pytest.raises(ValueError, match=r"^late$"):
        await anext(aiter(late))
    with pytest.raises(KeyboardInterrupt):
        await anext(aiter(stream(0, KeyboardInterrupt())))
    assert closed == ["numbers"] * 6


@every_loop
async def test_a_stream_that_falls_back_is_driven_like_any_other() -> None:
    """What is sent and thrown reaches the fallback; closing closes it; what it needs it is given."""
    heard: list[object] = []

    async def echo(error: Exception) -> Any:  # noqa: ANN401 - an async generator to which anything may be sent
        try:
            heard.append((yield str(error)))
            try:
                yield 2
            except KeyError as thrown:
                heard.append(str(thrown))
            yield 3
        finally:
            heard.append("closed")

    @Fallback(echo, on=ConnectionError)
    async def stream(error: Exception) -> Any:  # noqa: ANN401 - as above
        if heard is not None:
            raise error
        yield 1

    driven = stream(ConnectionError("refused"))
    assert await anext(driven) == "refused"
    assert await driven.asend("sent") == 2
    assert await driven.athrow(KeyError("thrown")) == 3
    await driven.aclose()
    assert heard == ["sent", "'thrown'", "closed"]
    with pytest.raises(ValueError, match=r"^other$"):
        await anext(stream(ValueError("other")))


@every_loop
async def test_a_failing_fallback_of_a_stream_shows_both() -> None:
    """If the other stream fails before it gives anything, what it was to replace is the context; nothing follows."""

    @Fallback(partial(_numbers, 0, KeyError("second"), []))
    async def stream() -> AsyncIterator[int]:
        raise ValueError("first")
        yield 1

    with pytest.raises(KeyError, match="second") as caught:
        await anext(aiter(stream()))
    assert repr(caught.value.__context__) == "ValueError('first')"


@every_loop
async def test_a_context_manager_falls_back_when_it_cannot_be_entered() -> None:
    """A manager is a stream of one item: another takes its place on entering; what its block raises stays."""
    steps: list[str] = []

    async def other() -> AsyncIterator[str]:
        steps.append("enter")
        yield "replica"
        steps.append("leave")

    @Fallback(other)
    @asynccontextmanager
    async def connection(name: str) -> AsyncIterator[str]:
        if name == "down":
            raise ConnectionRefusedError
        yield name

    async with connection("down") as name:
        steps.append(name)
    async with connection("primary") as name:
        steps.append(name)
    with pytest.raises(ValueError, match=r"^in the block$"):
        async with connection("primary"):
            raise ValueError("in the block")
    assert steps == ["enter", "replica", "leave", "primary"]


# -- the law ----------------------------------------------------------------------------------------------------------

ERRORS: tuple[type[BaseException], ...] = (ValueError, KeyError, LookupError, RejectedError, KeyboardInterrupt)


async def _call(shape: str, kind: type[Fallback], on: tuple[type[Exception], ...], raised: BaseException | None) -> str:
    """Have a callable of some kind fall back from "own", or what is raised, to "other"."""

    def plain() -> str:
        if raised is not None:
            raise raised
        return "own"

    async def work() -> str:
        return plain()

    async def stream() -> AsyncIterator[str]:
        yield plain()

    async def other() -> AsyncIterator[str]:
        yield "other"

    if shape == "stream":
        (item,) = [item async for item in kind(other, on=on)(stream)()]
        return item
    if shape == "plain":
        return kind("other", on=on)(plain)()
    return await kind("other", on=on).call(work)


def law_of_the_fallback(kind: type[Fallback], backend: str) -> Callable[[], None]:
    """For every kind of callable alike: what `on` names is replaced; nothing else is, least of all what is no error."""

    @given(
        st.sampled_from([None, *ERRORS]),
        st.lists(st.sampled_from([error for error in ERRORS if issubclass(error, Exception)]), min_size=1, max_size=2),
        st.sampled_from(["async", "plain", "stream"]),
    )
    def law(error: type[BaseException] | None, on: list[type[Exception]], shape: str) -> None:
        raised = None if error is None else error("x")
        expected = "own" if error is None else "other" if issubclass(error, tuple(on)) else raised

        async def main() -> object:
            try:
                return await _call(shape, kind, tuple(on), raised)
            except BaseException as caught:  # noqa: BLE001 - compared below
                return caught

        assert run(backend, main) == expected

    return law


@both_loops
def test_fallback_keeps_its_law(backend: str) -> None:
    """Async functions, plain functions and streams fall back by the same rule."""
    heavy(law_of_the_fallback(Fallback, backend))()


class _Greedy(Fallback):
    """A mutant: falls back from whatever is an Exception."""

    __slots__ = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed on
        super().__init__(*args, **kwargs)
        self._matches = lambda _: True


class _Swallowing(Fallback):
    """A mutant: catches what is no Exception too."""

    __slots__ = ()

    def wrap(self, call_next: Runner) -> Runner:
        async def shielded(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            try:
                return await call_next(func, args, kwargs)
            except KeyboardInterrupt:
                raise ValueError from None

        return super().wrap(shielded)


class _Honest(Fallback):
    """A mutant: lets rejections through."""

    __slots__ = ()

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        inner = super().wrap_blocking(call_next)

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            try:
                call_next(func, args, kwargs)
            except RejectedError:
                raise
            except BaseException:  # noqa: BLE001, S110 - the real thing has its turn
                pass
            return inner(func, args, kwargs)

        return run


class _Deaf(Fallback):
    """A mutant: a stream never falls back."""

    __slots__ = ()

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        return call_next


@pytest.mark.parametrize("mutant", [_Greedy, _Swallowing, _Honest, _Deaf])
def test_law_of_the_fallback_catches_mutants(mutant: type[Fallback]) -> None:
    """One that falls back from too much or too little is seen."""
    assert_caught(law_of_the_fallback(mutant, "asyncio"))
