"""One attempt: sign, POST, and say in one value how it ended.

Rules of this module:

* One attempt is one request. It never retries, never follows a redirect and never decodes a body.
* One total deadline stands over all of it: resolving, connecting, TLS, sending, headers and body.
* Once the headers are complete the status decides, whatever becomes of the body: a connection that breaks in it, or a
  deadline that passes while it trickles, changes nothing but what is kept of it.
* Whatever a receiver does ends as an `AttemptOutcome`. Only cancellations and programming errors leave as exceptions.
* An outcome shows no secret: neither a signing secret, nor the value of a custom header, nor a URL's path and query.

It speaks to an `httpx.AsyncBaseTransport` and knows no store, no schedule and no guard.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import functools
import re
import socket
import ssl
from typing import TYPE_CHECKING

import httpx

from resilience import Clock, SystemClock, TimeoutExceededError
from resilience.timers import TimeLimit
from webhook_adapter import signing
from webhook_adapter.egress import AddressRefusedError, DnsError, Received, Target, TlsError, exchange_over, parse_url
from webhook_adapter.model import AttemptOutcome, FailureKind, check_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from webhook_adapter.model import Endpoint, Message

__all__ = ["Sender", "parse_retry_after"]

_NANOSECONDS = 1_000_000_000
_MIN_STATUS, _MAX_STATUS = 100, 999
_MAX_ERROR = 200
_USER_AGENT = "webhook-adapter/1"
_SECONDS = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
_URL_OR_QUOTED = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S+|b?'[^']*'|b?\"[^\"]*\"")

_WORDS = {
    FailureKind.TIMEOUT: "the receiver took too long to answer",
    FailureKind.CONNECTION: "the connection broke or could not be made",
    FailureKind.DNS: "the host could not be resolved",
    FailureKind.TLS: "the TLS handshake failed",
    FailureKind.PROTOCOL: "the exchange was not valid HTTP",
    FailureKind.REFUSED: "the address is refused",
}


class Sender:
    """Sends one message to one endpoint once. May be shared between tasks, threads and event loops.

    Args:
        transport: carries the request; it is not closed here.
        attempt_timeout: seconds for one attempt in all. 15 is what the specification suggests as a minimum.
        max_response_bytes: how much of a response is read and kept; the rest is never read.
        clock: measures the deadline, and stamps the signature by its wall clock.
        user_agent: the User-Agent header, unless the endpoint sets one.

    Raises:
        ValueError: `attempt_timeout` is no positive number of seconds, `max_response_bytes` is no whole number of at
            least 0, or `user_agent` is no header value.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        attempt_timeout: float = 15.0,
        max_response_bytes: int = 16 * 1024,
        clock: Clock | None = None,
        user_agent: str = _USER_AGENT,
    ) -> None:
        if type(attempt_timeout) not in {int, float} or not 0 < attempt_timeout < float("inf"):
            raise ValueError(f"attempt_timeout must be a positive, finite number of seconds, not {attempt_timeout!r}")
        if type(max_response_bytes) is not int or max_response_bytes < 0:
            raise ValueError(f"max_response_bytes must be a whole number of at least 0, not {max_response_bytes!r}")
        _, self._user_agent = check_header("User-Agent", user_agent)
        self._attempt_timeout = float(attempt_timeout)
        self._max_response_bytes = max_response_bytes
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._target = functools.lru_cache(maxsize=4096)(self._target_uncached)
        self._post = TimeLimit(self._attempt_timeout, self._clock).around(exchange_over(transport).post)

    async def send(self, endpoint: Endpoint, message: Message) -> AttemptOutcome:
        """POST `message` to `endpoint`, freshly signed with all its unexpired secrets, and say how it ended.

        A checkpoint. A cancellation closes the connection and is passed on.

        Returns:
            The status if complete response headers came within the deadline, else the kind of failure.
        """
        clock = self._clock
        started_ns = clock.monotonic_ns()
        wall_ns = clock.time_ns()
        received = Received(self._max_response_bytes)
        failure: FailureKind | None = None
        error: str | None = None
        try:
            target = self._target(endpoint.url, endpoint.headers)
            headers = _signed(endpoint, message, wall_ns)
        except ValueError as exc:
            failure, error = FailureKind.PROTOCOL, f"the message cannot be sent: {exc}"
        else:
            try:
                await self._post(target, headers, message.body, received)
            except TimeoutExceededError:
                failure = FailureKind.TIMEOUT
                what = "no complete response" if received.status_code is None else "the response body did not end"
                error = f"{what} within {self._attempt_timeout:g} s"
            except (httpx.TransportError, httpx.StreamError, httpx.InvalidURL, OSError) as exc:
                failure = _kind(exc)
                words = _describe(exc, failure, endpoint, target.url)
                error = words if received.status_code is None else f"the response body broke off: {words}"
        duration = max(0, clock.monotonic_ns() - started_ns) / _NANOSECONDS
        status = received.status_code
        if status is not None:
            failure = None
            if not _MIN_STATUS <= status <= _MAX_STATUS:
                status, failure, error = None, FailureKind.PROTOCOL, "the response has no valid status"
        retry_after = None
        if status is not None and not 200 <= status <= 299:  # noqa: PLR2004 - who has it has no need to come back
            asked = received.header(b"retry-after")
            if asked is not None:
                retry_after = parse_retry_after(asked, now=clock.time_ns() / _NANOSECONDS)
        return AttemptOutcome(
            started_at=wall_ns / _NANOSECONDS,
            duration=duration,
            status_code=status,
            failure=failure,
            error=error,
            retry_after=retry_after,
            response_body=bytes(received.body) if status is not None else b"",
        )

    def _target_uncached(self, url: str, headers: tuple[tuple[str, str], ...]) -> Target:
        # Both were checked when the endpoint was registered. They are again here: a row may come from elsewhere.
        parsed = parse_url(url, allow_http=True)
        custom = [check_header(name, value) for name, value in headers]
        pairs = [("Host", parsed.netloc.decode("ascii")), ("Content-Type", "application/json")]
        if not any(name.lower() == "user-agent" for name, _ in custom):
            pairs.append(("User-Agent", self._user_agent))
        pairs += custom
        return Target.of(parsed, [(name.encode("ascii"), value.encode("ascii")) for name, value in pairs])


def _signed(endpoint: Endpoint, message: Message, wall_ns: int) -> list[tuple[bytes, bytes]]:
    now = wall_ns / _NANOSECONDS
    secrets = [each.value for each in endpoint.secrets if each.expires_at is None or each.expires_at > now]
    if not secrets:
        raise ValueError("the endpoint has no secret that has not expired")
    signed = signing.sign(message.id, wall_ns // _NANOSECONDS, message.body, secrets)
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in signed.items()]


def parse_retry_after(value: str, *, now: float) -> float | None:
    """Return how many seconds a Retry-After header asks to wait, from `now` (Unix seconds) where it names a date.

    Returns:
        At least 0, for a date in the past and for a negative number as well; not clamped above, so it may be
        infinite. None if the header says nothing that can be read.
    """
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return max(0.0, float(text))
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _kind(exc: BaseException) -> FailureKind:  # noqa: PLR0911 - a table, one line for each kind
    match exc:
        case AddressRefusedError():
            return FailureKind.REFUSED
        case DnsError() | socket.gaierror():
            return FailureKind.DNS
        case TlsError() | ssl.SSLError():
            return FailureKind.TLS
        case httpx.TimeoutException() | TimeoutError():
            return FailureKind.TIMEOUT
        case httpx.ConnectError():
            # A transport that the user brought tells TLS and DNS errors apart only by what caused them.
            for cause in _causes(exc):
                if isinstance(cause, (ssl.SSLError, socket.gaierror)):
                    return _kind(cause)
            return FailureKind.CONNECTION
        case httpx.NetworkError() | httpx.ProxyError() | OSError():
            return FailureKind.CONNECTION
        case _:
            return FailureKind.PROTOCOL


def _causes(exc: BaseException) -> Iterator[BaseException]:
    cause = exc.__cause__ or exc.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _describe(exc: Exception, kind: FailureKind, endpoint: Endpoint, url: httpx.URL) -> str:
    """Return one short sentence without anything secret: errors of other people's transports may quote a lot."""
    text = _URL_OR_QUOTED.sub("…", str(exc))
    hidden = [each.value for each in endpoint.secrets]
    hidden += [value for _, value in endpoint.headers]
    with contextlib.suppress(httpx.InvalidURL):
        hidden += [url.raw_path.decode("ascii"), url.path, url.query.decode("ascii")]
    for secret in sorted((each for each in hidden if len(each) > 1), key=len, reverse=True):
        text = text.replace(secret, "…")
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return (text or _WORDS[kind])[:_MAX_ERROR]
