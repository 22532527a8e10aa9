"""The transport for asyncio, on its sockets: quick under concurrency and over many hosts.

Theory of operation. A connection serves one exchange at a time: the request is written in one piece, and what comes
back goes through the parser (llhttp, by way of httptools) into the `Received` of that exchange. The task that waits is
woken when there is something for it: at the end of the response, or, where a response is read piece by piece, at every
piece. A connection whose exchange has ended cleanly lies idle in its origin's pool, the last one on top, and is closed
by a sweeper before its receiver would close it.

Rules of this module:

* Addresses are judged twice: all that a name resolves to, and again the very one that a socket connects to.
* https and http are judged by different rules.
* Nothing is added to a request but its length, and nothing is interpreted in a response but its framing: no redirects,
  cookies, proxies, decompression.
* A receiver may be sloppy where it makes no difference to what the response says; it may not send without end. Until
  the headers are complete it may send so many bytes, and so many informational responses.
* A connection is used again only if nothing came that was not asked for, and nothing is left that was not sent.
* Every error leaves as one of httpx, with a message made here, which holds no URL and no header.

It knows no endpoint, no message and no deadline; cancelling a request closes its connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

import attrs
import httptools
import httpx

from webhook_adapter.egress.errors import TlsError
from webhook_adapter.egress.exchange import Header, Received, Target, encode_headers
from webhook_adapter.egress.racing import first_to_answer
from webhook_adapter.egress.resolving import Judge, Resolver, resolve_judged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

__all__ = ["KEEPALIVE_SECONDS", "SocketTransport"]

Origin: TypeAlias = "tuple[str, str, int]"

# Receivers close idle connections after five seconds or later (Node's default is the shortest that is common). Letting
# go earlier than they do avoids sending on a connection that is just being closed.
KEEPALIVE_SECONDS = 4.0
_DNS_CACHE_SECONDS = 10.0
_MAX_HEADER_BYTES = 64 * 1024
_MAX_INFORMATIONAL = 32
_SWITCHING_PROTOCOLS = 101
_FINAL = 200
# How much of a body that is read piece by piece may wait to be read.
_MAX_WAITING = 64 * 1024


class SocketTransport(httpx.AsyncBaseTransport):
    """One asyncio event loop's connections. Made and closed in that loop, used by no other."""

    def __init__(
        self, judge: Judge, judge_plain: Judge, resolver: Resolver, ssl_context: Callable[[], ssl.SSLContext]
    ) -> None:
        self._judges = {"https": judge, "http": judge_plain}
        self._ssl_context = ssl_context
        self._loop = asyncio.get_running_loop()
        self._names = _Names(resolver, self._loop)
        self._idle: defaultdict[Origin, list[_Connection]] = defaultdict(list)
        self._open: set[_Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def post(self, target: Target, headers: Sequence[Header], body: bytes, received: Received) -> None:
        """Send `body` and read the response into `received`; see `Exchange`."""
        connection = self._take_idle(target.origin) or await self._connect(target.origin)
        try:
            await connection.exchange(_request(target.head, headers, body), received)
        except BaseException:
            connection.abort()
            raise
        self._put_back(connection)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return the response once its headers are complete; its body is streamed.

        A checkpoint. A cancellation closes the connection. Of the timeouts in `request.extensions`, "connect" and
        "read" are kept; without any there is none.

        Raises:
            httpx.TransportError: whatever went wrong, by httpx's names and those of `egress.errors`.
        """
        content = request.stream
        body = b"".join(content) if isinstance(content, httpx.ByteStream) else await request.aread()
        timeouts = request.extensions.get("timeout") or {}
        framing = (b"content-length", b"transfer-encoding")
        own = [header for header in request.headers.raw if header[0].lower() not in framing]
        target = Target.of(request.url, own, method=request.method)
        connection = self._take_idle(target.origin)
        if connection is None:
            try:
                async with asyncio.timeout(timeouts.get("connect")):
                    connection = await self._connect(target.origin)
            except TimeoutError as exc:
                raise httpx.ConnectTimeout("connecting took too long") from exc
        reading = _Reading(self, connection, timeouts.get("read"))
        received = Received(cap=0)
        try:
            connection.begin(
                _request(target.head, (), body), received, piecewise=True, bodiless=request.method == "HEAD"
            )
            while received.status_code is None:
                await reading.wait()
        except BaseException:
            connection.abort()
            raise
        return httpx.Response(received.status_code, headers=list(received.headers), stream=reading)

    async def aclose(self) -> None:
        """Close every connection of this loop. A checkpoint."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        self._idle.clear()
        self._names.close()
        closing = [connection.closed for connection in self._open]
        for connection in list(self._open):
            connection.abort()
        await asyncio.gather(asyncio.sleep(0), *closing)

    # -- connections ------------------------------------------------------------------------------------------------

    async def _connect(self, origin: Origin) -> _Connection:
        scheme, host, port = origin
        judge = self._judges[scheme]
        context = self._ssl_context() if scheme == "https" else None
        addresses = await self._names.resolve(host, port, judge)

        async def connect(address: str) -> socket.socket:
            judge(address)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            made = socket.socket(family, socket.SOCK_STREAM)
            try:
                made.settimeout(0)
                await self._loop.sock_connect(made, (address, port))
            except BaseException:
                made.close()
                raise
            return made

        try:
            connected = await first_to_answer(addresses, connect, _close, (OSError,))
        except OSError as exc:
            raise httpx.ConnectError(f"cannot connect to {host}: {_os_reason(exc)}") from exc
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self, origin),
                sock=connected,
                ssl=context,
                server_hostname=host if context is not None else None,
            )
        except ssl.SSLCertVerificationError as exc:
            raise TlsError(f"the certificate of {host} is not valid: {exc.verify_message}") from exc
        except OSError as exc:
            if context is None:
                raise httpx.ConnectError(f"cannot connect to {host}: {_os_reason(exc)}") from exc
            raise TlsError(f"the TLS handshake with {host} failed: {_tls_reason(exc)}") from exc
        return connection

    def _take_idle(self, origin: Origin) -> _Connection | None:
        pool = self._idle.get(origin)
        if not pool:
            return None
        connection = pool.pop()
        if self._loop.time() - connection.idle_since < KEEPALIVE_SECONDS:
            return connection
        # The last one put in is too old, and so are all below it; the sweeper is late.
        self._sweep_pool(origin, self._loop.time())
        connection.abort()
        return None

    def _put_back(self, connection: _Connection) -> None:
        """Keep a connection for the next exchange, or close it if it cannot have one."""
        if not connection.reusable:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        self._idle[connection.origin].append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(KEEPALIVE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        now = self._loop.time()
        for origin in list(self._idle):
            self._sweep_pool(origin, now)
        if self._idle:
            oldest = min(pool[0].idle_since for pool in self._idle.values())
            self._sweeping = self._loop.call_at(oldest + KEEPALIVE_SECONDS, self._sweep)

    def _sweep_pool(self, origin: Origin, now: float) -> None:
        pool = self._idle[origin]
        old = 0
        while old < len(pool) and now - pool[old].idle_since >= KEEPALIVE_SECONDS:
            pool[old].abort()
            old += 1
        del pool[:old]
        if not pool:
            del self._idle[origin]

    def opened(self, connection: _Connection) -> None:
        """Take note of a connection."""
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        """Take note of the end of a connection."""
        self._open.discard(connection)
        pool = self._idle.get(connection.origin)
        if pool and connection in pool:
            pool.remove(connection)
            if not pool:
                del self._idle[connection.origin]

    def finish(self, connection: _Connection) -> None:
        """End an exchange that was read piece by piece."""
        self._put_back(connection)


class _Connection(asyncio.Protocol):
    """A connection, and the exchange that it serves; only the transport that made it knows it."""

    __slots__ = (
        "_bodiless",
        "_complete",
        "_error",
        "_headers",
        "_informational",
        "_left",
        "_owner",
        "_parser",
        "_paused",
        "_piecewise",
        "_received",
        "_transport",
        "_waiter",
        "closed",
        "idle_since",
        "origin",
        "reusable",
    )

    def __init__(self, owner: SocketTransport, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.reusable = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        # What makes no difference to what a response says. One response is awaited at a time, and what comes behind it
        # costs the connection, so that there is nobody whom it could confuse.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._received: Received | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: httpx.TransportError | None = None
        self._complete = self._piecewise = self._bodiless = self._paused = False
        self._headers: list[Header] = []
        self._informational = self._left = 0

    # -- what the transport asks for --------------------------------------------------------------------------------

    async def exchange(self, request: bytes, received: Received) -> None:
        """Send a request and read the whole response, or as much of it as is wanted."""
        self.begin(request, received)
        while not self._complete and (received.status_code is None or len(received.body) < received.cap):
            await self.wait()

    def begin(self, request: bytes, received: Received, *, piecewise: bool = False, bodiless: bool = False) -> None:
        """Send a request; what comes back goes into `received`."""
        if self._transport is None:
            raise self._error or _closed_early()
        self._received = received
        self._piecewise = piecewise
        self._bodiless = bodiless
        self._complete = self.reusable = False
        self._headers = []
        self._informational = 0
        self._left = _MAX_HEADER_BYTES
        self._transport.write(request)

    async def wait(self) -> None:
        """Wait until there is something new: all of the response, or in piecewise reading the next part of it."""
        if self._error is not None:
            raise self._error
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    def take(self) -> bytes:
        """Return what has come of the body since the last time."""
        received = self._received
        if received is None:
            return b""
        piece, received.body = received.body, b""
        return piece

    @property
    def complete(self) -> bool:
        """Whether the response has ended."""
        return self._complete

    def abort(self) -> None:
        """Close the connection, whatever is on its way."""
        if self._transport is not None:
            self._transport.abort()

    # -- what the event loop tells ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what create_connection makes
        self._transport = transport
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        received = self._received
        if received is None or self._complete:
            # Nobody has asked. Whatever it is, it must not be taken for the answer to the next request.
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._complete = True
        except httptools.HttpParserError as exc:
            self._fail(_malformed(received, exc))
            return
        if received.status_code is None:
            self._left -= len(data)
            if self._left < 0:
                self._fail(httpx.RemoteProtocolError("the response is not valid HTTP: its headers have no end"))
            return
        if self._complete or self._piecewise or len(received.body) >= received.cap:
            self._wake()
        if self._piecewise and len(received.body) >= _MAX_WAITING and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.reusable = False
        received = self._received
        if received is not None and not self._complete:
            if exc is None and received.status_code is not None and _ends_with_connection(received):
                self._complete = True
                self._wake()
            else:
                self._fail(_broken(received, exc))
        self._owner.lost(self)
        if not self.closed.done():
            self.closed.set_result(None)

    # -- what the parser tells --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A response begins: behind a final one that nobody has asked for."""
        if self._complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has come whole."""
        self._left -= len(name) + len(value)
        if self._left < 0:
            raise _TooMuchError("its headers have no end")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The headers have come, of a final response or of an informational one."""
        status = self._parser.get_status_code()
        received = self._received
        if received is None or self._complete:
            return
        if status < _FINAL and status != _SWITCHING_PROTOCOLS:
            self._informational += 1
            self._headers.clear()
            if status < 100 or self._informational > _MAX_INFORMATIONAL:  # noqa: PLR2004 - where informational ones begin
                raise _TooMuchError("it has no valid status" if status < 100 else "too many informational responses")  # noqa: PLR2004
            return
        received.headers = self._headers
        received.status_code = status
        self._complete = self._bodiless

    def on_body(self, piece: bytes) -> None:
        """A part of the body has come."""
        received = self._received
        if received is None or self._complete:
            return
        if self._piecewise:
            received.body += piece
        elif len(received.body) < received.cap:
            received.body = (received.body + piece)[: received.cap]

    def on_message_complete(self) -> None:
        """A response has ended."""
        received = self._received
        transport = self._transport
        if received is None or received.status_code is None or self._complete or transport is None:
            return
        self._complete = True
        self.reusable = self._parser.should_keep_alive() and not transport.get_write_buffer_size()

    def _fail(self, error: httpx.TransportError) -> None:
        # The first one is the cause of all that follow.
        self._error = self._error or error
        self.abort()
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class _Reading(httpx.AsyncByteStream):
    """The body of one response. Read to its end it gives the connection back; closed earlier it closes that too."""

    def __init__(self, owner: SocketTransport, connection: _Connection, timeout: float | None) -> None:
        self._owner = owner
        self._connection = connection
        self._timeout = timeout
        self._over = False

    async def wait(self) -> None:
        """Wait for more, for so long at most."""
        if self._timeout is None:
            await self._connection.wait()
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._connection.wait()
        except TimeoutError as exc:
            raise httpx.ReadTimeout("the receiver took too long to answer") from exc

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        while not self._over:
            piece = connection.take()
            if piece:
                yield piece
            elif connection.complete:
                await self.aclose()
            else:
                await self.wait()

    async def aclose(self) -> None:
        if self._over:
            return
        self._over = True
        if self._connection.complete:
            self._owner.finish(self._connection)
        else:
            self._connection.abort()


@attrs.define(eq=False)
class _Known:
    """The addresses of a name, and until when they count."""

    addresses: tuple[str, ...]
    until: float


class _Names:
    """Judged answers of the resolver, kept for a while, so that a thousand attempts to a host ask for it once."""

    def __init__(self, resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
        self._resolver = resolver
        self._loop = loop
        self._known: dict[tuple[str, int, Judge], _Known] = {}
        self._asking: dict[tuple[str, int, Judge], asyncio.Task[tuple[str, ...]]] = {}

    async def resolve(self, host: str, port: int, judge: Judge) -> tuple[str, ...]:
        """Return the addresses of `host`; see `resolve_judged`."""
        key = host, port, judge
        known = self._known.get(key)
        if known is not None:
            if self._loop.time() < known.until:
                return known.addresses
            del self._known[key]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._loop.create_task(resolve_judged(self._resolver, host, port, judge))
            self._asking[key] = asking
            asking.add_done_callback(lambda task: self._answered(key, task))
        # Others may wait for the same answer: who is cancelled leaves it to them.
        return await asyncio.shield(asking)

    def _answered(self, key: tuple[str, int, Judge], task: asyncio.Task[tuple[str, ...]]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled() and task.exception() is None:
            now = self._loop.time()
            for old in [each for each, known in self._known.items() if known.until <= now]:
                del self._known[old]
            self._known[key] = _Known(task.result(), now + _DNS_CACHE_SECONDS)

    def close(self) -> None:
        """Forget everything, and ask no more."""
        self._known.clear()
        for task in self._asking.values():
            task.cancel()


class _TooMuchError(Exception):
    """The receiver sends what it may not; the parser hands it through."""


def _request(head: bytes, headers: Sequence[Header], body: bytes) -> bytes:
    return b"".join((head, encode_headers(headers), b"content-length: %d\r\n\r\n" % len(body), body))


async def _close(connected: socket.socket) -> None:
    connected.close()


def _ends_with_connection(received: Received) -> bool:
    """Return whether a response has no other end than the connection's."""
    return received.header(b"content-length") is None and received.header(b"transfer-encoding") is None


def _malformed(received: Received, exc: Exception) -> httpx.RemoteProtocolError:
    if received.status_code is not None:
        return httpx.RemoteProtocolError("the response body is malformed or broke off")
    told = exc.__context__ if isinstance(exc.__context__, _TooMuchError) else None
    return httpx.RemoteProtocolError(
        f"the response is not valid HTTP: {told}" if told else "the response is not valid HTTP"
    )


def _broken(received: Received, exc: Exception | None) -> httpx.TransportError:
    if received.status_code is not None:
        return httpx.RemoteProtocolError("the response body is malformed or broke off")
    if isinstance(exc, OSError):
        return httpx.ReadError(f"the connection broke: {_os_reason(exc)}")
    return _closed_early()


def _closed_early() -> httpx.ReadError:
    return httpx.ReadError("the receiver closed the connection before a complete response")


def _os_reason(exc: OSError) -> str:
    # What asyncio puts into its own OSErrors may list addresses at length; the number says the same in three words.
    return os.strerror(exc.errno) if exc.errno else type(exc).__name__


def _tls_reason(exc: OSError) -> str:
    return (exc.reason or type(exc).__name__) if isinstance(exc, ssl.SSLError) else _os_reason(exc)
