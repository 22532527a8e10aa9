"""What the adapter speaks of: endpoints, messages, deliveries and attempts.

Rules of this module:

* Everything here is a frozen value. A record read from the store is a copy of a row at one instant; it never changes.
* Times are Unix seconds (`float`); durations are seconds. `_at` ends an instant.
* What a user configures (`Endpoint`, `SigningSecret`) and what the sender reports (`AttemptOutcome`) is validated when
  it is made, so an illegal one cannot exist. Rows that the store wrote itself are not validated again.
* No secret is ever shown: a signing secret and the values of custom headers are left out of every repr.

It knows neither the database nor HTTP, and imports nothing of the adapter.
"""

from __future__ import annotations

import datetime as dt
import enum
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import attrs

__all__ = [
    "Attempt",
    "AttemptOutcome",
    "Delivery",
    "DeliveryState",
    "Endpoint",
    "FailureKind",
    "JsonValue",
    "Message",
    "SigningSecret",
    "as_channels",
    "as_metadata",
    "check_event_pattern",
    "check_event_type",
    "check_header",
    "encode_body",
    "matches_event_type",
]

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

_NO_METADATA: Mapping[str, str] = MappingProxyType({})
_EVENT_TYPE = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*", re.ASCII)
_MAX_EVENT_TYPE = 256
# RFC 9110, section 5.6.2: what a header's name is made of.
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
# Visible ASCII, and blanks between: CR, LF and NUL would let one header become two, and others read it otherwise.
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?", re.ASCII)
_SECRET_PREFIXES = ("whsec_", "whsk_")
_MIN_STATUS = 100
_MAX_STATUS = 999


class DeliveryState(enum.StrEnum):
    """Where a delivery stands. PENDING and LEASED are on their way; the other three are final."""

    PENDING = "pending"
    LEASED = "leased"
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELLED = "cancelled"


class FailureKind(enum.StrEnum):
    """Why an attempt ended without a complete response."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    DNS = "dns"
    TLS = "tls"
    PROTOCOL = "protocol"
    REFUSED = "refused"
    """The egress policy refused the address; nothing was sent."""


def check_event_type(event_type: str) -> str:
    """Return `event_type` as it is, or raise ValueError: words of letters, digits, "_" and "-", joined by "."."""
    if (
        not isinstance(event_type, str)
        or len(event_type) > _MAX_EVENT_TYPE
        or _EVENT_TYPE.fullmatch(event_type) is None
    ):
        raise ValueError(
            f"event_type must be names of letters, digits, '_' and '-' joined by full stops, not {_short(event_type)}"
        )
    return event_type


def check_event_pattern(pattern: str) -> str:
    """Return `pattern` as it is, or raise ValueError: an event type, "*", or a type with ".*" behind it."""
    if pattern == "*":
        return pattern
    if not isinstance(pattern, str):
        raise ValueError(f"event_types must hold text, not {_short(pattern)}")
    try:
        check_event_type(pattern.removesuffix(".*"))
    except ValueError:
        raise ValueError(
            f"event_types must hold event types, '*' or prefixes such as 'order.*', not {_short(pattern)}"
        ) from None
    return pattern


def matches_event_type(pattern: str, event_type: str) -> bool:
    """Tell whether an endpoint with `pattern` wants `event_type`. "order.*" is every type below order, not "order"."""
    if pattern == "*":
        return True
    if pattern.endswith(".*"):
        return event_type.startswith(pattern[:-1])
    return pattern == event_type


def check_header(name: str, value: str) -> tuple[str, str]:
    """Return a custom header as it is, or raise ValueError, which never shows its value.

    Refused are names that are no token, values beyond visible ASCII with blanks inside (CR, LF and NUL above all),
    and the headers that the sender itself sets: Host, those that frame the request, and every `webhook-` header.
    """
    if not isinstance(name, str) or _HEADER_NAME.fullmatch(name) is None:
        raise ValueError(f"headers must have names that are HTTP tokens, not {_short(name)}")
    lowered = name.lower()
    if lowered.startswith("webhook-") or lowered in _OWN_HEADERS:
        raise ValueError(f"headers must not set {_short(name)}: the sender sets it")
    if not isinstance(value, str) or _HEADER_VALUE.fullmatch(value) is None:
        raise ValueError(f"headers must have values of visible ASCII; that of {_short(name)} is not")
    return name, value


_OWN_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def encode_body(event_type: str, occurred_at: float, data: JsonValue) -> bytes:
    """Return the JSON that is POSTed: {"type", "timestamp", "data"}, in UTF-8.

    Args:
        event_type: a checked event type.
        occurred_at: Unix time in seconds; written in ISO 8601, in UTC.
        data: what happened; anything that JSON can say.

    Raises:
        ValueError: `data` holds what JSON cannot say (NaN, a set, a cycle), or `occurred_at` is out of range.
    """
    stamp = _timestamp(occurred_at)
    try:
        payload = _encode(data)
        return f'{{"type":"{event_type}","timestamp":"{stamp}","data":{payload}}}'.encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"data must be what JSON can say: {exc}") from exc


# ASCII only: a lone surrogate in a string would otherwise fail in UTF-8, and every JSON parser reads it alike.
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def _timestamp(occurred_at: float) -> str:
    try:
        second, microseconds = divmod(round(occurred_at * 1_000_000), 1_000_000)
        return f"{_second(second)}.{microseconds:06}Z"
    except (TypeError, ValueError, OverflowError, OSError):
        raise ValueError(f"occurred_at must be Unix time in seconds, not {_short(occurred_at)}") from None


@functools.lru_cache(maxsize=256)
def _second(second: int) -> str:
    """Return a whole second in ISO 8601, in UTC. Kept, since most messages occur in the second of the last one."""
    return dt.datetime.fromtimestamp(second, dt.UTC).isoformat().removesuffix("+00:00")


def _short(value: object) -> str:
    """Return the repr of a refused value, cut: it may be long, and it comes from a stranger."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004 - what fits a line


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_instant(name: str, value: float) -> None:
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name} must be Unix time in seconds, not {_short(value)}")


def _instant(_owner: object, attribute: attrs.Attribute[float], value: float) -> None:
    _check_instant(attribute.name, value)


def _optional_instant(_owner: object, attribute: attrs.Attribute[float | None], value: float | None) -> None:
    if value is not None:
        _check_instant(attribute.name, value)


def _text(_owner: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{attribute.name} must be text, not {_short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{attribute.name} must be text that UTF-8 can hold, not {_short(value)}") from None


def _flag(_owner: object, attribute: attrs.Attribute[bool], value: bool) -> None:  # noqa: FBT001 - attrs calls it so
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name} must be True or False, not {_short(value)}")


def as_metadata(value: Mapping[str, str]) -> Mapping[str, str]:
    """Return metadata as a mapping that cannot change, or raise ValueError: it maps text to text."""
    if not value:
        return _NO_METADATA
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(item, str) for key, item in value.items()
    ):
        raise ValueError(f"metadata must map text to text, not {_short(value)}")
    return MappingProxyType(dict(value))


def _texts(value: object, name: str) -> tuple[str, ...]:
    """Return a tuple of texts; a single text is refused, since it would be taken letter by letter."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError(f"{name} must be a collection of texts, not {_short(value)}")
    texts = tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a collection of texts, not {_short(texts)}")
    return texts


def as_channels(value: object) -> tuple[str, ...]:
    """Return channels as a tuple, or raise ValueError: a collection of texts, and no single text."""
    return _texts(value, "channels")


def _event_types(value: object) -> tuple[str, ...]:
    patterns = _texts(value, "event_types")
    if not patterns:
        raise ValueError("event_types must name at least one event type; '*' is all of them")
    for pattern in patterns:
        check_event_pattern(pattern)
    return patterns


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple | list):
        raise ValueError("headers must be pairs of a name and a value")
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:  # noqa: PLR2004 - a pair
            raise ValueError("headers must be pairs of a name and a value")
    return tuple(check_header(name, text) for name, text in pairs)


def _show_header_names(headers: tuple[tuple[str, str], ...]) -> str:
    return repr(tuple((name, "…") for name, _value in headers))


@attrs.frozen
class SigningSecret:
    """A secret that messages to an endpoint are signed with.

    Attributes:
        value: "whsec_…"; never shown.
        expires_at: the end of its rotation overlap; None for the current one.
    """

    value: str = attrs.field(repr=False)
    expires_at: float | None = attrs.field(default=None, validator=_optional_instant)

    @value.validator
    def _check_value(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if not isinstance(value, str) or not value.startswith(_SECRET_PREFIXES) or value in _SECRET_PREFIXES:
            raise ValueError("value must be a signing secret that starts with 'whsec_' or 'whsk_'")


def _secrets(value: Iterable[SigningSecret]) -> tuple[SigningSecret, ...]:
    secrets = tuple(value)
    if not all(isinstance(secret, SigningSecret) for secret in secrets):
        raise ValueError("secrets must hold SigningSecret values")
    return secrets


@attrs.frozen
class Endpoint:
    """Where messages go to, and on which terms.

    Attributes:
        id: "ep_…".
        url: checked by the egress policy when it is registered; here it is only text.
        event_types: exact types, "*", or prefixes such as "order.*".
        headers: sent with every attempt; their values are never shown.
        secrets: the current one, and those in their rotation overlap.
        enabled: False holds its deliveries until it is enabled again or they expire.
        disabled_reason: why it is not enabled: a 410, or what a person said.
        paused: held like a disabled one, but by intention and without blame.
        ordered: one delivery at a time, in the order of acceptance.
        rate_limit: attempts per second; None is no limit.
        owner: whose it is: only messages with the same owner go to it.
        channels: empty takes messages of every channel; else a message with channels must share one.
        blocked_until: nothing is claimed for it before this instant (a breaker or limiter holds it back).
    """

    id: str = attrs.field(validator=_text)
    url: str = attrs.field(validator=_text)
    description: str = attrs.field(default="", kw_only=True, validator=_text)
    event_types: tuple[str, ...] = attrs.field(default=("*",), kw_only=True, converter=_event_types)
    headers: tuple[tuple[str, str], ...] = attrs.field(
        default=(), kw_only=True, converter=_headers, repr=_show_header_names
    )
    secrets: tuple[SigningSecret, ...] = attrs.field(default=(), kw_only=True, converter=_secrets, repr=False)
    enabled: bool = attrs.field(default=True, kw_only=True, validator=_flag)
    disabled_reason: str | None = attrs.field(default=None, kw_only=True)
    paused: bool = attrs.field(default=False, kw_only=True, validator=_flag)
    ordered: bool = attrs.field(default=False, kw_only=True, validator=_flag)
    rate_limit: float | None = attrs.field(default=None, kw_only=True)
    owner: str = attrs.field(default="", kw_only=True, validator=_text)
    metadata: Mapping[str, str] = attrs.field(default=_NO_METADATA, kw_only=True, converter=as_metadata, hash=False)
    channels: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=as_channels)
    blocked_until: float = attrs.field(default=0.0, kw_only=True, validator=_instant)
    created_at: float = attrs.field(kw_only=True, validator=_instant)
    updated_at: float = attrs.field(kw_only=True, validator=_instant)

    @rate_limit.validator
    def _check_rate_limit(self, _attribute: attrs.Attribute[float | None], value: float | None) -> None:
        if value is not None and (not _is_number(value) or not math.isfinite(value) or value <= 0):
            raise ValueError(f"rate_limit must be a positive number of attempts per second, not {_short(value)}")

    def wants(self, event_type: str, channels: tuple[str, ...] = ()) -> bool:
        """Tell whether a message of this type, in these channels, is for this endpoint (whoever owns it)."""
        if self.channels and channels and not set(self.channels) & set(channels):
            return False
        return any(matches_event_type(pattern, event_type) for pattern in self.event_types)


@attrs.frozen(kw_only=True)
class Message:
    """What happened, once; the same for every endpoint that it goes to.

    Attributes:
        id: "msg_…", the webhook-id of every attempt.
        body: the exact bytes that are POSTed: JSON with "type", "timestamp" and "data".
        occurred_at: what the body's timestamp says.
        accepted_at: when it was taken in.
        deliver_at: no attempt starts before this instant.
        expires_at: what is not delivered by then ends dead, "expired"; None is never.
    """

    id: str
    event_type: str
    body: bytes = attrs.field(repr=False)
    idempotency_key: str | None = None
    ordering_key: str | None = None
    occurred_at: float
    accepted_at: float
    deliver_at: float
    expires_at: float | None = None
    owner: str = ""
    channels: tuple[str, ...] = ()
    metadata: Mapping[str, str] = attrs.field(default=_NO_METADATA, hash=False)

    @property
    def data(self) -> JsonValue:
        """The "data" of the body, parsed afresh at each access."""
        data: JsonValue = json.loads(self.body)["data"]
        return data


@attrs.frozen(kw_only=True)
class Delivery:
    """One message on its way to one endpoint.

    Attributes:
        id: "dlv_…".
        due_at: when it may be claimed; of a LEASED one, when it was due.
        expires_at: when it is given up; its message's, until a retry by hand renews it. None is never.
        attempts: how many attempts have ended, in all.
        round_attempts: how many of those in this round; a retry by hand begins a new one.
        reason: why it is DEAD or CANCELLED.
        lease_token: counts its leases; what is recorded under an older one does not count.
        lease_until: when the present lease ends; None unless LEASED.
        sequence: its place in the order; None where there is none.
    """

    id: str
    message_id: str
    endpoint_id: str
    state: DeliveryState
    due_at: float
    expires_at: float | None = None
    attempts: int = 0
    round_attempts: int = 0
    reason: str | None = None
    lease_token: int = 0
    lease_until: float | None = None
    sequence: int | None = None
    ordering_key: str | None = None
    created_at: float
    finished_at: float | None = None


@attrs.frozen(kw_only=True)
class Attempt:
    """One HTTP exchange, as it was recorded.

    Attributes:
        id: "atm_…".
        number: from 1, and on across retry rounds.
        duration: seconds from its start to its end.
        status_code: of a complete response; None if there was none.
        failure: why there was none.
        error: one sentence about it; holds no secret.
        response_body: the beginning of the response, cut at the configured size.
    """

    id: str
    delivery_id: str
    message_id: str
    endpoint_id: str
    number: int
    started_at: float
    duration: float
    status_code: int | None = None
    failure: FailureKind | None = None
    error: str | None = None
    response_body: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen(kw_only=True)
class AttemptOutcome:
    """How one attempt ended: what the sender returns, and what breaker and lifecycle both judge.

    Attributes:
        started_at: Unix time.
        duration: seconds.
        status_code: when complete response headers came; else None.
        failure: why they did not come; exactly one of the two is set.
        error: one short sentence; never a secret, never a URL's userinfo or query.
        retry_after: seconds that the receiver asked for, unclamped (it may be infinite); None if it asked for nothing
            that could be read.
        response_body: the beginning of the response, cut at the configured size.
    """

    started_at: float = attrs.field(validator=_instant)
    duration: float = attrs.field()
    status_code: int | None = attrs.field(default=None)
    failure: FailureKind | None = attrs.field(default=None)
    error: str | None = None
    retry_after: float | None = attrs.field(default=None)
    response_body: bytes = attrs.field(default=b"", repr=False)

    @duration.validator
    def _check_duration(self, _attribute: attrs.Attribute[float], value: float) -> None:
        if not _is_number(value) or not math.isfinite(value) or value < 0:
            raise ValueError(f"duration must be a number of seconds of at least 0, not {_short(value)}")

    @status_code.validator
    def _check_status(self, _attribute: attrs.Attribute[int | None], value: int | None) -> None:
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or not _MIN_STATUS <= value <= _MAX_STATUS
        ):
            raise ValueError(f"status_code must be an HTTP status, not {_short(value)}")

    @failure.validator
    def _check_failure(self, _attribute: attrs.Attribute[FailureKind | None], value: FailureKind | None) -> None:
        if value is not None and not isinstance(value, FailureKind):
            raise ValueError(f"failure must be a FailureKind, not {_short(value)}")
        if (value is None) == (self.status_code is None):
            raise ValueError(f"failure must be set exactly when status_code is not: {value!r}, {self.status_code!r}")

    @retry_after.validator
    def _check_retry_after(self, _attribute: attrs.Attribute[float | None], value: float | None) -> None:
        if value is not None and (not _is_number(value) or not value >= 0):
            raise ValueError(f"retry_after must be a number of seconds of at least 0, not {_short(value)}")

    @property
    def succeeded(self) -> bool:
        """Whether the receiver took the message: a status from 200 to 299, and nothing else."""
        return self.status_code is not None and 200 <= self.status_code < 300  # noqa: PLR2004 - RFC 9110, 15.3
