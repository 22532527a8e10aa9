"""What a test of `resilience` may ask for by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resilience import telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def events() -> Iterator[list[telemetry.Event]]:
    """Collect the events of a test."""
    found: list[telemetry.Event] = []
    unsubscribe = telemetry.subscribe(found.append)
    yield found
    unsubscribe()
