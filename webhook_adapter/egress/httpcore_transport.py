"""The transport for trio, over httpcore.

Rules of this module:

* The network backend resolves the name itself, has every address judged, and connects to those very addresses; the
  name is kept for TLS and the Host header. Nothing below it sees a name.
* https and http have a pool each, for they are judged by different rules.
* Until the headers of a response are complete, a receiver may send only so many bytes, be it in one endless header
  or in endless informational responses.
* A connection on which something came behind a response is not used again.
* Every error of httpcore leaves as one of httpx.

It knows no endpoint, no message and no deadline. It runs on asyncio too, but there the other one is quicker.
"""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

import anyio
import attrs
import httpcore
import httpx

from webhook_adapter.egress.errors import TlsError
from webhook_adapter.egress.racing import first_to_answer
from webhook_adapter.egress.resolving import Judge, Resolver, resolve_judged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

__all__ = ["HttpcoreTransport"]

# As in the other transport: shorter than the idle time after which receivers close.
_KEEPALIVE_SECONDS = 4.0
_MAX_HEADER_BYTES = 256 * 1024

_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.TimeoutException, httpx.ReadTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.ReadError, httpx.ReadError),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.NetworkError, httpx.NetworkError),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.ProtocolError, httpx.ProtocolError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
)
_MESSAGES: dict[type[httpx.TransportError], str] = {
    httpx.ConnectTimeout: "connecting took too long",
    httpx.ReadTimeout: "the receiver took too long to answer",
    httpx.WriteTimeout: "the receiver took too long to read the request",
    httpx.PoolTimeout: "no connection was free in time",
    httpx.ConnectError: "cannot connect",
    httpx.ReadError: "the connection broke",
    httpx.WriteError: "the connection broke while sending",
    httpx.LocalProtocolError: "the request cannot be written as HTTP",
    httpx.RemoteProtocolError: "the response is not valid HTTP",
}


@attrs.define(eq=False)
class _HeaderBudget:
    """Bytes that a receiver may still send before the headers of its response are complete."""

    left: int = _MAX_HEADER_BYTES
    beginning: bytes = b""


# httpcore reads the headers in the task that asked for them, so a context variable tells the stream what it reads.
_header_budget: ContextVar[_HeaderBudget | None] = ContextVar("_header_budget", default=None)


class HttpcoreTransport(httpx.AsyncBaseTransport):
    """One event loop's connections. Closed in that loop, used by no other."""

    def __init__(
        self, judge: Judge, judge_plain: Judge, resolver: Resolver, ssl_context: Callable[[], ssl.SSLContext]
    ) -> None:
        self._judges = {"https": judge, "http": judge_plain}
        self._resolver = resolver
        self._ssl_context = ssl_context
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return the response once its headers are complete; its body is streamed.

        A checkpoint. A cancellation closes the connection. Timeouts in `request.extensions` are kept; without any
        there is none.

        Raises:
            httpx.TransportError: whatever went wrong, by httpx's names and those of `egress.errors`.
        """
        url = request.url
        content = request.stream
        assert isinstance(content, httpx.AsyncByteStream)  # noqa: S101 - as httpx's own transport does
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=_Whole(b"".join(content)) if isinstance(content, httpx.ByteStream) else content,
            extensions=request.extensions,
        )
        pool = self._pools.get(url.scheme) or self._open(url.scheme)
        token = _header_budget.set(_HeaderBudget())
        try:
            with _as_httpx():
                response = await pool.handle_async_request(sent)
        finally:
            _header_budget.reset(token)
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response))

    async def aclose(self) -> None:
        """Close every connection of this loop. A checkpoint."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.aclose()

    def _open(self, scheme: str) -> httpcore.AsyncConnectionPool:
        backend = _JudgedBackend(self._resolver, self._judges[scheme])
        pool = _pool(backend, self._ssl_context() if scheme == "https" else None)
        self._pools[scheme] = pool
        return pool


class _Whole:
    """The body of a request in one piece.

    httpx's own is a generator: where a receiver hangs up on it, it would be left to the garbage collector.
    """

    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class _Body(httpx.AsyncByteStream):
    """The body of one response. Read to its end it gives the connection back; closed earlier it closes that too."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response
        self._chunks: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._chunks is None:
            self._chunks = self._response.aiter_stream()
        with _as_httpx():
            return await anext(self._chunks)

    async def aclose(self) -> None:
        try:
            await self._unwind()
            stream = self._response.extensions.get("network_stream")
            if isinstance(stream, _Stream) and _more_came(self._response):
                await stream.aclose()
        finally:
            # Whatever cancels the rest: the pool would keep the request for ever.
            with _as_httpx():
                await self._response.aclose()

    async def _unwind(self) -> None:
        """End the generators within httpcore that stand between its connection and us.

        Left suspended they would be finalised by the garbage collector, which trio warns of. They end by an error from
        the connection, which is what they get instead of more bytes.
        """
        stream = self._response.extensions.get("network_stream")
        if self._chunks is None or not isinstance(stream, _Stream):
            return
        stream.cut = True
        try:
            while True:
                await anext(self._chunks)
        except (StopAsyncIteration, _CutError):
            pass
        except (httpcore.NetworkError, httpcore.ProtocolError):
            pass  # it broke, or the rest of what had come was malformed, which comes to the same
        finally:
            # Where the body had already been read to its end, the connection lives on.
            stream.cut = False


def _more_came(response: httpcore.Response) -> bool:
    """Return whether bytes came behind a response, or whether that cannot be told.

    httpcore keeps them, and would take them for the answer to the next request: whoever owns one receiver could forge
    what another one behind the same host answers. It offers no way to ask, so this looks where they lie.
    """
    connection = getattr(getattr(response.stream, "_stream", None), "_connection", None)
    behind = getattr(getattr(connection, "_h11_state", None), "trailing_data", None)
    return behind is None or bool(behind[0])


class _JudgedBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, resolver: Resolver, judge: Judge) -> None:
        self._resolver = resolver
        self._judge = judge
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        del local_address, socket_options  # the pools above set neither
        addresses = await resolve_judged(self._resolver, host, port, self._judge)
        won = await first_to_answer(
            addresses,
            lambda address: self._inner.connect_tcp(address, port, timeout),
            lambda stream: stream.aclose(),
            (httpcore.NetworkError, httpcore.TimeoutException),
        )
        return _Stream(won, host)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        del path, timeout, socket_options
        raise httpcore.UnsupportedProtocol("webhooks are not sent to unix sockets")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _CutError(Exception):
    """Nobody wants the rest of this body."""


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that counts what comes before the headers are complete and tells TLS errors from others."""

    def __init__(self, inner: httpcore.AsyncNetworkStream, host: str) -> None:
        self._inner = inner
        self._host = host
        self.cut = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self.cut:
            raise _CutError
        data = await self._inner.read(max_bytes, timeout)
        budget = _header_budget.get()
        if budget is not None:
            budget.left -= len(data)
            budget.beginning = (budget.beginning + data)[:5]
            if not data and not b"HTTP/".startswith(budget.beginning):
                raise httpx.RemoteProtocolError("the response is not valid HTTP")
            if not data:
                raise httpx.ReadError("the receiver closed the connection before a complete response")
            if budget.left < 0:
                raise httpx.RemoteProtocolError(
                    "the response is not valid HTTP: its headers have no end, or too many informational responses"
                )
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except httpcore.ConnectError as exc:
            raise TlsError(_tls_message(self._host, exc)) from exc
        except BaseException:
            # A handshake that is cancelled is closed by nobody else.
            with anyio.CancelScope(shield=True):
                await self._inner.aclose()
            raise
        return _Stream(inner, self._host)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


def _pool(backend: _JudgedBackend, ssl_context: ssl.SSLContext | None) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        ssl_context=ssl_context,
        # How much may be in flight is for the guards to say.
        max_connections=None,
        keepalive_expiry=_KEEPALIVE_SECONDS,
        network_backend=backend,
    )


def _tls_message(host: str, exc: BaseException) -> str:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate of {host} is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"the TLS handshake with {host} failed: {cause.reason or type(cause).__name__}"
        cause = cause.__cause__ or cause.__context__
    return f"the TLS handshake with {host} failed"


@contextmanager
def _as_httpx() -> Iterator[None]:
    try:
        yield
    except tuple(theirs for theirs, _ in _ERRORS) as exc:
        for theirs, ours in _ERRORS:
            if isinstance(exc, theirs):
                raise ours(_message(ours, exc)) from exc
        raise


def _message(kind: type[httpx.TransportError], exc: BaseException) -> str:
    """Return what went wrong in words of ours: httpcore's may quote the value of a header."""
    message = _MESSAGES.get(kind, "the exchange failed")
    cause = exc.__cause__ or exc.__context__
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno and cause.strerror:
            return f"{message}: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return message
