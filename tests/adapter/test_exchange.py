"""The seam between whoever sends and whatever carries it: what has come is there, and no more than is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_adapter.egress import Received, Target, exchange_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

pytestmark = pytest.mark.anyio


@given(st.integers(0, 30), st.lists(st.binary(max_size=20), max_size=8))
def test_what_is_kept_is_the_beginning(cap: int, pieces: Sequence[bytes]) -> None:
    """F22, F37: in however many pieces a body comes, its first bytes are there at any time, up to the cap."""
    received = Received(cap)
    for count, piece in enumerate(pieces, 1):
        received.add(piece)
        assert received.body == b"".join(pieces[:count])[:cap]


def test_a_header_is_found_by_its_name() -> None:
    """However it was written; the first one counts, and what is not there is None."""
    received = Received(0, headers=[(b"Retry-After", b"1"), (b"retry-after", b"2"), (b"X", b"\xe9")])
    assert [received.header(name) for name in (b"retry-after", b"x", b"y")] == ["1", "é", None]


def test_a_target_knows_its_port() -> None:
    """The scheme's own, unless the URL names another."""
    urls = ("https://receiver.example/", "http://receiver.example/", "http://receiver.example:8080/")
    assert [Target.of(httpx.URL(url), []).origin for url in urls] == [
        ("https", "receiver.example", 443),
        ("http", "receiver.example", 80),
        ("http", "receiver.example", 8080),
    ]


def test_a_target_shows_no_header() -> None:
    """F38: headers may hold what is nobody's business."""
    assert "canary" not in repr(Target.of(httpx.URL("https://receiver.example/"), [(b"authorization", b"canary")]))


class Abc:
    """Gives three bytes at a time, as often as it was told; it cannot be closed."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return b"abc"


class Stream(httpx.AsyncByteStream):
    """A stream that a user might write."""

    def __init__(self, times: int) -> None:
        self.abc = Abc(times)
        self.closed = False

    def __aiter__(self) -> Abc:
        return self.abc

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("cap", "left"), [(0, 2), (1, 2), (3, 2), (7, 0), (10, 0)])
async def test_a_transport_of_the_user_is_read_no_further_than_the_cap(cap: int, left: int) -> None:
    """Whatever its streams are made of, they are closed."""
    stream = Stream(3)
    exchange = exchange_over(httpx.MockTransport(lambda _: httpx.Response(202, headers={"x": "1"}, stream=stream)))
    received = Received(cap)
    await exchange.post(Target.of(httpx.URL("https://receiver.example/"), []), [], b"{}", received)
    assert (received.status_code, received.header(b"x"), received.body) == (202, "1", b"abcabcabc"[:cap])
    assert (stream.abc.left, stream.closed) == (left, True)


async def test_a_generator_that_is_not_read_to_its_end_is_closed() -> None:
    """And not left to the garbage collector, which no event loop likes."""
    closed: list[bool] = []

    class Generated(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"abc"
            finally:
                closed.append(True)

    exchange = exchange_over(httpx.MockTransport(lambda _: httpx.Response(202, stream=Generated())))
    received = Received(4)
    await exchange.post(Target.of(httpx.URL("https://receiver.example/"), []), [], b"{}", received)
    assert (received.body, closed) == (b"abca", [True])


async def test_a_stream_that_is_not_asynchronous_is_a_mistake() -> None:
    """Of whoever wrote the transport, so it is raised as one."""
    exchange = exchange_over(httpx.MockTransport(lambda _: httpx.Response(202, stream=httpx.SyncByteStream())))
    with pytest.raises(TypeError, match="asynchronous"):
        await exchange.post(Target.of(httpx.URL("https://receiver.example/"), []), [], b"{}", Received(1))
