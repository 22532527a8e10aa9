"""A connection on asyncio, and the one exchange at a time that it serves.

Theory of operation. A request is written in one piece, and what comes back goes through the parser (llhttp, by way of
httptools) into the `Received` of that exchange. The task that waits is woken when there is something for it: at the end
of the response, or, where a response is read piece by piece, at every piece. Between two exchanges a connection waits
for nothing, and whatever comes then ends it.

Rules of this module:

* Nothing is interpreted in a response but its framing. A receiver may be sloppy where it makes no difference to what
  the response says.
* It may not send without end. Headers may be so many bytes, informational responses so many; and so may be all that is
  neither a header nor a body: a header without end, the extensions of chunks, blank lines.
* What comes behind a response is not read. It takes nothing from the response, and costs the connection.
* A connection may be used again only if nothing came that was not asked for, and nothing is left that was not sent.
* Every error is one of httpx, with a message made here, which holds no URL and no header.

It knows no pool, no endpoint, no message and no deadline.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import Protocol, TypeAlias, cast

import httptools
import httpx

from webhook_adapter.egress.exchange import Header, Received

__all__ = ["Connection", "Origin", "Owner", "reason"]

Origin: TypeAlias = "tuple[str, str, int]"

_MAX_HEADER_BYTES = 64 * 1024
# What a header costs beyond its name and value, as HTTP/2 counts it: so that there cannot be too many empty ones.
_PER_HEADER = 32
# For bytes that are neither headers nor body. Chunks of a few bytes are slow, not wrong, so a body pays for its own.
_MAX_WASTED = 256 * 1024
_WASTED_PER_BYTE = 8
_MAX_INFORMATIONAL = 32
_INFORMATIONAL, _FINAL, _ERRORS = 100, 200, 300
_SWITCHING_PROTOCOLS = 101
# How much of a body that is read piece by piece may wait to be read.
_MAX_WAITING = 64 * 1024
# A request that a receiver has surely read whole before it answers, as it comes with its headers.
_SURELY_READ = 16 * 1024
# llhttp reads RTSP and ICE as well, and knows them by their first letters.
_OTHER_PROTOCOLS = b"RI"

_BROKE_OFF = "the response body is malformed or broke off"
_NOT_HTTP = "the response is not valid HTTP"


class Owner(Protocol):
    """Who has to know which connections there are."""

    def opened(self, connection: Connection) -> None:
        """Take note of a connection."""
        ...

    def lost(self, connection: Connection) -> None:
        """Take note of the end of a connection."""
        ...


class Connection(asyncio.Protocol):
    """A connection to an origin; `loop.create_connection` makes it.

    Attributes:
        idle_since: when its last exchange ended, by whoever keeps it.
        complete: whether the response to the last request has ended.
        reusable: whether it has, and another request may follow.
    """

    __slots__ = (
        "_bodiless",
        "_error",
        "_header_bytes_left",
        "_headers",
        "_informational_left",
        "_large",
        "_owner",
        "_parser",
        "_paused",
        "_piecewise",
        "_received",
        "_transport",
        "_waiter",
        "_wasted_left",
        "complete",
        "idle_since",
        "origin",
        "reusable",
    )

    def __init__(self, owner: Owner, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.complete = True
        self.reusable = False
        self._owner = owner
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        # What makes no difference to what a response says. One response is awaited at a time, and what comes behind it
        # costs the connection, so that there is nobody whom it could confuse.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._received = Received(cap=0)
        self._waiter: asyncio.Future[None] | None = None
        self._error: httpx.TransportError | None = None
        self._piecewise = self._bodiless = self._large = self._paused = False
        self._headers: list[Header] = []
        self._header_bytes_left = self._wasted_left = self._informational_left = 0

    # -- what a transport asks for ----------------------------------------------------------------------------------

    async def exchange(self, request: bytes, received: Received) -> None:
        """Send a request and read the whole response, or as much of it as is wanted.

        A checkpoint. Cancelled, it leaves the connection to be aborted.

        Raises:
            httpx.TransportError: the connection, or the response, broke.
        """
        self.begin(request, received)
        while not self.complete and (received.status_code is None or len(received.body) < received.cap):
            await self.wait()

    def begin(self, request: bytes, received: Received, *, piecewise: bool = False, bodiless: bool = False) -> None:
        """Send a request; what comes back goes into `received`.

        Raises:
            httpx.TransportError: the connection has ended.
        """
        if self._error is not None:
            raise self._told()
        self._received = received
        self._piecewise = piecewise
        self._bodiless = bodiless
        self._large = len(request) > _SURELY_READ
        self.complete = self.reusable = False
        self._headers = []
        self._header_bytes_left = _MAX_HEADER_BYTES
        self._wasted_left = _MAX_WASTED
        self._informational_left = _MAX_INFORMATIONAL
        self._transport.write(request)

    async def wait(self) -> None:
        """Wait until there is something new: all of the response, or in piecewise reading the next part of it.

        A checkpoint, unless the connection has ended.

        Raises:
            httpx.TransportError: the connection, or the response, broke.
        """
        if self._error is not None:
            raise self._told()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None and not self.complete:
            raise self._told()

    def take(self) -> bytes:
        """Return what has come of the body since the last time."""
        received = self._received
        piece, received.body = received.body, b""
        return bytes(piece)

    def abort(self) -> None:
        """Close the connection, whatever is on its way."""
        self.reusable = False
        self._transport.abort()

    def fail(self, error: httpx.TransportError) -> None:
        """Close the connection, and let whoever waits for a response know why there is none."""
        # The first error is the cause of all that follow.
        self._error = self._error or error
        self.abort()
        self._wake()

    # -- what the event loop tells ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; there is no exchange yet."""
        # Not asserted: other event loops have transports of their own, which are no children of this one.
        self._transport = cast("asyncio.Transport", transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        """Read on in the response."""
        if self.complete:
            # Blank lines say nothing, before a response as behind it, but there may not be too many of them. Whatever
            # else it is, it must not be taken for the answer to the next request.
            self._wasted_left -= len(data)
            if self._wasted_left < 0 or data.strip(b"\r\n"):
                self.fail(httpx.RemoteProtocolError("the receiver spoke before it was asked"))
            return
        if data[0] in _OTHER_PROTOCOLS and self._wasted_left == _MAX_WASTED:
            self.fail(httpx.RemoteProtocolError(_NOT_HTTP))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self.reusable = False
            if not self.complete:
                self.fail(_malformed(self._received, exc))
                return
        if self.complete:
            self._wake()
        else:
            self._read_on(len(data))

    def _read_on(self, size: int) -> None:
        """See what can be done with a part of a response, after so many bytes more of it."""
        received = self._received
        self._wasted_left -= size
        if received.status_code is not None:
            if self._piecewise:
                self._wake()
            elif len(received.body) >= received.cap:
                self._wake()
                return
        if self._wasted_left + _WASTED_PER_BYTE * len(received.body) < 0:
            what = f"{_NOT_HTTP}: its headers have no end" if received.status_code is None else _BROKE_OFF
            self.fail(httpx.RemoteProtocolError(what))
        elif self._piecewise and len(received.body) >= _MAX_WAITING:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """End at once: nothing more can come, and what is still to be written interests nobody."""
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, whoever has ended it."""
        self._ended(exc)
        # It holds this connection as this one holds it: let go, both are gone without waiting for the collector.
        del self._parser
        self._owner.lost(self)

    def _ended(self, exc: Exception | None) -> None:
        received = self._received
        if not self.complete and self._error is None and exc is None and _ends_with_connection(received):
            self.complete = True
        self.fail(_broken(received, exc))

    # -- what the parser tells --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A response begins: behind a final one that nobody has asked for."""
        if self.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has come whole, of the response or of its trailer."""
        self._header_bytes_left -= len(name) + len(value) + _PER_HEADER
        if self._header_bytes_left < 0:
            raise _TooMuchError("its headers have no end")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The headers have come, of a final response or of an informational one."""
        if self.complete:
            return
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if status < _FINAL and status != _SWITCHING_PROTOCOLS:
            self._informational_left -= 1
            if status < _INFORMATIONAL:
                raise _TooMuchError("it has no valid status")
            if self._informational_left < 0:
                raise _TooMuchError("too many informational responses")
            return
        received = self._received
        received.headers = headers
        received.status_code = status
        self.complete = self._bodiless

    def on_body(self, piece: bytes) -> None:
        """A part of the body has come."""
        if not self.complete:
            self._received.add(piece)
            if self._piecewise:
                self._wasted_left += _WASTED_PER_BYTE * len(piece)

    def on_message_complete(self) -> None:
        """A response has ended."""
        status = self._received.status_code
        if status is None or self.complete:
            return
        self.complete = True
        # An error may be the answer to headers alone. If the receiver did not read what came with them, it might take
        # that for the next request.
        self.reusable = (
            self._parser.should_keep_alive()
            and not self._transport.get_write_buffer_size()
            and not (self._large and status >= _ERRORS)
        )

    def _told(self) -> httpx.TransportError:
        """Return the error afresh.

        The one that is kept, once raised, would hold this connection and its request by the traceback, in a circle.
        """
        return type(self._error)(str(self._error))  # type: ignore[misc] # it is asked for where there is one

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class _TooMuchError(Exception):
    """The receiver sends what it may not; the parser hands it through."""


def _ends_with_connection(received: Received) -> bool:
    """Return whether a response has begun that has no other end than the connection's."""
    if received.status_code is None:
        return False
    # llhttp reads a name that blanks follow as if they did not.
    framing = {name.strip().lower(): value for name, value in received.headers}
    coding = framing.get(b"transfer-encoding")
    if coding is not None:
        return not coding.lower().endswith(b"chunked")
    return b"content-length" not in framing


def _malformed(received: Received, exc: Exception) -> httpx.RemoteProtocolError:
    if received.status_code is not None:
        return httpx.RemoteProtocolError(_BROKE_OFF)
    told = exc.__context__
    return httpx.RemoteProtocolError(f"{_NOT_HTTP}: {told}" if isinstance(told, _TooMuchError) else _NOT_HTTP)


def _broken(received: Received, exc: Exception | None) -> httpx.TransportError:
    if received.status_code is not None:
        return httpx.RemoteProtocolError(_BROKE_OFF)
    if isinstance(exc, OSError):
        return httpx.ReadError(f"the connection broke: {reason(exc)}")
    return httpx.ReadError("the receiver closed the connection before a complete response")


def reason(exc: OSError) -> str:
    """Return in a few words what went wrong: what asyncio and OpenSSL say themselves may be long, or list addresses."""
    if isinstance(exc, ssl.SSLError):
        return exc.reason or type(exc).__name__
    return os.strerror(exc.errno) if exc.errno else type(exc).__name__
