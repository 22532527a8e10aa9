"""A real server that is killed, paused and started again, at one address."""

from __future__ import annotations

import secrets
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import redis

from tests.resilience.support import until_blocking
from tests.servers import START_ATTEMPTS, _free_port, _plain_environment

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

Client: TypeAlias = "redis.Redis"


class UnreliableServer:
    """A server of one test; what it held is gone whenever it is started again."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._password = secrets.token_urlsafe(16)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, whether it runs or not."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def client(self) -> Client:
        """Return a client that tries once."""
        return redis.Redis.from_url(self.url)

    def start(self, *options: str) -> None:
        """Start it, empty, and wait until it answers, if only that it is loading."""
        settings = {"bind": "127.0.0.1", "port": self._port, "save": "", "requirepass": self._password}
        place = Path(self._folder.name)
        lines = [f'{key} "{value}"\n' for key, value in {**settings, "dir": place}.items()]
        (place / "server.conf").write_text("".join(lines), encoding="utf-8")
        self._process = subprocess.Popen(
            [self._program, place / "server.conf", *options],
            cwd=place,
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until_blocking(lambda: self._answers() or not self.running)

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                client.ping()
            except redis.exceptions.BusyLoadingError:
                return True
            except redis.RedisError:
                return False
            return True

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def pause(self) -> None:
        """Let it stand still: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def __enter__(self) -> Self:
        """Start it on a free port."""
        for _ in range(START_ATTEMPTS):
            self._port = _free_port()
            self.start()
            if self.running:
                return self
        msg = f"{self._program} does not start"
        raise RuntimeError(msg)

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and leave nothing behind."""
        if self.running:
            with suppress(ProcessLookupError):
                self.kill()
        self._folder.cleanup()
