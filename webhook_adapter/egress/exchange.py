"""One POST and what came back of it: the seam between whoever sends and whatever carries it.

Theory of operation. The seam that users know is httpx's transport: a request object in, a response object and a stream
out. A sender needs less: what is the same for all messages to one endpoint is put together once, as a `Target`, and
what comes back is noted in a `Received` while it arrives, so that nothing of it is lost when the time is over. A
transport that can do that directly is spared the objects in between; every other one is spoken to through them.

Rules of this module: it knows no event loop, no deadline and no retry.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs
import httpx

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

__all__ = ["Exchange", "Header", "Received", "Target", "encode_headers", "exchange_over"]

Header: TypeAlias = "tuple[bytes, bytes]"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def encode_headers(headers: Sequence[Header]) -> bytes:
    """Return header lines as they go over the wire.

    Raises:
        httpx.LocalProtocolError: one of them would end its line, and begin another.
    """
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers) or b"\0" in lines:
        raise httpx.LocalProtocolError("a header of the request holds a character that ends it")
    return lines


@attrs.frozen(eq=False)
class Target:
    """Where a message goes, with the headers that every message has that goes there; `Target.of` makes one.

    Attributes:
        origin: scheme, host and port: what a connection is made to.
        head: the request line and the headers, as they go over the wire.
    """

    url: httpx.URL
    headers: tuple[Header, ...] = attrs.field(repr=False)
    origin: tuple[str, str, int]
    head: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, url: httpx.URL, headers: Sequence[Header], *, method: str = "POST") -> Target:
        """Return the target at `url`, a checked one.

        Raises:
            httpx.LocalProtocolError: the method or a header cannot be written as HTTP, or the host is no name.
        """
        if not all(_TOKEN.fullmatch(name) for name in (method, *(key.decode("latin-1") for key, _ in headers))):
            raise httpx.LocalProtocolError("the method or the name of a header of the request is no token")
        scheme, host = url.scheme, url.raw_host.decode("ascii")
        try:
            # As TLS will do it, when it is too late to close the connection.
            host.encode("idna")
        except UnicodeError:
            raise httpx.LocalProtocolError("the host of the URL is no name") from None
        origin = (scheme, host, url.port or (443 if scheme == "https" else 80))
        request_line = b"%b %b HTTP/1.1\r\n" % (method.encode("ascii"), url.raw_path)
        return cls(url, tuple(headers), origin, request_line + encode_headers(headers))


@attrs.define(eq=False)
class Received:
    """How far a response has come; what is in here has arrived, whatever happens next.

    Attributes:
        cap: how many bytes of the body are wanted; the rest is never read.
        status_code: of the final response, once its headers are complete.
        headers: likewise, as they came.
        body: as far as it has come, and at most `cap` bytes.
    """

    # A body that comes in one piece is that piece. One that comes in many is not copied for each of them: a receiver
    # that sends chunks of one byte would have us copy half the square of their number.

    cap: int
    status_code: int | None = None
    headers: Sequence[Header] = ()
    body: bytes | bytearray = b""

    def add(self, piece: bytes) -> None:
        """Add what is still wanted of a further piece of the body."""
        body = self.body
        wanted = piece[: self.cap - len(body)]
        if not body:
            self.body = wanted
        elif isinstance(body, bytearray):
            body += wanted
        else:
            self.body = bytearray(body) + wanted

    def header(self, name: bytes) -> str | None:
        """Return the value of the first header of that name, in lower case; None if there is none."""
        for key, value in self.headers:
            if key.lower() == name:
                return value.decode("latin-1")
        return None


@runtime_checkable
class Exchange(Protocol):
    """What carries a POST to where it goes, and notes what comes back."""

    async def post(self, target: Target, headers: Sequence[Header], body: bytes, received: Received) -> None:
        """Send `body`, with `headers` behind the target's own, and read the response into `received`.

        Returns when the body has ended or reached the cap. A checkpoint. A cancellation closes the connection.

        Raises:
            httpx.TransportError: whatever went wrong; what had come by then is in `received`.
        """
        ...


def exchange_over(transport: httpx.AsyncBaseTransport) -> Exchange:
    """Return the shortest way to post by this transport."""
    return transport if isinstance(transport, Exchange) else _HttpxExchange(transport)


class _HttpxExchange:
    """Speaks to a transport of httpx: the user's own, or httpcore on trio."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def post(self, target: Target, headers: Sequence[Header], body: bytes, received: Received) -> None:
        """Send a request and read its response; see `Exchange`."""
        # A stream made here spares httpx the work of guessing headers that are all given.
        request = httpx.Request(
            "POST",
            target.url,
            headers=[*target.headers, *headers, (b"content-length", b"%d" % len(body))],
            stream=httpx.ByteStream(body),
        )
        response = await self._transport.handle_async_request(request)
        stream = response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise TypeError(f"the transport must return asynchronous streams, not {type(stream).__name__}")
        try:
            received.headers = response.headers.raw
            received.status_code = response.status_code
            await _read(stream, received)
        finally:
            await response.aclose()


async def _read(stream: httpx.AsyncByteStream, received: Received) -> None:
    """Read the body to its end or to the cap, whichever comes first, so that what was read is never lost."""
    chunks = aiter(stream)
    try:
        async for chunk in chunks:
            received.add(chunk)
            if len(received.body) >= received.cap:
                break
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
