"""What stops the start with one clear sentence: files, versions, damage and keys; and how secrets are kept."""

from __future__ import annotations

import math
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import attrs
import pytest

from tests.adapter.store.support import NOW, SECRET, a_message, an_endpoint
from webhook_adapter.store import (
    DatabaseCorruptError,
    DatabaseTooNewError,
    DatabaseUnusableError,
    SecretKeyError,
    Store,
    schema,
    sqlite,
)
from webhook_adapter.store.migrations import migrate
from webhook_adapter.store.sealing import Sealer

if TYPE_CHECKING:
    from pathlib import Path

    import sqlalchemy as sa

KEY = "a random text of some length"


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A path below a file is no folder; the sentence names the database and the reason."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DatabaseUnusableError, match=r"file/db cannot be written: (Not a directory|File exists)"):
        Store.open(tmp_path / "file" / "db")


def test_a_folder_as_the_file_is_refused(tmp_path: Path) -> None:
    """A database cannot be a folder."""
    with pytest.raises(DatabaseUnusableError, match="cannot be written"):
        Store.open(tmp_path)


def test_a_file_that_is_no_database_is_refused_and_kept(path: Path) -> None:
    """F11: nothing is ever recreated silently."""
    path.parent.mkdir()
    path.write_bytes(b"my only copy of something else " * 100)
    before = path.read_bytes()
    with pytest.raises(DatabaseCorruptError, match="damaged or is no database"):
        Store.open(path)
    assert path.read_bytes() == before


@pytest.mark.anyio
async def test_a_damaged_database_is_refused(path: Path) -> None:
    """F11: pages that were overwritten are found at the start."""
    store = Store.open(path)
    for number in range(200):
        await store.accept(a_message(data=number), now=NOW)
    store.close()
    damaged = bytearray(path.read_bytes())  # noqa: ASYNC240 - a small file
    for page in range(2, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 512] = b"\xa5" * 512
    path.write_bytes(damaged)  # noqa: ASYNC240 - a small file
    with pytest.raises(DatabaseCorruptError, match="restore it from a backup"):
        Store.open(path)


def test_a_newer_database_is_refused_and_kept(path: Path) -> None:
    """A database that a later version wrote is left as it is."""
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE webhook_schema SET version = version + 1")
        connection.commit()
    with pytest.raises(DatabaseTooNewError, match=f"its schema is {schema.VERSION + 1}, this code knows"):
        Store.open(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM webhook_schema").fetchall() == [(schema.VERSION + 1,)]


def test_steps_lead_from_version_to_version(path: Path) -> None:
    """An older database goes through every step that is missing, and through none twice."""
    Store.open(path).close()
    done: list[int] = []
    steps = {start: lambda _connection, start=start: done.append(start) for start in range(1, 9)}
    engine = sqlite.engine(path, busy_timeout=1.0, writes=True)
    for target in (3, 3, 5):
        with engine.begin() as connection:
            migrate(connection, where="here", target=target, steps=steps)
    engine.dispose()
    assert done == [1, 2, 3, 4]


def test_a_step_that_fails_leaves_the_old_version_whole(path: Path) -> None:
    """F6: a migration happens whole or not at all."""
    Store.open(path).close()

    def fail(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half_way (id INTEGER)")
        connection.exec_driver_sql("DROP TABLE webhook_attempts")
        raise ZeroDivisionError

    engine = sqlite.engine(path, busy_timeout=1.0, writes=True)
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        migrate(connection, where="here", target=2, steps={1: fail})
    engine.dispose()
    store = Store.open(path)
    store.close()
    with closing(sqlite3.connect(path)) as raw:
        names = {row[0] for row in raw.execute("SELECT name FROM sqlite_master")}
    assert "webhook_attempts" in names
    assert "half_way" not in names


def test_the_database_is_durable_and_private(path: Path) -> None:
    """WAL, synchronous=FULL, foreign keys, and a file that only its owner reads."""
    store = Store.open(path)
    with store._writer._database._writing.connect() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    store.close()
    assert pragmas == ["wal", 2, 1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the statements need is checked before anything is made."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(DatabaseUnusableError, match="too old"):
        Store.open(path)
    assert not path.exists()


def test_a_file_system_without_wal_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where WAL cannot be had, the promise of the writer cannot be kept."""
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = MEMORY"))
    engine = sqlite.engine(None, busy_timeout=1.0, writes=True)
    path.parent.mkdir()
    path.touch()
    with pytest.raises(DatabaseUnusableError, match="WAL"):
        sqlite.SQLite().prepare(engine, path)
    engine.dispose()


def test_names_of_databases(tmp_path: Path) -> None:
    """A file, a URL or nothing; another database's URL is refused."""
    for given in (str(tmp_path / "a.db"), f"sqlite:///{tmp_path / 'b.db'}", "sqlite://", "sqlite:///:memory:"):
        if given == "sqlite://":
            continue
        Store.open(given).close()
    assert (tmp_path / "a.db").exists()
    assert (tmp_path / "b.db").exists()
    with pytest.raises(DatabaseUnusableError, match="'postgresql' is not known here"):
        Store.open("postgresql://user:canary@host/db")
    with pytest.raises(ValueError, match="database must be"):
        Store.open("")


@pytest.mark.parametrize("name", ["busy_timeout", "max_batch", "readers"])
@pytest.mark.parametrize("value", [-1, True, math.nan, math.inf, "1"])
def test_arguments_must_mean_something(name: str, value: object) -> None:
    """A number that is none is refused, naming the argument and the value."""
    with pytest.raises(ValueError, match=name):
        Store.open(None, **{name: value})  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_secrets_are_sealed_at_rest(path: Path) -> None:
    """WH12: with a key no secret is in the file, and they open again with that key alone."""
    store = Store.open(path, secret_key=KEY)
    await store.add_endpoint(an_endpoint())
    await store.update_endpoint("ep_1", lambda each: attrs.evolve(each, description="x"), now=NOW)
    store.close()
    for file in path.parent.iterdir():
        assert SECRET.encode() not in file.read_bytes()
    with pytest.raises(SecretKeyError, match="set secret_key"):
        Store.open(path)
    with pytest.raises(SecretKeyError, match="another secret_key") as caught:
        Store.open(path, secret_key=KEY + "!")
    assert KEY not in repr(caught.value)
    again = Store.open(path, secret_key=KEY)
    assert (await again.get_endpoint("ep_1")).secrets == an_endpoint().secrets
    again.close()


@pytest.mark.anyio
async def test_secrets_from_before_the_key_still_open(path: Path) -> None:
    """A key that comes later opens what was stored without, and seals what is written from then on."""
    store = Store.open(path)
    await store.add_endpoint(an_endpoint())
    store.close()
    store = Store.open(path, secret_key=KEY)
    assert (await store.get_endpoint("ep_1")).secrets == an_endpoint().secrets
    await store.update_endpoint("ep_1", lambda each: each, now=NOW)
    store.close()
    with pytest.raises(SecretKeyError):
        Store.open(path)


def test_what_is_sealed_opens_for_its_row_alone() -> None:
    """What was sealed for one endpoint does not open for another, nor changed in one bit."""
    sealer = Sealer(KEY)
    sealed = sealer.seal(b"plain", belongs_to="ep_1")
    assert sealer.open(sealed, sealed=True, belongs_to="ep_1") == b"plain"
    for broken, row in ((sealed, "ep_2"), (sealed[:-1] + bytes([sealed[-1] ^ 1]), "ep_1"), (b"", "ep_1")):
        with pytest.raises(SecretKeyError):
            sealer.open(broken, sealed=True, belongs_to=row)
    assert sealer.seal(b"plain", belongs_to="ep_1") != sealed


def test_a_weak_key_is_refused() -> None:
    """A short text is no key; the error does not show it."""
    with pytest.raises(ValueError, match="at least 16") as caught:
        Sealer("canary")
    assert "canary" not in str(caught.value)


def test_a_key_without_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error at the start, instead of secrets in the clear."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(SecretKeyError, match="pip install"):
        Sealer(KEY)
