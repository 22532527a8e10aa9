"""A store in a file for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from webhook_adapter.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the database is."""
    return tmp_path / "data" / "webhooks.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """Return a store in a file."""
    opened = Store.open(path)
    yield opened
    opened.close()
