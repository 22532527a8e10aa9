"""The servers that tests may ask for: each starts, answers, and is gone afterwards."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from tests.servers import (
    ServerStartError,
    local_postgres,
    local_redis,
    postgres_from,
    redis_from,
    running_postgres,
    running_redis,
    wheel_postgres,
    wheel_redis,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def ask_postgres(url: str) -> int:
    """Ask a PostgreSQL server for its version as a number."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_setting('server_version_num')::int").fetchone()
    assert row is not None
    version: int = row[0]
    return version


def ask_redis(url: str) -> object:
    """Write a value to a Valkey or Redis server and read it back."""
    with redis.Redis.from_url(url) as client:
        client.set("key", "value")
        return client.get("key")


def is_listening(url: str) -> bool:
    """Tell whether anybody accepts connections where the URL points."""
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname or "", parts.port or 0)) == 0


@pytest.mark.postgres
def test_the_postgres_fixture_answers_a_query(postgres_url: str) -> None:
    """The session's PostgreSQL is one that the store can be written for."""
    assert ask_postgres(postgres_url) >= 140_000


@pytest.mark.redis
def test_the_redis_fixture_answers_a_query(redis_url: str) -> None:
    """The session's Valkey keeps what it is given."""
    assert ask_redis(redis_url) == b"value"


@pytest.mark.postgres
@pytest.mark.parametrize("find", [local_postgres, wheel_postgres])
def test_each_postgres_starts_and_is_gone_afterwards(find: Callable[[], Path | None]) -> None:
    """Installed or from the wheel, as root or not, the server answers while the block runs and leaves nothing."""
    folder = find()
    if folder is None:
        pytest.skip(f"{find.__name__} found no PostgreSQL here")

    with running_postgres(folder) as url:
        assert ask_postgres(url) >= 140_000

    assert not is_listening(url)


@pytest.mark.redis
@pytest.mark.parametrize("find", [local_redis, wheel_redis])
def test_each_redis_starts_and_is_gone_afterwards(find: Callable[[], Path | None]) -> None:
    """Installed or from the wheel, the server answers while the block runs and leaves nothing."""
    program = find()
    if program is None:
        pytest.skip(f"{find.__name__} found no Valkey or Redis here")

    with running_redis(program) as url:
        assert ask_redis(url) == b"value"

    assert not is_listening(url)


def test_a_url_in_the_environment_comes_first() -> None:
    """Whoever names a server gets that one, and nothing is started or looked for."""

    def never() -> Path:
        raise AssertionError

    with postgres_from({"TEST_POSTGRES_URL": "postgresql://there/db"}, programs=(never,)) as url:
        assert url == "postgresql://there/db"
    with redis_from({"TEST_REDIS_URL": "redis://there/1"}, programs=(never,)) as url:
        assert url == "redis://there/1"


@pytest.mark.parametrize("serve", [postgres_from, redis_from])
@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_no_server_at_all_fails_in_ci_and_is_skipped_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[..., object],
    ci: str,
    outcome: type[BaseException],
) -> None:
    """A missing server cannot hide in continuous integration, and says so loudly on a laptop."""
    monkeypatch.setenv("CI", ci)
    context = serve({}, programs=(lambda: None,))

    with pytest.raises(outcome, match=r"^NO .+ SERVER: TEST_\w+ is not set"):
        context.__enter__()  # type: ignore[attr-defined]


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    """A broken installation costs a few tries and then names its own reason."""
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\necho out of luck\n", encoding="utf-8")
    program.chmod(0o755)

    with pytest.raises(ServerStartError, match="out of luck"), running_redis(program):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to step down")
def test_postgres_never_runs_as_root() -> None:
    """As root, the server's processes and files belong to somebody without rights."""
    folder = local_postgres() or wheel_postgres()
    if folder is None:
        pytest.skip("no PostgreSQL here")

    with running_postgres(folder) as url, psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_setting('data_directory')").fetchone()
        assert row is not None
        assert Path(row[0]).stat().st_uid != 0
