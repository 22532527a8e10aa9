"""A database that has been opened: its engines, its dialect, and transactions on it.

Rules of this module: it decides by the name which dialect it is, refuses what cannot be used before any thread starts,
and translates every error of a driver into one of the store's.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import sqlalchemy as sa

from webhook_adapter.store import rows, schema
from webhook_adapter.store.errors import DatabaseUnusableError
from webhook_adapter.store.migrations import migrate
from webhook_adapter.store.sqlite import SQLite, check_file, engine
from webhook_adapter.store.unit import Caches, ReadUnit, Unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from webhook_adapter.store.dialect import Dialect
    from webhook_adapter.store.sealing import Sealer

__all__ = ["Database", "open_database"]

_SQLITE_URL = "sqlite:///"


@attrs.define(eq=False)
class Database:
    """Engines for writing and for reading; in memory there is one connection, and no `reading` apart from it."""

    dialect: Dialect
    sealer: Sealer
    _writing: sa.Engine
    _reading: sa.Engine | None
    # The writer's connection, kept from one transaction to the next: to fetch it from the pool and give it back costs
    # as much as a small batch. None before the first transaction, and after one that failed.
    _kept: sa.Connection | None = None

    @property
    def reads_apart(self) -> bool:
        """Whether reads have connections of their own."""
        return self._reading is not None

    @contextmanager
    def writing(self, caches: Caches) -> Iterator[Unit]:
        """Give a transaction that is committed at the end of the block, or rolled back if that raises.

        For one thread, the writer's.
        """
        with self._translating():
            connection = self._kept
            if connection is None:
                connection = self._kept = self._writing.connect()
            try:
                with connection.begin():
                    unit = Unit(connection, self.dialect, self.sealer, caches)
                    unit.begin()
                    yield unit
                    unit.end()
            except BaseException:
                self._kept = None
                connection.close()
                raise

    @contextmanager
    def reading(self) -> Iterator[ReadUnit]:
        """Give a snapshot that ends with the block."""
        if self._reading is None:
            raise RuntimeError("this database has one connection only, and its writer has it")
        with self._translating(), self._reading.connect() as connection, connection.begin():
            yield ReadUnit(connection, self.dialect, self.sealer)

    def close(self) -> None:
        """Close all connections."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        if self._reading is not None:
            self._reading.dispose()
        self._writing.dispose()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            translated = self.dialect.translate(exc)
            if translated is None:
                raise
            raise translated from exc


def open_database(database: str | Path | None, *, sealer: Sealer, busy_timeout: float) -> Database:
    """Open a database, make its tables or migrate them, and see that its secrets open.

    Args:
        database: a file, a "sqlite:///" URL, or None for one in memory.
        sealer: what the signing secrets are sealed with.
        busy_timeout: seconds to wait for another process that is writing.

    Raises:
        DatabaseUnusableError: or a child of it; the database is left as it is.
        ValueError: an argument that has no meaning.
    """
    if isinstance(busy_timeout, bool) or not isinstance(busy_timeout, int | float) or not 0 <= busy_timeout < math.inf:
        raise ValueError(f"busy_timeout must be a finite number of seconds of at least 0, not {busy_timeout!r}")
    path = _path(database)
    dialect = SQLite()
    if path is not None:
        check_file(path)
    writing = engine(path, busy_timeout=busy_timeout, writes=True)
    try:
        if path is not None:
            dialect.prepare(writing, path)
        with writing.begin() as connection:
            migrate(connection, where=str(path or "in memory"))
            _check_secrets(connection, sealer)
    except sa.exc.DBAPIError as exc:
        writing.dispose()
        raise dialect.refusal(exc, path) from exc
    except BaseException:
        writing.dispose()
        raise
    reading = None if path is None else engine(path, busy_timeout=busy_timeout, writes=False)
    return Database(dialect, sealer, writing, reading)


def _path(database: str | Path | None) -> Path | None:
    if database is None or isinstance(database, Path):
        return database
    if not isinstance(database, str) or not database:
        raise ValueError(f"database must be a file or a sqlite:/// URL, not {database!r}")
    if database.startswith(_SQLITE_URL):
        name = database.removeprefix(_SQLITE_URL)
        return None if name in {"", ":memory:"} else Path(name)
    if "://" in database:
        scheme = database.partition("://")[0]
        raise DatabaseUnusableError(f"database must be a file or a sqlite:/// URL; {scheme!r} is not known here")
    return Path(database)


def _check_secrets(connection: sa.Connection, sealer: Sealer) -> None:
    """Open the secrets of one sealed row, so that a wrong key stops the start instead of a delivery."""
    table = schema.endpoints
    sealed = sa.select(table).where(table.c.secrets_sealed, table.c.deleted_at.is_(None)).limit(1)
    for row in connection.execute(sealed).mappings():
        rows.endpoint(row, sealer)
