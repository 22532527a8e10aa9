"""Signatures of the Standard Webhooks specification 1.0.0: v1 under a shared secret, v1a under a key pair.

Rules of this module:

* What is signed is `{message id}.{timestamp}.{body}`, byte for byte as it is sent; nothing is ever re-serialised.
* Verification tries every key on every signature of its scheme, ignores entries that it cannot read (other schemes,
  other versions, garbage), and says no in one way: `VerificationError`.

What a secret holds is for `keys` to say. It knows nothing of endpoints, of the store or of HTTP beyond the names of
three headers.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from webhook_adapter.keys import Key, key, signing_key

if TYPE_CHECKING:
    from webhook_adapter.model import JsonValue

__all__ = [
    "ID_HEADER",
    "SIGNATURE_HEADER",
    "TIMESTAMP_HEADER",
    "VerificationError",
    "sign",
    "verify",
]

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

K = TypeVar("K", bound=Key)

# A full stop would let one signature stand for two messages: it is what separates the signed parts.
_MESSAGE_ID = re.compile(r"[!-\-/-~]{1,256}")
_TIMESTAMP = re.compile(r"[0-9]{1,15}", re.ASCII)
# A receiver reads headers from strangers: more entries than this are not looked at.
_MAX_ENTRIES = 64


class VerificationError(Exception):
    """A request that is not, or cannot be shown to be, what a holder of the secret has just sent."""


def sign(message_id: str, timestamp: int, body: bytes, secrets: Iterable[str]) -> dict[str, str]:
    """Return the three headers that sign `body` under every one of `secrets`.

    Args:
        message_id: the id that stays the same over all attempts; visible ASCII without a full stop.
        timestamp: Unix time of this attempt, in whole seconds.
        body: the exact bytes that are sent.
        secrets: current ones and those in their rotation overlap, "whsec_…" or "whsk_…"; each adds one signature, in
            this order.

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
    signature = " ".join([f"{each.scheme},{each.sign(content)}" for each in _keys(secrets, signing_key)])
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
        secrets: every secret that is still good, the current one and those in their rotation overlap: "whsec_…", or
            the sender's public key, "whpk_…".
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
    keys = _keys(secrets, key)
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
    given = _by_scheme(signatures)
    # Every pair is compared, with no early end: how long it takes tells nothing about which came close.
    matches = 0
    for each in keys:
        matches += each.matching(content, given.get(each.scheme, ()))
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


def _by_scheme(header: str) -> dict[str, list[str]]:
    signatures: dict[str, list[str]] = {}
    for entry in header.split(" ", _MAX_ENTRIES)[:_MAX_ENTRIES]:
        scheme, comma, encoded = entry.partition(",")
        if comma:
            signatures.setdefault(scheme, []).append(encoded)
    return signatures


def _keys(secrets: Iterable[str], held: Callable[[str], K]) -> list[K]:
    if isinstance(secrets, str):
        msg = "secrets must be a collection of secrets, not a single string"
        raise ValueError(msg)
    keys = [held(secret) for secret in secrets]
    if not keys:
        msg = "secrets must hold at least one secret"
        raise ValueError(msg)
    return keys
