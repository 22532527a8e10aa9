"""One attempt and its outcome: what is sent, how every misbehaviour ends, and what an outcome never shows."""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import math
import socket
import ssl
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import SystemClock
from tests.adapter.peers import Peer, listening
from webhook_adapter.egress import EgressPolicy, default_transport
from webhook_adapter.model import AttemptOutcome, Endpoint, FailureKind, Message, SigningSecret
from webhook_adapter.sender import Sender, parse_retry_after
from webhook_adapter.signing import verify
from webhook_adapter.testing import Fault, Receiver, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager

pytestmark = pytest.mark.anyio

NOW = 1_700_000_000.0
CURRENT = "whsec_" + base64.b64encode(b"current-" * 4).decode()
RETIRING = "whsec_" + base64.b64encode(b"retiring" * 4).decode()
EXPIRED = "whsec_" + base64.b64encode(b"expired-" * 4).decode()
POLICY = EgressPolicy(allow=["127.0.0.0/8"])
MESSAGE = Message(
    id="msg_1", event_type="a.b", body=b'{"type":"a.b","data":1}', occurred_at=NOW, accepted_at=NOW, deliver_at=NOW
)


class FrozenWall(SystemClock):
    """The system's clock, but its wall clock always says the same."""

    def time_ns(self) -> int:
        return int(NOW * 1e9) + 999_999_999


SECRETS = (SigningSecret(CURRENT), SigningSecret(RETIRING, NOW + 60), SigningSecret(EXPIRED, NOW))


def endpoint(
    url: str, *, headers: tuple[tuple[str, str], ...] = (), secrets: tuple[SigningSecret, ...] = SECRETS
) -> Endpoint:
    """Return an endpoint with three secrets, one of them expired, unless others are given."""
    return Endpoint("ep_1", url, headers=headers, secrets=secrets, created_at=NOW, updated_at=NOW)


@pytest.fixture
async def transport() -> AsyncIterator[httpx.AsyncBaseTransport]:
    """A transport that may reach this machine."""
    async with default_transport(POLICY) as made:
        yield made


def answering(handler: Callable[[httpx.Request], httpx.Response], **options: object) -> Sender:
    """Return a sender whose transport is `handler`."""
    return Sender(httpx.MockTransport(handler), **options)  # type: ignore[arg-type]


async def attempt(sender: Sender, to: Endpoint) -> AttemptOutcome:
    """Send the message, and fail the test if that takes for ever."""
    with anyio.fail_after(20):
        return await sender.send(to, MESSAGE)


async def test_what_is_sent_is_signed_json(transport: httpx.AsyncBaseTransport) -> None:
    """WH7: the exact body arrives with the three headers, and verifies with each unexpired secret and no other."""
    sender = Sender(transport, clock=FrozenWall())
    async with Receiver(Reply(202, body=b"thanks")) as receiver:
        outcome = await attempt(sender, endpoint(receiver.url + "hook?x=1", headers=(("X-Tenant", "7"),)))
        (request,) = receiver.requests
    assert (outcome.status_code, outcome.failure, outcome.error, outcome.succeeded) == (202, None, None, True)
    assert outcome.response_body == b"thanks"
    assert outcome.started_at == NOW + 0.999999999
    assert (request.method, request.path, request.body) == ("POST", "/hook?x=1", MESSAGE.body)
    assert dict(request.headers) == {
        "host": f"127.0.0.1:{receiver.port}",
        "content-type": "application/json",
        "content-length": str(len(MESSAGE.body)),
        "user-agent": "webhook-adapter/1",
        "x-tenant": "7",
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(NOW)),
        "webhook-signature": request.header("webhook-signature"),
    }
    for secret in (CURRENT, RETIRING):
        assert verify(request.headers, request.body, [secret], now=NOW) == {"type": "a.b", "data": 1}
    assert len((request.header("webhook-signature") or "").split(" ")) == 2


async def test_a_rotated_secret_signs_the_next_attempt(transport: httpx.AsyncBaseTransport) -> None:
    """F39: each attempt is signed afresh, with the secrets that the endpoint has by then."""
    sender = Sender(transport)
    async with Receiver([Reply(500), Reply(200)]) as receiver:
        first = endpoint(receiver.url, secrets=(SigningSecret(CURRENT),))
        assert (await attempt(sender, first)).status_code == 500
        assert (await attempt(sender, endpoint(receiver.url, secrets=(SigningSecret(RETIRING),)))).succeeded
        old, new = receiver.requests
    assert verify(old.headers, old.body, [CURRENT])
    assert verify(new.headers, new.body, [RETIRING])


async def test_an_endpoint_may_name_its_own_agent() -> None:
    """The User-Agent is the one header of ours that an endpoint may replace."""
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.extend(request.headers.get_list("user-agent"))
        return httpx.Response(200)

    sender = answering(handler, user_agent="shop/2")
    await attempt(sender, endpoint("https://example.com/"))
    await attempt(sender, endpoint("https://example.com/", headers=(("user-agent", "mine"),)))
    assert seen == ["shop/2", "mine"]


@pytest.mark.parametrize(
    "secrets",
    [(), (SigningSecret(EXPIRED, 1.0),), (SigningSecret("whsec_canary"),)],
    ids=["none", "expired", "unusable"],
)
async def test_nothing_is_sent_unsigned(secrets: tuple[SigningSecret, ...]) -> None:
    """Without a secret that can be used there is no request, and the outcome says so without showing one."""

    def handler(_: httpx.Request) -> httpx.Response:
        raise AssertionError

    outcome = await attempt(answering(handler), endpoint("https://example.com/", secrets=secrets))
    assert outcome.failure is FailureKind.PROTOCOL
    assert "canary" not in repr(outcome)


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "https://u:canary@example.com/", "https://ex\nample.com/", "nonsense"]
)
async def test_an_unusable_url_in_a_row_is_an_outcome(url: str) -> None:
    """F36, F38: what should never have been stored is not sent, does not crash, and is not shown."""
    outcome = await attempt(answering(lambda _: httpx.Response(200)), endpoint(url))
    assert outcome.failure is FailureKind.PROTOCOL
    assert "canary" not in repr(outcome)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.RESET, FailureKind.CONNECTION),
        (Fault.CLOSE, FailureKind.CONNECTION),
        (Fault.CLOSE_MID_HEADERS, FailureKind.CONNECTION),
        (Fault.MALFORMED, FailureKind.PROTOCOL),
        (Fault.HTTP_0_9, FailureKind.PROTOCOL),
        (Fault.MANY_HEADERS, FailureKind.PROTOCOL),
        (Fault.LONG_HEADER, FailureKind.PROTOCOL),
        (Fault.ENDLESS_INFORMATIONAL, FailureKind.PROTOCOL),
    ],
)
async def test_a_receiver_that_breaks_the_protocol_is_an_outcome(
    transport: httpx.AsyncBaseTransport, fault: Fault, kind: FailureKind
) -> None:
    """F20, F23, F24, F29: each misbehaviour before complete headers is a failure of the same kind on both loops."""
    async with Receiver(Reply(fault=fault)) as receiver:
        outcome = await attempt(Sender(transport), endpoint(receiver.url))
    assert (outcome.status_code, outcome.failure) == (None, kind)
    assert outcome.error


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.HANG_MID_HEADERS, Fault.DRIP_HEADERS])
async def test_the_total_deadline_ends_what_hangs(transport: httpx.AsyncBaseTransport, fault: Fault) -> None:
    """WH11, F20, F21: no answer, half of one, and one byte at a time all end at the deadline."""
    async with Receiver(Reply(fault=fault, pace=0.01, headers=(("X-Long", "." * 5000),))) as receiver:
        outcome = await attempt(Sender(transport, attempt_timeout=0.1), endpoint(receiver.url))
    assert (outcome.status_code, outcome.failure) == (None, FailureKind.TIMEOUT)
    assert outcome.error == "no complete response within 0.1 s"


async def test_the_deadline_covers_connecting(transport: httpx.AsyncBaseTransport) -> None:
    """F19, F20: a TLS handshake that hangs ends at the same deadline."""
    async with Receiver(silent=True) as receiver:
        url = receiver.url.replace("http:", "https:")
        outcome = await attempt(Sender(transport, attempt_timeout=0.1), endpoint(url))
    assert outcome.failure is FailureKind.TIMEOUT


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("fault", [Fault.DRIP_BODY, Fault.CLOSE_MID_BODY])
async def test_after_complete_headers_the_status_decides(
    transport: httpx.AsyncBaseTransport, fault: Fault, status: int
) -> None:
    """F21, F28, F29: a body that trickles past the deadline or breaks off takes nothing back, and what came is kept."""
    async with Receiver(Reply(status, body=b"beginning", fault=fault, pace=0.01)) as receiver:
        outcome = await attempt(Sender(transport, attempt_timeout=0.2), endpoint(receiver.url))
    assert (outcome.status_code, outcome.failure, outcome.succeeded) == (status, None, status == 200)
    assert outcome.response_body.startswith(b"beginning" if fault is Fault.CLOSE_MID_BODY else b".")
    assert "body" in (outcome.error or "")


@pytest.mark.parametrize("cap", [0, 1, 1000])
async def test_an_endless_body_is_cut_at_the_cap(transport: httpx.AsyncBaseTransport, cap: int) -> None:
    """WH11, F22, F37: no more is kept than the cap, and the rest is never read."""
    async with Receiver(Reply(fault=Fault.ENDLESS_BODY)) as receiver:
        outcome = await attempt(Sender(transport, max_response_bytes=cap), endpoint(receiver.url))
    assert (outcome.status_code, outcome.error, outcome.response_body) == (200, None, b"." * cap)


@pytest.mark.parametrize("behind", [b"zz\r\n", b"3\r\nabcdef\r\n", b"0\r\n\r\nmore", b""])
async def test_what_comes_behind_the_cap_is_nobody_s_concern(
    transport: httpx.AsyncBaseTransport, behind: bytes
) -> None:
    """F22, F23: good or bad, it is not looked at, even if it has come with the rest."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + behind)

    async with listening(script) as peers:
        outcome = await attempt(Sender(transport, max_response_bytes=2), endpoint(f"http://127.0.0.1:{peers.port}/"))
    assert (outcome.status_code, outcome.failure, outcome.response_body) == (200, None, b"he")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(transport: httpx.AsyncBaseTransport, status: int) -> None:
    """F25: a redirect is a status like any other that is not 2xx."""
    async with Receiver() as target, Receiver(Reply(status, headers=(("Location", target.url),))) as receiver:
        outcome = await attempt(Sender(transport), endpoint(receiver.url))
        assert (outcome.status_code, outcome.succeeded, target.total) == (status, False, 0)


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_every_2xx_without_a_body_is_a_success(transport: httpx.AsyncBaseTransport, status: int) -> None:
    """F29: an empty success is one, and its connection is used again."""
    async with Receiver(Reply(status)) as receiver:
        for _ in range(2):
            assert (await attempt(Sender(transport), endpoint(receiver.url))).succeeded
        assert receiver.records.connections == 1


async def test_a_refused_address_is_an_outcome() -> None:
    """WH10: the egress policy's no is told apart from a failure of the receiver."""
    async with default_transport(EgressPolicy()) as transport:
        outcome = await attempt(Sender(transport), endpoint("https://127.0.0.1:1/canary?canary"))
    assert (outcome.failure, outcome.status_code) == (FailureKind.REFUSED, None)
    assert "127.0.0.0/8" in (outcome.error or "")


@pytest.mark.parametrize(("header", "expected"), [("7", 7.0), ("-7", 0.0), ("1e18", 1e18), ("soon", None)])
async def test_retry_after_is_handed_on(header: str, expected: float | None) -> None:
    """F26: what the receiver asks for is in the outcome, as a number of seconds that is not clamped."""
    sender = answering(lambda _: httpx.Response(503, headers={"Retry-After": header}))
    assert (await attempt(sender, endpoint("https://example.com/"))).retry_after == expected


def caused(error: Exception, cause: Exception) -> Exception:
    """Return `error` as if it had been raised from `cause`."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectTimeout("x"), FailureKind.TIMEOUT),
        (httpx.ReadTimeout(""), FailureKind.TIMEOUT),
        (httpx.PoolTimeout("x"), FailureKind.TIMEOUT),
        (TimeoutError("x"), FailureKind.TIMEOUT),
        (httpx.ConnectError("x"), FailureKind.CONNECTION),
        (caused(httpx.ConnectError("x"), ssl.SSLError(1, "x")), FailureKind.TLS),
        (caused(httpx.ConnectError("x"), socket.gaierror(-2, "x")), FailureKind.DNS),
        (httpx.ReadError("x"), FailureKind.CONNECTION),
        (httpx.WriteError("x"), FailureKind.CONNECTION),
        (httpx.ProxyError("x"), FailureKind.CONNECTION),
        (ConnectionResetError("x"), FailureKind.CONNECTION),
        (ssl.SSLError(1, "x"), FailureKind.TLS),
        (socket.gaierror(-2, "x"), FailureKind.DNS),
        (httpx.RemoteProtocolError("x"), FailureKind.PROTOCOL),
        (httpx.LocalProtocolError("x"), FailureKind.PROTOCOL),
        (httpx.UnsupportedProtocol("x"), FailureKind.PROTOCOL),
        (httpx.InvalidURL("x"), FailureKind.PROTOCOL),
    ],
    ids=lambda value: (
        f"{type(value).__name__}-{type(value.__cause__).__name__}" if isinstance(value, Exception) else None
    ),
)
async def test_every_error_of_a_transport_has_a_kind(error: Exception, kind: FailureKind) -> None:
    """A transport that the user brings may fail in any of httpx's ways, or the system's; each becomes an outcome."""

    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    outcome = await attempt(answering(handler), endpoint("https://example.com/"))
    assert (outcome.failure, outcome.status_code) == (kind, None)
    assert outcome.error


async def test_an_outcome_shows_no_secret() -> None:
    """WH12, F38: whatever an error quotes of URL, headers or secrets is taken out, and what is left is short."""

    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError(
            f"POST {request.url} failed on /canary/path?token=canary with b'canary' "
            f"{request.headers['authorization']} {CURRENT}\r\n" + "long " * 100
        )

    to = endpoint("https://example.com/canary/path?token=canary", headers=(("Authorization", "Bearer canary"),))
    outcome = await attempt(answering(handler), to)
    assert "canary" not in repr(outcome)
    assert CURRENT not in repr(outcome)
    assert len(outcome.error or "") <= 200
    assert "\n" not in (outcome.error or "")
    assert "failed on" in (outcome.error or "")


async def test_a_programming_error_is_not_an_outcome() -> None:
    """What is wrong with the program, not with the receiver, is raised."""

    def handler(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await attempt(answering(handler), endpoint("https://example.com/"))
    with pytest.raises(TypeError, match="asynchronous"):
        await attempt(
            answering(lambda _: httpx.Response(200, stream=httpx.SyncByteStream())), endpoint("https://example.com/")
        )


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DRIP_BODY])
async def test_a_cancellation_is_passed_on(transport: httpx.AsyncBaseTransport, fault: Fault) -> None:
    """An attempt that is cancelled, before or within the body, has no outcome."""
    outcomes: list[AttemptOutcome] = []

    async def one() -> None:
        outcomes.append(await Sender(transport).send(endpoint(receiver.url), MESSAGE))

    async with Receiver(Reply(fault=fault)) as receiver, anyio.create_task_group() as group:
        group.start_soon(one)
        await receiver.wait_for(1)
        group.cancel_scope.cancel()
    assert outcomes == []


async def test_the_clock_given_measures_and_limits_the_attempt() -> None:
    """Duration and deadline are the clock's, so that an attempt can be tested without waiting."""

    class Turned(SystemClock):
        seconds = 0

        def monotonic_ns(self) -> int:
            return self.seconds * 10**9

        def fail_after(self, seconds: float, /) -> AbstractContextManager[object]:
            limits.append(seconds)
            return super().fail_after(seconds)

    limits: list[float] = []
    clock = Turned()

    def answer(_: httpx.Request) -> httpx.Response:
        clock.seconds += 2
        return httpx.Response(200)

    sender = answering(answer, clock=clock, attempt_timeout=3)
    outcome = await attempt(sender, endpoint("https://example.com/"))
    assert (outcome.duration, limits) == (2.0, [3.0])


@pytest.mark.parametrize("timeout", [0, -1, True, math.nan, math.inf, "1"])
def test_a_timeout_that_is_no_duration_is_refused(timeout: float) -> None:
    """The error names the argument."""
    with pytest.raises(ValueError, match="attempt_timeout"):
        answering(lambda _: httpx.Response(200), attempt_timeout=timeout)


def test_a_cap_or_an_agent_that_cannot_be_is_refused() -> None:
    """The error names the argument."""
    for cap in (-1, True, 1.5):
        with pytest.raises(ValueError, match="max_response_bytes"):
            answering(lambda _: httpx.Response(200), max_response_bytes=cap)
    with pytest.raises(ValueError, match="User-Agent"):
        answering(lambda _: httpx.Response(200), user_agent="a\r\nb")


@given(st.floats(min_value=0, allow_infinity=False))
def test_retry_after_in_seconds_is_read_as_it_is(seconds: float) -> None:
    """F26: any number of seconds, however large, comes back; its negative counts as now."""
    assert parse_retry_after(f"{seconds!r}", now=NOW) == seconds
    assert parse_retry_after(f" -{seconds!r} ", now=NOW) == 0


@given(st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC)))  # noqa: DTZ001 - bounds
def test_retry_after_as_a_date_counts_from_now(moment: dt.datetime) -> None:
    """F26: a date in the future is so many seconds away, one in the past is now."""
    moment = moment.replace(microsecond=0)
    header = email.utils.format_datetime(moment, usegmt=True)
    assert parse_retry_after(header, now=NOW) == max(0.0, moment.timestamp() - NOW)


@pytest.mark.parametrize(
    "header", ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Sun, 06 Nov 1994 08:49:37 GMT"]
)
def test_retry_after_knows_all_three_forms_of_a_date(header: str) -> None:
    """RFC 9110 asks recipients to read the two obsolete forms as well."""
    assert parse_retry_after(header, now=784111770.0) == 7.0


@given(st.text())
def test_garbage_in_retry_after_never_crashes(header: str) -> None:
    """F26: whatever a receiver writes, the result is None or at least 0."""
    seconds = parse_retry_after(header, now=NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    "header", ["", "soon", "120, 60", "nan", "inf", "0x10", "1_000", "٣", "Sun, 99 Nov 1994 08:49:37 GMT"]
)
def test_what_cannot_be_read_is_nothing(header: str) -> None:
    """F26: garbage means the normal backoff, which None stands for."""
    assert parse_retry_after(header, now=NOW) is None
