"""What type checkers see of layers: never run, but checked, by mypy and by pyright, both in strict mode.

A decorated callable keeps its signature, to the name and default of each argument; a call has the type of its result.
Each line that must not pass is marked as an error, and an error that does not come is one itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar, assert_type

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    Deadline,
    Description,
    Fallback,
    Guard,
    Hedge,
    Keyed,
    Layer,
    LayerKind,
    Permit,
    Policy,
    RateLimiter,
    Retry,
    StormGuard,
    Strategy,
    Timeout,
)
from resilience.testing import Chaos, ChaosStatistics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
    from typing import Any

    from resilience.fusing import Runner

T = TypeVar("T")
policy = Policy(Timeout(10.0), Retry(3), CircuitBreaker(), RateLimiter(1.0, 1), Bulkhead(1))


@policy
async def fetch(url: str, *, attempts: int = 3) -> bytes:
    """Be an `async def`."""
    return url.encode() * attempts


@Bulkhead(1)
@Retry(3)
def load(path: str, size: int = -1) -> bytes:
    """Be a plain one, twice decorated."""
    return path.encode()[:size]


@policy
async def tokens(prompt: str) -> AsyncIterator[str]:
    """Be an async generator."""
    yield prompt


@policy
async def chat(prompt: str) -> AsyncGenerator[str, int]:
    """Be one that can be sent to."""
    yield prompt * (yield prompt)


@policy
@asynccontextmanager
async def connect(host: str) -> AsyncIterator[bytes]:
    """Be an async context manager."""
    yield host.encode()


@policy
async def first(items: list[T]) -> T:
    """Be generic."""
    return items[0]


class Client:
    """Methods."""

    @policy
    async def get(self, url: str) -> bytes:
        """Be an instance's."""
        return url.encode()

    @staticmethod
    @policy
    async def ping(host: str) -> bool:
        """Be nobody's."""
        return bool(host)

    @classmethod
    @policy
    async def of(cls, host: str) -> Client:
        """Be the class's."""
        return cls() if host else Client()


class Greeting:
    """An object that is called."""

    async def __call__(self, name: str) -> str:
        """Be what is called."""
        return f"hello, {name}"


class Connection:
    """An async context manager, as a class makes them."""

    def __init__(self, host: str) -> None:
        self.host = host

    async def __aenter__(self) -> bytes:
        return self.host.encode()

    async def __aexit__(self, *error: object) -> None:
        return None


class Calls(Protocol):
    """What a function must look like to fit."""

    def __call__(self, url: str, *, attempts: int = ...) -> Coroutine[Any, Any, bytes]: ...


class Sparing(Strategy):
    """A user's own."""

    def wrap(self, call_next: Runner) -> Runner:
        """Return the runner that it is given."""
        return call_next


async def decorated() -> None:
    """See what decorating leaves."""
    assert_type(await fetch("url"), bytes)
    assert_type(await fetch("url", attempts=1), bytes)
    assert_type(load("path"), bytes)
    assert_type(load("path", size=1), bytes)
    assert_type(tokens("prompt"), "AsyncIterator[str]")
    assert_type(chat("prompt"), "AsyncGenerator[str, int]")
    async for token in tokens("prompt"):
        assert_type(token, str)
    async with connect("host") as connected:
        assert_type(connected, bytes)
    assert_type(await first([1]), int)
    assert_type(await first(["1"]), str)
    fits: Calls = fetch
    await fits("url")

    fetch(1)  # type: ignore[arg-type, unused-coroutine]
    fetch("url", 1)  # type: ignore[call-arg, unused-coroutine]
    fetch()  # type: ignore[call-arg, unused-coroutine]
    fetch("url", attempt=1)  # type: ignore[call-arg, unused-coroutine]
    load(path=1)  # type: ignore[arg-type]
    tokens()  # type: ignore[call-arg]
    connect(1)  # type: ignore[arg-type]


async def decorated_by_each(host: str) -> None:
    """See that what one layer leaves is what each leaves."""
    keyed = Keyed[str, Policy](lambda key: Policy(Bulkhead(1, name=key)))
    layers: list[Layer] = [
        AdaptiveLimiter(),
        AdaptiveLimiter().at(0.5),
        Bulkhead(1),
        CircuitBreaker(),
        Deadline(1.0),
        Fallback(b""),
        Hedge(0.1),
        keyed.layer(key="url"),
        RateLimiter(1.0, 1),
        Retry(3),
        StormGuard(),
        Timeout(1.0),
    ]
    for layer in layers:
        assert_type(await layer(fetch)("url", attempts=1), bytes)
        layer(fetch)(1)  # type: ignore[arg-type, unused-coroutine]
    assert_type(keyed[host], Policy)
    keyed[1]  # type: ignore[index]


async def decorated_objects() -> None:
    """See what has a `__call__`, and what is a part of a call already."""
    greet = policy(Greeting())
    assert_type(await greet("Ada"), str)
    attempt = policy(partial(fetch, attempts=1))
    assert_type(await attempt("url"), bytes)

    greet(1)  # type: ignore[arg-type, unused-coroutine]


async def methods() -> None:
    """See that methods are bound."""
    client = Client()
    assert_type(await client.get("url"), bytes)
    assert_type(await Client.get(client, "url"), bytes)
    assert_type(await client.ping("host"), bool)
    assert_type(await Client.ping("host"), bool)
    assert_type(await Client.of("host"), Client)
    bound = policy(client.get)
    assert_type(await bound("url"), bytes)

    client.get()  # type: ignore[call-arg, unused-coroutine]
    client.get(1)  # type: ignore[arg-type, unused-coroutine]
    bound(client, "url")  # type: ignore[arg-type, call-arg, unused-coroutine]


async def called() -> None:
    """See single calls."""
    assert_type(await policy.call(fetch, "url", attempts=1), bytes)
    assert_type(await CircuitBreaker().call(Client().get, "url"), bytes)
    assert_type(await policy.call(partial(fetch, "url")), bytes)
    assert_type(policy.around(connect, "host"), AbstractAsyncContextManager[bytes])
    async with policy.around(Connection, "host") as connected:
        assert_type(connected, bytes)

    policy.call(fetch)  # type: ignore[call-arg, unused-coroutine]
    policy.call(fetch, 1)  # type: ignore[arg-type, unused-coroutine]
    policy.call(fetch, "url", attempt=1)  # type: ignore[call-arg, unused-coroutine]
    policy.call(load, "path")  # type: ignore[arg-type, unused-coroutine]
    policy.call(tokens, "prompt")  # type: ignore[arg-type, unused-coroutine]
    policy.around(fetch, "url")  # type: ignore[arg-type]
    policy.around(Connection)  # type: ignore[call-arg]


async def blocks(guard: Guard) -> None:
    """See blocks."""
    with guard as permit:
        assert_type(permit, Permit)
    async with guard as permit:
        assert_type(permit, Permit)
    async with StormGuard() as permit:
        assert_type(permit.settled, bool)

    with policy:  # type: ignore[attr-defined]
        pass
    async with Retry(3):  # type: ignore[attr-defined]
        pass


async def harmed() -> None:
    """See what Chaos takes, and that it leaves types as they are."""
    chaos = Chaos(
        latency=(0.1, 0.5), fault=ConnectionError, fault_rate=lambda: 0.5, result=None, result_rate=0.1, random=7
    )
    assert_type(await chaos(fetch)("url", attempts=1), bytes)
    assert_type(await chaos.call(fetch, "url"), bytes)
    assert_type(chaos(tokens)("prompt"), "AsyncIterator[str]")
    assert_type(chaos.statistics(), ChaosStatistics)
    chaos.update(hang_rate=0.1, latency=lambda: 0.5, fault=lambda: KeyError("key"))
    with chaos.enable(), chaos.disable():
        assert_type(chaos.seed, int | None)

    chaos.update(rate=0.5)  # type: ignore[call-arg]
    chaos.update(fault_rate="often")  # type: ignore[arg-type]
    Chaos(fault=KeyError("shared"))  # type: ignore[arg-type]
    Chaos(latency=(0.1, 0.2, 0.3))  # type: ignore[arg-type]


def composed() -> None:
    """See compositions and what they tell."""
    whole = Policy(policy, Sparing(), Fallback(None), name="whole")
    assert_type(whole.parts, tuple[Guard | Strategy, ...])
    description = whole.describe()
    assert_type(description, Description)
    assert_type(description.kind, LayerKind)
    assert_type(description.layers, tuple[Description, ...])
    assert_type(description.settings, Mapping[str, object])
    assert_type(description.warnings, tuple[str, ...])

    Policy(fetch)  # type: ignore[arg-type]
    policy("fetch")  # type: ignore[arg-type]
    description.name = "other"  # type: ignore[misc]
