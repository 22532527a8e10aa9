"""The default transport on real sockets: what it connects to, how it verifies, and how everything else ends."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
import trustme

from tests.adapter.peers import Peer, listening
from webhook_adapter.egress import (
    AddressRefusedError,
    DnsError,
    EgressPolicy,
    TlsError,
    default_transport,
    httpcore_transport,
)
from webhook_adapter.egress.httpcore_transport import HttpcoreTransport
from webhook_adapter.egress.socket_transport import SocketTransport
from webhook_adapter.egress.transport import EgressTransport
from webhook_adapter.testing import Fault, Receiver, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

pytestmark = pytest.mark.anyio

LOOPBACK = EgressPolicy(allow=["127.0.0.0/8", "::1/128"])


class FakeResolver:
    """Answers from a dictionary and notes what it was asked."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int, /) -> Sequence[str]:
        assert port > 0
        self.asked.append(host)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        await anyio.lowlevel.checkpoint()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def transport() -> AsyncIterator[httpx.AsyncBaseTransport]:
    """A transport that may reach this machine."""
    async with default_transport(LOOPBACK) as made:
        yield made


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of our own."""
    return trustme.CA()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's context that trusts `authority` alone."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Return a server's context that shows `certificate`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def post(transport: httpx.AsyncBaseTransport, url: str, body: bytes = b"{}") -> tuple[int, bytes]:
    """POST `body` and return the status and the whole response body."""
    with anyio.fail_after(20):
        response = await transport.handle_async_request(httpx.Request("POST", url, content=body))
        try:
            return response.status_code, await response.aread()
        finally:
            await response.aclose()


async def test_a_request_arrives_as_it_was_made(transport: httpx.AsyncBaseTransport) -> None:
    """Method, target, headers and body arrive unchanged, and nothing is added to them."""
    headers = [("Host", "receiver.example"), ("X-Thing", "1"), ("Content-Length", "4")]
    async with Receiver(Reply(201, body=b"made", headers=(("X-Back", "2"),))) as receiver:
        request = httpx.Request(
            "POST", receiver.url + "a%2Fb?c=%20d", headers=headers, stream=httpx.ByteStream(b"body")
        )
        response = await transport.handle_async_request(request)
        assert (response.status_code, await response.aread(), response.headers["x-back"]) == (201, b"made", "2")
        await response.aclose()
        (received,) = receiver.requests
    assert (received.method, received.path, received.body) == ("POST", "/a%2Fb?c=%20d", b"body")
    assert sorted(received.headers) == [("content-length", "4"), ("host", "receiver.example"), ("x-thing", "1")]


async def test_a_connection_is_used_again_once_a_body_was_read(transport: httpx.AsyncBaseTransport) -> None:
    """Two requests one after the other share a connection; a body that is left unread costs it."""
    async with Receiver(Reply(body=b"x" * 200_000)) as receiver:
        for _ in range(2):
            assert await post(transport, receiver.url) == (200, b"x" * 200_000)
        assert [request.connection for request in receiver.requests] == [1, 1]
        receiver.behave(Reply(body=b"x" * 10_000_000))
        response = await transport.handle_async_request(httpx.Request("POST", receiver.url, content=b""))
        await anext(aiter(response.stream))  # type: ignore[arg-type] # it is an asynchronous one
        await response.aclose()
        await post(transport, receiver.url)
        assert [request.connection for request in receiver.requests] == [1, 1, 1, 2]


async def not_forged(transport: httpx.AsyncBaseTransport, behind: bytes) -> None:
    """Judge the law: what a receiver sends behind a response is no answer to the next request."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + behind)
        await peer.hear_the_end()

    async with listening(script) as peers:
        for count in range(1, 4):
            assert await post(transport, f"http://127.0.0.1:{peers.port}/") == (200, b"ok")
            assert len(peers.all) == count


FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


@pytest.mark.parametrize("behind", [FORGED, b"HTTP/1.1 200 O", b"\0"])
async def test_what_comes_behind_a_response_answers_nothing(transport: httpx.AsyncBaseTransport, behind: bytes) -> None:
    """F23: two endpoints may share a receiver's host; what one of them sends is never the answer of the other."""
    await not_forged(transport, behind)


def test_a_forged_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself httpcore believes what comes behind a response, and so it would on trio."""

    async def main() -> None:
        async with default_transport(LOOPBACK) as transport:
            await not_forged(transport, FORGED)

    monkeypatch.setattr(httpcore_transport, "_more_came", lambda _: False)
    with pytest.raises(AssertionError):
        anyio.run(main, backend="trio")


async def test_many_requests_at_once_all_end(transport: httpx.AsyncBaseTransport) -> None:
    """Fifty at a time over one transport, each gets its own answer."""
    answers: list[bytes] = []

    async def one(number: int) -> None:
        answers.append((await post(transport, receiver.url, b"%d" % number))[1])

    async with Receiver(lambda request: Reply(body=request.body)) as receiver, anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(one, number)
    assert sorted(answers) == sorted(b"%d" % number for number in range(50))


async def test_redirects_cookies_and_encodings_are_left_alone(transport: httpx.AsyncBaseTransport) -> None:
    """F22, F25: a redirect is an answer like any other, a cookie is forgotten, a compressed body stays compressed."""
    headers = (("Location", "http://169.254.169.254/"), ("Set-Cookie", "a=b"), ("Content-Encoding", "gzip"))
    async with Receiver(Reply(302, headers=headers, body=b"not gzip at all")) as receiver:
        for _ in range(2):
            request = httpx.Request("POST", receiver.url, content=b"")
            response = await transport.handle_async_request(request)
            assert response.status_code == 302
            assert b"".join([chunk async for chunk in response.stream]) == b"not gzip at all"  # type: ignore[union-attr]
            await response.aclose()
        assert [request.header("cookie") for request in receiver.requests] == [None, None]


async def test_proxy_settings_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """F44: a proxy would connect where our judgement does not reach, so none is used."""
    async with Receiver() as proxy, Receiver() as receiver, default_transport(LOOPBACK) as transport:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert (await post(transport, receiver.url))[0] == 200
        assert (proxy.total, receiver.total) == (0, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:7f00:1]", "[::1]", "localhost"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_connection_to_a_refused_address(scheme: str, host: str) -> None:
    """WH10, F18: a literal address is judged when connecting too, as is what localhost resolves to."""
    async with Receiver() as receiver, default_transport(EgressPolicy()) as transport:
        with pytest.raises(AddressRefusedError):
            await post(transport, f"{scheme}://{host}:{receiver.port}/")
        assert receiver.records.connections == 0


async def test_one_refused_answer_refuses_the_whole_name() -> None:
    """F17: a name that has a public and a private address is connected to at neither."""
    resolver = FakeResolver(["127.0.0.1", "10.0.0.1"])
    async with Receiver() as receiver, default_transport(LOOPBACK, resolver=resolver) as transport:
        with pytest.raises(AddressRefusedError, match=r"10\.0\.0\.1"):
            await post(transport, f"http://mixed.example:{receiver.port}/")
        assert receiver.records.connections == 0


async def test_a_name_that_turns_round_is_refused_when_it_does() -> None:
    """F17: rebinding after a good answer leads to no connection: what is connected to is what was judged."""
    for port in range(2):
        resolver = FakeResolver(["169.254.169.254"]) if port else FakeResolver(["127.0.0.1"], ["169.254.169.254"])
        async with Receiver(Reply(close=True)) as receiver, default_transport(LOOPBACK, resolver=resolver) as transport:
            url = f"http://turning.example:{receiver.port}/"
            if port == 0:
                assert (await post(transport, url))[0] == 200
                assert resolver.asked == ["turning.example"]
            else:
                with pytest.raises(AddressRefusedError):
                    await post(transport, url)
                assert receiver.records.connections == 0


async def test_plain_http_is_not_spoken_to_what_is_merely_public() -> None:
    """Without TLS the address must be allowed by name, however the host is given."""
    resolver = FakeResolver(["93.184.216.34"])
    async with default_transport(LOOPBACK, resolver=resolver) as transport:
        for url in ("http://public.example/", "http://93.184.216.34/"):
            with pytest.raises(AddressRefusedError, match="plain HTTP"):
                await post(transport, url)


async def test_the_host_name_is_kept_for_the_host_header() -> None:
    """Connecting to a judged address does not change whom the request is for."""
    resolver = FakeResolver(["127.0.0.1"])
    async with Receiver() as receiver, default_transport(LOOPBACK, resolver=resolver) as transport:
        await post(transport, f"http://named.example:{receiver.port}/")
        assert receiver.requests[0].header("host") == f"named.example:{receiver.port}"


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    """A name with several addresses is reached as long as one of them answers."""
    resolver = FakeResolver(["127.0.0.2", "::1", "127.0.0.1"])
    async with Receiver() as receiver, default_transport(LOOPBACK, resolver=resolver) as transport:
        assert (await post(transport, f"http://several.example:{receiver.port}/"))[0] == 200
        with pytest.raises(httpx.ConnectError):
            await post(transport, f"http://several.example:{closed_port()}/")


@pytest.mark.parametrize(
    "answer", [socket.gaierror(socket.EAI_NONAME, "no such name"), [], RuntimeError("a library's own error")], ids=str
)
async def test_a_name_that_does_not_resolve_is_a_dns_error(answer: Sequence[str] | Exception) -> None:
    """F16: no answer, an empty one and a resolver that breaks all count as DNS."""
    async with default_transport(LOOPBACK, resolver=FakeResolver(answer)) as transport:
        with pytest.raises(DnsError, match=r"missing\.example"):
            await post(transport, "https://missing.example/")


async def test_the_resolver_of_the_system_answers() -> None:
    """Without a resolver given, the machine's own is asked, and what it says is judged."""
    async with Receiver() as receiver, default_transport(LOOPBACK) as transport:
        assert (await post(transport, f"http://localhost:{receiver.port}/"))[0] == 200
        with pytest.raises(DnsError):
            await post(transport, "https://name.invalid/")


async def test_a_hanging_resolver_is_left_at_once() -> None:
    """F16: a cancellation during resolving is honoured, and the transport closes without waiting for it."""

    class Hanging:
        async def resolve(self, host: str, port: int, /) -> Sequence[str]:
            assert (host, port) == ("hanging.example", 443)
            asked.set()
            await anyio.sleep_forever()
            raise AssertionError

    asked = anyio.Event()
    async with default_transport(LOOPBACK, resolver=Hanging()) as transport, anyio.create_task_group() as group:
        group.start_soon(post, transport, "https://hanging.example/")
        await asked.wait()
        group.cancel_scope.cancel()


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_closed_port_is_a_connect_error(transport: httpx.AsyncBaseTransport) -> None:
    """What does not listen is told apart from what is refused, from DNS and from TLS."""
    with pytest.raises(httpx.ConnectError) as caught:
        await post(transport, f"http://127.0.0.1:{closed_port()}/")
    assert type(caught.value) is httpx.ConnectError
    assert "refused" in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.RESET, httpx.ReadError),
        (Fault.CLOSE, httpx.ReadError),
        (Fault.CLOSE_MID_HEADERS, httpx.ReadError),
        (Fault.MALFORMED, httpx.RemoteProtocolError),
        (Fault.HTTP_0_9, httpx.RemoteProtocolError),
        (Fault.MANY_HEADERS, httpx.RemoteProtocolError),
        (Fault.LONG_HEADER, httpx.RemoteProtocolError),
        (Fault.ENDLESS_INFORMATIONAL, httpx.RemoteProtocolError),
    ],
)
async def test_a_broken_response_is_one_of_httpx_errors(
    transport: httpx.AsyncBaseTransport, fault: Fault, expected: type[Exception]
) -> None:
    """F20, F23, F24, F29: on both event loops each misbehaviour has the same name, and none hangs or grows."""
    async with Receiver(Reply(fault=fault)) as receiver:
        with pytest.raises(expected) as caught:
            await post(transport, receiver.url + "canary?canary")
        assert "canary" not in str(caught.value)
        # What broke is not used again.
        receiver.behave(Reply(200))
        assert await post(transport, receiver.url) == (200, b"")
        assert [request.connection for request in receiver.requests] == [1, 2]


@pytest.mark.parametrize("fault", [Fault.CLOSE_MID_BODY, Fault.RESET_MID_BODY, Fault.BAD_CHUNK])
async def test_a_body_that_breaks_off_comes_after_the_status(transport: httpx.AsyncBaseTransport, fault: Fault) -> None:
    """F28: the response is handed over with its status; reading its body is what fails."""
    async with Receiver(Reply(body=b"beginning", fault=fault)) as receiver:
        try:
            response = await transport.handle_async_request(httpx.Request("POST", receiver.url, content=b""))
        except httpx.TransportError:
            # A reset may overtake the response, and a malformed chunk may come with the headers.
            assert fault is not Fault.CLOSE_MID_BODY
            return
        assert response.status_code == 200
        with pytest.raises(httpx.TransportError):
            await response.aread()
        await response.aclose()


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.HANG_MID_HEADERS, Fault.DRIP_HEADERS])
async def test_a_cancellation_closes_the_connection(transport: httpx.AsyncBaseTransport, fault: Fault) -> None:
    """F20, F21: a request that is given up leaves nothing behind, and the next one gets a connection of its own."""
    async with Receiver(Reply(fault=fault)) as receiver:
        async with anyio.create_task_group() as group:
            group.start_soon(post, transport, receiver.url)
            await receiver.wait_for(1)
            group.cancel_scope.cancel()
        receiver.behave(Reply(200))
        assert (await post(transport, receiver.url))[0] == 200
        assert receiver.records.connections == 2


async def test_timeouts_in_the_request_are_kept(transport: httpx.AsyncBaseTransport) -> None:
    """Used below an httpx client, the transport honours the client's read timeout."""
    async with (
        Receiver(Reply(fault=Fault.HANG)) as receiver,
        httpx.AsyncClient(transport=transport, timeout=0.05) as client,
    ):
        with pytest.raises(httpx.ReadTimeout):
            await client.post(receiver.url)


async def test_a_certificate_of_a_trusted_authority_is_accepted(authority: trustme.CA) -> None:
    """With the authority trusted and the name right, the request goes through TLS."""
    resolver = FakeResolver(["127.0.0.1"])
    certificate = serving(authority.issue_cert("good.example"))
    async with (
        Receiver(Reply(body=b"secret"), ssl_context=certificate) as receiver,
        default_transport(LOOPBACK, resolver=resolver, ssl_context=trusting(authority)) as transport,
    ):
        for _ in range(2):
            assert await post(transport, f"https://good.example:{receiver.port}/") == (200, b"secret")
        assert receiver.records.connections == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the receiver's side of a handshake that is refused
@pytest.mark.parametrize("fault", ["wrong host", "unknown authority", "expired", "public authorities only"])
async def test_a_certificate_that_does_not_verify_ends_in_a_tls_error(authority: trustme.CA, fault: str) -> None:
    """F19: wrong host, self-signed, expired: nothing of the request is sent, and there is no unverified second try."""
    import datetime as dt

    issuer = trustme.CA() if fault == "unknown authority" else authority
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC) if fault == "expired" else None
    name = "other.example" if fault == "wrong host" else "good.example"
    certificate = serving(issuer.issue_cert(name, not_after=past))
    context = None if fault == "public authorities only" else trusting(authority)
    async with (
        Receiver(ssl_context=certificate) as receiver,
        default_transport(LOOPBACK, resolver=FakeResolver(["127.0.0.1"]), ssl_context=context) as transport,
    ):
        with pytest.raises(TlsError, match=r"good\.example"):
            await post(transport, f"https://good.example:{receiver.port}/")
        assert receiver.total == 0


async def test_a_receiver_that_speaks_no_tls_is_a_tls_error(authority: trustme.CA) -> None:
    """F19: an https URL is never answered in plain text."""
    async with (
        Receiver() as receiver,
        default_transport(LOOPBACK, ssl_context=trusting(authority)) as transport,
    ):
        with pytest.raises(TlsError):
            await post(transport, f"https://127.0.0.1:{receiver.port}/")
        assert receiver.total == 0


async def test_a_handshake_that_hangs_can_be_cancelled(authority: trustme.CA) -> None:
    """F19: a receiver that accepts and then says nothing holds up only the request that waits for it."""
    async with (
        Receiver(silent=True) as receiver,
        default_transport(LOOPBACK, ssl_context=trusting(authority)) as transport,
    ):
        with anyio.move_on_after(0.1) as scope:
            await post(transport, f"https://127.0.0.1:{receiver.port}/")
        assert scope.cancelled_caught


async def test_another_scheme_is_not_carried(transport: httpx.AsyncBaseTransport) -> None:
    """Only http and https are spoken."""
    with pytest.raises(httpx.UnsupportedProtocol):
        await transport.handle_async_request(httpx.Request("POST", "ftp://127.0.0.1/"))


async def test_a_closed_transport_opens_again_when_it_is_used(anyio_backend_name: str) -> None:
    """Closing ends the connections of this loop; the transport itself holds nothing that could be closed for good."""
    transport = default_transport(LOOPBACK)
    async with Receiver() as receiver:
        for expected in (1, 2):
            assert (await post(transport, receiver.url))[0] == 200
            await transport.aclose()
            await transport.aclose()
            assert receiver.records.connections == expected


def test_one_transport_serves_one_event_loop_after_the_other() -> None:
    """Each loop, of either library, has connections of its own."""
    transport = default_transport(LOOPBACK)

    async def use() -> int:
        async with Receiver() as receiver:
            status, _ = await post(transport, receiver.url)
            await transport.aclose()
            return status

    assert [anyio.run(use, backend=backend) for backend in ("asyncio", "trio", "asyncio")] == [200, 200, 200]


def test_each_event_loop_has_its_transport() -> None:
    """On asyncio our own sockets carry the requests, on trio httpcore."""
    transport = default_transport(LOOPBACK)

    async def use() -> type[httpx.AsyncBaseTransport]:
        async with Receiver() as receiver:
            await post(transport, receiver.url)
            assert isinstance(transport, EgressTransport)
            assert transport._latest is not None
            chosen = type(transport._latest[1].transport)
            await transport.aclose()
            return chosen

    assert anyio.run(use, backend="asyncio") is SocketTransport
    assert anyio.run(use, backend="trio") is HttpcoreTransport


def test_a_context_that_does_not_verify_is_refused() -> None:
    """TLS without verification cannot be asked for, not even with a context of one's own."""
    context = ssl.create_default_context()
    context.check_hostname = False
    with pytest.raises(ValueError, match="ssl_context"):
        default_transport(LOOPBACK, ssl_context=context)
    with pytest.raises(ValueError, match="policy"):
        default_transport([ipaddress.ip_network("127.0.0.0/8")])  # type: ignore[arg-type]
