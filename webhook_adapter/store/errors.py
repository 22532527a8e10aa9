"""What can go wrong with the store.

    StoreError
      StoreUnavailableError      locked, full or out of reach for now; nothing of the operation has happened
      StoreClosedError           the store has been closed
      DatabaseUnusableError      the start is refused
        DatabaseCorruptError
        DatabaseTooNewError
        SecretKeyError           the secrets in it cannot be opened, or not be sealed, with this `secret_key`
    IdempotencyConflictError     (a ValueError) the key is known, with another body
    UnknownIdError               (a LookupError) there is no such endpoint, message or delivery

Rules of this module: messages are one clear sentence, and hold no secret and no SQL.
"""

from __future__ import annotations

__all__ = [
    "DatabaseCorruptError",
    "DatabaseTooNewError",
    "DatabaseUnusableError",
    "IdempotencyConflictError",
    "SecretKeyError",
    "StoreClosedError",
    "StoreError",
    "StoreUnavailableError",
    "UnknownIdError",
]


class StoreError(Exception):
    """The store could not do what it was asked."""


class StoreUnavailableError(StoreError):
    """The database is locked, full or out of reach for now; it is worth trying again.

    Attributes:
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreClosedError(StoreError):
    """The store has been closed, or its writer has died."""


class DatabaseUnusableError(StoreError):
    """The database cannot be opened as it is, and is left as it is."""


class DatabaseCorruptError(DatabaseUnusableError):
    """The file is damaged, or is no database; it is never replaced."""


class DatabaseTooNewError(DatabaseUnusableError):
    """A newer version of this library wrote the database."""


class SecretKeyError(DatabaseUnusableError):
    """The signing secrets in the database cannot be opened, or not be sealed, with this `secret_key`."""


class IdempotencyConflictError(ValueError):
    """The idempotency key is known, and came with another body then.

    Attributes:
        message_id: the message that it stands for.
    """

    def __init__(self, key: str, message_id: str) -> None:
        super().__init__(f"idempotency_key {key!r} already stands for message {message_id}, with another body")
        self.message_id = message_id


class UnknownIdError(LookupError):
    """There is no endpoint, message or delivery of this id."""

    def __init__(self, name: str, value: str) -> None:
        super().__init__(f"{name} {value!r} is not known")
