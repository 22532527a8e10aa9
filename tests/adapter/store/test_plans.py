"""What runs for every delivery finds its rows by an index, however long the tables are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from webhook_adapter.store import Store, sqlite

if TYPE_CHECKING:
    from pathlib import Path

STATEMENTS = {
    "due_deliveries": sqlite._due_deliveries(2),
    "lease": sqlite._LEASE,
    "leased": sqlite._LEASED,
    "settle": sqlite._settle(4),
    "promote": sqlite._PROMOTE,
    "requeue": sqlite._REQUEUE,
    "hasten": sqlite._hasten(4),
    "due_endpoints": sqlite._DUE_ENDPOINTS,
    "next_due_at": sqlite._NEXT_DUE_AT,
    "take_sequences": sqlite._TAKE_SEQUENCES,
    "expired": sqlite._EXPIRED,
}
# The index of next instants is walked in its order, up to a limit: that is what it is for.
WALKED = ("SCAN webhook_queues USING COVERING INDEX webhook_queues_next",)


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    """Return the steps that SQLite means to take."""
    values = (None,) * statement.count("?")
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_table_is_scanned(path: Path, name: str) -> None:
    """Each statement searches; none reads a table, or all that is leased or pending, from end to end."""
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        steps = plan(connection, STATEMENTS[name])
    scans = [step for step in steps if step.startswith("SCAN") and "webhook_" in step and step not in WALKED]
    assert scans == []
    assert not any("webhook_deliveries_leased" in step for step in steps)


def test_a_lost_index_is_noticed(path: Path) -> None:
    """A mutant without the index of what is due scans."""
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP INDEX webhook_deliveries_due")
        connection.execute("DROP INDEX webhook_deliveries_stream")
        connection.execute("DROP INDEX webhook_deliveries_dead")
        steps = plan(connection, STATEMENTS["due_deliveries"])
    assert any(step.startswith("SCAN webhook_deliveries") for step in steps)
