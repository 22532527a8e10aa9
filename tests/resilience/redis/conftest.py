"""What a test of the shared guards may ask for by name."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import redis

from tests.resilience.redis.unreliable import UnreliableServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.resilience.redis.unreliable import Client


@pytest.fixture
def prefix() -> str:
    """Give what the keys of this test begin with, and those of no other."""
    return f"test-{uuid4().hex}"


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    """Give a client of the session's server, for what a guard would never do."""
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def server(redis_program: Path) -> Iterator[UnreliableServer]:
    """Give a server of this test's own, running, to be killed, paused and started again."""
    with UnreliableServer(redis_program) as found:
        yield found
