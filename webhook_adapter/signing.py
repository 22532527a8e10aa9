"""Signatures of the Standard Webhooks specification 1.0.0, scheme v1: HMAC-SHA256 under a shared secret.

Rules of this module:

* What is signed is `{message id}.{timestamp}.{body}`, byte for byte as it is sent; nothing is ever re-serialised.
* A secret is "whsec_" and the base64 of 24 to 64 bytes. No error, and no repr, ever shows one.
* Verification takes the same time whichever signature is wrong, tries every secret, ignores entries that it cannot
  read (other schemes, other versions, garbage), and says no in one way: `VerificationError`.

It knows nothing of endpoints, of the store or of HTTP beyond the names of three headers. A scheme is told by the text
before the comma of a signature, so another one lives beside v1 without touching it.
"""

from __future__ import annotations

import binascii
import functools
import hmac
import json
import math
import re
import secrets as entropy
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from webhook_adapter.model import JsonValue

__all__ = [
    "ID_HEADER",
    "SIGNATURE_HEADER",
    "TIMESTAMP_HEADER",
    "VerificationError",
    "check_secret",
    "new_secret",
    "sign",
    "verify",
]

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

_PREFIX = "whsec_"
_MIN_KEY_BYTES = 24
_MAX_KEY_BYTES = 64
_NEW_KEY_BYTES = 32
# A full stop would let one signature stand for two messages: it is what separates the signed parts.
_MESSAGE_ID = re.compile(r"[!-\-/-~]{1,256}")
_TIMESTAMP = re.compile(r"[0-9]{1,15}", re.ASCII)
# A receiver reads headers from strangers: more entries than this are not looked at.
_MAX_ENTRIES = 64


class VerificationError(Exception):
    """A request that is not, or cannot be shown to be, what a holder of the secret has just sent."""


def new_secret() -> str:
    """Return a fresh signing secret: "whsec_" and the base64 of 32 random bytes."""
    return _PREFIX + _base64(entropy.token_bytes(_NEW_KEY_BYTES))


def check_secret(secret: str) -> str:
    """Return `secret` as it is, or raise ValueError (which does not show it) if nothing can be signed with it."""
    _key(secret)
    return secret


def sign(message_id: str, timestamp: int, body: bytes, secrets: Iterable[str]) -> dict[str, str]:
    """Return the three headers that sign `body` under every one of `secrets`.

    Args:
        message_id: the id that stays the same over all attempts; visible ASCII without a full stop.
        timestamp: Unix time of this attempt, in whole seconds.
        body: the exact bytes that are sent.
        secrets: current ones and those in their rotation overlap; each adds one signature, in this order.

    Raises:
        ValueError: no secret, or an id, timestamp or secret that cannot be used.
    """
    if not _MESSAGE_ID.fullmatch(message_id):
        msg = f"message_id must be visible ASCII without a full stop, not {message_id!r}"
        raise ValueError(msg)
    if type(timestamp) is not int or timestamp < 0:
        msg = f"timestamp must be a whole number of seconds since 1970, not {timestamp!r}"
        raise ValueError(msg)
    stamp = str(timestamp)
    content = f"{message_id}.{stamp}.".encode() + body
    signature = " ".join(["v1," + _signature(mac, content) for mac in _macs(secrets)])
    return {ID_HEADER: message_id, TIMESTAMP_HEADER: stamp, SIGNATURE_HEADER: signature}


def verify(
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    body: bytes | str,
    secrets: Iterable[str],
    *,
    tolerance: float = 300,
    now: float | None = None,
) -> JsonValue:
    """Return the parsed JSON of `body` if one of `secrets` signed it within `tolerance` seconds of `now`.

    Args:
        headers: the request's headers, whatever the case of their names.
        body: the bytes as received (text is taken as UTF-8). Do not parse and re-serialise them first.
        secrets: every secret that is still good: the current one, and those in their rotation overlap.
        tolerance: how many seconds the timestamp may lie before or after `now`. 300 is what the specification
            suggests: it limits how long a recorded request can be replayed.
        now: Unix time in seconds; None reads the wall clock.

    Raises:
        VerificationError: a header is missing, given twice or unreadable, the timestamp is too old or too far
            ahead, no signature fits, or what was signed is not JSON.
        ValueError: `secrets` is empty or holds something that is no secret, or `tolerance` is no duration.
    """
    if isinstance(tolerance, bool) or not tolerance >= 0 or math.isinf(tolerance):
        msg = f"tolerance must be a finite number of seconds of at least 0, not {tolerance!r}"
        raise ValueError(msg)
    macs = _macs(secrets)
    message_id, stamp, signatures = _signed_headers(headers)
    if not _TIMESTAMP.fullmatch(stamp):
        msg = f"the {TIMESTAMP_HEADER} header is not a number of seconds"
        raise VerificationError(msg)
    at = time.time() if now is None else now
    if not abs(at - int(stamp)) <= tolerance:
        msg = f"the timestamp is more than {tolerance:g} s away from this clock"
        raise VerificationError(msg)
    raw = body.encode("utf-8", "surrogateescape") if isinstance(body, str) else bytes(body)
    content = f"{message_id}.{stamp}.".encode("utf-8", "surrogateescape") + raw
    given = _v1_signatures(signatures)
    # Every pair is compared, with no early end: how long it takes tells nothing about which came close.
    matches = 0
    for mac in macs:
        # Text is compared, not bytes: one signature has one spelling, though base64 would let several pass.
        expected = _signature(mac, content).encode()
        for signature in given:
            matches += hmac.compare_digest(expected, signature)
    if not matches:
        msg = "no signature matches"
        raise VerificationError(msg)
    try:
        payload: JsonValue = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        msg = "the body is signed but is not JSON"
        raise VerificationError(msg) from exc
    return payload


def _signed_headers(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[str, str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        lowered = name.lower()
        if lowered not in {ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER}:
            continue
        if lowered in found:
            # Two parsers may disagree on which of two counts; a request that allows for that is not verified.
            msg = f"the {lowered} header is given twice"
            raise VerificationError(msg)
        found[lowered] = value
    for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER):
        if not found.get(name):
            msg = f"the {name} header is missing"
            raise VerificationError(msg)
    return found[ID_HEADER], found[TIMESTAMP_HEADER], found[SIGNATURE_HEADER]


def _v1_signatures(header: str) -> list[bytes]:
    signatures: list[bytes] = []
    for entry in header.split(" ", _MAX_ENTRIES)[:_MAX_ENTRIES]:
        version, comma, encoded = entry.partition(",")
        if version == "v1" and comma:
            signatures.append(encoded.encode("utf-8", "surrogatepass"))
    return signatures


def _macs(secrets: Iterable[str]) -> list[hmac.HMAC]:
    if isinstance(secrets, str):
        msg = "secrets must be a collection of secrets, not a single string"
        raise ValueError(msg)
    macs = [_mac(secret) for secret in secrets]
    if not macs:
        msg = "secrets must hold at least one secret"
        raise ValueError(msg)
    return macs


def _signature(mac: hmac.HMAC, content: bytes) -> str:
    signing = mac.copy()
    signing.update(content)
    return _base64(signing.digest())


@functools.lru_cache(maxsize=4096)
def _mac(secret: str) -> hmac.HMAC:
    """Return a keyed MAC to copy: to key one costs more than to sign with it, and a secret signs every message."""
    return hmac.new(_key(secret), digestmod="sha256")


def _key(secret: str) -> bytes:
    """Return the bytes of a secret."""
    if not secret.startswith(_PREFIX):
        msg = f'a secret must start with "{_PREFIX}"'
        raise ValueError(msg)
    encoded = secret[len(_PREFIX) :].rstrip("=")
    try:
        key = binascii.a2b_base64(encoded.encode("ascii") + b"=" * (-len(encoded) % 4), strict_mode=True)
    except ValueError:
        # The cause is left out: its text may quote the secret.
        msg = f'a secret must be base64 after "{_PREFIX}"'
        raise ValueError(msg) from None
    if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        msg = f"a secret must hold {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes, not {len(key)}"
        raise ValueError(msg)
    return key


def _base64(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).decode("ascii")
