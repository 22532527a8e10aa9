"""Standard Webhooks signatures: what we sign others verify, what others sign we verify, and nothing else passes."""

from __future__ import annotations

import base64
import datetime as dt
import json

import pytest
import standardwebhooks
from hypothesis import example, given
from hypothesis import strategies as st

from webhook_adapter.keys import check_secret, new_secret
from webhook_adapter.signing import VerificationError, sign, verify

NOW = 1_700_000_000
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()
BODY = b'{"type":"order.paid","timestamp":"2023-11-14T22:13:20Z","data":{"id":1}}'

bodies = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=10)).map(
    lambda data: json.dumps(data).encode()
)
secrets = st.binary(min_size=24, max_size=64).map(lambda key: "whsec_" + base64.b64encode(key).decode())
message_ids = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1, max_size=40
)


def flip(data: bytes, bit: int) -> bytes:
    """Return `data` with one bit the other way round."""
    changed = bytearray(data)
    changed[bit // 8 % len(changed)] ^= 1 << (bit % 8)
    return bytes(changed)


def test_the_example_of_the_specification_is_signed_alike() -> None:
    """The signature that the specification's libraries all publish for their example comes out."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [secret])
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(message_ids, bodies, st.lists(secrets, min_size=1, max_size=3, unique=True))
def test_every_signature_verifies_with_each_of_its_secrets(message_id: str, body: bytes, keys: list[str]) -> None:
    """WH7: what was signed under several secrets is accepted by a receiver that has any one of them."""
    headers = sign(message_id, NOW, body, keys)
    for key in keys:
        assert verify(headers, body, [key], now=NOW) == json.loads(body)


@given(bodies, st.integers(min_value=0, max_value=10_000))
def test_one_flipped_bit_in_the_body_fails(body: bytes, bit: int) -> None:
    """WH7: whichever bit of the body is changed, no signature matches."""
    headers = sign("msg_1", NOW, body, [SECRET])
    with pytest.raises(VerificationError):
        verify(headers, flip(body, bit), [SECRET], now=NOW)


@given(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.integers(0, 1_000))
@example("webhook-signature", 8 * 45)
def test_one_flipped_bit_in_a_header_fails(name: str, bit: int) -> None:
    """WH7: whichever bit of the three headers is changed, the request is refused."""
    headers = sign("msg_1", NOW, BODY, [SECRET])
    headers[name] = flip(headers[name].encode(), bit).decode("latin-1")
    with pytest.raises(VerificationError):
        verify(headers, BODY, [SECRET], now=NOW, tolerance=10**15)


@given(
    st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text()), st.binary()
)
def test_no_header_makes_verification_crash(headers: dict[str, str], body: bytes) -> None:
    """Whatever a stranger puts into headers and body, the answer is one VerificationError."""
    with pytest.raises(VerificationError):
        verify(headers, body, [SECRET], now=NOW)


@given(st.text())
def test_garbage_beside_a_good_signature_changes_nothing(garbage: str) -> None:
    """Entries that cannot be read, in any number, leave a good signature good."""
    headers = sign("msg_1", NOW, BODY, [SECRET])
    good = headers["webhook-signature"]
    headers["webhook-signature"] = f"v1a,abc v2 v1, {garbage.replace(' ', '')[:50]} {good}"
    assert verify(headers, BODY, [SECRET], now=NOW) == json.loads(BODY)


def test_our_signatures_satisfy_the_reference_library() -> None:
    """A receiver that uses the reference implementation accepts what we send."""
    now = int(dt.datetime.now(dt.UTC).timestamp())
    headers = sign("msg_1", now, BODY, [OTHER, SECRET])
    assert standardwebhooks.Webhook(SECRET).verify(BODY, headers) == json.loads(BODY)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(BODY + b" ", headers)


def test_signatures_of_the_reference_library_satisfy_us() -> None:
    """What a sender signs with the reference implementation is accepted by `verify`, byte for byte the same."""
    at = dt.datetime.fromtimestamp(NOW, dt.UTC)
    signature = standardwebhooks.Webhook(SECRET).sign("msg_1", at, BODY.decode())
    assert signature == sign("msg_1", NOW, BODY, [SECRET])["webhook-signature"]
    headers = {"Webhook-Id": "msg_1", "WEBHOOK-TIMESTAMP": str(NOW), "Webhook-Signature": signature}
    assert verify(headers, BODY.decode(), [SECRET], now=NOW) == json.loads(BODY)


@pytest.mark.parametrize(("offset", "accepted"), [(-301, False), (-300, True), (0, True), (300, True), (301, False)])
def test_the_tolerance_holds_on_both_sides(offset: int, accepted: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A timestamp up to the tolerance old, or ahead, is accepted; one second more is not."""
    headers = sign("msg_1", NOW + offset, BODY, [SECRET])
    if accepted:
        assert verify(headers, BODY, [SECRET], now=NOW) == json.loads(BODY)
    else:
        with pytest.raises(VerificationError, match="timestamp"):
            verify(headers, BODY, [SECRET], now=NOW)


def test_a_header_given_twice_is_refused() -> None:
    """Two values of one header could mean two things to two parsers, so neither is taken."""
    headers = [*sign("msg_1", NOW, BODY, [SECRET]).items(), ("Webhook-Id", "msg_1")]
    with pytest.raises(VerificationError, match="twice"):
        verify(headers, BODY, [SECRET], now=NOW)


def test_a_signed_body_that_is_not_json_is_refused() -> None:
    """What is signed but cannot be parsed is refused in the same way as the rest."""
    with pytest.raises(VerificationError, match="JSON"):
        verify(sign("msg_1", NOW, b"plain", [SECRET]), b"plain", [SECRET], now=NOW)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf"), True])
def test_a_tolerance_that_is_no_duration_is_refused(tolerance: float) -> None:
    """A tolerance that would accept anything, or nothing, is an error of the program."""
    with pytest.raises(ValueError, match="tolerance"):
        verify({}, b"", [SECRET], tolerance=tolerance)


def test_no_secrets_at_all_is_an_error_of_the_program() -> None:
    """Neither signing nor verifying goes on without a secret, nor with one string taken letter by letter."""
    nothing: list[str] = []
    with pytest.raises(ValueError, match="secrets"):
        sign("msg_1", NOW, BODY, nothing)
    with pytest.raises(ValueError, match="secrets"):
        verify({}, BODY, nothing)
    with pytest.raises(ValueError, match="secrets"):
        sign("msg_1", NOW, BODY, SECRET)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "canary-canary-canary-canary-canary",
        "whsec_canary!canary!canary!canary!canary!",
        "whsec_" + base64.b64encode(b"canary" * 3).decode(),
        "whsec_" + base64.b64encode(b"canary" * 20).decode(),
        "whsec_kanári" + "A" * 40,
    ],
)
def test_an_unusable_secret_is_refused_without_being_shown(secret: str) -> None:
    """WH12: the error says what is wrong with a secret and nothing of what is in it."""
    with pytest.raises(ValueError, match="a secret must") as caught:
        check_secret(secret)
    assert "canary" not in repr(caught.value)
    assert "Y2FuYXJ5" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_new_secrets_are_good_and_differ() -> None:
    """A fresh secret can be signed with, and no two are alike."""
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(check_secret(secret) == secret for secret in made)


@pytest.mark.parametrize("message_id", ["", "msg.1", "msg 1", "msg\n1", "mésg"])
def test_an_id_that_would_blur_what_is_signed_is_refused(message_id: str) -> None:
    """A full stop or a line break in the id would let one signature stand for two messages."""
    with pytest.raises(ValueError, match="message_id"):
        sign(message_id, NOW, BODY, [SECRET])


@pytest.mark.parametrize("timestamp", [-1, True, 1.5])
def test_a_timestamp_that_is_no_number_of_seconds_is_refused(timestamp: int) -> None:
    """The timestamp is a whole number of seconds since 1970."""
    with pytest.raises(ValueError, match="timestamp"):
        sign("msg_1", timestamp, BODY, [SECRET])
