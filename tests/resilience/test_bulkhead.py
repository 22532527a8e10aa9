"""Bulkhead: so many at a time. How calls wait, and that permits come back, is in test_queueing."""

from __future__ import annotations

import pytest

from resilience import Bulkhead
from tests.resilience.support import NOT_A_COUNT, assert_refuses, brief


@pytest.mark.parametrize("bad", NOT_A_COUNT, ids=brief)
def test_refuses_bad_counts(bad: object) -> None:
    """A count that is none is a ValueError that names it."""
    assert_refuses("max_concurrent", bad, Bulkhead)


@pytest.mark.anyio
async def test_permits_are_those_of_its_argument() -> None:
    """As many calls as it was made for are inside at a time; the permit of each comes back, whatever it returned."""
    bulkhead = Bulkhead(2, name="pool")
    assert (bulkhead.max_concurrent, bulkhead.available) == (2, 2)

    @bulkhead
    async def nested(depth: int) -> int:
        return bulkhead.available if depth == 0 else await nested(depth - 1)

    assert await nested(1) == 0
    assert bulkhead.available == 2
