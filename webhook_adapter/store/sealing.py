"""Sealing: signing secrets encrypted at rest, if a key is given.

Rules of this module: AES-256-GCM with a random nonce, bound to the id of the row, so that what is sealed for one
endpoint does not open for another. The key is derived from `secret_key` with HKDF-SHA256 (RFC 5869); `secret_key` is a
random text, no password: nothing slows a guesser down. Neither key nor secret is in any error or repr.

It needs the library `cryptography` (the extra `ed25519`), and only when a key is given.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from webhook_adapter.store.errors import SecretKeyError

__all__ = ["Sealer"]

_NONCE = 12
_MIN_KEY = 16


class Sealer:
    """Seals with a key; without one it stores what it is given, and refuses to open what is sealed."""

    def __init__(self, secret_key: str | None) -> None:
        self._cipher = None
        if secret_key is None:
            return
        if not isinstance(secret_key, str) or len(secret_key) < _MIN_KEY:
            raise ValueError(f"secret_key must be a random text of at least {_MIN_KEY} characters")
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as exc:
            raise SecretKeyError(
                "secret_key is set, but the library that encrypts is not installed: pip install 'stormguard[ed25519]'"
            ) from exc
        extracted = hmac.digest(b"webhook_adapter secrets", secret_key.encode(), hashlib.sha256)
        self._cipher = AESGCM(hmac.digest(extracted, b"at rest\x01", hashlib.sha256))

    @property
    def seals(self) -> bool:
        """Whether there is a key."""
        return self._cipher is not None

    def seal(self, plain: bytes, *, belongs_to: str) -> bytes:
        """Return `plain` sealed for the row `belongs_to`, or as it is without a key."""
        if self._cipher is None:
            return plain
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, belongs_to.encode())

    def open(self, stored: bytes, *, sealed: bool, belongs_to: str) -> bytes:
        """Return what was sealed for the row `belongs_to`; what was stored without a key comes back as it is.

        Raises:
            SecretKeyError: it is sealed, and there is no key or another one.
        """
        if not sealed:
            return stored
        if self._cipher is None:
            raise SecretKeyError("the signing secrets in this database are encrypted: set secret_key to open them")
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(stored[:_NONCE], stored[_NONCE:], belongs_to.encode())
        except (InvalidTag, ValueError):
            raise SecretKeyError("the signing secrets in this database are encrypted with another secret_key") from None
