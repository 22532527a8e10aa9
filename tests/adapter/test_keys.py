"""Signatures under a key pair, v1a: who has the public key verifies, and nobody but the holder of the other signs."""

from __future__ import annotations

import base64
import json
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from tests.adapter.test_signing import BODY, NOW, SECRET, flip
from webhook_adapter import DeliveryState, Settings, WebhookService
from webhook_adapter.keys import check_key, check_secret, key, new_secret, public_key, signing_key
from webhook_adapter.signing import VerificationError, sign, verify
from webhook_adapter.testing import Receiver

# The first two examples of RFC 8032, section 7.1: seed, public key, message, and the signature in base64.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "5VZDAMNgrHKQhuLMgG6CioSHfx645dl02HPgZSJJAVVfuIIVkKM7rMYeOXAc+bRr0lv18FlbviRlUUFDjnoQCw==",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "kqAJqfDUyrhyDoILX2QlQKKye1QWUD+Ps3YiI+vbadoIWsHkPhWZbkWPNhPQ8R2MOHsurrQwKu6wDSkWErsMAA==",
    ),
]
PRIVATE = "whsk_" + base64.b64encode(bytes(range(32))).decode()
PUBLIC = public_key(PRIVATE)


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_the_examples_of_the_standard_are_signed_alike(seed: str, public: str, message: str, signature: str) -> None:
    """Key and signature come out as RFC 8032 has them, from a seed alone and with the public key behind it."""
    for held in (bytes.fromhex(seed), bytes.fromhex(seed + public)):
        secret = "whsk_" + base64.b64encode(held).decode()
        assert public_key(secret) == "whpk_" + base64.b64encode(bytes.fromhex(public)).decode()
        assert signing_key(secret).sign(bytes.fromhex(message)) == signature
        assert key(public_key(secret)).matching(bytes.fromhex(message), [signature, "AAAA" + signature[4:]]) == 1


def test_what_we_sign_others_verify_and_the_other_way_round() -> None:
    """The signed bytes are those of the specification, as another implementation of Ed25519 sees them."""
    headers = sign("msg_1", NOW, BODY, [PRIVATE])
    scheme, _, encoded = headers["webhook-signature"].partition(",")
    assert scheme == "v1a"
    content = f"msg_1.{NOW}.".encode() + BODY
    Ed25519PublicKey.from_public_bytes(base64.b64decode(PUBLIC[5:])).verify(base64.b64decode(encoded), content)
    theirs = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).sign(content)
    headers["webhook-signature"] = "v1a," + base64.b64encode(theirs).decode()
    assert verify(headers, BODY, [PUBLIC], now=NOW) == json.loads(BODY)
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(base64.b64decode(PUBLIC[5:])).verify(theirs, content + b" ")


@given(
    st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "body"]),
    st.integers(0, 2_000),
    st.booleans(),
)
def test_one_flipped_bit_fails(where: str, bit: int, private: bool) -> None:  # noqa: FBT001 - Hypothesis calls it so
    """WH7: whichever bit of headers or body is changed, no signature matches, whichever half verifies."""
    headers = sign("msg_1", NOW, BODY, [PRIVATE])
    body = BODY
    if where == "body":
        body = flip(body, bit)
    else:
        headers[where] = flip(headers[where].encode(), bit).decode("latin-1")
    with pytest.raises(VerificationError):
        verify(headers, body, [PRIVATE if private else PUBLIC], now=NOW, tolerance=10**15)


def test_each_scheme_is_verified_by_its_own_keys() -> None:
    """Signatures of both kinds stand side by side; one is never taken for the other."""
    headers = sign("msg_1", NOW, BODY, [SECRET, PRIVATE])
    shared, paired = headers["webhook-signature"].split(" ")
    assert (shared[:3], paired[:4]) == ("v1,", "v1a,")
    for secret in (SECRET, PRIVATE, PUBLIC):
        assert verify(headers, BODY, [secret], now=NOW) == json.loads(BODY)
    for wrong, secret in (
        (shared, PUBLIC),
        (paired, SECRET),
        ("v1," + paired[4:], PUBLIC),
        ("v1a," + shared[3:], SECRET),
    ):
        with pytest.raises(VerificationError):
            verify({**headers, "webhook-signature": wrong}, BODY, [secret], now=NOW)


def test_a_signature_has_one_spelling() -> None:
    """Base64 that decodes to a good signature and is written otherwise is none."""
    headers = sign("msg_1", NOW, BODY, [PRIVATE])
    good = headers["webhook-signature"]
    for other in (
        good.rstrip("="),
        good + "=",
        good.replace("=", "") + "= =",
        good[:-3] + chr(ord(good[-3]) + 1) + "==",
    ):
        with pytest.raises(VerificationError):
            verify({**headers, "webhook-signature": other}, BODY, [PUBLIC], now=NOW)


@pytest.mark.parametrize(
    "secret",
    [
        "whsk_",
        "whpk_",
        "whsk_" + base64.b64encode(bytes(31)).decode(),
        "whpk_" + base64.b64encode(bytes(33)).decode(),
        "whsk_" + base64.b64encode(bytes(range(32)) + bytes(32)).decode(),
        "whsk_Y2FuYXJ5!",
        "whxx_Y2FuYXJ5",
        7,
    ],
)
def test_what_is_no_key_is_refused_without_being_shown(secret: object) -> None:
    """WH12: an error says what a key must be, and nothing of what was given."""
    for look in (check_key, check_secret, public_key):
        with pytest.raises(ValueError, match="secret") as caught:
            look(secret)  # type: ignore[arg-type]
        assert "Y2FuYXJ5" not in str(caught.value)


def test_a_public_key_verifies_only() -> None:
    """Nothing can be signed with it, and it has no public key of its own."""
    assert check_key(PUBLIC) == PUBLIC
    for look in (check_secret, public_key):
        with pytest.raises(ValueError, match="must"):
            look(PUBLIC)
    with pytest.raises(ValueError, match="whsec_"):
        sign("msg_1", NOW, BODY, [PUBLIC])


def test_fresh_keys_differ() -> None:
    """A new private key signs, and is nobody else's."""
    one, other = new_secret(asymmetric=True), new_secret(asymmetric=True)
    assert one[:5] == other[:5] == "whsk_"
    assert public_key(one) != public_key(other)


def test_without_its_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not installed Ed25519 is told how, when the key is given and not when it is used."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    fresh = "whsk_" + base64.b64encode(bytes(range(1, 33))).decode()
    for look in (check_secret, lambda _: new_secret(asymmetric=True)):
        with pytest.raises(ValueError, match=r"stormguard\[ed25519\]"):
            look(fresh)


@pytest.mark.anyio
async def test_an_endpoint_with_a_private_key_signs_so_that_the_public_one_verifies() -> None:
    """End to end: rotation from a shared secret to a key pair, and the receiver holds no secret at all."""
    allowed = Settings(allow_http=True, egress_allow=("127.0.0.0/8",))
    async with Receiver(secret=PUBLIC) as receiver, WebhookService(settings=allowed) as service:
        endpoint = await service.register_endpoint(receiver.url, secret=SECRET)
        await service.rotate_secret(endpoint.id, secret=PRIVATE)
        await service.send_webhook_notification("order.paid", {"order": 7})
        await service.wait_until_idle()
        (request,) = receiver.requests
        assert request.verified
        assert sorted(entry.partition(",")[0] for entry in (request.header("webhook-signature") or "").split()) == [
            "v1",
            "v1a",
        ]
        (delivery,) = await service.list_deliveries()
        assert delivery.state is DeliveryState.DELIVERED
        assert PRIVATE[5:] not in repr(await service.get_endpoint(endpoint.id))
