"""Signing keys: what the secrets of the Standard Webhooks specification 1.0.0 hold, and what each can do.

    whsec_…    a shared secret of 24 to 64 bytes: signs and verifies, scheme v1, HMAC-SHA256
    whsk_…     a private key, 32 bytes of seed, or 64 with the public key behind them: signs, scheme v1a, Ed25519
    whpk_…     the public key to it, 32 bytes: verifies

Rules of this module:

* A key is told by its prefix; what is behind it is base64, with or without padding. No error, and no repr, shows one.
* A signature has one spelling: what decodes to the same bytes and is written otherwise is another one, and wrong.
* Looking at signatures takes the same time whichever of them is wrong.

Ed25519 is the `cryptography` package's (extra `ed25519`), imported when the first such key is met.
"""

from __future__ import annotations

import binascii
import functools
import hmac
import secrets as entropy
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["Key", "SigningKey", "check_key", "check_secret", "key", "new_secret", "public_key", "signing_key"]

_SHARED, _PRIVATE, _PUBLIC = "whsec_", "whsk_", "whpk_"
_MIN_SHARED_BYTES, _MAX_SHARED_BYTES = 24, 64
_SEED_BYTES = 32
_SIGNATURE_BYTES = 64


class Key(Protocol):
    """What verifies signatures of one scheme."""

    scheme: str
    """What stands before the comma of such a signature."""

    def matching(self, content: bytes, signatures: Sequence[str]) -> int:
        """Return how many of `signatures`, what stands behind the comma of each, are this key's for `content`."""
        ...


class SigningKey(Key, Protocol):
    """A key that signs, too."""

    def sign(self, content: bytes) -> str:
        """Return what stands behind the comma of the signature of `content`."""
        ...


class _SharedKey:
    scheme = "v1"

    def __init__(self, secret: bytes) -> None:
        # Kept to be copied: to key it costs more than to sign with it, and a secret signs every message.
        self._mac = hmac.new(secret, digestmod="sha256")

    def sign(self, content: bytes) -> str:
        mac = self._mac.copy()
        mac.update(content)
        return _base64(mac.digest())

    def matching(self, content: bytes, signatures: Sequence[str]) -> int:
        expected = self.sign(content).encode()
        return sum(hmac.compare_digest(expected, each.encode("utf-8", "surrogatepass")) for each in signatures)


class _PublicKey:
    scheme = "v1a"

    def __init__(self, public: Ed25519PublicKey) -> None:
        self._public = public

    def matching(self, content: bytes, signatures: Sequence[str]) -> int:
        return sum(self._signed(content, each) for each in signatures)

    def _signed(self, content: bytes, signature: str) -> bool:
        from cryptography.exceptions import InvalidSignature

        raw = _decoded(signature)
        if raw is None or len(raw) != _SIGNATURE_BYTES or _base64(raw) != signature:
            return False
        try:
            self._public.verify(raw, content)
        except InvalidSignature:
            return False
        return True


class _PrivateKey(_PublicKey):
    def __init__(self, private: Ed25519PrivateKey) -> None:
        super().__init__(private.public_key())
        self._private = private

    def sign(self, content: bytes) -> str:
        return _base64(self._private.sign(content))


def new_secret(*, asymmetric: bool = False) -> str:
    """Return a fresh secret: "whsec_" and 32 random bytes, or a private key, "whsk_", if `asymmetric`."""
    if asymmetric:
        _ed25519()
    return (_PRIVATE if asymmetric else _SHARED) + _base64(entropy.token_bytes(_SEED_BYTES))


def public_key(secret: str) -> str:
    """Return the public key, "whpk_…", by which receivers verify what `secret`, a "whsk_…", signs.

    Raises:
        ValueError: it is no private key; it is not shown.
    """
    if not isinstance(secret, str) or not secret.startswith(_PRIVATE):
        msg = f'secret must be a private key that starts with "{_PRIVATE}"'
        raise ValueError(msg)
    return _PUBLIC + _base64(_private(secret).public_key().public_bytes_raw())


def check_secret(secret: str) -> str:
    """Return `secret` as it is, or raise ValueError (which does not show it) if nothing can be signed with it."""
    signing_key(secret)
    return secret


def check_key(secret: str) -> str:
    """Return `secret` as it is, or raise ValueError (which does not show it) if nothing can be verified with it."""
    key(secret)
    return secret


@functools.lru_cache(maxsize=4096)
def key(secret: str) -> Key:
    """Return the key that a secret holds; ValueError, which does not show it, if it holds none."""
    if isinstance(secret, str) and secret.startswith(_PUBLIC):
        from_bytes = _ed25519()[1].from_public_bytes
        return _PublicKey(from_bytes(_held(secret, _PUBLIC, (_SEED_BYTES,))))
    return signing_key(secret)


@functools.lru_cache(maxsize=4096)
def signing_key(secret: str) -> SigningKey:
    """Return the key that a secret holds; ValueError, which does not show it, if it cannot sign."""
    if isinstance(secret, str) and secret.startswith(_PRIVATE):
        return _PrivateKey(_private(secret))
    if not isinstance(secret, str) or not secret.startswith(_SHARED):
        msg = f'a secret must start with "{_SHARED}" or "{_PRIVATE}"'
        raise ValueError(msg)
    return _SharedKey(_held(secret, _SHARED, range(_MIN_SHARED_BYTES, _MAX_SHARED_BYTES + 1)))


def _private(secret: str) -> Ed25519PrivateKey:
    held = _held(secret, _PRIVATE, (_SEED_BYTES, 2 * _SEED_BYTES))
    private = _ed25519()[0].from_private_bytes(held[:_SEED_BYTES])
    if held[_SEED_BYTES:] not in {b"", private.public_key().public_bytes_raw()}:
        msg = f'the second half of a secret that starts with "{_PRIVATE}" must be the public key to the first'
        raise ValueError(msg)
    return private


def _held(secret: str, prefix: str, lengths: Sequence[int]) -> bytes:
    """Return the bytes behind the prefix."""
    raw = _decoded(secret[len(prefix) :])
    if raw is None:
        # No cause, and no value: both would show the secret.
        msg = f'a secret must be base64 after "{prefix}"'
        raise ValueError(msg)
    if len(raw) not in lengths:
        wanted = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 2 else " or ".join(map(str, lengths))  # noqa: PLR2004
        msg = f'a secret must hold {wanted} bytes after "{prefix}", not {len(raw)}'
        raise ValueError(msg)
    return raw


def _ed25519() -> tuple[type[Ed25519PrivateKey], type[Ed25519PublicKey]]:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    except ImportError:
        msg = f'a secret that starts with "{_PRIVATE}" or "{_PUBLIC}" needs the extra: stormguard[ed25519]'
        raise ValueError(msg) from None
    return Ed25519PrivateKey, Ed25519PublicKey


def _decoded(text: str) -> bytes | None:
    encoded = text.rstrip("=")
    try:
        return binascii.a2b_base64(encoded.encode("ascii") + b"=" * (-len(encoded) % 4), strict_mode=True)
    except ValueError:
        return None


def _base64(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).decode("ascii")
