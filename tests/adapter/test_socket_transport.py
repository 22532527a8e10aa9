"""The transport of asyncio against receivers that do what they like: which connections it keeps, and how it lets go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
import trustme

from tests.adapter.peers import Peer, listening
from tests.resilience.support import assert_caught, settle, until
from webhook_adapter.egress import Received, Target, TlsError, socket_transport
from webhook_adapter.egress.connection import Connection
from webhook_adapter.egress.socket_transport import SocketTransport, _Reading, _request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from webhook_adapter.egress.exchange import Header

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEADERS = [(b"Host", b"receiver.example")]
LARGE = b"x" * 2**24


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Only asyncio has this transport."""
    return "asyncio"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of our own."""
    return trustme.CA()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's context that trusts `authority` alone."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def serving(authority: trustme.CA, name: str) -> ssl.SSLContext:
    """Return a server's context with a certificate for `name`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


class Named:
    """A resolver for which every name is on this machine."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses or ("127.0.0.1",)

    async def resolve(self, host: str, port: int, /) -> Sequence[str]:
        assert host.endswith("receiver.example")
        assert port > 0
        await asyncio.sleep(0)
        return self.addresses


def anywhere(address: str) -> None:
    """Let every address pass."""


@contextlib.asynccontextmanager
async def transporting(
    *addresses: str, trust: trustme.CA | None = None, kind: type[SocketTransport] = SocketTransport
) -> AsyncIterator[SocketTransport]:
    """Make a transport that goes anywhere, and see that nothing of it is left afterwards."""

    def context() -> ssl.SSLContext:
        assert trust is not None
        return trusting(trust)

    transport = kind(anywhere, anywhere, Named(*addresses), context)
    try:
        yield transport
    finally:
        with anyio.fail_after(20, shield=True):
            await transport.aclose()
        assert transport._open == set()
        assert transport._sweeping is None


def target(port: int, *, scheme: str = "http", host: str = "receiver.example") -> Target:
    """Return where to post to."""
    return Target.of(httpx.URL(f"{scheme}://{host}:{port}/hook"), HEADERS)


async def post(
    transport: SocketTransport, to: Target, body: bytes = b"{}", *, cap: int = 1000
) -> tuple[int | None, bytes]:
    """POST `body` and return the status and the body of the response."""
    received = Received(cap)
    with anyio.fail_after(20):
        await transport.post(to, (), body, received)
    return received.status_code, bytes(received.body)


async def answering(peer: Peer) -> None:
    """Answer every request, one after the other."""
    while True:
        await peer.request()
        await peer.say(OK)


async def echoing(peer: Peer) -> None:
    """Answer every request with its own body."""
    while True:
        body = (await peer.request()).partition(b"\r\n\r\n")[2]
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


# -- what is written --------------------------------------------------------------------------------------------------


async def test_a_request_is_written_as_it_is_put_together() -> None:
    """The target's own headers come first, those of the message behind them, and nothing is added but the length."""
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.say(OK)

    async with listening(script) as peers, transporting() as transport:
        to = target(peers.port)
        received = Received(10)
        await transport.post(to, [(b"webhook-id", b"msg_1")], b"{}", received)
    expected = b"POST /hook HTTP/1.1\r\nHost: receiver.example\r\nwebhook-id: msg_1\r\ncontent-length: 2\r\n\r\n{}"
    assert requests == [expected]


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"x", b"a\r\nb: c"), (b"x", b"a\nb"), (b"x", b"a\rb"), (b"x", b"a\0b"), (b"x\r\ny", b"a"), (b"x: y\r\nz", b"a")],
)
async def test_a_header_that_would_become_two_is_not_sent(name: bytes, value: bytes) -> None:
    """F36: neither with an endpoint nor with a message; and nobody is connected to for what cannot be written."""
    async with listening(answering) as peers, transporting() as transport:
        with pytest.raises(httpx.LocalProtocolError, match="header") as caught:
            await transport.post(target(peers.port), [(name, value)], b"", Received(10))
        assert "a" not in str(caught.value).split()[-1]
        with pytest.raises(httpx.LocalProtocolError):
            Target.of(httpx.URL("http://receiver.example/"), [(name, value)])
        assert peers.all == []


@pytest.mark.parametrize(
    ("method", "name"),
    [("GET / HTTP/1.1\r\nX:", b"x"), ("", b"x"), ("GÉT", b"x"), ("GET", b""), ("GET", b"x y"), ("GET", b"x:")],
)
def test_a_method_or_a_name_that_is_no_token_is_refused(method: str, name: bytes) -> None:
    """What begins a line is held to the letter, whoever makes the request."""
    with pytest.raises(httpx.LocalProtocolError, match="no token"):
        Target.of(httpx.URL("http://receiver.example/"), [(name, b"1")], method=method)


# -- which connections are used again ----------------------------------------------------------------------------------


async def test_the_connection_that_was_used_last_is_used_first() -> None:
    """So the others grow old, and can be let go."""
    used: list[Peer] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            used.append(peer)
            await release.wait()
            await peer.say(OK)

    release = anyio.Event()
    async with listening(script) as peers, transporting() as transport:
        to = target(peers.port)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(post(transport, to)) for _ in range(3)]
            await until(lambda: len(used) == 3)
            release.set()
        assert {task.result() for task in tasks} == {(200, b"ok")}
        for _ in range(5):
            await post(transport, to)
        assert (len(peers.all), len(set(used[3:]))) == (3, 1)


@pytest.mark.parametrize(
    "unasked", [b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", OK, b"H", b"\0", b""], ids=repr
)
@pytest.mark.parametrize("tls", [False, True])
async def test_what_an_idle_receiver_says_answers_nothing(unasked: bytes, authority: trustme.CA, *, tls: bool) -> None:
    """F29: bytes that come unasked, or the end, cost the connection, and the next request has one of its own."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK.replace(b"ok", b"%02d" % len(peers.all)))
        await idle.wait()
        if unasked and len(peers.all) == 1:
            await peer.say(unasked)
            await peer.hear_the_end()

    idle = anyio.Event()
    context = serving(authority, "receiver.example") if tls else None
    async with listening(script, ssl_context=context) as peers, transporting(trust=authority) as transport:
        to = target(peers.port, scheme="https" if tls else "http")
        assert await post(transport, to) == (200, b"01")
        (connection,) = transport._open
        idle.set()
        await peers.all[0].gone.wait()
        await until(lambda: connection not in transport._open)
        assert await post(transport, to) == (200, b"02")


@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_whose_request_was_answered_early_is_not_used_again(
    authority: trustme.CA, *, tls: bool
) -> None:
    """The answer counts although most of the request was never read, and what is left of that is no next request."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        read.append(len(await peer.hear_the_end()))

    read: list[int] = []
    context = serving(authority, "receiver.example") if tls else None
    async with listening(script, ssl_context=context) as peers, transporting(trust=authority) as transport:
        to = target(peers.port, scheme="https" if tls else "http")
        assert await post(transport, to, LARGE) == (413, b"")
        await peers.all[0].gone.wait()
        assert read[0] < len(LARGE)
        assert await post(transport, to, LARGE) == (413, b"")
        assert len(peers.all) == 2


async def test_an_answer_is_read_though_the_receiver_hangs_up_on_the_request() -> None:
    """A 413 that is followed by a reset, as the request was not read, is a 413."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")

    async with listening(script) as peers, transporting() as transport:
        for _ in range(20):
            assert await post(transport, target(peers.port), LARGE) == (413, b"no")


@pytest.mark.parametrize("tls", [False, True])
async def test_half_closed_is_closed(authority: trustme.CA, *, tls: bool) -> None:
    """A receiver that says no more is not waited for, though it might still read."""

    async def script(peer: Peer) -> None:
        await peer.head()
        if len(peers.all) == 1:
            await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\nno")
        await peer.half_close()
        await done.wait()

    done = anyio.Event()
    context = serving(authority, "receiver.example") if tls else None
    async with listening(script, ssl_context=context) as peers, transporting(trust=authority) as transport:
        to = target(peers.port, scheme="https" if tls else "http")
        assert await post(transport, to, b"x" * 2**22) == (400, b"no")
        with pytest.raises(httpx.ReadError):
            await post(transport, to, b"x" * 2**22)
        done.set()


async def test_connections_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been idle for four seconds is closed, by one timer for all, and the youngest live on."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await release.wait()
            await peer.say(OK)

    release = anyio.Event()
    async with listening(script) as peers, transporting() as transport:
        clock = Clock(monkeypatch)
        to = target(peers.port)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(post(transport, to))
            await until(lambda: len(transport._open) == 3)
            release.set()
        await clock.passes(2)
        # The one on top is used again, and so younger than the others.
        assert await post(transport, to) == (200, b"ok")
        await clock.passes(1.99)
        assert len(transport._open) == 3
        await clock.passes(0.02)
        assert len(transport._open) == 1
        await until(lambda: sum(peer.gone.is_set() for peer in peers.all) == 2)
        await clock.passes(1.98)
        assert len(transport._open) == 1
        await clock.passes(0.02)
        assert (len(transport._open), len(transport._idle)) == (0, 0)
        assert transport._sweeping is None


async def test_a_connection_too_old_is_not_used_even_where_the_sweeper_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy event loop runs its timers late; what is too old is not taken all the same, nor what is below it."""
    async with listening(answering) as peers, transporting() as transport:
        clock = Clock(monkeypatch)
        to = target(peers.port)
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(post(transport, to))
        clock.seconds += 4
        assert transport._take_idle(to.origin) is None
        await post(transport, to)
        assert len(peers.all) == 3


async def test_many_origins_are_swept_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep looks at all that is idle, so it does not come for each connection on its own."""
    sweeps = 0

    class Counted(SocketTransport):
        def _sweep(self) -> None:
            nonlocal sweeps
            sweeps += 1
            super()._sweep()

    async with listening(answering) as peers, transporting(kind=Counted) as transport:
        clock = Clock(monkeypatch)
        for number in range(50):
            await post(transport, target(peers.port, host=f"{number}.receiver.example"))
            await clock.passes(0.01)
        for _ in range(600):
            await clock.passes(0.01)
    assert (sweeps, transport._open) == (2, set())


class Clock:
    """The event loop's time, which passes when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = asyncio.get_running_loop().time()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.seconds)

    async def passes(self, seconds: float) -> None:
        """Let time pass, and whatever is due by then happen."""
        self.seconds += seconds
        await settle()


# -- letting go --------------------------------------------------------------------------------------------------------


def cancelled_anywhere(
    kind: type[SocketTransport], addresses: Sequence[str] = (), authority: trustme.CA | None = None
) -> Callable[[], None]:
    """Return the law, of `kind`: a cancellation at whatever step is passed on, and leaves no socket."""

    async def main() -> None:
        context = serving(authority, "receiver.example") if authority is not None else None
        async with listening(echoing, ssl_context=context) as peers:
            step, cancelled = 0, True
            while cancelled:
                before = descriptors()
                async with transporting(*addresses, trust=authority, kind=kind) as transport:
                    to = target(peers.port, scheme="http" if authority is None else "https")
                    task = asyncio.ensure_future(post(transport, to, b"cancelled"))
                    for _ in range(step):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    cancelled = task.cancelled()
                    assert cancelled or task.result() == (200, b"cancelled")
                    # The transport is none the worse for it, and what is open is what may be used again.
                    assert await post(transport, to, b"later") == (200, b"later")
                    assert sorted(map(id, transport._open)) == sorted(map(id, transport._idle[to.origin]))
                for peer in peers.all:
                    await peer.gone.wait()
                await until(lambda before=before: descriptors() <= before)  # type: ignore[misc] # before is bound
                peers.all.clear()
                step += 1 + step // 8
        assert step > 5

    def law() -> None:
        asyncio.run(main())
        gc.collect()

    return law


def descriptors() -> int:
    """Return how many files and sockets are open."""
    return len(list(Path("/dev/fd").iterdir()))


ADDRESSES = pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.2", "127.0.0.1"]], ids=["one", "two"])


@ADDRESSES
def test_a_cancellation_leaves_nothing_wherever_it_strikes(addresses: Sequence[str]) -> None:
    """While resolving, connecting, writing or waiting: the socket is closed, and the task is cancelled."""
    cancelled_anywhere(SocketTransport, addresses)()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the receiver's side of a handshake that breaks off
def test_a_cancellation_leaves_nothing_of_tls(authority: trustme.CA) -> None:
    """The same with a handshake in between."""
    cancelled_anywhere(SocketTransport, ["127.0.0.1"], authority)()


class Forgetful(SocketTransport):
    """Leaves a connection whose request was cancelled to itself."""

    async def post(self, target: Target, headers: Sequence[Header], body: bytes, received: Received) -> None:
        connection = self._take_idle(target.origin) or await self._connect(target.origin)
        await connection.exchange(_request(target.head, headers, body), received)
        self._put_back(connection)


class Swallowing(SocketTransport):
    """Ends early and well when it is cancelled."""

    async def post(self, target: Target, headers: Sequence[Header], body: bytes, received: Received) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await super().post(target, headers, body, received)


@pytest.mark.parametrize("mutant", [Forgetful, Swallowing])
def test_a_cancellation_that_is_not_honoured_is_noticed(mutant: type[SocketTransport]) -> None:
    """The law of cancellation sees a connection that is left open, and a cancellation that is lost."""
    assert_caught(cancelled_anywhere(mutant))


def late_answers_answer_nothing(kind: type[SocketTransport]) -> Callable[[], None]:
    """Return the law, of `kind`: what answers a request that was given up is no answer to the next one."""

    async def main() -> None:
        asked, late = anyio.Event(), anyio.Event()

        async def script(peer: Peer) -> None:
            body = (await peer.request()).partition(b"\r\n\r\n")[2]
            asked.set()
            if body == b"1":
                await late.wait()
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + body)
            await peer.hear_the_end()

        async with listening(script) as peers, transporting(kind=kind) as transport:
            task = asyncio.ensure_future(post(transport, target(peers.port), b"1"))
            await asked.wait()
            task.cancel()
            await asyncio.wait([task])
            late.set()
            assert await post(transport, target(peers.port), b"2") == (200, b"2")

    return lambda: asyncio.run(main())


test_late_answers_answer_nothing = late_answers_answer_nothing(SocketTransport)
test_late_answers_answer_nothing.__doc__ = "F20: a connection whose exchange was given up carries no other one."


class Trusting(SocketTransport):
    """Uses a connection again whose request was cancelled."""

    async def post(self, target: Target, headers: Sequence[Header], body: bytes, received: Received) -> None:
        connection = self._take_idle(target.origin) or await self._connect(target.origin)
        try:
            await connection.exchange(_request(target.head, headers, body), received)
        finally:
            connection.complete = connection.reusable = True
            self._put_back(connection)


def test_a_late_answer_that_is_believed_is_noticed() -> None:
    """The law of late answers sees a connection that is used again too early."""
    assert_caught(late_answers_answer_nothing(Trusting))


def closed_anywhere(
    kind: type[SocketTransport], addresses: Sequence[str] = (), authority: trustme.CA | None = None
) -> Callable[[], None]:
    """Return the law, of `kind`: closed at whatever step of a request, that ends in an error, and nothing is left."""

    async def main() -> None:
        context = serving(authority, "receiver.example") if authority is not None else None
        async with listening(answering, ssl_context=context) as peers:
            step, ended_early = 0, True
            while ended_early:
                async with transporting(*addresses, trust=authority, kind=kind) as transport:
                    task = asyncio.ensure_future(
                        post(transport, target(peers.port, scheme="http" if authority is None else "https"))
                    )
                    for _ in range(step):
                        await asyncio.sleep(0)
                    ended_early = not task.done()
                    await transport.aclose()
                    await asyncio.wait([task])
                    assert not task.cancelled()
                    # The response may have come in this very moment.
                    error = task.exception()
                    assert isinstance(error, httpx.TransportError) or task.result() == (200, b"ok")
                    assert (len(transport._idle), transport._sweeping) == (0, None)
                step += 1 + step // 8
        assert step > 5

    def law() -> None:
        asyncio.run(main())
        gc.collect()

    return law


@ADDRESSES
def test_whoever_is_under_way_when_all_is_closed_gets_an_error(addresses: Sequence[str]) -> None:
    """Whatever it waits for, and no cancellation, which nobody has asked for; no connection and no timer is left."""
    closed_anywhere(SocketTransport, addresses)()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the receiver's side of a handshake that breaks off
def test_whoever_is_under_way_in_tls_gets_an_error(authority: trustme.CA) -> None:
    """The same with a handshake in between, which may end when all is closed already."""
    closed_anywhere(SocketTransport, ["127.0.0.1"], authority)()


class Unaware(SocketTransport):
    """Does not know that it was closed when a connection opens."""

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)


class Silent(SocketTransport):
    """Closes connections without a word."""

    async def aclose(self) -> None:
        for connection in self._open:
            connection.complete = True
        await super().aclose()


class Lingering(SocketTransport):
    """Leaves its timer behind."""

    async def aclose(self) -> None:
        await super().aclose()
        self._sweeping = self._loop.call_later(0, self._sweep)


@pytest.mark.parametrize("mutant", [Unaware, Silent, Lingering])
def test_a_close_that_leaves_something_is_noticed(mutant: type[SocketTransport]) -> None:
    """The law of closing sees a connection that comes too late, a request that is told nothing, and a timer."""
    assert_caught(closed_anywhere(mutant))


async def test_what_is_idle_is_closed_before_aclose_returns() -> None:
    """And whoever closes again, or closes what never opened, does no harm."""
    async with listening(answering) as peers, transporting() as transport:
        await post(transport, target(peers.port))
        await transport.aclose()
        await peers.all[0].gone.wait()
        await transport.aclose()
    async with transporting():
        pass


async def test_a_failed_request_needs_no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that fails, again and again, does not have its requests heaped up until the collector comes by."""

    class Mine(Connection):
        """So that no other test's is found."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"nonsense")
        await peer.hear_the_end()

    monkeypatch.setattr(socket_transport, "Connection", Mine)
    async with listening(script) as peers, transporting() as transport:
        gc.disable()
        try:
            for _ in range(3):
                with pytest.raises(httpx.RemoteProtocolError):
                    await post(transport, target(peers.port))
            await until(lambda: not transport._open)
            await settle()
            assert [each for each in gc.get_objects() if type(each) is Mine] == []
        finally:
            gc.enable()


# -- other networks ----------------------------------------------------------------------------------------------------


async def test_a_literal_address_may_be_of_the_sixth_version(authority: trustme.CA) -> None:
    """Between brackets in the URL, without them to the system and in the certificate."""
    certificate = serving(authority, "::1")
    async with (
        listening(answering, ssl_context=certificate, host="::1") as peers,
        transporting(trust=authority) as transport,
    ):
        assert await post(transport, target(peers.port, scheme="https", host="[::1]")) == (200, b"ok")
    async with listening(answering, host="::1") as peers, transporting() as transport:
        assert await post(transport, target(peers.port, host="[::1]")) == (200, b"ok")


async def test_the_name_is_told_to_tls(authority: trustme.CA) -> None:
    """A receiver behind one address with many names is asked for the right certificate, by a judged address."""
    names: list[str | None] = []
    certificate = serving(authority, "receiver.example")
    certificate.sni_callback = lambda _, name, __: names.append(name)
    async with listening(answering, ssl_context=certificate) as peers, transporting(trust=authority) as transport:
        for _ in range(2):
            assert await post(transport, target(peers.port, scheme="https")) == (200, b"ok")
    assert names == ["receiver.example"]


async def test_a_receiver_that_wants_to_know_who_calls_says_so(authority: trustme.CA) -> None:
    """An alert of TLS that comes after the handshake has TLS's words, not the system's for the same number."""
    certificate = serving(authority, "receiver.example")
    certificate.verify_mode = ssl.CERT_REQUIRED

    def serve() -> None:
        # In plain code: where asyncio and anyio shake hands, the alert is never sent.
        with server.accept()[0] as accepted, accepted.dup() as kept:
            with contextlib.suppress(ssl.SSLError):
                certificate.wrap_socket(accepted, server_side=True)
            # Closed before the request is read, a reset might overtake the alert.
            while kept.recv(65_536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        async with transporting(trust=authority) as transport, asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(serve))
            with pytest.raises(httpx.ReadError, match="CERTIFICATE_REQUIRED"):
                await post(transport, target(server.getsockname()[1], scheme="https"))


async def test_a_handshake_that_breaks_off_is_a_tls_error(authority: trustme.CA) -> None:
    """A receiver that hangs up, or answers in plain text, has not verified itself."""

    async def hang_up(peer: Peer) -> None:
        await peer.stream.receive()

    async def answer(peer: Peer) -> None:
        await peer.stream.receive()
        await peer.say(OK)
        await peer.hear_the_end()

    for script in (hang_up, answer):
        async with listening(script) as peers, transporting(trust=authority) as transport:
            with pytest.raises(TlsError, match=r"the TLS handshake with receiver\.example failed"):
                await post(transport, target(peers.port, scheme="https"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the receiver's side of a handshake that is refused
async def test_what_cannot_be_connected_to_says_why(authority: trustme.CA) -> None:
    """F19: a port on which nobody listens, and a certificate for somebody else; no list of addresses, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    certificate = serving(authority, "other.example")
    async with listening(answering, ssl_context=certificate) as peers, transporting(trust=authority) as transport:
        with pytest.raises(httpx.ConnectError) as refused:
            await post(transport, target(port))
        assert str(refused.value) == "cannot connect to receiver.example: Connection refused"
        with pytest.raises(TlsError, match=r"the certificate of receiver\.example is not valid: Hostname mismatch"):
            await post(transport, target(peers.port, scheme="https"))


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
def test_a_host_that_is_no_name_is_refused(host: str) -> None:
    """TLS would find out only when it is connected."""
    with pytest.raises(httpx.LocalProtocolError, match="no name"):
        Target.of(httpx.URL(f"https://{host}/"), [])


def test_the_event_loop_has_nothing_to_complain_of(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    """In asyncio's debug mode too, in plain text and in TLS, where all goes well and where it does not."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await peer.say(b"nonsense")
        await peer.hear_the_end()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        # What takes long on a slow machine is not what is asked here.
        loop.slow_callback_duration = 60
        for certificate in (None, serving(authority, "receiver.example")):
            async with listening(script, ssl_context=certificate) as peers, transporting(trust=authority) as transport:
                to = target(peers.port, scheme="http" if certificate is None else "https")
                assert await post(transport, to) == (200, b"ok")
                with pytest.raises(httpx.RemoteProtocolError):
                    await post(transport, to)
                assert await post(transport, to) == (200, b"ok")

    complaints: list[object] = []
    asyncio.run(main(), debug=True)
    gc.collect()
    assert complaints == []
    assert [record for record in caplog.records if record.levelname not in {"DEBUG", "INFO"}] == []


# -- the seam of httpx -------------------------------------------------------------------------------------------------


def request(port: int, *, method: str = "POST", **options: Any) -> httpx.Request:  # noqa: ANN401 - httpx's own
    """Return a request of httpx."""
    return httpx.Request(method, f"http://receiver.example:{port}/hook", **options)


async def pieces(response: httpx.Response) -> bytes:
    """Read a response piece by piece, as it comes over the wire."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return b"".join([piece async for piece in response.stream])


async def test_a_body_is_streamed_both_ways() -> None:
    """A request's stream is sent with its length, whatever its headers say; a response's comes as it comes."""

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await headers.wait()
        await peer.say(b"6\r\npieces\r\n")
        await peer.say(b"0\r\n\r\n")
        await peer.hear_the_end()

    async def stream() -> AsyncIterator[bytes]:
        for piece in (b"in ", b"pieces"):
            yield piece

    requests: list[bytes] = []
    headers = anyio.Event()
    async with listening(script) as peers, transporting() as transport:
        response = await transport.handle_async_request(
            request(peers.port, content=stream(), headers={"Content-Length": "1"})
        )
        assert response.status_code == 200
        headers.set()
        assert await pieces(response) == b"pieces"
        assert transport._idle
        # Read to its end and closed, it has nothing more to say.
        await response.aclose()
        assert await pieces(response) == b""
    assert requests[0].endswith(b"\r\ncontent-length: 9\r\n\r\nin pieces")
    assert requests[0].lower().count(b"content-length") == 1


@pytest.mark.parametrize("read", [False, True])
async def test_a_body_that_is_left_costs_the_connection(*, read: bool) -> None:
    """Closed before its end, the response closes its connection at once, and its receiver need not send the rest."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")
        await peer.hear_the_end()

    async with listening(script) as peers, transporting() as transport:
        response = await transport.handle_async_request(request(peers.port, content=b""))
        if read:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for piece in response.stream:
                assert piece == b"ok"
                break
        await response.aclose()
        await peers.all[0].gone.wait()
        assert not transport._idle


async def test_a_body_that_breaks_off_is_an_error() -> None:
    """What came of it was given out before."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK.replace(b"Length: 2", b"Length: 3"))

    async with listening(script) as peers, transporting() as transport:
        response = await transport.handle_async_request(request(peers.port, content=b""))
        with pytest.raises(httpx.RemoteProtocolError, match="broke off"):
            await pieces(response)
        await response.aclose()


async def test_head_is_answered_without_a_body() -> None:
    """Whatever length it would have had."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        await peer.hear_the_end()

    async with listening(script) as peers, transporting() as transport:
        response = await transport.handle_async_request(request(peers.port, method="HEAD"))
        assert (response.headers["content-length"], await pieces(response)) == ("1000", b"")


async def test_the_timeouts_of_httpx_are_kept() -> None:
    """For connecting, for the headers and for each part of the body; a request that is too late leaves nothing."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if len(peers.all) == 2:
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await peer.hear_the_end()

    async with listening(script) as peers, transporting() as transport:
        with pytest.raises(httpx.ConnectTimeout):
            await transport.handle_async_request(request(peers.port, extensions={"timeout": {"connect": 0}}))
        with pytest.raises(httpx.ReadTimeout):
            await transport.handle_async_request(request(peers.port, extensions={"timeout": {"read": 0}}))
        await peers.all[0].gone.wait()
        response = await transport.handle_async_request(request(peers.port, extensions={"timeout": {"read": 20}}))
        assert isinstance(response.stream, _Reading)
        response.stream._timeout = 0
        with pytest.raises(httpx.ReadTimeout):
            await pieces(response)
        await response.aclose()


async def test_a_client_of_httpx_may_stand_above_it() -> None:
    """It is a transport like any other."""
    async with listening(answering) as peers, transporting() as transport:
        client = httpx.AsyncClient(transport=transport)
        for _ in range(2):
            assert (await client.post(f"http://receiver.example:{peers.port}/", json={})).text == "ok"
        assert len(peers.all) == 1
