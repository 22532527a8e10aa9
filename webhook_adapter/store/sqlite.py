"""SQLite: how it is opened, what its errors mean, and its own form of the statements that run for every delivery.

Rules of this module:

* WAL, so that readers never wait; `synchronous=FULL`, so that what is committed survives a power cut; one writer at a
  time, waited for no longer than the busy timeout; foreign keys on.
* Every transaction that may write takes the write lock when it begins: none can fail half way for want of it.
* A statement takes all rows of a batch at once, as a JSON array or a list of VALUES. The driver gives the interpreter's
  lock away at every step of a statement, and waits to have it back while an event loop is busy: fewer steps, fewer
  waits.
  Instants are bound, or written out by printf: JSON would round them.
"""

from __future__ import annotations

import functools
import json
import sqlite3
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs
import sqlalchemy as sa

from webhook_adapter.model import Delivery, DeliveryState
from webhook_adapter.store.dialect import AttemptRow, DeliveryRow, Ended, Leased, MessageRow, Settled, Stream
from webhook_adapter.store.errors import (
    DatabaseCorruptError,
    DatabaseUnusableError,
    StoreError,
    StoreUnavailableError,
)
from webhook_adapter.store.rows import to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["SQLite", "check_file", "engine"]

_OLDEST = (3, 35, 0)
_MEMORY = ":memory:"
_LARGEST_CHECKED = 128 * 1024 * 1024
# Rows to one statement; with thirteen columns far below the least limit on parameters, 999.
_CHUNKS = (64, 32, *range(16, 0, -1))
_KEPT_STATEMENTS = 256

# Primary result codes, https://www.sqlite.org/rescode.html
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "the database is locked by another process",
    sqlite3.SQLITE_LOCKED: "the database is locked by another connection",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the database cannot be read or written",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened",
    sqlite3.SQLITE_READONLY: "the database cannot be written",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
    sqlite3.SQLITE_INTERRUPT: "the database was interrupted",
    sqlite3.SQLITE_PERM: "the database may not be accessed",
}

_PRAGMAS = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -32768",
    # A checkpoint costs two more fsyncs: let it come less often, and the log not stay large.
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 67108864",
)

_Bound: TypeAlias = "str | bytes | float | int | bool | None"
_Row = TypeVar("_Row")


def check_file(path: Path) -> None:
    """Make the file if there is none, readable by its owner alone, or raise DatabaseUnusableError."""
    if sqlite3.sqlite_version_info < _OLDEST:
        raise DatabaseUnusableError(
            f"SQLite {sqlite3.sqlite_version} is too old: at least {'.'.join(map(str, _OLDEST))} is needed"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
        with path.open("r+b"):
            pass
    except OSError as exc:
        raise DatabaseUnusableError(f"the database {path} cannot be written: {exc.strerror or exc}") from exc


def engine(path: Path | None, *, busy_timeout: float, writes: bool) -> sa.Engine:
    """Return an engine whose transactions take the write lock at once if it `writes`; None is a database in memory."""
    made = sa.create_engine(
        sa.URL.create("sqlite", database=_MEMORY if path is None else str(path)),
        connect_args={"timeout": busy_timeout, "check_same_thread": False, "cached_statements": _KEPT_STATEMENTS},
        poolclass=sa.StaticPool if path is None else sa.QueuePool,
        hide_parameters=True,
    )

    @sa.event.listens_for(made, "connect")
    def set_up(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
        # The driver would otherwise begin transactions as it sees fit.
        connection.isolation_level = None
        for pragma in _PRAGMAS:
            connection.execute(pragma)

    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    @sa.event.listens_for(made, "begin")
    def begin_transaction(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return made


@attrs.frozen
class SQLite:
    """The dialect of SQLite."""

    def prepare(self, writing: sa.Engine, path: Path) -> None:
        """Look through a file for damage and put it into WAL mode; raise DatabaseUnusableError if that fails."""
        try:
            with writing.connect() as connection:
                driver = connection.connection.driver_connection
                assert driver is not None  # noqa: S101 - a connection that is open has one
                mode = driver.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                if mode != "wal":
                    raise DatabaseUnusableError(f"the database {path} is on a file system that WAL does not work on")
                if path.stat().st_size <= _LARGEST_CHECKED:
                    found = driver.execute("PRAGMA quick_check(1)").fetchone()[0]
                    if found != "ok":
                        raise DatabaseCorruptError(f"the database {path} is damaged; restore it from a backup")
        except (sqlite3.Error, sa.exc.DBAPIError) as exc:
            raise self.refusal(exc, path) from exc

    def refusal(self, error: Exception, path: Path | None) -> StoreError:
        """Return why a database cannot be opened."""
        code = _primary_code(error)
        if code in _CORRUPT:
            return DatabaseCorruptError(f"the database {path} is damaged or is no database; restore it from a backup")
        why = _UNAVAILABLE.get(code, "it cannot be read") if code is not None else "it cannot be read"
        return DatabaseUnusableError(f"the database {path} cannot be opened: {why}")

    def translate(self, error: Exception) -> StoreError | None:
        """Return what an error of the driver means for the store."""
        code = _primary_code(error)
        if code in _CORRUPT:
            return DatabaseCorruptError("the database is damaged; restore it from a backup")
        if code is not None and code in _UNAVAILABLE:
            return StoreUnavailableError(_UNAVAILABLE[code])
        return None

    def foreign_changes(self, connection: sa.Connection) -> int:
        """Return SQLite's own number for that."""
        changes: int = _run(connection, "PRAGMA data_version").fetchone()[0]
        return changes

    def insert_messages(self, connection: sa.Connection, rows: Sequence[MessageRow]) -> None:
        """Insert messages."""
        _insert(connection, _INSERT_MESSAGES, rows)

    def insert_message_if_new(self, connection: sa.Connection, row: MessageRow) -> bool:
        """Insert a message unless its owner and key are known."""
        statement = f"{_INSERT_MESSAGES.head} {_INSERT_MESSAGES.group} ON CONFLICT DO NOTHING"
        return _run(connection, statement, row).rowcount == 1

    def insert_deliveries(self, connection: sa.Connection, rows: Sequence[DeliveryRow]) -> None:
        """Insert pending deliveries."""
        _insert(connection, _INSERT_DELIVERIES, rows)

    def insert_attempts(self, connection: sa.Connection, rows: Sequence[AttemptRow]) -> None:
        """Insert attempts."""
        _insert(connection, _INSERT_ATTEMPTS, rows)

    def take_sequences(self, connection: sa.Connection, wanted: Mapping[str, int]) -> dict[str, int]:
        """Raise the ordering counters of endpoints by so many; return the last number before each."""
        before = {}
        for endpoint_id, count in wanted.items():
            last: int = _run(connection, _TAKE_SEQUENCES, (count, endpoint_id)).fetchone()[0]
            before[endpoint_id] = last - count
        return before

    def hasten(self, connection: sa.Connection, due: Mapping[str, float]) -> None:
        """Let the queues of endpoints be looked at by these instants at the latest."""
        for part in _chunks(list(due.items())):
            _run(connection, _hasten(len(part)), tuple(value for pair in part for value in pair))

    def requeue(self, connection: sa.Connection, endpoint_ids: Collection[str], now: float) -> None:
        """Compute anew when the queues of endpoints are to be looked at, and not before `now`."""
        _run(connection, _REQUEUE, (now, to_json(list(endpoint_ids))))

    def due_endpoints(
        self, connection: sa.Connection, *, now: float, excluded: Collection[str], limit: int
    ) -> list[str]:
        """Return the endpoints for which something may be due, the ones served longest ago first."""
        found = _run(connection, _DUE_ENDPOINTS, (now, to_json(list(excluded)), limit))
        return [row[0] for row in found]

    def next_due_at(self, connection: sa.Connection, excluded: Collection[str]) -> float | None:
        """Return the lowest instant at which a queue is to be looked at."""
        found = _run(connection, _NEXT_DUE_AT, (to_json(list(excluded)),)).fetchone()
        return None if found is None else float(found[0])

    def due_deliveries(
        self, connection: sa.Connection, quotas: Mapping[str, int], *, now: float, until: float
    ) -> dict[str, list[Delivery]]:
        """Return what is due and has not expired, up to each endpoint's quota, as it will be once it is leased."""
        found: dict[str, list[Delivery]] = {endpoint_id: [] for endpoint_id in quotas}
        for part in _chunks(list(quotas.items())):
            values = tuple(value for endpoint_id, quota in part for value in (endpoint_id, now, now, quota))
            # The order of an array is not promised; the number of the row makes it that of acceptance.
            for row in sorted(_array(connection, _due_deliveries(len(part)), values), key=_by_due_at):
                found[row[2]].append(
                    Delivery(
                        id=row[0],
                        message_id=row[1],
                        endpoint_id=row[2],
                        state=DeliveryState.LEASED,
                        due_at=float(row[3]),
                        expires_at=None if row[4] is None else float(row[4]),
                        attempts=row[5],
                        round_attempts=row[6],
                        lease_token=row[7] + 1,
                        lease_until=until,
                        sequence=row[8],
                        ordering_key=row[9],
                        created_at=float(row[10]),
                    )
                )
        return found

    def lease(self, connection: sa.Connection, delivery_ids: Sequence[str], *, until: float) -> None:
        """Lease deliveries that `due_deliveries` has just returned, each under a new token."""
        _run(connection, _LEASE, (until, to_json(delivery_ids)))

    def leased(self, connection: sa.Connection, delivery_ids: Collection[str]) -> dict[str, Leased]:
        """Return those of the deliveries that are leased."""
        found = _array(connection, _LEASED, (to_json(list(delivery_ids)),))
        return {row[0]: Leased(row[1], row[2], row[3], row[4]) for row in found}

    def expired(self, connection: sa.Connection, *, now: float, limit: int) -> list[Ended]:
        """Return pending deliveries whose time is over."""
        return [(row[0], row[1], row[2]) for row in _array(connection, _EXPIRED, (now, limit))]

    def settle(self, connection: sa.Connection, settled: Sequence[Settled]) -> None:
        """End leases that `leased` has just confirmed."""
        for part in _chunks(settled):
            values: list[_Bound] = []
            for each in part:
                values += (
                    each.delivery_id,
                    each.state.value,
                    each.due_at,
                    each.attempts,
                    each.round_attempts,
                    each.reason,
                    each.finished_at,
                )
            _run(connection, _settle(len(part)), tuple(values))

    def promote(self, connection: sa.Connection, streams: Collection[Stream]) -> None:
        """In each stream, let the first that has not finished go, if it is held."""
        _run(connection, _PROMOTE, (to_json(list(streams)),))

    def add_counts(self, connection: sa.Connection, deltas: Mapping[str, int]) -> None:
        """Add to the counters."""
        groups = ",".join(["(?,?)"] * len(deltas))
        _run(
            connection,
            f"INSERT INTO webhook_counts (name, value) VALUES {groups}"  # noqa: S608 - question marks
            " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            tuple(value for pair in deltas.items() for value in pair),
        )


def _run(connection: sa.Connection, statement: str, values: Sequence[_Bound] = ()) -> sqlite3.Cursor:
    """Execute a statement by the driver itself: what SQLAlchemy adds costs more than many of them do."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - tells mypy which driver it is
    return driver.execute(statement, values)


def _array(connection: sa.Connection, statement: str, values: Sequence[_Bound]) -> list[list[Any]]:
    """Return the rows of a statement that makes one JSON array of them: one step of the driver, however many."""
    rows: list[list[Any]] = json.loads(_run(connection, statement, values).fetchone()[0])
    return rows


def _by_due_at(row: list[Any]) -> tuple[float, int]:
    return float(row[3]), row[11]


def _primary_code(error: BaseException | None) -> int | None:
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


@attrs.frozen
class _Insert:
    head: str
    group: str


def _insert(connection: sa.Connection, statement: _Insert, rows: Sequence[tuple[_Bound, ...]]) -> None:
    for part in _chunks(rows):
        _run(
            connection,
            _repeated(statement, len(part)),
            part[0] if len(part) == 1 else tuple(value for row in part for value in row),
        )


def _chunks(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    """Cut rows into parts of few different sizes, so that there are few statements to prepare and to keep."""
    start = 0
    for size in _CHUNKS:
        while size <= len(rows) - start:
            yield rows[start : start + size]
            start += size


@functools.cache
def _repeated(statement: _Insert, count: int) -> str:
    return f"{statement.head} {','.join([statement.group] * count)}"


@functools.cache
def _hasten(count: int) -> str:
    return (
        f"WITH due (endpoint_id, at) AS (VALUES {','.join(['(?,?)'] * count)})"  # noqa: S608 - question marks
        " UPDATE webhook_queues AS q SET next_at = due.at FROM due"
        " WHERE q.endpoint_id = due.endpoint_id AND (q.next_at IS NULL OR q.next_at > due.at)"
    )


@functools.cache
def _due_deliveries(count: int) -> str:
    return f"SELECT json_group_array(json(row)) FROM ({'UNION ALL'.join([_DUE_DELIVERIES] * count)})"  # noqa: S608


@functools.cache
def _settle(count: int) -> str:
    return (
        "WITH ended (id, state, due_at, attempts, round_attempts, reason, finished_at)"  # noqa: S608 - question marks
        f" AS (VALUES {','.join(['(?,?,?,?,?,?,?)'] * count)})"
        " UPDATE webhook_deliveries AS d SET state = ended.state, due_at = ended.due_at, attempts = ended.attempts,"
        " round_attempts = ended.round_attempts, reason = ended.reason, finished_at = ended.finished_at,"
        " lease_until = NULL FROM ended WHERE d.id = ended.id"
    )


_INSERT_MESSAGES = _Insert(
    "INSERT INTO webhook_messages (id, owner, event_type, body, fingerprint, idempotency_key, ordering_key,"
    " occurred_at, accepted_at, deliver_at, expires_at, channels, metadata) VALUES",
    "(?,?,?,?,?,?,?,?,?,?,?,?,?)",
)
_INSERT_DELIVERIES = _Insert(
    "INSERT INTO webhook_deliveries (id, message_id, endpoint_id, state, due_at, expires_at, stream, sequence, held,"
    " ordering_key, created_at) VALUES",
    "(?,?,?,'pending',?,?,?,?,?,?,?)",
)
_INSERT_ATTEMPTS = _Insert(
    "INSERT INTO webhook_attempts (id, delivery_id, number, started_at, duration, status_code, failure, error,"
    " response_body) VALUES",
    "(?,?,?,?,?,?,?,?,?)",
)
_TAKE_SEQUENCES = (
    "UPDATE webhook_queues SET last_sequence = last_sequence + ? WHERE endpoint_id = ? RETURNING last_sequence"
)
_REQUEUE = """
UPDATE webhook_queues AS q SET next_at = (
    SELECT CASE WHEN e.enabled AND NOT e.paused AND e.deleted_at IS NULL THEN max((
        SELECT d.due_at FROM webhook_deliveries AS d
        WHERE d.endpoint_id = e.id AND d.state = 'pending' AND NOT d.held ORDER BY d.due_at LIMIT 1
    ), e.blocked_until, ?) END
    FROM webhook_endpoints AS e WHERE e.id = q.endpoint_id
) WHERE q.endpoint_id IN (SELECT value FROM json_each(?))
"""
_DUE_ENDPOINTS = """
SELECT endpoint_id FROM webhook_queues
WHERE next_at <= ? AND endpoint_id NOT IN (SELECT value FROM json_each(?)) ORDER BY next_at, endpoint_id LIMIT ?
"""
_NEXT_DUE_AT = """
SELECT next_at FROM webhook_queues
WHERE next_at IS NOT NULL AND endpoint_id NOT IN (SELECT value FROM json_each(?)) ORDER BY next_at LIMIT 1
"""
# One look-up for each endpoint, since a limit cannot be told by a column. Of what is due at the same instant, what was
# accepted first comes first: an index ends with the number of the row.
_DUE_DELIVERIES = """
SELECT * FROM (
    SELECT json_array(id, message_id, endpoint_id, printf('%!.17g', due_at), printf('%!.17g', expires_at), attempts,
        round_attempts, lease_token, sequence, ordering_key, printf('%!.17g', created_at), rowid) AS row
    FROM webhook_deliveries
    WHERE endpoint_id = ? AND state = 'pending' AND NOT held AND due_at <= ?
        AND (expires_at IS NULL OR expires_at > ?)
    ORDER BY due_at, rowid LIMIT ?
)
"""
_LEASE = """
UPDATE webhook_deliveries SET state = 'leased', lease_token = lease_token + 1, lease_until = ?
WHERE id IN (SELECT value FROM json_each(?))
"""
# The plus keeps the planner from walking through everything that is leased.
_LEASED = """
SELECT json_group_array(json_array(id, lease_token, attempts, round_attempts, stream)) FROM webhook_deliveries
WHERE +state = 'leased' AND id IN (SELECT value FROM json_each(?))
"""
_EXPIRED = """
SELECT json_group_array(json_array(id, endpoint_id, stream)) FROM (
    SELECT id, endpoint_id, stream FROM webhook_deliveries
    WHERE finished_at IS NULL AND expires_at IS NOT NULL AND expires_at <= ? AND state = 'pending' LIMIT ?
)
"""
_PROMOTE = """
UPDATE webhook_deliveries SET held = 0 WHERE held AND id IN (
    SELECT (
        SELECT d.id FROM webhook_deliveries AS d
        WHERE d.endpoint_id = json_extract(stream.value, '$[0]') AND d.stream = json_extract(stream.value, '$[1]')
            AND d.stream IS NOT NULL AND d.finished_at IS NULL
        ORDER BY d.sequence LIMIT 1
    ) FROM json_each(?) AS stream
)
"""
