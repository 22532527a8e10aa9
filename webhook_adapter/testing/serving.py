"""A receiver on 127.0.0.1: real sockets, HTTP/1.1, and whatever behaviour a script asks of it.

Rules of this module:

* It reads requests strictly and answers exactly what it is told, well-formed or not.
* A connection that breaks is the sender's affair and ends quietly; an error in a script is not, and ends the receiver.
* One task per connection; nothing outlives the `async with`.

It knows the wire and nothing of the sender under test.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self, TypeAlias, assert_never

import anyio
import anyio.abc
import attrs
from anyio.streams.tls import TLSListener

from webhook_adapter.keys import check_key
from webhook_adapter.signing import VerificationError, verify
from webhook_adapter.testing.records import MessageCount, ReceivedRequest, Records
from webhook_adapter.testing.replies import Fault, Reply

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

__all__ = ["Receiver", "Script"]

Script: TypeAlias = Callable[[ReceivedRequest], Reply] | Sequence[Reply] | Reply

_MAX_HEAD = 64 * 1024
_CHUNK = 64 * 1024
_MAX_PORT = 65_535
_BAD_REQUEST = Reply(400, close=True)
_UNVERIFIED = Reply(401)
_PART_OF_HEADERS = b"HTTP/1.1 200 OK\r\nServer: rec"
_GONE = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError)


class _BadRequestError(Exception):
    """Something was sent that is no HTTP/1.1 request."""


class Receiver:
    """Receive webhooks and answer them by a script; an async context manager.

    Args:
        script: a function from the request to its reply; or replies that are given in turn, the last one again and
            again; or one reply for all. By default 200, at once.
        secret: verifies each request's signature under this secret (or any of several) and answers 401 to what fails,
            without asking the script.
        keep: how many requests to keep in full, None for all. Counts are kept of all in either case.
        silent: accept connections and never read from them.
        ssl_context: speak TLS.
        port: 0 takes a free one.
        control: is asked first; a request that it answers is neither recorded nor verified.

    Example:
        >>> async def test_delivery():
        ...     async with Receiver([Reply(503), Reply(200)]) as receiver:
        ...         await deliver_to(receiver.url)
        ...         await receiver.wait_for(2)
        ...     assert receiver.duplicates == 0
    """

    def __init__(
        self,
        script: Script = Reply(),  # noqa: B008 - a frozen value
        *,
        secret: str | Iterable[str] | None = None,
        keep: int | None = None,
        silent: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        port: int = 0,
        control: Callable[[ReceivedRequest], Reply | None] | None = None,
    ) -> None:
        if keep is not None and (type(keep) is not int or keep < 0):
            raise ValueError(f"keep must be a whole number of at least 0, or None, not {keep!r}")
        if type(port) is not int or not 0 <= port <= _MAX_PORT:
            raise ValueError(f"port must be a whole number from 0 to {_MAX_PORT}, not {port!r}")
        self.records = Records(keep)
        self._script = _as_function(script)
        given = () if secret is None else (secret,) if isinstance(secret, str) else tuple(secret)
        self._secrets = tuple(check_key(each) for each in given)
        self._silent = silent
        self._ssl_context = ssl_context
        self._port = port
        self._control = control
        self._waiting: list[tuple[int, anyio.Event]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            try:
                multi = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self._port)
            except OSError as exc:
                # The system's own words do not say which port.
                raise OSError(exc.errno, f"cannot listen on 127.0.0.1:{self._port}: {exc.strerror}") from exc
            await stack.enter_async_context(multi)
            self._port = int(multi.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610 - not Django's
            listener: anyio.abc.Listener[anyio.abc.ByteStream] = multi
            if self._ssl_context is not None and not self._silent:
                listener = TLSListener(multi, self._ssl_context, standard_compatible=False)
            group = await stack.enter_async_context(anyio.create_task_group())
            group.start_soon(listener.serve, self._serve)
            stack.callback(group.cancel_scope.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(exc_type, exc, traceback)

    @property
    def port(self) -> int:
        """The port it listens on, once entered."""
        return self._port

    @property
    def url(self) -> str:
        """The URL of its root; any path below it is received too."""
        return f"{'http' if self._ssl_context is None else 'https'}://127.0.0.1:{self._port}/"

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """The requests received, oldest first; no more than the last `keep`."""
        return tuple(self.records.kept)

    @property
    def total(self) -> int:
        """How many requests were received in all."""
        return self.records.total

    @property
    def duplicates(self) -> int:
        """How many requests were answered 2xx although their message had been, on the same path."""
        return self.records.duplicates()

    def messages(self, path: str = "/") -> Mapping[str, MessageCount]:
        """Return how often each message came on `path`, by its id."""
        return self.records.messages(path)

    def behave(self, script: Script) -> None:
        """Answer by another script from the next request on."""
        self._script = _as_function(script)

    async def wait_for(self, total: int) -> None:
        """Wait until `total` requests were received in all. A checkpoint if they were not yet."""
        if self.records.total < total:
            event = anyio.Event()
            self._waiting.append((total, event))
            await event.wait()

    async def _serve(self, stream: anyio.abc.ByteStream) -> None:
        self.records.connections += 1
        connection = _Connection(stream, self.records.connections)
        try:
            if self._silent:
                await anyio.sleep_forever()
            while await self._exchange(connection):
                pass
        except _GONE:
            pass
        finally:
            await anyio.aclose_forcefully(stream)

    async def _exchange(self, connection: _Connection) -> bool:
        """Receive one request and answer it; return whether the connection is to be kept."""
        try:
            request = await connection.receive()
        except _BadRequestError:
            await connection.stream.send(_BAD_REQUEST.wire)
            return False
        if request is None:
            return False
        if self._control is not None:
            answer = self._control(request)
            if answer is not None:
                await connection.stream.send(answer.wire)
                return not answer.close
        if self._secrets:
            request = attrs.evolve(request, verified=self._verified(request))
        self.records.received(request)
        if self._waiting:
            self._wake()
        reply = _UNVERIFIED if request.verified is False else self._script(request)
        if reply.latency:
            await anyio.sleep(reply.latency)
        if reply.fault is not None:
            self.records.answered(request, reply.fault.value, time.time())
            await _misbehave(connection, reply, reply.fault)
            return False
        await connection.stream.send(reply.wire)
        self.records.answered(request, reply.status, time.time())
        return not reply.close and request.header("connection") != "close"

    def _verified(self, request: ReceivedRequest) -> bool:
        try:
            verify(request.headers, request.body, self._secrets)
        except VerificationError:
            return False
        return True

    def _wake(self) -> None:
        total = self.records.total
        for wanted, event in self._waiting:
            if wanted <= total:
                event.set()
        self._waiting = [(wanted, event) for wanted, event in self._waiting if wanted > total]


class _Connection:
    """One connection, from which requests are read one after the other."""

    def __init__(self, stream: anyio.abc.ByteStream, number: int) -> None:
        self.stream = stream
        self.number = number
        self._buffer = b""

    async def receive(self) -> ReceivedRequest | None:
        """Return the next request, or None if the connection ends cleanly before one."""
        try:
            if not self._buffer:
                self._buffer = await self.stream.receive(_CHUNK)
            if not b"A" <= self._buffer[:1] <= b"Z":
                # The first byte of a TLS handshake, for one: waiting for the end of its headers would be in vain.
                raise _BadRequestError
            head = await self._until(b"\r\n\r\n")
        except anyio.EndOfStream:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        path, _, version = rest.partition(" ")
        if not method or not path or not version.startswith("HTTP/1."):
            raise _BadRequestError
        headers: list[tuple[str, str]] = []
        length = "0"
        chunked = False
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise _BadRequestError
            lowered = name.lower()
            stripped = value.strip()
            headers.append((lowered, stripped))
            if lowered == "content-length":
                length = stripped
            elif lowered == "transfer-encoding":
                chunked = True
        if not length.isascii() or not length.isdigit():
            raise _BadRequestError
        body = await self._chunks() if chunked else await self._exactly(int(length))
        return ReceivedRequest(method, path, tuple(headers), body, time.time(), self.number)

    async def _until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise _BadRequestError
            self._buffer += await self.stream.receive(_CHUNK)
        found = self._buffer[:end]
        self._buffer = self._buffer[end + len(mark) :]
        return found

    async def _exactly(self, length: int) -> bytes:
        if len(self._buffer) < length:
            parts = [self._buffer]
            missing = length - len(self._buffer)
            while missing > 0:
                parts.append(await self.stream.receive(_CHUNK))
                missing -= len(parts[-1])
            self._buffer = b"".join(parts)
        found = self._buffer[:length]
        self._buffer = self._buffer[length:]
        return found

    async def _chunks(self) -> bytes:
        parts: list[bytes] = []
        while True:
            size = (await self._until(b"\r\n")).partition(b";")[0]
            try:
                length = int(size, 16)
            except ValueError:
                raise _BadRequestError from None
            parts.append(await self._exactly(length))
            await self._until(b"\r\n")
            if not length:
                return b"".join(parts)


def _as_function(script: Script) -> Callable[[ReceivedRequest], Reply]:
    if isinstance(script, Reply):
        only = script
        return lambda _: only
    if callable(script):
        return script
    replies = tuple(script)
    if not replies:
        raise ValueError("script must hold at least one reply")
    answered = 0

    def next_reply(_: ReceivedRequest) -> Reply:
        nonlocal answered
        reply = replies[min(answered, len(replies) - 1)]
        answered += 1
        return reply

    return next_reply


async def _misbehave(connection: _Connection, reply: Reply, fault: Fault) -> None:  # noqa: C901, PLR0912 - a table
    stream = connection.stream
    match fault:
        case Fault.RESET:
            _reset(stream)
        case Fault.CLOSE:
            pass
        case Fault.HANG:
            await _until_gone(stream)
        case Fault.CLOSE_MID_HEADERS:
            await stream.send(_PART_OF_HEADERS)
        case Fault.HANG_MID_HEADERS:
            await stream.send(_PART_OF_HEADERS)
            await _until_gone(stream)
        case Fault.DRIP_HEADERS:
            await _drip(stream, reply.head(), reply.pace)
        case Fault.DRIP_BODY:
            await stream.send(reply.head(length=_CHUNK))
            await _drip(stream, b"." * _CHUNK, reply.pace)
        case Fault.CLOSE_MID_BODY:
            await stream.send(reply.head(length=len(reply.body) + 100) + reply.body)
        case Fault.RESET_MID_BODY:
            await stream.send(reply.head(length=len(reply.body) + 100) + reply.body)
            _reset(stream)
        case Fault.ENDLESS_BODY:
            head, _, _ = reply.head().partition(b"Content-Length")
            await stream.send(head + b"Connection: close\r\n\r\n")
            await _forever(stream, b"." * _CHUNK)
        case Fault.ENDLESS_INFORMATIONAL:
            await _forever(stream, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
        case Fault.MANY_HEADERS:
            head, _, _ = reply.head().partition(b"Content-Length")
            await stream.send(head + b"".join(b"X-Header-%d: value\r\n" % each for each in range(10_000)))
            await stream.send(b"Content-Length: 0\r\n\r\n")
        case Fault.LONG_HEADER:
            head, _, _ = reply.head().partition(b"Content-Length")
            await stream.send(head + b"X-Long: " + b"." * 2**20 + b"\r\nContent-Length: 0\r\n\r\n")
        case Fault.MALFORMED:
            await stream.send(b"SSH-2.0-this is another protocol\r\n\r\n")
            await _until_gone(stream)
        case Fault.HTTP_0_9:
            await stream.send(reply.body or b"<html>no status line</html>\n")
        case Fault.BAD_CHUNK:
            head, _, _ = reply.head().partition(b"Content-Length")
            await stream.send(head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nbody\r\n0\r\n\r\n")
            await _until_gone(stream)
        case _:
            assert_never(fault)


async def _until_gone(stream: anyio.abc.ByteStream) -> None:
    while True:
        await stream.receive()


async def _drip(stream: anyio.abc.ByteStream, data: bytes, pace: float) -> None:
    for at in range(len(data)):
        await stream.send(data[at : at + 1])
        await anyio.sleep(pace)


async def _forever(stream: anyio.abc.ByteStream, data: bytes) -> None:
    while True:
        await stream.send(data)


def _reset(stream: anyio.abc.ByteStream) -> None:
    """Have the kernel send a reset now.

    Closing through the stream would first send an orderly end. So the descriptor is pointed at another, unconnected
    socket: that drops the last reference to the connection, which lingering for no time turns into a reset.
    """
    connected = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django's
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with socket.socket(connected.family, connected.type) as unconnected:
        os.dup2(unconnected.fileno(), connected.fileno(), inheritable=False)
