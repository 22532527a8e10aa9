"""The records: what cannot exist, and what is never shown."""

from __future__ import annotations

import json
import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_adapter.model import (
    Attempt,
    AttemptOutcome,
    Endpoint,
    FailureKind,
    JsonValue,
    Message,
    SigningSecret,
    check_event_pattern,
    check_event_type,
    check_header,
    encode_body,
    matches_event_type,
)

NOW = 1_700_000_000.0
SECRET = "whsec_canarycanary"


def endpoint(**fields: object) -> Endpoint:
    """Return an endpoint with these fields."""
    return Endpoint("ep_1", "https://a.example/", **{"created_at": NOW, "updated_at": NOW, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("event_type", ["order.paid", "a", "A_1-b.c", "x" * 256])
def test_event_types_that_are_taken(event_type: str) -> None:
    """Words joined by full stops."""
    assert check_event_type(event_type) == event_type


@pytest.mark.parametrize("event_type", ["", ".", "a.", ".a", "a..b", "a b", "a\n", "é", "*", "a.*", "x" * 257, 5, None])
def test_event_types_that_are_refused(event_type: object) -> None:
    """Anything else, a wildcard too: nothing happens of type "order.*"."""
    with pytest.raises(ValueError, match="event_type must be"):
        check_event_type(event_type)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["**", "a*", "*.a", ".*", "a.*.b", "", 5])
def test_patterns_that_are_refused(pattern: object) -> None:
    """A wildcard stands alone or behind a full stop at the end."""
    with pytest.raises(ValueError, match="event_types must hold"):
        check_event_pattern(pattern)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "event_type", "matches"),
    [
        ("*", "order.paid", True),
        ("order.*", "order.paid", True),
        ("order.*", "order.item.added", True),
        ("order.*", "order", False),
        ("order.*", "orders.paid", False),
        ("order.paid", "order.paid", True),
        ("order.paid", "order.paid.late", False),
    ],
)
def test_patterns_match_below_their_prefix(pattern: str, event_type: str, matches: bool) -> None:  # noqa: FBT001 - a table
    """The pattern "order.*" is every type below order, and not order itself."""
    assert check_event_pattern(pattern) == pattern
    assert matches_event_type(pattern, event_type) is matches


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "canary\r\nX-B: 1"),
        ("X-A", "canary\n"),
        ("X-A", "canary\x00"),
        ("X-A", " canary"),
        ("X-A", "canary\t"),
        ("X-A", "canaryé"),
        ("X-A", 5),
        ("X A", "canary"),
        ("X-A:", "canary"),
        ("", "canary"),
        ("X-É", "canary"),
        ("Host", "canary"),
        ("content-LENGTH", "canary"),
        ("Transfer-Encoding", "canary"),
        ("Webhook-Id", "canary"),
        ("webhook-anything", "canary"),
    ],
)
def test_headers_that_are_refused(name: str, value: str) -> None:
    """F36: what would break the request, or belongs to the sender, is refused; the error does not show the value."""
    with pytest.raises(ValueError, match="headers must") as caught:
        check_header(name, value)
    assert "canary" not in str(caught.value)
    with pytest.raises(ValueError, match="headers must"):
        endpoint(headers=((name, value),))


def test_headers_come_as_pairs_or_a_mapping() -> None:
    """Both forms give the same; anything else is refused."""
    assert endpoint(headers={"X-A": "b c"}).headers == endpoint(headers=[("X-A", "b c")]).headers == (("X-A", "b c"),)
    for wrong in ("X-A: b", 5, (("X-A",),), ("X-A", "b")):
        with pytest.raises(ValueError, match="headers must be pairs"):
            endpoint(headers=wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event_types", ()),
        ("event_types", "order.*"),
        ("event_types", ("a b",)),
        ("event_types", (5,)),
        ("event_types", 5),
        ("channels", "eu"),
        ("rate_limit", 0),
        ("rate_limit", -1.0),
        ("rate_limit", math.nan),
        ("rate_limit", math.inf),
        ("rate_limit", True),
        ("enabled", 1),
        ("paused", None),
        ("ordered", "yes"),
        ("owner", None),
        ("description", "\ud800"),
        ("metadata", {"a": 1}),
        ("metadata", "a=b"),
        ("blocked_until", math.nan),
        ("created_at", True),
        ("updated_at", "now"),
        ("secrets", ("whsec_x",)),
    ],
)
def test_an_illegal_endpoint_cannot_exist(name: str, value: object) -> None:
    """Every field is checked when the endpoint is made, and named."""
    with pytest.raises(ValueError, match=name):
        endpoint(**{name: value})


def test_nothing_secret_is_shown() -> None:
    """WH12: reprs hold no secret, no header's value and no body."""
    secret = SigningSecret(SECRET, NOW)
    shown = endpoint(secrets=(secret,), headers={"X-Token": "canary"})
    message = Message(id="msg_1", event_type="a", body=b"canary", occurred_at=NOW, accepted_at=NOW, deliver_at=NOW)
    attempt = Attempt(
        id="atm_1",
        delivery_id="dlv_1",
        message_id="msg_1",
        endpoint_id="ep_1",
        number=1,
        started_at=NOW,
        duration=1.0,
        response_body=b"canary",
    )
    for each in (
        secret,
        shown,
        message,
        attempt,
        AttemptOutcome(started_at=NOW, duration=1.0, status_code=200, response_body=b"canary"),
    ):
        assert "canary" not in repr(each)
    assert "X-Token" in repr(shown)


@pytest.mark.parametrize("value", ["", "whsec_", "secret", 5, None])
def test_a_secret_has_its_prefix(value: object) -> None:
    """What is no signing secret is refused, and not shown."""
    with pytest.raises(ValueError, match="value must be a signing secret"):
        SigningSecret(value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expires_at"):
        SigningSecret(SECRET, math.nan)


def test_records_do_not_change() -> None:
    """A record is a value: frozen, and its metadata with it."""
    metadata = {"a": "b"}
    made = endpoint(metadata=metadata)
    metadata["a"] = "c"
    assert made.metadata["a"] == "b"
    with pytest.raises(TypeError):
        made.metadata["a"] = "c"  # type: ignore[index]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.url = "x"  # type: ignore[misc]
    assert hash(made) == hash(endpoint(metadata={"a": "b"}))


def test_an_endpoint_wants_by_type_and_channel() -> None:
    """Channels count only where both sides have some."""
    some = endpoint(event_types=("order.*", "user.added"), channels=("eu",))
    assert some.wants("order.paid")
    assert some.wants("user.added", ("eu", "us"))
    assert not some.wants("user.added", ("us",))
    assert not some.wants("user.removed")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(data=_JSON, occurred_at=st.floats(0, 4e9))
def test_a_body_holds_its_data(data: JsonValue, occurred_at: float) -> None:
    """Whatever JSON can say comes back as it was; the body is UTF-8 and has the three keys of the wire format."""
    body = encode_body("order.paid", occurred_at, data)
    parsed = json.loads(body.decode("utf-8"))
    assert list(parsed) == ["type", "timestamp", "data"]
    assert parsed["type"] == "order.paid"
    message = Message(
        id="msg_1", event_type="order.paid", body=body, occurred_at=occurred_at, accepted_at=NOW, deliver_at=NOW
    )
    assert message.data == data


def test_a_timestamp_is_utc() -> None:
    """The timestamp is ISO 8601 in UTC, to the microsecond."""
    assert json.loads(encode_body("a", NOW + 0.25, None))["timestamp"] == "2023-11-14T22:13:20.250000Z"


@pytest.mark.parametrize("data", [math.nan, math.inf, {1, 2}, b"bytes", {"a": object()}, {(1, 2): 3}])
def test_data_that_json_cannot_say_is_refused(data: object) -> None:
    """Refused when it is sent, not at delivery; a cycle too."""
    with pytest.raises(ValueError, match="data must be"):
        encode_body("a", NOW, data)  # type: ignore[arg-type]
    cycle: list[JsonValue] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="data must be"):
        encode_body("a", NOW, cycle)


@pytest.mark.parametrize("occurred_at", [math.nan, math.inf, 1e18, "now"])
def test_an_instant_out_of_range_is_refused(occurred_at: float) -> None:
    """What is no instant has no timestamp."""
    with pytest.raises(ValueError, match="occurred_at"):
        encode_body("a", occurred_at, None)


@pytest.mark.parametrize(("status", "succeeded"), [(199, False), (200, True), (299, True), (300, False), (500, False)])
def test_2xx_alone_is_success(status: int, succeeded: bool) -> None:  # noqa: FBT001 - a table
    """A redirect is no success; no response is none either."""
    assert AttemptOutcome(started_at=NOW, duration=0.0, status_code=status).succeeded is succeeded
    assert not AttemptOutcome(started_at=NOW, duration=0.0, failure=FailureKind.DNS).succeeded


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "failure"),
        ({"status_code": 200, "failure": FailureKind.DNS}, "failure"),
        ({"failure": "dns"}, "failure"),
        ({"status_code": 99}, "status_code"),
        ({"status_code": True}, "status_code"),
        ({"status_code": 200.0}, "status_code"),
        ({"status_code": 200, "duration": -0.1}, "duration"),
        ({"status_code": 200, "duration": math.nan}, "duration"),
        ({"status_code": 200, "started_at": math.inf}, "started_at"),
        ({"status_code": 200, "retry_after": -1.0}, "retry_after"),
        ({"status_code": 200, "retry_after": math.nan}, "retry_after"),
    ],
    ids=str,
)
def test_an_outcome_has_a_status_or_a_failure(fields: dict[str, object], name: str) -> None:
    """Exactly one of the two, and numbers that mean something."""
    with pytest.raises(ValueError, match=name):
        AttemptOutcome(**{"started_at": NOW, "duration": 1.0, **fields})  # type: ignore[arg-type]
