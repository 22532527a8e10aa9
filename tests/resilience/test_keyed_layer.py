"""A Keyed as a layer: each call is guarded by the guard of its key."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from resilience import (
    Bulkhead,
    Hedge,
    Keyed,
    KeysExhaustedError,
    Layer,
    Policy,
    RateLimitedError,
    RateLimiter,
    RejectedError,
    Retry,
)
from resilience.testing import ManualClock
from tests.resilience.sleepers import bulkhead
from tests.resilience.support import Crew, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

every_loop = pytest.mark.anyio


def one_each() -> Keyed[str, RateLimiter]:
    """Return limiters that admit one call each."""
    return Keyed(lambda key: RateLimiter(0.001, 1, name=key))


@every_loop
async def test_calls_of_every_kind_are_guarded_by_their_key() -> None:
    """A coroutine function, a stream, a context manager, a plain function and a single call."""
    keyed = one_each()
    guard = keyed.layer(key="host")
    ran: list[str] = []

    @guard
    async def fetch(path: str, host: str = "a") -> str:
        ran.append(path)
        return host

    @guard
    async def stream(host: str) -> AsyncIterator[str]:
        ran.append("stream")
        yield host

    @guard
    @asynccontextmanager
    async def connect(*, host: str) -> AsyncIterator[str]:
        ran.append("connect")
        yield host

    @guard
    def plain(host: str) -> str:
        ran.append("plain")
        return host

    assert await fetch("/") == "a"
    assert [item async for item in stream("b")] == ["b"]
    async with connect(host="c") as host:
        assert host == "c"
    assert plain("d") == "d"
    assert await guard.call(fetch.__wrapped__, "/", host="e") == "e"  # type: ignore[attr-defined]
    assert ran == ["/", "stream", "connect", "plain", "/"]
    for name in "abcde":
        with pytest.raises(RateLimitedError, match=f"^{name} has no token left"):
            await fetch("/again", name)
    with pytest.raises(RateLimitedError, match=r"^b "):
        assert [item async for item in stream("b")] == []
    with pytest.raises(RateLimitedError, match=r"^c "):
        async with connect(host="c"):
            raise AssertionError
    with pytest.raises(RateLimitedError, match=r"^d "):
        plain(host="d")
    assert len(ran) == 5
    assert fetch.__name__ == "fetch"
    assert str(guard.describe()) == "ByKey(key='host')"


@every_loop
async def test_key_may_be_a_function_of_the_arguments() -> None:
    """It is called with the call's arguments, bound ones left out as everywhere."""
    keyed = one_each()

    class Client:
        @keyed.layer(key=lambda _, url, **__: url.partition("/")[0])
        async def get(self, url: str, *, retries: int = 1) -> str:
            return f"{url} {retries}"

    client = Client()
    assert await client.get("a.example/1", retries=2) == "a.example/1 2"
    assert await client.get("b.example/1") == "b.example/1 1"
    with pytest.raises(RateLimitedError, match=r"^a\.example "):
        await client.get("a.example/2")


@every_loop
@pytest.mark.parametrize("key", ["host", lambda host: host], ids=["name", "function"])
@pytest.mark.parametrize("decorated", [True, False])
async def test_a_call_looks_its_key_up_when_it_is_awaited(key: str | Callable[..., str], *, decorated: bool) -> None:
    """Not before; what is decorated, and what is called by the layer, find the same guard."""
    keyed = one_each()
    guard = keyed.layer(key=key)

    async def work(host: str) -> str:
        return host

    run = guard(work) if decorated else (lambda host: guard.call(work, host))
    coroutine = run("a")
    assert "a" not in keyed
    assert await coroutine == "a"
    with pytest.raises(RateLimitedError):
        await guard.call(work, "a")


@every_loop
async def test_an_argument_is_found_by_its_name() -> None:
    """Wherever it stands in the signature, and in a partial, a bound method and a callable object too."""
    keyed = one_each()
    guard = keyed.layer(key="host")

    class Client:
        # Not everything that can be called has a hash.
        __hash__ = None  # type: ignore[assignment]

        async def get(self, host: str) -> str:
            return host

        async def __call__(self, path: str, *, host: str) -> str:
            return host + path

    async def named_only(*paths: str, host: str = "c") -> str:
        return host + "".join(paths)

    assert await guard(Client().get)("a") == "a"
    assert await guard(Client())("/", host="b") == "b/"
    assert await guard(functools.partial(Client().get, host="d"))() == "d"
    assert await guard(named_only)("/", "/x") == "c//x"
    assert sorted(keyed._awake) == ["a", "b", "c", "d"]

    async def without(path: str, *hosts: str, **others: str) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="has no argument 'host' by which"):
        guard(without)
    with pytest.raises(TypeError, match="has no argument 'host' by which"):
        await guard.call(without, "/")
    with pytest.raises(TypeError, match=" was called without its argument 'host'"):
        await guard(Client().get)()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="can only decorate a callable, not 3"):
        guard(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, "", 3])
def test_refuses_a_key_that_is_none(bad: object) -> None:
    """A key is a name or a function."""
    with pytest.raises(ValueError, match="key must be the name of an argument or a function of the arguments, not"):
        one_each().layer(key=bad)  # type: ignore[arg-type]


@every_loop
async def test_what_a_key_s_guard_cannot_guard_is_a_type_error() -> None:
    """Never silence: what cannot be known at decoration is refused at the call."""
    keyed: Keyed[str, Layer] = Keyed(lambda _: Policy(Hedge(1.0)))
    guard = keyed.layer(key="host")

    @guard
    def plain(host: str) -> None:
        raise AssertionError

    @guard
    async def stream(host: str) -> AsyncIterator[str]:
        raise AssertionError
        yield host

    @asynccontextmanager
    async def connect(host: str) -> AsyncIterator[str]:
        raise AssertionError
        yield host

    with pytest.raises(TypeError, match="cannot guard the plain function"):
        plain("a")
    with pytest.raises(TypeError, match="cannot guard the async generator"):
        await anext(stream("a").__aiter__())
    with pytest.raises(TypeError, match="cannot guard the async context manager"):
        await guard.around(connect, "a").__aenter__()


@every_loop
async def test_a_call_under_way_keeps_its_guard() -> None:
    """The guard of a running call is found by all others with the key, and a new key cannot have its place (PO5)."""
    clock = ManualClock()
    keyed: Keyed[str, Bulkhead] = Keyed(lambda _: bulkhead(clock), max_keys=1, clock=clock)

    @keyed.layer(key="host")
    async def work(host: str) -> None:
        await clock.sleep(1.0)

    async with Crew() as crew:
        job = crew.start(lambda: work("a"))
        await settle()
        with pytest.raises(RejectedError, match="is full"):
            await work("a")
        with pytest.raises(KeysExhaustedError):
            await work("b")
        job.cancel()
        await settle()
        assert job.cancelled
        other = crew.start(lambda: work("b"))
        await settle()
        clock.advance(1.0)
        await settle()
        assert other.finished
    assert "a" not in keyed


@every_loop
async def test_composes_with_other_layers() -> None:
    """Inside a Retry a key's refusal is one like any other; no key is the next one's business."""
    clock = ManualClock(autojump=True)
    keyed: Keyed[str, RateLimiter] = Keyed(lambda key: RateLimiter(1.0, 1, name=key, clock=clock), clock=clock)
    ran: list[tuple[str, float]] = []

    @Policy(Retry(3, on=RateLimitedError, clock=clock), keyed.layer(key="host"))
    async def work(host: str) -> None:
        ran.append((host, clock.monotonic_ns() / 10**9))

    for host in "aba":
        await work(host)
    assert ran == [("a", 0.0), ("b", 0.0), ("a", 1.0)]
