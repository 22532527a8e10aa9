"""A receiver without manners: raw connections on loopback, on which a test says byte for byte what comes back."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["Peer", "Peers", "listening"]

_GONE = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError)
_CHUNK = 65_536


class Peer:
    """The receiver's end of one connection."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream: anyio.abc.ByteStream = stream
        self._raw = stream
        self.gone = anyio.Event()
        self._buffer = b""

    async def request(self) -> bytes:
        """Read one request, all of it."""
        head = await self.head()
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self._buffer) < length:
            self._buffer += await self.stream.receive(_CHUNK)
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return head + body

    async def head(self) -> bytes:
        """Read the headers of a request, and as little as can be of its body."""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += await self.stream.receive(1024)
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    async def say(self, data: bytes) -> None:
        """Send `data`."""
        await self.stream.send(data)

    async def half_close(self) -> None:
        """Send no more, and keep the connection open. Below TLS, which is not told."""
        await self._raw.send_eof()

    async def hear_the_end(self) -> bytes:
        """Read until the sender has closed the connection, and return what came before."""
        heard = self._buffer
        try:
            while True:
                heard += await self.stream.receive(_CHUNK)
        except _GONE:
            return heard


class Peers:
    """All connections that were made, and where to make them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.all: list[Peer] = []


@asynccontextmanager
async def listening(
    script: Callable[[Peer], Awaitable[object]], *, ssl_context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Peers]:
    """Accept connections and run `script` on each, which closes it at its end. It may be cut short by the sender."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        peer = Peer(stream)
        peers.all.append(peer)
        try:
            if ssl_context is not None:
                peer.stream = await TLSStream.wrap(
                    stream, server_side=True, ssl_context=ssl_context, standard_compatible=False
                )
            await script(peer)
        except (*_GONE, ssl.SSLError):
            pass
        finally:
            peer.gone.set()
            await anyio.aclose_forcefully(stream)

    failed: BaseException | None = None
    async with await anyio.create_tcp_listener(local_host=host) as listener, anyio.create_task_group() as group:
        peers = Peers(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610 - not Django's
        group.start_soon(listener.serve, serve)
        try:
            yield peers
        except Exception as exc:  # noqa: BLE001 - raised below, where the task group does not wrap it up
            failed = exc
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed
