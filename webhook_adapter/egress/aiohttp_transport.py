"""The transport for asyncio, over aiohttp: quick under concurrency and over many hosts.

Rules of this module:

* Addresses are judged twice: all that a name resolves to, and again the very one that a socket is made for. So it
  makes no difference how aiohttp came by it (a literal, its cache, a later answer of the name server).
* https and http have a session each, for they are judged by different rules.
* Nothing is added to a request and nothing is interpreted in a response: no redirects, cookies, proxies, decompression.
* Every error of aiohttp leaves as one of httpx, with a message made here: aiohttp's own may quote the whole URL.

It knows no endpoint, no message and no deadline; cancelling a request closes its connection.
"""

from __future__ import annotations

import functools
import socket
import ssl
from typing import TYPE_CHECKING

import aiohttp
import aiohttp.abc
import aiohttp.client_proto
import aiohttp.http_exceptions
import httpx
import yarl

from webhook_adapter.egress.errors import DnsError, TlsError
from webhook_adapter.egress.resolving import Judge, Resolver, resolve_judged

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable

    from aiohttp.http import RawResponseMessage

__all__ = ["AiohttpTransport"]

# Receivers close idle connections after five seconds or later (Node's default is the shortest that is common). Letting
# go earlier than they do avoids sending on a connection that is just being closed.
KEEPALIVE_SECONDS = 4.0
_DNS_CACHE_SECONDS = 10
_MAX_INFORMATIONAL = 32
_SWITCHING_PROTOCOLS = 101
_SKIPPED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class AiohttpTransport(httpx.AsyncBaseTransport):
    """One asyncio event loop's connections. Made and closed in that loop, used by no other."""

    def __init__(
        self, judge: Judge, judge_plain: Judge, resolver: Resolver, ssl_context: Callable[[], ssl.SSLContext]
    ) -> None:
        self._judges = {"https": judge, "http": judge_plain}
        self._resolver = resolver
        self._ssl_context = ssl_context
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return the response once its headers are complete; its body is streamed.

        A checkpoint. A cancellation closes the connection. Timeouts in `request.extensions` are kept; without any
        there is none.

        Raises:
            httpx.TransportError: whatever went wrong, by httpx's names and those of `egress.errors`.
        """
        url = request.url
        session = self._sessions.get(url.scheme) or self._open(url.scheme)
        content = request.stream
        body = b"".join(content) if isinstance(content, httpx.ByteStream) else await request.aread()
        try:
            response = await session.request(
                request.method,
                _yarl(str(url)),
                data=body,
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
                allow_redirects=False,
                timeout=_timeout(request),
            )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _as_httpx(exc) from exc
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response))

    async def aclose(self) -> None:
        """Close every connection of this loop. A checkpoint."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    def _open(self, scheme: str) -> aiohttp.ClientSession:
        judge = self._judges[scheme]
        session = _session(
            _JudgedResolver(self._resolver, judge), judge, self._ssl_context() if scheme == "https" else None
        )
        self._sessions[scheme] = session
        return session


class _Body(httpx.AsyncByteStream):
    """The body of one response. Read to its end it gives the connection back; closed earlier it closes that too."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError, aiohttp.http_exceptions.HttpProcessingError) as exc:
            raise _as_httpx(exc) from exc
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._response.close()


class _JudgedResolver(aiohttp.abc.AbstractResolver):
    def __init__(self, resolver: Resolver, judge: Judge) -> None:
        self._resolver = resolver
        self._judge = judge

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,
    ) -> list[aiohttp.abc.ResolveResult]:
        addresses = await resolve_judged(self._resolver, host, port, self._judge)
        return [
            aiohttp.abc.ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        """Do nothing: the resolver belongs to whoever gave it."""


class _ResponseHandler(aiohttp.client_proto.ResponseHandler):
    """A connection that gives up on a receiver that sends one informational response after the other."""

    _informational = 0

    async def read(self) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        message, payload = await super().read()
        if not 100 <= message.code <= 199 or message.code == _SWITCHING_PROTOCOLS:  # noqa: PLR2004
            self._informational = 0
            return message, payload
        self._informational += 1
        if self._informational > _MAX_INFORMATIONAL:
            raise aiohttp.http_exceptions.HttpProcessingError(message="too many informational responses")
        return message, payload


def _session(resolver: _JudgedResolver, judge: Judge, ssl_context: ssl.SSLContext | None) -> aiohttp.ClientSession:
    import asyncio

    def judged_socket(address_info: tuple[object, ...]) -> socket.socket:
        family, kind, protocol, _, address = address_info
        assert isinstance(address, tuple)  # noqa: S101 - tells mypy what aiohttp hands over
        judge(str(address[0]))
        assert isinstance(family, int)  # noqa: S101 - as above
        assert isinstance(kind, int)  # noqa: S101 - as above
        assert isinstance(protocol, int)  # noqa: S101 - as above
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        resolver=resolver,
        ssl=ssl_context if ssl_context is not None else True,
        # How much may be in flight is for the guards to say; waiting for a connection here would count as slowness of
        # the receiver.
        limit=0,
        keepalive_timeout=KEEPALIVE_SECONDS,
        # Also keeps a thousand attempts to one host that start together from asking the name server a thousand times.
        ttl_dns_cache=_DNS_CACHE_SECONDS,
        socket_factory=judged_socket,
    )
    loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
    # aiohttp has no public place for this; a test holds it to the bound.
    connector._factory = functools.partial(_ResponseHandler, loop=loop)  # type: ignore[assignment] # noqa: SLF001
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_SKIPPED,
        auto_decompress=False,
        trust_env=False,
        timeout=_NO_TIMEOUT,
    )


@functools.lru_cache(maxsize=4096)
def _yarl(url: str) -> yarl.URL:
    return yarl.URL(url, encoded=True)


_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=None)


def _timeout(request: httpx.Request) -> aiohttp.ClientTimeout:
    given = request.extensions.get("timeout")
    if not given:
        return _NO_TIMEOUT
    return aiohttp.ClientTimeout(
        total=None, connect=given.get("connect"), sock_connect=given.get("connect"), sock_read=given.get("read")
    )


def _as_httpx(exc: Exception) -> httpx.TransportError:  # noqa: C901, PLR0911, PLR0912 - a table, one line for each kind of error
    match exc:
        case aiohttp.ClientConnectorDNSError():
            return DnsError(f"the host {exc.host} could not be resolved")
        case aiohttp.ClientConnectorCertificateError():
            return TlsError(f"the certificate of {exc.host} is not valid: {_tls_reason(exc.certificate_error)}")
        case aiohttp.ClientSSLError():
            return TlsError(f"the TLS handshake with {exc.host} failed: {_tls_reason(exc.os_error)}")
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout("connecting took too long")
        case aiohttp.ServerTimeoutError():
            return httpx.ReadTimeout("the receiver took too long to answer")
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError(f"cannot connect to {exc.host}: {_os_reason(exc.os_error)}")
        case aiohttp.ServerDisconnectedError():
            return httpx.ReadError("the receiver closed the connection before a complete response")
        case aiohttp.ClientPayloadError():
            return httpx.RemoteProtocolError("the response body is malformed or broke off")
        case aiohttp.ClientResponseError() | aiohttp.http_exceptions.HttpProcessingError():
            return httpx.RemoteProtocolError(f"the response is not valid HTTP: {_first_line(exc.message)}")
        case aiohttp.InvalidURL() | ValueError():
            return httpx.LocalProtocolError("the request cannot be written as HTTP")
        case TimeoutError():
            return httpx.ConnectTimeout("connecting took too long")
        case OSError():
            return httpx.ReadError(f"the connection broke: {_os_reason(exc)}")
        case _:
            return httpx.ReadError(f"the connection broke: {type(exc).__name__}")


def _os_reason(exc: OSError) -> str:
    import os

    # What asyncio puts into its own OSErrors may list addresses at length; the number says the same in three words.
    return os.strerror(exc.errno) if exc.errno else type(exc).__name__


def _tls_reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return exc.verify_message
    return (exc.reason or type(exc).__name__) if isinstance(exc, ssl.SSLError) else type(exc).__name__


def _first_line(message: str) -> str:
    return message.partition("\n")[0].strip().rstrip(":")[:100]
