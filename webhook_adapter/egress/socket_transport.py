"""The transport for asyncio, on its sockets: quick under concurrency and over many hosts.

Theory of operation. A connection (`connection`) whose exchange has ended cleanly lies idle in its origin's pool, the
last one on top, and is closed by a sweeper before its receiver would close it. One that ends by itself meanwhile stays
in the pool until it is found there, by whoever takes the next connection or by the sweeper: nobody has to search.

Rules of this module:

* Addresses are judged twice: all that a name resolves to, and again the very one that a socket connects to.
* https and http are judged by different rules.
* Nothing is added to a request but its length. No redirects, cookies, proxies, decompression.
* Nothing is connected for a request that cannot be written.
* Every error leaves as one of httpx, with a message made here, which holds no URL and no header.

It knows no endpoint, no message and no deadline; cancelling a request closes its connection.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import httpx

from webhook_adapter.egress.connection import Connection, Origin, reason
from webhook_adapter.egress.errors import TlsError
from webhook_adapter.egress.exchange import Header, Received, Target, encode_headers
from webhook_adapter.egress.lookups import Lookups
from webhook_adapter.egress.racing import first_to_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from webhook_adapter.egress.resolving import Judge, Resolver

__all__ = ["SocketTransport"]

# Receivers close idle connections after five seconds or later (Node's default is the shortest that is common). Letting
# go earlier than they do avoids sending on a connection that is just being closed.
_KEEPALIVE_SECONDS = 4.0
# So often at most: a sweep looks at every idle connection, and a few thousand may lie there.
_SWEEP_SECONDS = 0.5


class SocketTransport(httpx.AsyncBaseTransport):
    """One asyncio event loop's connections. Made and closed in that loop, used by no other."""

    def __init__(
        self, judge: Judge, judge_plain: Judge, resolver: Resolver, ssl_context: Callable[[], ssl.SSLContext]
    ) -> None:
        self._judges = {"https": judge, "http": judge_plain}
        self._ssl_context = ssl_context
        self._loop = asyncio.get_running_loop()
        self._lookups = Lookups(resolver)
        self._idle: defaultdict[Origin, list[Connection]] = defaultdict(list)
        self._open: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_lost = asyncio.Event()

    async def post(self, target: Target, headers: Sequence[Header], body: bytes, received: Received) -> None:
        """Send `body` and read the response into `received`; see `Exchange`."""
        request = _request(target.head, headers, body)
        connection = self._take_idle(target.origin) or await self._connect(target.origin)
        try:
            await connection.exchange(request, received)
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
        wire = _request(target.head, (), body)
        connection = self._take_idle(target.origin)
        if connection is None:
            try:
                async with asyncio.timeout(timeouts.get("connect")):
                    connection = await self._connect(target.origin)
            except TimeoutError as exc:
                raise httpx.ConnectTimeout("connecting took too long") from exc
        reading = _Reading(connection, self._put_back, timeouts.get("read"))
        received = Received(cap=sys.maxsize)
        try:
            connection.begin(wire, received, piecewise=True, bodiless=request.method == "HEAD")
            while received.status_code is None:
                await reading.wait()
        except BaseException:
            connection.abort()
            raise
        return httpx.Response(received.status_code, headers=list(received.headers), stream=reading)

    async def aclose(self) -> None:
        """Close every connection of this loop. Who waits for one gets an error. A checkpoint."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        self._idle.clear()
        self._lookups.close()
        for connection in list(self._open):
            connection.fail(_closed())
        if not self._open:
            self._all_lost.set()
        await self._all_lost.wait()
        await asyncio.sleep(0)

    # -- connections ------------------------------------------------------------------------------------------------

    async def _connect(self, origin: Origin) -> Connection:
        scheme, host, port = origin
        judge = self._judges[scheme]
        context = self._ssl_context() if scheme == "https" else None
        addresses = await self._lookups.resolve(host, port, judge)

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
            raise httpx.ConnectError(f"cannot connect to {host}: {reason(exc)}") from exc
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self, origin),
                sock=connected,
                ssl=context,
                server_hostname=host if context is not None else None,
            )
        except ssl.SSLCertVerificationError as exc:
            raise TlsError(f"the certificate of {host} is not valid: {exc.verify_message}") from exc
        except OSError as exc:
            raise TlsError(f"the TLS handshake with {host} failed: {reason(exc)}") from exc
        return connection

    def _take_idle(self, origin: Origin) -> Connection | None:
        """Return the connection that was used last, if one can be used again."""
        pool = self._idle.get(origin)
        while pool:
            connection = pool.pop()
            if connection.reusable:
                if self._loop.time() - connection.idle_since < _KEEPALIVE_SECONDS:
                    return connection
                # The sweeper is late.
                connection.abort()
        return None

    def _put_back(self, connection: Connection) -> None:
        """Keep a connection for the next exchange, or close it if it cannot have one."""
        if not connection.reusable:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        self._idle[connection.origin].append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_KEEPALIVE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long, and come back when that may be so again."""
        self._sweeping = None
        now = self._loop.time()
        for origin, pool in list(self._idle.items()):
            kept = []
            for connection in pool:
                if connection.reusable and now - connection.idle_since < _KEEPALIVE_SECONDS:
                    kept.append(connection)
                else:
                    connection.abort()
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        if self._idle:
            oldest = min(pool[0].idle_since for pool in self._idle.values())
            self._sweeping = self._loop.call_at(max(oldest + _KEEPALIVE_SECONDS, now + _SWEEP_SECONDS), self._sweep)

    def opened(self, connection: Connection) -> None:
        """Take note of a connection; if it comes too late, close it."""
        self._open.add(connection)
        if self._closed:
            connection.fail(_closed())

    def lost(self, connection: Connection) -> None:
        """Take note of the end of a connection."""
        self._open.discard(connection)
        if self._closed and not self._open:
            self._all_lost.set()


class _Reading(httpx.AsyncByteStream):
    """The body of one response. Read to its end it gives the connection back; closed earlier it closes that too."""

    def __init__(self, connection: Connection, put_back: Callable[[Connection], None], timeout: float | None) -> None:
        self._connection = connection
        self._put_back = put_back
        self._timeout = timeout
        self._over = False

    async def wait(self) -> None:
        """Wait for more, for so long at most."""
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
            self._put_back(self._connection)
        else:
            self._connection.abort()


def _request(head: bytes, headers: Sequence[Header], body: bytes) -> bytes:
    return b"".join((head, encode_headers(headers), b"content-length: %d\r\n\r\n" % len(body), body))


async def _close(connected: socket.socket) -> None:
    connected.close()


def _closed() -> httpx.ReadError:
    return httpx.ReadError("the transport was closed")
